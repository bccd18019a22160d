"""Foreign objects in 16 bits: some networks, or parts of them, and float32 between all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsecodec import NoBackendError, UsageError
from sparsecodec.nn import BitEstimator
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.foreign_object import ForeignCodec, compile_object

from .uf_stand_in import Image, Video

CPU = torch.device("cpu")


class Tail(nn.Module):
    """A decoder's end: a feature and the picture that is made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Conv2d(8, 32, 1), nn.PixelShuffle(2))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.1))
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        feature = self.body(self.up(x))
        self.seen = feature
        return feature, self.last(feature)


class Codec(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 1))
        self.prior = nn.Sequential(nn.Conv2d(8, 8, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 1))
        self.encoder = nn.Conv2d(3, 8, 1)  # "enc" is not this one
        self.tail = Tail()
        self.bit_estimator_z = BitEstimator(8)

    def compress(self, x: Tensor) -> dict[str, Tensor]:
        y = self.enc(x)
        feature, x_hat = self.tail(y + self.prior(y))
        return {"y": y, "feature": feature, "x_hat": x_hat, "encoded": self.encoder(x)}

    decompress = compress


class Kind(ForeignCodec):
    LAYOUT = torch.channels_last
    TRANSFORMS = ("enc", "tail.up", "tail.body")


@pytest.fixture
def model() -> Codec:
    torch.manual_seed(0)
    return Codec().eval().requires_grad_(False)


@pytest.fixture
def x(photo: Tensor) -> Tensor:
    return photo[:, :, :24, :32].contiguous()


def test_each_network_computes_in_its_own(model: Codec, x: Tensor):
    codec = compile_object(model, CPU, torch.bfloat16, Kind)
    got, expected = codec.compress(x), model.compress(x)
    dtypes = {path: row.dtype for row in codec.report.rows if row.backend == "cpu" for path in row.paths[:1]}
    assert dtypes == {
        **dict.fromkeys(("enc.0", "enc.2", "tail.up.0", "tail.body.0"), "bfloat16"),
        **dict.fromkeys(("prior.0", "prior.2", "encoder", "tail.last"), "float32"),
    }
    for name, value in got.items():
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value, expected[name], atol=0.02, rtol=0.02)
    assert torch.equal(got["y"], got["y"].bfloat16().float()) and not torch.equal(got["x_hat"].bfloat16(), got["x_hat"])
    torch.testing.assert_close(got["encoded"], expected["encoded"], atol=1e-6, rtol=0)
    # of a picture in 16 bits, 1/512 would be lost
    last = nn.functional.conv2d(got["feature"], model.tail.last.weight, model.tail.last.bias, padding=1)
    torch.testing.assert_close(got["x_hat"], last, atol=1e-6, rtol=0)
    assert any(
        "enc, tail.up, tail.body in torch.bfloat16, all others in float32" in note for note in codec.report.notes
    )


def test_a_network_of_two_precisions_calls_its_parts(model: Codec, x: Tensor):
    codec = compile_object(model, CPU, torch.bfloat16, Kind)
    codec.compress(x)
    (row,) = [row for row in codec.report.rows if row.transform == "tail"]
    assert (row.backend, row.reason) == ("torch", "only a part of it is in torch.bfloat16")
    assert codec.tail.seen.is_contiguous(memory_format=torch.channels_last)
    for dtype in (None, torch.float32):
        whole = compile_object(model, CPU, dtype, Kind)
        whole.compress(x)
        assert not [row for row in whole.report.rows if "only a part" in row.reason]
        assert {row.dtype for row in whole.report.rows} == {"float32"}


def test_what_is_not_known_or_not_ours_stays_float32(model: Codec, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # its kernels would stand in
    with pytest.raises(UsageError, match=r"nothing says which networks of a Codec may compute in it \(needs float32\)"):
        compile_codec(model, dtype=torch.bfloat16)
    with pytest.raises(UsageError, match="original=True runs the object's own layers"):
        compile_object(model, CPU, torch.bfloat16, Kind, original=True)
    with pytest.raises(NoBackendError, match="float16 on a CPU"):
        compile_codec(Image(), dtype=torch.float16)


@pytest.mark.parametrize("kind", ["image", "ld", "hts", "htl"])
def test_entropy_networks_of_uf_are_float32(kind: str):
    codec = compile_codec(Image() if kind == "image" else Video(kind), dtype=torch.bfloat16)
    assert all(codec.get_submodule(name) for name in codec.TRANSFORMS)
    narrow = {path for path, network in codec.named_modules() if getattr(network, "dtype", None) == torch.bfloat16}
    wide = {path for path, network in codec.named_children() if getattr(network, "dtype", None) == torch.float32}
    assert {path.partition(".")[0] for path in narrow} == set(codec.TRANSFORMS)
    assert wide and all("prior" in name or "hyper_dec" in name for name in wide)
