"""Compiled EVC against the model itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from sparsecodec import BitstreamError, UsageError
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.adapters.evc import EVCCodec

from .conftest import InDtype, Pair, build, pair_of

Q_SCALE = 1.0


@pytest.fixture
def evc(variant: str, dtype: torch.dtype) -> Pair:
    return pair_of("evc-tiny", variant, dtype)


def coded_by(model, x: Tensor, q_scale: float = Q_SCALE) -> bytes:
    with torch.no_grad():
        return model.compress(x, q_scale)["bit_stream"]


def picture(model, stream: bytes, x: Tensor, q_scale: float = Q_SCALE) -> Tensor:
    with torch.no_grad():
        return model.decompress(stream, x.shape[2], x.shape[3], q_scale)["x_hat"]


def test_streams_interchange(evc: Pair, photo: Tensor):
    x = photo[:, :, :128, :128]
    for stream in (coded_by(evc.original, x), coded_by(evc.compiled, x)):
        exact_model, eager_model = copy.deepcopy(evc.original), copy.deepcopy(evc.original)
        exact_model.dec = InDtype(evc.original.dec, torch.float64)
        eager_model.dec = InDtype(evc.original.dec, evc.dtype)
        exact = picture(exact_model, stream, x)
        error = picture(evc.compiled, stream, x) - exact
        reference_error = picture(eager_model, stream, x) - exact
        assert exact.std() > 0.01
        for norm in (lambda e: e.abs().max(), lambda e: e.square().mean().sqrt()):
            assert norm(error) <= 2 * norm(reference_error) + 1e-6


def test_streams_are_the_models_byte_for_byte(evc: Pair, photo: Tensor):
    x = photo[:, :, :64, :128]
    compiled = compile_codec(evc.original, dtype=evc.dtype)
    for path in compiled.ANALYSIS:
        compiled._transforms[path] = evc.original.get_submodule(path)
    for q_scale in (0.5, 1.0, 3.21):
        assert coded_by(compiled, x, q_scale) == coded_by(evc.original, x, q_scale)


def test_scripts_of_the_family_run_on_it(evc: Pair, photo: Tensor, tmp_path):
    x, path = photo[:, :, :64, :128], tmp_path / "picture.bin"
    evc.compiled.update(force=True)
    out = evc.compiled.encode_decode(x, Q_SCALE, str(path), pic_width=100, pic_height=64)
    payload = evc.compiled.compress(x, Q_SCALE)["bit_stream"]
    assert path.read_bytes()[14:] == payload and out["bit"] == 8 * (14 + len(payload))
    assert torch.equal(out["x_hat"], picture(evc.compiled, payload, x))
    before_padding = evc.compiled.decompress(payload, 64, 100, Q_SCALE)["x_hat"]
    assert torch.equal(before_padding, out["x_hat"])
    assert out["latency"] == out["enc_time"] + out["dec_time"] and out["dec_time"] > 0


def test_a_step_may_be_a_tensor(photo: Tensor):
    """The published script reads it off a checkpoint."""
    x, codec = photo[:, :, :64, :64], compile_codec(build("evc-tiny", "dense"), dtype=torch.float32)
    step = torch.tensor(0.806)
    payload = codec.compress(x, step)["bit_stream"]
    assert payload == codec.compress(x, 0.81)["bit_stream"]
    assert torch.equal(codec.encode_decode(x, step)["x_hat"], codec.decompress(payload, 64, 64, step)["x_hat"])


def test_compress_returns_the_decoders_picture(evc: Pair, photo: Tensor):
    x = photo[:, :, :64, :64]
    result = evc.compiled.compress(x, Q_SCALE)
    assert torch.equal(result["x_hat"], picture(evc.compiled, result["bit_stream"], x))


def test_report_is_complete(evc: Pair):
    report = evc.compiled.report
    assert {row.backend for row in report.rows} == {"cpu"}
    assert not any(row.reason for row in report.rows)
    assert "depth_conv_block" in {row.op for row in report.rows}
    named = [path for row in report.rows for path in row.paths]
    weighted = {
        name.removesuffix(".conv") if ".conv.conv" in name else name
        for name, module in evc.original.named_modules()
        if list(module.parameters(recurse=False)) and name and not name.startswith("bit_estimator")
    }
    # a ScatterConv2d stands for the convolution inside
    inside = {name for name in weighted if name.endswith(".conv") and name.removesuffix(".conv") in named}
    assert {name for name in weighted - inside if name not in named} == set()
    assert report.macs < report.dense_macs if evc.variant == "compact" else report.macs == report.dense_macs


@pytest.mark.parametrize("quality", [0, 37.5, None, 100])
def test_quality_travels_in_the_file(photo: Tensor, quality: float | None):
    compiled = pair_of("evc-tiny", "compact", torch.float32).compiled
    x = photo[:, :, :64, :70]
    assert compiled.decode(compiled.encode(x, quality)).shape == x.shape


def test_quality_orders_the_sizes(photo: Tensor):
    compiled = pair_of("evc-tiny", "dense", torch.float32).compiled
    sizes = [len(compiled.encode(photo, quality)) for quality in (0, 50, 100)]
    assert sizes[0] < sizes[1] < sizes[2]
    assert compiled.encode(photo) == compiled.encode(photo, 50)


@pytest.mark.parametrize("quality", [-1, 101, float("nan"), True, "50"])
def test_quality_outside_its_range_is_refused(photo: Tensor, quality: float):
    with pytest.raises(UsageError, match="quality"):
        pair_of("evc-tiny", "dense", torch.float32).compiled.encode(photo, quality)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 3, 64, 65),
        torch.zeros(2, 3, 64, 64),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        torch.full((1, 3, 64, 64), float("nan")),
        None,
    ],
    ids=["side", "batch", "uint8", "nan", "none"],
)
def test_compress_refuses_bad_pictures(x):
    with pytest.raises(UsageError, match="picture"):
        pair_of("evc-tiny", "dense", torch.float32).compiled.compress(x, 1.0)


@pytest.mark.parametrize("q_scale", [0, -1, float("nan"), float("inf")])
def test_steps_that_are_no_steps_are_refused(photo: Tensor, q_scale: float):
    with pytest.raises(UsageError, match="q_scale"):
        pair_of("evc-tiny", "dense", torch.float32).compiled.compress(photo[:, :, :64, :64], q_scale)


def test_truncated_streams_are_refused(photo: Tensor):
    compiled = pair_of("evc-tiny", "dense", torch.float32).compiled
    x = photo[:, :, :64, :64]
    stream = coded_by(compiled, x)
    for size in range(len(stream)):
        with pytest.raises(BitstreamError):
            compiled.decompress(stream[:size], 64, 64, Q_SCALE)
    with pytest.raises(BitstreamError):
        compiled.decompress(stream, 128, 64, Q_SCALE)


def test_model_is_not_modified(photo: Tensor):
    model = copy.deepcopy(build("evc-tiny", "dense")).train().requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    compile_codec(model, dtype=torch.bfloat16).encode(photo)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_entropy_parameters_in_the_last_layer_change_no_stream(photo: Tensor, monkeypatch: pytest.MonkeyPatch):
    """Files made before `prior_head` existed still open, and the other way round."""
    model, x = build("evc-tiny", "dense"), photo[:, :, :64, :128]
    fused = compile_codec(model)
    monkeypatch.setattr(EVCCodec, "_head", lambda self, path: None)
    apart = compile_codec(model)
    assert "prior_head" in str(fused.report) and "prior_head" not in str(apart.report)
    for quality in (0, 100):
        assert fused.encode(x, quality) == apart.encode(x, quality)
