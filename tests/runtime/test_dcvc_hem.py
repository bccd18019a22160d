"""Compiled DCVC-HEM: both ends in step, close to the model, whatever was pruned, and the published calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparsecodec._clip_format import ClipFormat
from sparsecodec.errors import BitstreamError, ModelMismatchError, UsageError
from sparsecodec.models import VideoCodec, create
from sparsecodec.runtime import compile_codec
from sparsecodec.sparsity import ChannelMasks, compact, trace_model
from sparsecodec.training import family_of

from ..toy_video import moving
from .conftest import code_in_step, reports_as_in_the_codec, states_are_values

SIZE = (64, 128)
QP = 40


@pytest.fixture(scope="module")
def model(enlivened_hem: Callable[[VideoCodec], VideoCodec]) -> VideoCodec:
    torch.manual_seed(0)
    return enlivened_hem(create("dcvc-hem-tiny").eval().requires_grad_(False))


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def codec(request: pytest.FixtureRequest, model: VideoCodec):
    return compile_codec(model, dtype=request.param)


def test_both_ends_stay_in_step_for_32_frames(codec):
    payloads = [payload for payload, _ in code_in_step(codec, moving(32, *SIZE), [QP])]
    assert min(map(len, payloads)) > 200, "nothing was coded"
    assert len(set(payloads)) == 32


def test_float32_is_close_to_the_model(model: VideoCodec):
    computes_what_the_model_computes(compile_codec(model, dtype=torch.float32), model, moving(3, *SIZE))


def computes_what_the_model_computes(codec, model: VideoCodec, frames: list[Tensor]) -> None:
    _, state = codec.intra_encode(frames[0], QP)
    step, (mv_step, y_step) = model.intra.q_scales(64)[QP], model.inter.q_scales(64)[QP]
    assert (state.frame - model.intra.compress(frames[0], step)["x_hat"]).abs().max() < 1e-4
    for index in (1, 2):
        expected = model.inter.compress(frames[index], model.inter.dpb_of(state), mv_step, y_step)["dbp"]
        _, state = codec.inter_encode(frames[index], state, QP, index)
        for ours, theirs in zip(state.fields, expected.values(), strict=True):
            assert (ours - theirs).abs().max() < 1e-3 * max(float(theirs.abs().max()), 1.0)


def test_bfloat16_is_near_the_model(model: VideoCodec):
    codec, (x, *_) = compile_codec(model, dtype=torch.bfloat16), moving(1, *SIZE)
    _, state = codec.intra_encode(x, QP)
    assert (state.frame - model.intra.compress(x, model.intra.q_scales(64)[QP])["x_hat"]).abs().mean() < 0.02


def test_states_are_values(codec):
    states_are_values(codec, moving(4, *SIZE), QP)


def test_its_memory_is_the_feature(codec):
    first, second = moving(2, *SIZE)
    _, state = codec.intra_encode(first, QP)
    assert codec.magnitude(state) == 0
    _, state = codec.inter_encode(second, state, QP, 1)
    louder = dataclasses.replace(state, feature=3 * state.feature)
    assert 0 < 2.9 * codec.magnitude(state) < codec.magnitude(louder)


def test_original_has_the_bytes_of_the_model(model: VideoCodec):
    codec, (x, after) = compile_codec(model, original=True), moving(2, *SIZE)
    payload, state = codec.intra_encode(x, QP)
    assert payload == model.intra.compress(x, model.intra.q_scales(64)[QP])["bit_stream"]
    expected = model.inter.compress(after, model.inter.dpb_of(state), *model.inter.q_scales(64)[QP])
    assert codec.inter_encode(after, state, QP, 1)[0] == expected["bit_stream"]
    assert "original" in codec.report.notes[0]


@pytest.mark.parametrize("original", [False, True])
def test_lone_models_answer_the_published_calls(model: VideoCodec, original: bool):
    intra, inter = (compile_codec(half, dtype=torch.bfloat16, original=original) for half in (model.intra, model.inter))
    x, after = moving(2, *SIZE)
    for half in (intra, inter):
        half.update(force=True)
    coded = intra.compress(x, 0.8)
    x_hat = intra.decompress(coded["bit_stream"], 51, 101, 0.8)["x_hat"]
    assert torch.equal(x_hat, coded["x_hat"])
    dpb = {"ref_frame": x_hat, "ref_feature": None, "ref_y": None, "ref_mv_y": None}
    sent = inter.compress(after, dpb, 1.1, 0.7)
    received = inter.decompress(dpb, sent["bit_stream"], 51, 101, 1.1, 0.7)["dpb"]
    assert all(torch.equal(received[key], sent["dbp"][key]) for key in dpb)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_model_estimates_as_the_model(model: VideoCodec, dtype: torch.dtype):
    """`encode_decode` without a path: after a picture, and after frames whose features are narrow."""
    compiled, (x, *clip) = compile_codec(model.inter, dtype=dtype), moving(3, *SIZE)
    steps = {"mv_y_q_scale": 1.1, "y_q_scale": 0.7}
    exact, dpb = dtype == torch.float32, {"ref_frame": x, "ref_feature": None, "ref_y": None, "ref_mv_y": None}
    for frame in clip:
        estimate, expected = (end.encode_decode(frame, dpb, **steps) for end in (compiled, model.inter))
        assert abs(estimate["bit"] / expected["bit"] - 1) < (1e-3 if exact else 0.1)
        difference = (estimate["dpb"]["ref_frame"] - expected["dpb"]["ref_frame"]).abs().mean()
        assert difference < (1e-4 if exact else 0.02)
        coded = compiled.compress(frame, dpb, *steps.values())["dbp"]
        assert (estimate["dpb"]["ref_frame"] - coded["ref_frame"]).abs().mean() < 1e-4
        dpb = {key: value.float() for key, value in coded.items()}  # as the model, too, can read them
    assert compiled.encode_decode(frame, coded, **steps)["bit"] > 0


def test_half_leaves_a_compiled_model_what_it_is(model: VideoCodec):
    """Channel-wise steps in halves would be other steps, to which no other end listens."""
    (x, after), steps = moving(2, *SIZE), (1.1, 0.7)
    intra, inter = compile_codec(model.intra), compile_codec(model.inter)
    assert compile_codec(model.intra).half().compress(x, 0.8)["bit_stream"] == intra.compress(x, 0.8)["bit_stream"]
    dpb, halved = (
        {"ref_frame": x, "ref_feature": None, "ref_y": None, "ref_mv_y": None},
        compile_codec(model.inter).half(),
    )
    assert halved.compress(after, dpb, *steps)["bit_stream"] == inter.compress(after, dpb, *steps)["bit_stream"]


def test_every_layer_with_weights_but_the_squeezes_is_on_a_kernel(codec):
    rows = [row for row in codec.report.rows if row.macs]
    assert len(rows) > 150
    assert {row.op for row in rows if row.backend != "cpu"} == {"Linear"}
    assert all("fc" in path for row in rows if row.op == "Linear" for path in row.paths)


def test_lone_models_report_as_the_codec(model: VideoCodec):
    codec, (x, *clip) = compile_codec(model), moving(3, 64, 64)
    intra, inter = (compile_codec(half) for half in (model.intra, model.inter))

    def predict():
        dpb = {"ref_frame": x, "ref_feature": None, "ref_y": None, "ref_mv_y": None}
        for frame in clip:
            coded = inter.compress(frame, dpb, 1.1, 0.7)
            dpb = inter.decompress(dpb, coded["bit_stream"], 64, 64, 1.1, 0.7)["dpb"]

    reports_as_in_the_codec(intra, codec, "intra", lambda: intra.compress(x, 0.8))
    reports_as_in_the_codec(inter, codec, "inter", predict)
    assert {row.op for row in inter.report.rows if row.macs and row.backend != "cpu"} == {"Linear"}
    for half in (model.intra, model.inter):
        assert "original" in compile_codec(half, original=True).report.notes[0]


def test_the_number_of_threads_is_part_of_the_numerics(codec):
    """Means over pictures are torch's, which may add in another order on more threads."""
    threads, before = torch.get_num_threads(), codec.numerics
    encoder = codec.encoder(ClipFormat(64, 64))
    data = encoder.push(moving(1, 64, 64)[0]) + encoder.finish()
    try:
        torch.set_num_threads(threads + 1)
        assert codec.numerics.tag != before.tag and f"{threads + 1} threads" in codec.numerics.name
        with pytest.raises(ModelMismatchError, match=rf"it opens with {threads} threads \(--threads {threads}, "):
            codec.decoder(data)
    finally:
        torch.set_num_threads(threads)


def test_files_of_clips_open_and_damage_is_found(codec):
    frames = moving(3, 51, 101)
    encoder = codec.encoder(ClipFormat(51, 101, rate=(25, 1)), qp=QP)
    data = b"".join(encoder.push(x) for x in frames) + encoder.finish()
    decoded = list(codec.decoder(data))
    assert [tuple(x.shape) for x in decoded] == [(1, 3, 51, 101)] * 3
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 8
    with pytest.raises(BitstreamError):
        list(codec.decoder(bytes(damaged)))


def test_sizes_must_be_those_of_the_frame_before(codec):
    x, after = moving(2, *SIZE)
    _, state = codec.intra_encode(x, QP)
    payload, _ = codec.inter_encode(after, state, QP, 1)
    with pytest.raises(UsageError, match=r"ref_frame: .*need \(1, 3, 64, 64\)"):
        codec.inter_decode(payload, state, 64, 64, QP, 1)


@pytest.mark.parametrize(("state", "round_to"), [("locked", 8), ("coupled", 1)])
def test_pruned_blocks_are_compiled_at_their_width(model: VideoCodec, state: str, round_to: int):
    graph = trace_model(model, list(family_of(model).transforms(model, "all")), state)
    thin = compact(model, ChannelMasks.random(graph, sparsity=0.4, seed=0, round_to=round_to), graph)
    before, after = (sum(value.numel() for value in m.parameters()) for m in (model, thin))
    assert after < 0.5 * before
    codec, frames = compile_codec(thin, dtype=torch.float32), moving(3, *SIZE)
    code_in_step(codec, frames, [QP])
    computes_what_the_model_computes(codec, thin, frames)
    _, last = codec.inter_encode(frames[1], codec.intra_encode(frames[0], QP)[1], QP, 1)
    assert (last.feature.shape[1] < model.inter.widths.channels) == (state == "coupled")


def test_unknown_pairs_are_refused(model: VideoCodec):
    with pytest.raises(UsageError, match="no known family"):
        compile_codec(VideoCodec(model.intra, nn.Conv2d(3, 3, 1)))
