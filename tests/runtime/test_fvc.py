"""Compiled FVC behind an image codec: paired, and what the plain model computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsecodec import BitstreamError
from sparsecodec.models import EVC, FVC, VideoCodec
from sparsecodec.models.fvc import FVC_WIDTHS, Widths
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.adapters import FVCCodec
from sparsecodec.sparsity import ChannelMasks, compact, trace_model
from sparsecodec.training import family_of

from ..lively import lively_fvc
from .conftest import reports_as_in_the_codec

SIZE = (64, 128)
WITH_FUSION = Widths(16, 16, 16, 4, 1, modulated=True, references=2)


@pytest.fixture(scope="module", params=[FVC_WIDTHS["tiny"], WITH_FUSION], ids=["tiny", "fusion"])
def model(request) -> VideoCodec:
    """Untrained, with features that move and latents that take several symbols."""
    torch.manual_seed(0)
    inter = lively_fvc(FVC(request.param).requires_grad_(False))
    return VideoCodec(EVC("nano", "nano"), inter).eval()


@pytest.fixture(scope="module")
def clip(photo: Tensor) -> list[Tensor]:
    return [photo[:, :, 3 * t : 3 * t + SIZE[0], 2 * t : 2 * t + SIZE[1]].contiguous() for t in range(6)]


@pytest.fixture(scope="module")
def codec(model: VideoCodec) -> FVCCodec:
    return compile_codec(model, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None], ids=["float32", "bfloat16", "original"])
def test_both_ends_agree_over_frames(model: VideoCodec, clip: list[Tensor], dtype: torch.dtype | None):
    codec = compile_codec(model, dtype=dtype, original=dtype is None)
    payload, encoder = codec.intra_encode(clip[0], 40)
    _, decoder = codec.intra_decode(payload, *SIZE, 40)
    for index in range(1, 2 * len(clip)):
        payload, encoder = codec.inter_encode(clip[index % len(clip)], encoder, 40, index)
        x_hat, decoder = codec.inter_decode(payload, decoder, *SIZE, 40, index)
        assert len(encoder.tensors()) == min(index + 1, max(model.inter.widths.references, 1))
        assert all(map(torch.equal, encoder.tensors(), decoder.tensors()))
        assert x_hat.shape == clip[0].shape and x_hat.min() >= 0 and x_hat.max() <= 1
        assert len(payload) > 100


def test_states_are_values(codec: FVCCodec, clip: list[Tensor]):
    _, first = codec.intra_encode(clip[0], 40)
    kept = [value.clone() for value in first.tensors()]
    payload, second = codec.inter_encode(clip[1], first, 40, 1)
    again = [value.clone() for value in second.tensors()]
    codec.inter_encode(clip[2], second, 40, 2)
    codec.intra_encode(clip[3], 40)
    assert all(map(torch.equal, first.tensors(), kept)) and all(map(torch.equal, second.tensors(), again))
    _, decoded = codec.inter_decode(payload, first, *SIZE, 40, 1)
    assert all(map(torch.equal, decoded.tensors(), again))


def test_computes_what_the_model_computes(model: VideoCodec, codec: FVCCodec, clip: list[Tensor]):
    plain, compiled = (m.compress(clip[1], m.start(clip[0])) for m in (model.inter, codec.inter))
    assert abs(len(plain["bit_stream"]) - len(compiled["bit_stream"])) <= 8
    assert (plain["x_hat"] - compiled["x_hat"]).abs().max() < 0.05
    assert (plain["x_hat"] - compiled["x_hat"]).abs().mean() < 1e-3


def test_a_pruned_codec_computes_what_its_model_computes(model: VideoCodec, clip: list[Tensor]):
    graph = trace_model(model, list(family_of(model).transforms(model, "all")), "coupled")
    thin = compact(model, ChannelMasks.random(graph, 0.4, 0), graph)
    codec = compile_codec(thin, dtype=torch.float32)
    state = thin.inter.start(clip[0])
    assert (state.features[0].shape[1] < model.inter.widths.feature) == (model.inter.fusion is None)
    plain, compiled = (m.compress(clip[1], m.start(clip[0])) for m in (thin.inter, codec.inter))
    assert (plain["x_hat"] - compiled["x_hat"]).abs().mean() < 1e-3
    decoded = codec.inter.decompress(compiled["bit_stream"], codec.inter.start(clip[0]))
    assert torch.equal(decoded["x_hat"], compiled["x_hat"])


def test_bits_do_not_depend_on_threads(codec: FVCCodec, clip: list[Tensor]):
    _, state = codec.intra_encode(clip[0], 40)
    _, state = codec.inter_encode(clip[1], state, 0, 1)
    payload, after = codec.inter_encode(clip[2], state, 0, 2)
    torch.set_num_threads(2)
    try:
        again, encoded = codec.inter_encode(clip[2], state, 0, 2)
        _, decoded = codec.inter_decode(payload, state, *SIZE, 0, 2)
    finally:
        torch.set_num_threads(1)
    assert again == payload
    assert all(map(torch.equal, encoded.tensors(), after.tensors()))
    assert all(map(torch.equal, decoded.tensors(), after.tensors()))


def test_damaged_payloads_are_refused(codec: FVCCodec, clip: list[Tensor]):
    _, state = codec.intra_encode(clip[0], 40)
    payload, _ = codec.inter_encode(clip[1], state, 0, 1)
    for damaged in (payload[:-4], payload[4:], payload + bytes(4), b""):
        with pytest.raises(BitstreamError):
            codec.inter_decode(damaged, state, *SIZE, 0, 1)


def test_report_names_what_runs(codec: FVCCodec):
    rows = {row.paths[0]: row for row in codec.report.rows if row.paths}
    assert rows["compensation.alignment.offsets"].op == "conv2d_act"
    assert rows["reconstruction.1"].dtype == "float32" and rows["reconstruction.1"].backend == "cpu"
    assert codec.inter.compensation.alignment.conv._run is not None


def test_the_inter_model_alone_reports_as_the_codec(model: VideoCodec, clip: list[Tensor]):
    lone, (x, *frames) = compile_codec(model.inter, dtype=torch.float32), [frame[..., :64] for frame in clip[:3]]

    def predict():
        state = lone.start(x)
        for frame in frames:
            payload = lone.compress(frame, state)["bit_stream"]
            state = lone.decompress(payload, state)["state"]

    reports_as_in_the_codec(lone, compile_codec(model, dtype=torch.float32), "inter", predict)
    assert "original" in compile_codec(model.inter, original=True).report.notes[0]
