"""Compiled DCVC-RT: both ends in step, close to the model, whatever was pruned, and the published calls."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsecodec._clip_format import ClipFormat
from sparsecodec.errors import BitstreamError, ModelMismatchError, UsageError
from sparsecodec.models import create
from sparsecodec.models.dcvc_rt_image import RT_IMAGE_TINY, DCVCRTImage
from sparsecodec.runtime import compile_codec
from sparsecodec.sparsity import compact, count, magnitude_scores, masks_for_macs, trace_model
from sparsecodec.training.families import family_of

from ..toy_video import moving
from .conftest import code_in_step, reports_as_in_the_codec, states_are_values

SIZE = (48, 80)  # latent 3 x 5: the hyper-latent is padded, and both passes are odd
QP = 20


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Random weights that neither die out nor run away over many frames."""
    torch.manual_seed(0)
    model = create("dcvc-rt-tiny").eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bit_estimator" not in name and ".q_" not in name:
                parameter *= 1.1
    for half in (model.intra, model.inter):
        half.update()
    return model


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def codec(request: pytest.FixtureRequest, model: nn.Module):
    return compile_codec(model, dtype=request.param)


def test_both_ends_stay_in_step_for_32_frames(codec):
    payloads = [payload for payload, _ in code_in_step(codec, moving(32, *SIZE), [QP])]
    assert min(map(len, payloads)) > 40, "nothing was coded"


def test_one_more_thread_gives_the_same_bits(codec):
    frames = moving(3, *SIZE)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = code_in_step(codec, frames, [QP])
    finally:
        torch.set_num_threads(before)
    for (payload, x_hat), (other, picture) in zip(two, code_in_step(codec, frames, [QP]), strict=True):
        assert payload == other and torch.equal(x_hat, picture)


def test_float32_is_close_to_the_model(model: nn.Module):
    codec, frames = compile_codec(model, dtype=torch.float32), moving(4, *SIZE)
    _, state = codec.intra_encode(frames[0], QP)
    plain = model.intra.compress(frames[0], QP)["x_hat"]
    assert (state.frame - plain).abs().max() < 1e-4
    theirs = state
    for index in (1, 2, 3):
        rate = codec.shifted(QP, index)
        ours_payload, ours = codec.inter_encode(frames[index], state, QP, index)
        _, right = model.inter.compress_frame(frames[index], theirs, rate)
        assert (ours.feature - right.feature).abs().max() < 1e-4 * right.feature.abs().max()
        picture, _ = codec.inter_decode(ours_payload, state, *SIZE, QP, index)
        assert (picture - model.inter.picture(right.feature, rate)).abs().max() < 1e-3
        state, theirs = ours, right


def test_bfloat16_is_near_the_model(model: nn.Module):
    codec, (x, *_) = compile_codec(model, dtype=torch.bfloat16), moving(1, *SIZE)
    _, state = codec.intra_encode(x, QP)
    assert (state.frame - model.intra.compress(x, QP)["x_hat"]).abs().mean() < 0.02


def test_states_are_values(codec):
    states_are_values(codec, moving(4, *SIZE), QP)


def test_original_has_the_bytes_of_the_model(model: nn.Module):
    codec, (x, after) = compile_codec(model, original=True), moving(2, *SIZE)
    payload, state = codec.intra_encode(x, QP)
    assert payload == model.intra.compress(x, QP)["bit_stream"]
    assert codec.inter_encode(after, state, QP, 1)[0] == model.inter.compress_frame(after, state, 28)[0]
    assert codec.numerics != compile_codec(model, dtype=torch.float32).numerics
    assert "original" in codec.report.notes[0]


@pytest.mark.parametrize("original", [False, True])
def test_lone_models_answer_the_published_calls(model: nn.Module, original: bool):
    intra, inter = (compile_codec(half, dtype=torch.bfloat16, original=original) for half in (model.intra, model.inter))
    (x, after), sps = moving(2, *SIZE), {"height": 45, "width": 77, "ec_part": 1}
    for half in (intra, inter):
        half.set_use_two_entropy_coders(True)
        half.update(force_zero_thres=0.12)
    coded = intra.compress(x, 30)
    x_hat = intra.decompress(coded["bit_stream"], sps, 30)["x_hat"]
    assert torch.equal(x_hat, coded["x_hat"])
    inter.clear_dpb()
    inter.add_ref_frame(None, x_hat)
    payload = inter.compress(after, inter.shift_qp(30, 1))["bit_stream"]
    feature = inter.dpb[0].feature.clone()
    inter.clear_dpb()
    inter.add_ref_frame(None, x_hat)
    inter.decompress(payload, sps, 38)
    assert torch.equal(inter.dpb[0].feature, feature)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_leaves_a_compiled_model_what_it_is(model: nn.Module, dtype: torch.dtype):
    """Scripts of the published software call it; the banks in halves would be other banks than the networks'."""
    (first, *clip), sps = [x.half() for x in moving(4, *SIZE)], {"height": SIZE[0], "width": SIZE[1], "ec_part": 0}
    sender, receiver = compile_codec(model.inter, dtype=dtype).half(), compile_codec(model.inter, dtype=dtype)
    intra, halved = compile_codec(model.intra, dtype=dtype), compile_codec(model.intra, dtype=dtype).to(torch.float16)
    for half in (sender, halved):
        half.update()  # coding tables are of the weights, which half() must not have rounded
    payload = halved.compress(first, QP)["bit_stream"]
    assert payload == intra.compress(first, QP)["bit_stream"]
    for end in (sender, receiver):
        end.add_ref_frame(None, first)
    for x in clip:
        receiver.decompress(sender.compress(x, QP)["bit_stream"], sps, QP)
        assert torch.equal(receiver.dpb[0].feature, sender.dpb[0].feature)
    assert {value.dtype for value in sender.parameters()} == {torch.float32}


def test_a_skip_threshold_is_part_of_the_identity(model: nn.Module):
    skipping = copy.deepcopy(model)
    skipping.inter.force_zero_thres = 0.12
    codec, plain = compile_codec(skipping), compile_codec(model)
    assert codec.model_hash != plain.model_hash
    frames = moving(3, *SIZE)
    less, more = ([len(payload) for payload, _ in code_in_step(c, frames, [QP])] for c in (codec, plain))
    assert sum(less[1:]) < sum(more[1:])


@pytest.mark.parametrize("state", ["locked", "coupled"])
def test_a_pruned_codec_is_on_kernels_and_in_step(model: nn.Module, state: str):
    transforms = family_of(model).transforms(model, "decoder" if state == "locked" else "all", 64)
    graph, report = trace_model(model, list(transforms), state), count(model, transforms)
    masks = masks_for_macs(report, graph, magnitude_scores(model, graph), 0.5)
    pruned = compact(model, masks, graph).eval()
    codec = compile_codec(pruned, dtype=torch.float32)
    code_in_step(codec, moving(3, *SIZE), [QP])
    assert not [row for row in codec.report.rows if row.macs and row.backend != "cpu"]
    assert codec.report.macs < 0.6 * codec.report.dense_macs
    assert codec.model_hash != compile_codec(model).model_hash
    for half in (pruned.intra, pruned.inter):
        half.update()
    x, after = moving(2, *SIZE)
    _, state = codec.intra_encode(x, QP)
    _, ours = codec.inter_encode(after, state, QP, 1)
    _, right = pruned.inter.compress_frame(after, state, codec.shifted(QP, 1))
    assert (ours.feature - right.feature).abs().max() < 1e-4 * right.feature.abs().max()
    assert (ours.feature.shape[1] < model.inter.widths.main) == (graph.state == "coupled")


def test_every_layer_with_weights_is_on_a_kernel(codec):
    rows = codec.report.rows
    assert {row.backend for row in rows if row.paths} <= {"cpu"} | {"torch"}
    assert not [row for row in rows if row.macs and row.backend != "cpu"]
    assert {row.op for row in rows if row.macs} == {"pointwise", "conv2d_act", "depth_conv_block"}
    assert 0 < codec.report.macs == codec.report.dense_macs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lone_models_report_as_the_codec(model: nn.Module, dtype: torch.dtype):
    codec, (x, *clip), sps = compile_codec(model, dtype=dtype), moving(3, 64, 64), {"height": 64, "width": 64}
    intra, inter = (compile_codec(half, dtype=dtype) for half in (model.intra, model.inter))

    def predict():
        inter.add_ref_frame(None, x)
        for frame in clip:
            state = inter.dpb[0]
            payload = inter.compress(frame, QP)["bit_stream"]
            inter.dpb[0] = state
            inter.decompress(payload, {**sps, "ec_part": 0}, QP)

    reports_as_in_the_codec(intra, codec, "intra", lambda: intra.compress(x, QP))
    reports_as_in_the_codec(inter, codec, "inter", predict)
    for half in (model.intra, model.inter):
        assert "original" in compile_codec(half, original=True).report.notes[0]


def test_damage_and_misuse(codec):
    x, *_ = moving(1, *SIZE)
    payload, state = codec.intra_encode(x, QP)
    with pytest.raises(BitstreamError):
        codec.intra_decode(payload[: len(payload) // 2], *SIZE, QP)
    with pytest.raises(UsageError, match="needs 0"):
        codec.intra_encode(x, 64)
    with pytest.raises(UsageError, match="multiples of 16"):
        codec.intra_encode(x[:, :, :40], QP)
    with pytest.raises(UsageError, match="video"):
        compile_codec(create("evc-tiny"), original=True)


def test_files_of_other_numerics_are_refused(model: nn.Module):
    single, half = (compile_codec(model, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    session = single.encoder(ClipFormat(*SIZE, rate=(25, 1)), qp=QP)
    data = b"".join([*(session.push(x) for x in moving(2, *SIZE)), session.finish()])
    assert len(list(single.decoder(data))) == 2
    with pytest.raises(ModelMismatchError, match="numerics"):
        half.decoder(data)


def test_image_model_of_other_widths():
    torch.manual_seed(1)
    narrow = DCVCRTImage(type(RT_IMAGE_TINY)(16, 8, 24, 1, 1, 1, 1)).eval()
    compiled = compile_codec(narrow, dtype=torch.float32)
    x = moving(1, 32, 32)[0]
    narrow.update()
    assert (compiled.compress(x, 9)["x_hat"] - narrow.compress(x, 9)["x_hat"]).abs().max() < 1e-4
