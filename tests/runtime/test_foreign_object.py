"""Objects of the DCVC family that no adapter knows: their own code on compiled networks."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec import UsageError
from sparsecodec.models import DCVCRTVideo, VideoCodec, create
from sparsecodec.nn import BitEstimator
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.adapters import DCVideoObject
from sparsecodec.runtime.foreign_object import compile_object


class Native:
    """As a coder of another package: it cannot be copied."""

    def __reduce__(self):
        raise TypeError("cannot pickle 'Native' object")


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(0.1))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, quant_step: Tensor | None = None) -> Tensor:
        out = self.act(self.conv(x)) + x
        return out if quant_step is None else out * quant_step


class Branching(nn.Module):
    """Cannot be traced; what it calls can."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(channels) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if x.abs().max() < 1e6:
                x = block(x)
        return x


class Codec(nn.Module):
    """A toy with the traits of the family's objects: keyword arguments, repeated calls, lists, a coder."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), Block(16))
        self.prior = nn.Sequential(nn.Conv2d(16, 16, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 16, 1))
        self.mix = Branching(16)
        self.dec = nn.Sequential(Block(16), nn.Conv2d(16, 12, 1), nn.PixelShuffle(2))
        self.bit_estimator_z = BitEstimator(16)
        self.q = nn.Parameter(torch.tensor(0.7))
        self.coder = Native()
        self.dpb: list[Tensor] = []

    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.enc[1](self.enc[0](x), quant_step=self.q.view(1, 1, 1, 1)) if self.dpb else self.enc(x)
        first, second = self.prior(y), self.prior(y.flip(3))  # a compiled network writes both to one buffer
        y = self.mix(y + (first - second).view(y.shape))
        self.dpb.append(y)
        return y, self.dec(y)

    def compress(self, x: Tensor) -> dict[str, Tensor]:
        y, x_hat = self.code(x)
        return {"bit_stream": y, "x_hat": x_hat}

    def decompress(self, bit_stream: Tensor) -> dict[str, Tensor]:
        return {"x_hat": self.dec(bit_stream)}


@pytest.fixture
def codec() -> Codec:
    torch.manual_seed(0)
    return Codec().eval()


@pytest.fixture
def x(photo: Tensor) -> Tensor:
    return photo[:, :, :48, :64].contiguous()


def test_its_own_code_runs_on_compiled_networks(codec: Codec, x: Tensor):
    compiled = compile_codec(codec)
    assert isinstance(compiled, Codec) and type(compiled).__name__ == "Codec"
    for _ in range(2):  # the second time by keywords and indexes
        expected, got = codec.compress(x), compiled.compress(x)
        torch.testing.assert_close(got["x_hat"], expected["x_hat"], atol=1e-5, rtol=1e-4)
        assert got["x_hat"].is_contiguous() and not got["x_hat"].requires_grad
    assert torch.equal(compiled.decompress(got["bit_stream"])["x_hat"], got["x_hat"])

    backends = {row.paths[0]: row.backend for row in compiled.report.rows if row.paths}
    for path in ("enc.0", "prior.0", "mix.blocks.1.conv.0", "dec.1"):
        assert backends[path] not in ("torch", "reference"), path
    (left,) = [row for row in compiled.report.rows if row.transform == "mix"]
    assert left.backend == "torch" and "cannot be traced" in left.reason
    assert compiled.report.macs > 0


def test_the_object_is_copied_and_keeps_its_keys(codec: Codec, x: Tensor):
    before = {key: value.clone() for key, value in codec.state_dict().items()}
    compiled = compile_codec(codec, dtype=torch.float32)
    compiled.compress(x)
    assert list(compiled.state_dict()) == list(before)
    assert all(torch.equal(before[key], value) for key, value in compiled.state_dict().items())
    assert codec.dpb == [] and compiled.coder is codec.coder
    assert all(parameter.requires_grad for parameter in codec.parameters())
    with torch.no_grad():
        codec.dec[1].weight.zero_()
        codec.dec[1].bias.zero_()
    codec.dpb, compiled.dpb = [], []
    assert compiled.compress(x)["x_hat"].abs().max() > 0


def test_a_result_stays_when_the_network_is_called_again(codec: Codec, x: Tensor):
    compiled = compile_codec(codec)
    first = compiled.dec(torch.ones(1, 16, 8, 8))
    kept = first.clone()
    compiled.dec(torch.zeros(1, 16, 8, 8))
    assert torch.equal(first, kept)


class Predicting(Codec):
    """Its frames have references; scripts of the published software make these, and what they give it, float16."""

    def encode_decode(self, x: Tensor, dpb: dict[str, Tensor | None], *, q: Tensor) -> dict[str, Tensor]:
        y = self.enc[1](self.enc[0](x), quant_step=q * self.q)
        return {"ref_y": y if dpb["ref_y"] is None else self.mix(y) + self.prior(dpb["ref_y"])}


def predicted(codec: nn.Module, dtype: torch.dtype, x: Tensor) -> Tensor:
    dpb, given = {"ref_y": None}, x.half().to(dtype)
    for frame in (given, given.flip(3)):
        dpb = codec.encode_decode(frame, dpb, q=torch.full((1, 1, 1, 1), 0.5, dtype=dtype))
        dpb = {"ref_y": dpb["ref_y"].half().to(dtype)}
    return dpb["ref_y"]


@pytest.mark.parametrize("when", ["used", "compiled", "before", "original"])
def test_half_leaves_a_compiled_object_what_it_is(x: Tensor, when: str):
    torch.manual_seed(0)
    model = Predicting().eval().half().float()  # with weights that halves hold, too
    settings = {"device": torch.device("cpu"), "dtype": None, "original": when == "original"}
    expected = predicted(compile_object(model, **settings), torch.float32, x)
    compiled = compile_object(model.half() if when == "before" else model, **settings)
    if when == "used":
        predicted(compiled, torch.float32, x)
    assert torch.equal(predicted(compiled.half(), torch.float16, x).float(), expected)
    assert compiled.compress(x.half())["x_hat"].dtype == torch.float32
    assert {value.dtype for value in compiled.parameters()} == {torch.float32}
    if when != "original":
        assert compiled.report.notes[-1].startswith("100.0%")


class HalfFit(nn.Module):
    """Calls one network as kernels take it, and one as they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.fit, self.left = nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 2, 3, stride=2)
        self.bit_estimator_z = BitEstimator(8)

    def compress(self, x: Tensor) -> Tensor:
        return self.left(self.fit(x)[0])

    decompress = compress


def test_the_report_counts_what_was_left(photo: Tensor):
    compiled = compile_codec(HalfFit().eval())
    for size in (16, 8):
        compiled.compress(photo[:, :1, :size, :4].expand(-1, 8, -1, -1))
    report = compiled.report
    fit, left = report.rows
    assert (fit.macs, fit.backend) == (8 * 8, "cpu")
    assert (left.macs, left.backend) == (8 * 2 * 9, "torch") and "called with torch.float32 [8, 8, 4]" in left.reason
    assert report.macs == 64 + 144
    assert report.notes[-1].startswith(f"{64 / (64 + 144):.1%} of the multiply-accumulates")


def test_other_precisions_and_other_models_are_refused(codec: Codec):
    with pytest.raises(UsageError, match="needs float32"):
        compile_codec(codec, dtype=torch.bfloat16)
    lame = copy.copy(codec)
    lame._modules = {name: module for name, module in codec._modules.items() if name != "bit_estimator_z"}
    with pytest.raises(UsageError, match="no known family"):
        compile_codec(lame)


def test_foreign_objects_of_a_family_of_ours_become_that(photo: Tensor):
    class DMC(nn.Module):
        """As the published class: its parts, and none of our names."""

    torch.manual_seed(0)
    model = create("dcvc-rt-tiny").inter.eval().requires_grad_(False)
    foreign = DMC()
    for name, child in [*model.named_children(), *model.named_parameters(recurse=False)]:
        setattr(foreign, name, child)
    compiled = compile_codec(foreign)
    assert isinstance(compiled, DCVCRTVideo)
    compiled.update(0.12)
    clip = [F.pad(photo[:, :, t : t + 40, t : t + 40], (0, 8, 0, 8), mode="replicate") for t in (0, 2)]
    receiver: Callable = compile_codec(foreign)
    receiver.update(0.12)
    for end in (compiled, receiver):
        end.clear_dpb()
        end.add_ref_frame(None, clip[0])
    payload = compiled.compress(clip[1], 20)["bit_stream"]
    receiver.decompress(payload, {"height": 40, "width": 40, "ec_part": 0}, 20)
    assert torch.equal(compiled.dpb[0].feature, receiver.dpb[0].feature)
    assert not isinstance(compile_codec(VideoCodec(create("dcvc-rt-tiny").intra, foreign)), nn.Module)


class GaussianEncoder:
    """Where a class's module is, its coder is imported from."""


class PartCodec(nn.Module):
    """With what tells a video model of DCVC-DC from others: it imports a coder and waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        for name in DCVideoObject.NEEDS:
            if "_q_" not in name and name != "bit_estimator_z":
                setattr(self, name, nn.Conv2d(4, 4, 1))
        for name in ("y_q_basic_enc", "mv_y_q_basic_enc", "y_q_basic_dec", "mv_y_q_basic_dec"):
            setattr(self, name, nn.Parameter(torch.ones(1)))
        self.bit_estimator_z = BitEstimator(4)
        self.gaussian_encoder, self.encoder = GaussianEncoder(), None

    def update(self, force: bool = False) -> None:
        package = GaussianEncoder.__module__.rpartition(".")[0]
        self.encoder = importlib.import_module(f"{package}.MLCodec_rans".lstrip(".")).RansEncoder(False, 1)

    def compress(self, x: Tensor) -> Tensor:
        torch.cuda.synchronize(device=x.device)
        return self.align(x)

    def decompress(self, x: Tensor) -> Tensor:
        return super().__getattr__("align")(x)


def test_neither_a_coder_nor_a_gpu_is_needed():
    model = PartCodec().eval()
    x = torch.ones(1, 4, 8, 8)
    with pytest.raises(ImportError):
        model.update(force=True)
    modules = set(sys.modules)
    for original in (True, False):
        codec = compile_codec(model, original=original)
        codec.update(force=True)
        codec.encoder.encode_with_indexes([1], [0], *_row())
        codec.encoder.flush()
        assert len(codec.encoder.get_encoded_stream()) > 0 and model.encoder is None
        assert torch.equal(codec.compress(x), codec.decompress(x))
        torch.testing.assert_close(codec.compress(x), model.align(x).detach())
    assert not [name for name in set(sys.modules) - modules if "MLCodec" in name]


def _row() -> tuple[list[list[int]], list[int], list[int]]:
    return [[0, 20000, 40000, 60000, 65536]], [5], [0]


def test_objects_of_a_family_say_what_they_lack():
    model = PartCodec()
    del model.align, model.optic_flow
    with pytest.raises(UsageError, match="like a DCVideoObject, but its state dict has no optic_flow, align"):
        compile_codec(model)
    with pytest.raises(UsageError, match=r"has no method update"):
        model.update = None
        compile_codec(model)


class TwoInputs(nn.Module):
    """A network of several tensors, the last of which may be one value per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.conv(torch.cat(tensors[:2], 1)) * (tensors[2] if len(tensors) > 2 else 1)


def test_networks_of_several_tensors_compile(codec: Codec):
    codec.net = TwoInputs()
    x, step = torch.randn(2, 1, 4, 8, 8), torch.rand(1, 4, 1, 1) + 0.5
    for tensors in ((x[0], x[1], step), (x[0], x[1], step[:, :1]), (x[0], x[1], step.expand(1, 4, 8, 8))):
        compiled = compile_codec(codec)
        torch.testing.assert_close(compiled.net(*tensors), codec.net(*tensors).detach())
        assert {row.backend for row in compiled.report.rows if row.paths == ("net.conv",)} == {"cpu"}
        torch.testing.assert_close(compiled.net(*tensors[:2]), codec.net(*tensors[:2]).detach())
