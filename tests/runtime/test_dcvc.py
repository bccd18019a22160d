"""Compiled DCVC (2021): paired, as published, and behind an intra codec."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from sparsecodec import BitstreamError, UsageError
from sparsecodec.models import DCVC, VideoCodec, create
from sparsecodec.models.dcvc import DCVCState
from sparsecodec.ops import use_backend
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.adapters import DCVCCodec
from sparsecodec.runtime.adapters.dcvc import OriginalDCVC
from sparsecodec.runtime.context_model import ContextRows
from sparsecodec.sparsity import ChannelMasks, compact, trace_model
from sparsecodec.training import family_of

from ..lively import lively_dcvc
from .conftest import reports_as_in_the_codec

STRINGS = ("mv_y_string", "mv_z_string", "y_string", "z_string")
SIZE = (64, 128)


@pytest.fixture(scope="module")
def model() -> VideoCodec:
    """Untrained, with latents that take several symbols."""
    torch.manual_seed(0)
    model = create("dcvc-tiny").eval().requires_grad_(False)
    lively_dcvc(model.inter)
    return model


@pytest.fixture(scope="module")
def clip(photo: Tensor) -> list[Tensor]:
    """A photo that moves."""
    return [photo[:, :, 3 * t : 3 * t + SIZE[0], 2 * t : 2 * t + SIZE[1]].contiguous() for t in range(8)]


@pytest.fixture(scope="module")
def codec(model: VideoCodec) -> DCVCCodec:
    return compile_codec(model, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ends_agree_over_frames(model: VideoCodec, clip: list[Tensor], dtype: torch.dtype):
    codec = compile_codec(model, dtype=dtype)
    payload, encoder = codec.intra_encode(clip[0], 40)
    x_hat, decoder = codec.intra_decode(payload, *SIZE, 40)
    for index in range(1, 2 * len(clip)):
        payload, encoder = codec.inter_encode(clip[index % len(clip)], encoder, 40, index)
        x_hat, decoder = codec.inter_decode(payload, decoder, *SIZE, 40, index)
        assert len(encoder.tensors()) == 1 and all(map(torch.equal, encoder.tensors(), decoder.tensors()))
        assert torch.equal(x_hat, decoder.frame) and x_hat.min() >= 0 and x_hat.max() <= 1
        assert len(payload) > 400


def test_states_are_values(codec: DCVCCodec, clip: list[Tensor]):
    """Nothing that is coded later changes a state that was kept."""
    _, first = codec.intra_encode(clip[0], 40)
    kept = first.frame.clone()
    payload, second = codec.inter_encode(clip[1], first, 40, 1)
    again = second.frame.clone()
    codec.inter_encode(clip[2], second, 40, 2)
    assert torch.equal(first.frame, kept) and torch.equal(second.frame, again)
    assert torch.equal(codec.inter_decode(payload, first, *SIZE, 40, 1)[0], again)


def test_computes_what_the_model_computes(model: VideoCodec, codec: DCVCCodec, clip: list[Tensor]):
    plain, compiled = (m.compress(clip[0], clip[1]) for m in (model.inter, codec.inter))
    for name in STRINGS:
        assert abs(len(plain[name]) - len(compiled[name])) <= 8, name
    assert (plain["recon_image"] - compiled["recon_image"]).abs().max() < 0.02
    assert (plain["recon_image"] - compiled["recon_image"]).abs().mean() < 1e-3


def test_a_pruned_codec_computes_what_its_model_computes(model: VideoCodec, clip: list[Tensor]):
    graph = trace_model(model, list(family_of(model).transforms(model, "all")), "coupled")
    thin = compact(model, ChannelMasks.random(graph, 0.4, 0), graph)
    assert thin.inter.context_refine[1].out_channels < model.inter.widths.feature
    codec = compile_codec(thin, dtype=torch.float32)
    test_both_ends_agree_over_frames(thin, clip[:3], torch.float32)
    plain, compiled = (m.compress(clip[0], clip[1]) for m in (thin.inter, codec.inter))
    assert (plain["recon_image"] - compiled["recon_image"]).abs().mean() < 1e-3


def test_bits_do_not_depend_on_threads(codec: DCVCCodec, clip: list[Tensor]):
    state = DCVCState(clip[0])
    payload, after = codec.inter_encode(clip[1], state, 0, 1)
    torch.set_num_threads(2)
    try:
        again, decoded = codec.inter_encode(clip[1], state, 0, 1)
        assert again == payload and torch.equal(after.frame, decoded.frame)
        assert torch.equal(codec.inter_decode(payload, state, *SIZE, 0, 1)[0], after.frame)
    finally:
        torch.set_num_threads(1)


def test_the_inter_model_alone_answers_the_published_calls(model: VideoCodec, clip: list[Tensor]):
    compiled = compile_codec(model.inter, dtype=torch.float32)
    coded = compiled.compress(clip[0], clip[1])
    decoded = compiled.decompress(clip[0], *(coded[name] for name in STRINGS), *SIZE)
    assert torch.equal(decoded, coded["recon_image"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_model_estimates_as_the_model(model: VideoCodec, clip: list[Tensor], dtype: torch.dtype):
    compiled, state = compile_codec(model.inter, dtype=dtype), DCVCState(clip[0])
    estimate, expected = compiled(clip[1], state), model.inter(clip[1], state)
    assert abs(float(estimate["bit"] / expected["bit"]) - 1) < (1e-3 if dtype == torch.float32 else 0.1)
    assert estimate["x_hat"].dtype == torch.float32


@pytest.mark.parametrize("options", [{"dtype": torch.float32}, {"dtype": torch.bfloat16}, {"original": True}])
def test_a_compiled_model_answers_the_published_estimate(model: VideoCodec, clip: list[Tensor], options: dict):
    compiled = compile_codec(model.inter, **options)
    out, expected = compiled(clip[0], clip[1]), model.inter(clip[0], clip[1])
    assert out.keys() == expected.keys()
    wide = options.get("dtype") == torch.bfloat16
    for name, value in expected.items():
        if name.startswith("bpp"):
            assert float(out[name]) == pytest.approx(float(value), rel=0.1 if wide else 1e-3), name
        else:
            assert out[name].dtype == torch.float32 and out[name].is_contiguous()
            assert (out[name] - value).abs().mean() < (3e-2 if wide else 1e-3), name
    kept = {name: value.clone() for name, value in out.items()}
    compiled(clip[2], clip[3])  # and what it gave is not overwritten
    assert all(torch.equal(out[name], value) for name, value in kept.items())


@pytest.mark.parametrize("native", [True, False])
def test_original_is_the_model_to_the_byte(model: VideoCodec, clip: list[Tensor], native: bool, monkeypatch):
    if not native:
        monkeypatch.setattr(ContextRows, "matches", lambda self: False)
    original = compile_codec(model, original=True)
    assert isinstance(original.inter, OriginalDCVC)
    how = "row by row" if all(coder.native for coder in original.inter.coder().coders.values()) else "as torch layers"
    assert native or how == "as torch layers"
    assert how in str(original.report)
    reference = clip[0]
    for frame in clip[1:4]:
        ours, theirs = original.inter.compress(reference, frame), model.inter.compress(reference, frame)
        assert all(ours[name] == theirs[name] for name in STRINGS)
        assert torch.equal(ours["recon_image"], theirs["recon_image"])
        strings = [ours[name] for name in STRINGS]
        assert torch.equal(original.inter.decompress(reference, *strings, *SIZE), theirs["recon_image"])
        reference = theirs["recon_image"]


def test_original_notices_another_arithmetic(model: VideoCodec, clip: list[Tensor]):
    """Where torch adds otherwise than the native rows, its own layers code: the strings stay the model's."""
    original = compile_codec(model, original=True).inter
    for coder in original.coder().coders.values():
        if coder._rows is not None:
            at = coder._rows._parameters_at
            coder._rows._parameters_at = lambda seen, prior, at=at: at(seen, prior).nextafter(torch.tensor(9.0))
            assert not coder.native
    ours, theirs = original.compress(clip[0], clip[1]), model.inter.compress(clip[0], clip[1])
    assert all(ours[name] == theirs[name] for name in STRINGS)


def test_damaged_payloads_are_refused(codec: DCVCCodec, clip: list[Tensor]):
    state = DCVCState(clip[0])
    payload, _ = codec.inter_encode(clip[1], state, 0, 1)
    intra, _ = codec.intra_encode(clip[0], 40)
    for damaged in (payload[:-4], payload[4:], payload + bytes(4), b"", payload[:23]):
        with pytest.raises(BitstreamError):
            codec.inter_decode(damaged, state, *SIZE, 0, 1)
    with pytest.raises(BitstreamError, match="64 x 128 in a clip of 128 x 128"):
        codec.inter_decode(payload, DCVCState(torch.zeros(1, 3, 128, 128)), 128, 128, 0, 1)
    with pytest.raises(BitstreamError, match="64 x 128 in a clip of 64 x 64"):
        codec.intra_decode(intra, 64, 64, 40)


def test_report_names_what_runs(codec: DCVCCodec):
    report = codec.report
    rows = {row.paths[0]: row for row in report.rows if row.paths}
    assert rows["mvDecoder_part1.1"].op == "gdn" and rows["mvDecoder_part1.1"].backend == "cpu"
    assert rows["contextualDecoder_part2.3"].dtype == "float32"
    assert rows["opticFlow.moduleBasic.3.conv1"].backend == "cpu"
    assert any("wave by wave" in note for note in report.notes)


def test_the_inter_model_alone_reports_as_the_codec(model: VideoCodec, clip: list[Tensor]):
    lone, (reference, frame) = compile_codec(model.inter, dtype=torch.float32), (x[..., :64] for x in clip[:2])

    def predict():
        coded = lone.compress(reference, frame)
        lone.decompress(reference, *(coded[name] for name in STRINGS), 64, 64)

    reports_as_in_the_codec(lone, compile_codec(model, dtype=torch.float32), "inter", predict)
    assert "wave by wave" in lone.report.notes[-1]
    notes = compile_codec(model.inter, original=True).report.notes
    assert "original" in notes[0] and "context models" in notes[1]


def test_a_backend_is_obeyed_or_refused(model: VideoCodec):
    with use_backend("reference"):
        assert isinstance(compile_codec(model, dtype=torch.float32), DCVCCodec)
    with pytest.raises(UsageError, match="cannot code a clip's first frame"):
        compile_codec(VideoCodec(torch.nn.Identity(), model.inter))
    odd = copy.deepcopy(model.inter)
    odd.entropy_parameters.append(torch.nn.Identity())
    with pytest.raises(UsageError, match="entropy_parameters.*original=True"):
        compile_codec(odd)
    assert isinstance(compile_codec(odd, original=True), DCVC)
