"""EVC against its published classes: the same weights, the same pictures, each other's streams."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec.models import EVC, create
from sparsecodec.models.foreign import from_foreign, is_foreign
from sparsecodec.models.scalable import ScalableEVC
from sparsecodec.runtime import compile_codec

FAMILY = "evc"
Q_SCALES = (0.4, 1.3)


def _enliven(model: EVC) -> EVC:
    """Latents of several symbols and quantisation steps that differ between channels."""
    n = model.latent_channels
    model.q_basic.copy_(torch.linspace(0.3, 1.5, n).view(1, -1, 1, 1))
    for encoder in getattr(model, "encs", None) or [model.enc]:
        encoder[6].weight *= 12 + 4 * torch.rand(())
    model.hyper_enc[3].weight *= 60
    model.y_prior_fusion[1].block[1].conv[2].bias[n : 2 * n] += 3
    for quarter in (0, 2):
        model.y_spatial_prior[2].block[1].conv[2].bias[quarter * n // 2 : (quarter + 1) * n // 2] += 3
    return model


def _pair(official, ours: EVC, name: str) -> tuple[EVC, torch.nn.Module]:
    theirs = official("models").build_model(name).eval().requires_grad_(False)
    theirs.load_state_dict(ours.state_dict(), verbose=False)
    for key, value in theirs.state_dict().items():  # theirs skips what does not fit
        assert torch.equal(value, ours.state_dict()[key]), key
    theirs.update(force=True)
    return ours, theirs


@pytest.fixture(scope="module")
def models(official):
    torch.manual_seed(0)
    return _pair(official, _enliven(create("evc-ss").eval().requires_grad_(False)), "EVC_SS")


@pytest.fixture(scope="module")
def x(photo: Tensor) -> Tensor:
    return photo[:, :, :64, :128].contiguous()


@pytest.mark.parametrize("q_scale", Q_SCALES)
def test_pictures_and_rates_are_computed_alike(models, x: Tensor, q_scale: float):
    ours, theirs = models
    out, expected = ours(x, q_scale), theirs(x, q_scale)
    assert torch.equal(out["x_hat"], expected["x_hat"].clamp(0, 1))
    for rate in ("bpp", "bpp_y", "bpp_z"):
        torch.testing.assert_close(out[rate], expected[rate], rtol=1e-5, atol=1e-5)
    assert expected["bpp_y"] > 0.5 and expected["bpp_z"] > 0.05


@pytest.mark.parametrize("q_scale", Q_SCALES)
def test_streams_are_the_same_and_open_on_both_sides(models, x: Tensor, q_scale: float):
    ours, theirs = models
    coded, foreign = ours.compress(x, q_scale), theirs.compress(x, q_scale)
    assert coded["bit_stream"] == foreign["bit_stream"]
    x_hat = theirs.decompress(coded["bit_stream"], 64, 128, q_scale)["x_hat"]
    assert torch.equal(ours.decompress(foreign["bit_stream"], 64, 128, q_scale)["x_hat"], x_hat)
    assert torch.equal(coded["x_hat"], x_hat)


def test_odd_sizes_come_padded(models, x: Tensor):
    ours, theirs = models
    padded = F.pad(x[:, :, :51, :101], (0, 27, 0, 13))
    payload = theirs.compress(padded, 0.8)["bit_stream"]
    x_hat = theirs.decompress(payload, 51, 101, 0.8)["x_hat"]
    assert torch.equal(ours.decompress(payload, 51, 101, 0.8)["x_hat"], x_hat)


@pytest.mark.parametrize("name", ["LL", "LM", "LS", "ML", "SL", "MM", "SS", "Scale_SL", "Scale_SS"])
def test_their_objects_are_recognised_by_their_keys(official, name: str):
    kind, _, widths = name.rpartition("_")
    with torch.no_grad():
        theirs = official("models").build_model(f"{kind}_EVC_{widths}" if kind else f"EVC_{widths}")
    ours = from_foreign(theirs)
    assert is_foreign(theirs) and type(ours) is (ScalableEVC if kind else EVC)
    assert ours.config == create(f"{'scale-' if kind else ''}evc-{widths.lower()}").config
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize("q_scale", Q_SCALES)
def test_a_compiled_object_reads_their_strings_and_they_read_its(models, x: Tensor, q_scale: float):
    _, theirs = models
    codec = compile_codec(theirs, dtype=torch.float32)
    codec.update(force=True)
    coded, foreign = codec.compress(x, q_scale), theirs.compress(x, q_scale)
    assert abs(len(coded["bit_stream"]) / len(foreign["bit_stream"]) - 1) < 0.01
    for payload in (coded["bit_stream"], foreign["bit_stream"]):
        read, expected = (model.decompress(payload, 64, 128, q_scale)["x_hat"] for model in (codec, theirs))
        torch.testing.assert_close(read, expected, atol=1e-4, rtol=0)
        assert expected.std() > 0.01


def test_files_of_a_compiled_object_are_theirs(models, x: Tensor, tmp_path):
    _, theirs = models
    codec, step = compile_codec(theirs, dtype=torch.float32), torch.tensor(0.806)  # as their script gives it
    files = [tmp_path / "compiled.bin", tmp_path / "theirs.bin"]
    outs = [
        model.encode_decode(x, step, str(file), 128, 64) for model, file in zip((codec, theirs), files, strict=True)
    ]
    assert outs[0].keys() == outs[1].keys()
    assert files[0].read_bytes()[:10] == files[1].read_bytes()[:10]  # height, width, step
    payload = files[0].read_bytes()[14:]
    expected = theirs.decompress(payload, 64, 128, 0.81)["x_hat"]
    torch.testing.assert_close(outs[0]["x_hat"], expected, atol=1e-4, rtol=0)


def _scalable(official) -> tuple[ScalableEVC, torch.nn.Module]:
    torch.manual_seed(1)
    ours = ScalableEVC("s", "s").eval().requires_grad_(False)
    for encoder in ours.encs:  # equal at first
        for value in encoder.parameters():
            value += 0.1 * value.std().nan_to_num(0.0) * torch.randn_like(value)
    return _pair(official, _enliven(ours), "Scale_EVC_SS")


def test_a_compiled_scalable_object_reads_their_strings_and_they_read_its(official, x: Tensor):
    _, theirs = _scalable(official)
    theirs.set_rate(2)
    codec = compile_codec(theirs, dtype=torch.float32)
    for rate, q_scale in enumerate(Q_SCALES):
        codec.set_rate(rate)
        theirs.set_rate(rate)
        for payload in (codec.compress(x, q_scale)["bit_stream"], theirs.compress(x, q_scale)["bit_stream"]):
            read, expected = (model.decompress(payload, 64, 128, q_scale)["x_hat"] for model in (codec, theirs))
            torch.testing.assert_close(read, expected, atol=1e-4, rtol=0)


def test_scalable_streams_open_on_both_sides(official, x: Tensor):
    ours, theirs = _scalable(official)
    for rate, q_scale in enumerate(Q_SCALES):
        theirs.set_rate(rate)
        payload = theirs.compress(x, q_scale)["bit_stream"]
        candidates = [ours.compress(x, q_scale, prefix) for prefix in range(4)]
        same = [coded for coded in candidates if coded["bit_stream"] == payload]
        assert len(same) == 1
        assert torch.equal(theirs.decompress(payload, 64, 128, q_scale)["x_hat"], same[0]["x_hat"])
