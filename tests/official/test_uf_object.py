"""DCVC-UF: the published objects code on a CPU, where their coding calls need a CUDA extension.

What those calls would write is put together here from the published networks: `forward_one_frame`, with what the
extension does between them (skipping and limits), and the published coder's calls.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsecodec import BitstreamError, UsageError
from sparsecodec.nn import uf_coder
from sparsecodec.runtime import compile_codec

FAMILY = "uf"
QP, SKIP = 20, 0.15
HEIGHT, WIDTH = 64, 128
KINDS = ("ld", "hts", "htl")


@pytest.fixture(scope="module")
def published(official) -> Callable[[str], torch.nn.Module]:
    """A model with its coding tables, by its name."""
    structure = official("utils.common").ModelStructure
    makers = {
        "image": lambda: official("models.image_model").DMCI(),
        "ld": lambda: official("models.video_model_ld").DMC(),
        "hts": lambda: official("models.video_model_ht").DMC(structure.HTS),
        "htl": lambda: official("models.video_model_ht").DMC(structure.HTL),
    }
    made = {}

    def make(name: str) -> torch.nn.Module:
        if name not in made:
            torch.manual_seed(KINDS.index(name) if name in KINDS else 9)
            model = makers[name]().eval().requires_grad_(False)
            for bank in (key for key in dict(model.named_parameters(recurse=False)) if key.startswith("q_")):
                getattr(model, bank).mul_(torch.rand(getattr(model, bank).shape) + 0.5)
            for layer in model.modules():  # features neither grow nor vanish from frame to frame
                if isinstance(layer, torch.nn.Conv2d):
                    layer.weight.mul_(0.6)
            if name == "image":  # latents of a few symbols
                ramp = torch.linspace(-0.5, 0.5, 3 * 64 * 64).view(1, 3, 64, 64)
                model.q_scale_y_enc.mul_(2 / model.enc(ramp, model.q_scale_enc[QP, :, None, None]).abs().mean())
            else:
                model.q_encoder.mul_(30)
            count = model.q_scale_y_enc.shape[1] if name == "image" else model.encoder.down.out_channels
            for layer, first in (
                (model.y_prior_fusion.conv[-1], 0 if name == "image" else count),
                (model.y_spatial_prior.conv[-1], 0),
            ):  # scales on both sides of the threshold
                if len(layer.bias) > count:
                    layer.bias[first : first + count] += torch.linspace(-0.5, 2.5, count)
            model.update(SKIP)
            made[name] = model
        return made[name]

    return make


@pytest.fixture
def pictures(photo: Tensor) -> list[Tensor]:
    """A clip of 16 frames of 64 x 128 that move, around zero."""
    return [photo[:, :, 3 * t : 3 * t + HEIGHT, 4 * t : 4 * t + WIDTH].contiguous() - 0.5 for t in range(16)]


class Oracle:
    """A published model, run by its own code, and what its coder makes of that."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.passes, self.z = copy.copy(model), [], None
        self.model.masks = {}
        self.model.process_with_mask = self.process_with_mask
        prior = next(name for name in ("hyper_dec", "hyper_decoder") if hasattr(model, name))
        inner = getattr(model, prior)

        def hyper(z_hat: Tensor) -> Tensor:
            self.z = z_hat.clamp(-64, 63)
            return inner(self.z)

        self.model._modules = dict(model._modules)
        del self.model._modules[prior]
        setattr(self.model, prior, hyper)

    def process_with_mask(self, y: Tensor, scales: Tensor, means: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """With what the extension adds: no symbol where the scale is small, and bytes."""
        scales_hat, means_hat = scales * mask, means * mask
        y_q = torch.round((y - means_hat) * mask)
        y_q = (y_q * (scales_hat > SKIP)).clamp(-128, 127)
        self.passes.append((y_q, scales_hat))
        return (y - means_hat) * mask, y_q, y_q + means_hat, scales_hat

    def __call__(self, x: Tensor, joint: bool, reset: bool | None = None) -> SimpleNamespace:
        self.passes.clear()
        arguments = (x, torch.tensor([QP])) if reset is None else (x, torch.tensor([QP]), reset)
        with torch.no_grad():
            x_hat = self.model.forward_one_frame(*arguments)["x_hat"]
        coder = self.model.entropy_coder
        coder.encoder.reset()
        passes = list(map(self.dense, self.passes))
        if joint:
            passes = [tuple(map(sum, zip(*self.passes, strict=True)))]
        words = [self.words(*code) for code in passes]
        streams = max(1, min(8, sum(map(len, words)) // uf_coder.SYMBOLS_PER_STREAM))
        coder.set_entropy_coder_parallel(streams)
        for code in reversed(words):
            coder.encoder.encode_y(code)
        z = self.z.permute(0, 2, 3, 1).reshape(-1).to(torch.int8).numpy()
        coder.encoder.encode_z(z, QP * self.z.shape[1], self.z.shape[1])
        coder.encoder.flush()
        return SimpleNamespace(
            x_hat=[frame.clamp(-0.5, 0.5) for frame in (x_hat if isinstance(x_hat, list) else [x_hat])],
            payload=coder.encoder.get_encoded_stream().tobytes(),
            streams=streams,
            coded=sum(map(len, words)),
            nonzero=sum(int((code >> 8 != 0).sum()) for code in words),
        )

    @staticmethod
    def dense(code: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return tuple(sum(value.chunk(4, 1)) for value in code)

    @staticmethod
    def words(symbols: Tensor, scales: Tensor) -> np.ndarray:
        """Symbol << 8 | index of what is coded, channels innermost; the index is computed in halves."""
        symbols, scales = (value.permute(0, 2, 3, 1).reshape(-1) for value in (symbols, scales))
        low, steps = torch.tensor(-2.2073).half(), torch.tensor(127 / (2.7726 + 2.2073)).half()
        index = ((scales.half().clamp(0.11, 16).log() - low) * steps).floor().to(torch.int16)
        return ((symbols.to(torch.int16) << 8) + index)[scales > SKIP].numpy()


def sps(height: int = HEIGHT, width: int = WIDTH) -> dict[str, int]:
    return {"height": height, "width": width, "sps_id": 0}


def frames_of(decoded: dict) -> list[Tensor]:
    return decoded["x_hat"] if isinstance(decoded["x_hat"], list) else [decoded["x_hat"]]


def test_images_are_the_published_ones_bit_for_bit(published, pictures):
    model = published("image")
    expected = Oracle(model)(pictures[0], joint=False)
    codec = compile_codec(model, original=True)
    coded = codec.compress(pictures[0], QP, 0, 0)
    assert coded["bit_stream"] == expected.payload and coded["ec_parallel"] == expected.streams
    assert 0.1 < expected.coded / (HEIGHT * WIDTH) < 0.95 and 0.2 < expected.nonzero / expected.coded < 0.95
    assert torch.equal(coded["x_hat"], expected.x_hat[0])
    assert torch.equal(codec.decompress(expected.payload, sps(), QP, 1)["x_hat"], expected.x_hat[0])


@pytest.mark.parametrize("kind", KINDS)
def test_clips_are_the_published_ones_bit_for_bit(published, pictures, kind):
    """Eight calls of LD with a reset, two groups of eight frames of HT, the first one with a reset."""
    model = published(kind)
    encoder, decoder = (compile_codec(model, original=True) for _ in range(2))
    oracle = Oracle(model)
    oracle.model.clear_dpb()
    oracle.model.ref_feature = torch.nn.functional.pixel_unshuffle(pictures[0], 8)
    encoder.add_ref_feature_from_frame(pictures[0])
    decoder.add_ref_feature_from_frame(pictures[0], apply_feature_adaptor=False)
    step = encoder.frames
    assert step == (1 if kind == "ld" else 8)
    for start in range(0, 8 if kind == "ld" else 16, step):
        x, reset = torch.cat(pictures[start : start + step], 1), start in (0, 3)
        expected = oracle(x, kind != "htl", reset)
        assert (
            expected.coded > expected.nonzero > 0.2 * expected.coded > 0 and oracle.model.ref_feature.abs().max() < 1e4
        )
        coded = encoder.compress(x, QP, reset, 0, 0)
        assert coded["bit_stream"] == expected.payload, start
        assert torch.equal(encoder.ref_feature, oracle.model.ref_feature)
        got = frames_of(decoder.decompress(expected.payload, sps(), QP, coded["ec_parallel"], reset))
        assert len(got) == step and all(map(torch.equal, got, expected.x_hat)), start
    assert model.ref_feature is None and model.proxy is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["image", *KINDS])
def test_compiled_ends_agree(published, pictures, kind, dtype):
    """Compressed and decompressed on kernels: odd sizes, the state after each frame, what the report says."""
    model, before = published(kind), {}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = compile_codec(model, dtype=dtype), compile_codec(model, dtype=dtype)
    crop = [picture[:, :, :39, :50].contiguous() for picture in pictures]
    size, padding = sps(39, 50), (9, 14)
    if kind == "image":
        coded = first.compress(crop[0], QP, *padding)
        x_hat = second.decompress(coded["bit_stream"], size, QP, coded["ec_parallel"])["x_hat"]
        assert torch.equal(x_hat, coded["x_hat"]) and x_hat.shape == (1, 3, 48, 64)
        original = compile_codec(model, original=True).compress(crop[0], QP, *padding)["x_hat"]
        assert (x_hat - original).abs().median() < (1e-4 if dtype == torch.float32 else 2e-2)
    else:
        for codec in (first, second):
            codec.clear_dpb()
            codec.add_ref_feature_from_frame(torch.zeros(1, 3, 48, 64), codec is first)
        for number in range(8 if kind == "ld" else 1):
            x = torch.cat(crop[number : number + first.frames], 1)
            coded = first.compress(x, QP, number == 2, *padding)
            decoded = second.decompress(coded["bit_stream"], size, QP, coded["ec_parallel"], number == 2)
            assert torch.equal(first.ref_feature, second.ref_feature), number
            assert all(frame.shape == (1, 3, 48, 64) for frame in frames_of(decoded))
            assert (first.memory is None) == (number == 2)
    rows = second.report.rows
    assert sum(row.macs for row in rows if row.backend == "cpu") > 0.99 * sum(row.macs for row in rows) > 0
    assert any("multiply-accumulates of what ran are on kernels" in note for note in second.report.notes)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_several_streams(published, pictures, monkeypatch):
    model = published("image")
    monkeypatch.setattr(uf_coder, "SYMBOLS_PER_STREAM", 1000)
    expected = Oracle(model)(pictures[0], joint=False)
    codec = compile_codec(model, original=True)
    coded = codec.compress(pictures[0], QP, 0, 0)
    assert coded["ec_parallel"] == expected.streams > 2 and coded["bit_stream"] == expected.payload
    decoded = codec.decompress(coded["bit_stream"], sps(), QP, coded["ec_parallel"])
    assert torch.equal(decoded["x_hat"], coded["x_hat"])
    with pytest.raises(BitstreamError):
        codec.decompress(coded["bit_stream"], sps(), QP, coded["ec_parallel"] - 1)


def test_without_tables_the_published_class_needs_nothing(official, pictures):
    """`update` was never called on the model, which needs an extension for it."""
    model = official("models.image_model").DMCI().eval()
    codec = compile_codec(model, original=True)
    with pytest.raises(UsageError, match="no coding tables yet: call update"):
        codec.compress(pictures[0], QP, 0, 0)
    codec.update(SKIP)
    model.update(SKIP)
    adopted = compile_codec(model, original=True)
    assert len(adopted.compress(pictures[0], QP, 0, 0)["bit_stream"]) > 0
    ours, theirs = (c._tables for c in (codec, adopted))
    assert ours[1].digest == theirs[1].digest
    # A machine's exp may move one scale by an ulp, and with it values of row 120 by one.
    assert (ours[0].cdf != theirs[0].cdf).any(1).nonzero()[0].tolist() in ([], [120])
    assert np.array_equal(theirs[0].cdf, model.gaussian_encoder.get_cdf_info()[0])
