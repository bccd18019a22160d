"""Compiled video codecs on a GPU: both ends in step, near the model, captured, of all sizes, in turns, in threads."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sparsecodec import ModelMismatchError
from sparsecodec._clip_format import ClipFormat
from sparsecodec.models import VideoCodec, create
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.video import CompiledVideo, fingerprint
from sparsecodec.sparsity import compact, count, magnitude_scores, masks_for_macs, trace_model
from sparsecodec.training.families import family_of

from ..toy_video import moving
from .conftest import code_in_step, states_are_values

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
NAMES = ["dcvc-rt-tiny", "dcvc-hem-tiny", "fvc-tiny"]
SIZE = (128, 192)
QP = 40
CLIP = {"qps": (QP, 10, 63), "period": 6}


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, enlivened_hem) -> VideoCodec:
    torch.manual_seed(0)
    model = create(request.param).eval().requires_grad_(False)
    if request.param == "dcvc-hem-tiny":
        return enlivened_hem(model)
    if request.param == "dcvc-rt-tiny":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "bit_estimator" not in name and ".q_" not in name:
                    parameter *= 1.1
    return model


@pytest.fixture(params=[torch.float16, torch.bfloat16, torch.float32], ids=["float16", "bfloat16", "float32"])
def codec(request: pytest.FixtureRequest, model: VideoCodec) -> CompiledVideo:
    return compile_codec(model, "cuda", request.param)


def test_both_ends_stay_in_step_and_graphs_give_the_same_again(codec: CompiledVideo):
    frames = [x.cuda() for x in moving(16, *SIZE)]
    first, second = (code_in_step(codec, frames, **CLIP) for _ in range(2))  # some eager, then all captured
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        assert one[0] == other[0] and torch.equal(one[1], other[1]), f"frame {number}"
    assert min(len(payload) for payload, _ in first) > 40, "nothing was coded"
    assert codec._networks.executor.refusals == []
    assert "CUDA graphs held" in str(codec.report)


def test_a_skewed_state_is_seen(codec: CompiledVideo):
    """The comparison of states can fail."""
    frames = moving(2, *SIZE)
    payload, state = codec.intra_encode(frames[0].cuda(), QP)
    moved = type(state)((state.features[0] * 1.01,)) if hasattr(state, "features") else type(state)(state.frame * 0.99)
    _, ours = codec.inter_encode(frames[1].cuda(), state, QP, 1)
    _, other = codec.inter_encode(frames[1].cuda(), moved, QP, 1)
    assert fingerprint(ours) != fingerprint(other)


def test_pictures_are_near_the_models(model: VideoCodec, codec: CompiledVideo):
    """Against the model's own float32 layers on the same GPU, each codec in its own loop."""
    frames = [x.cuda() for x in moving(8, *SIZE)]
    plain = compile_codec(model, "cuda", original=True)
    bound = 1e-3 if codec.dtype == torch.float32 else 0.03  # rounding at a tie moves a latent by a whole step
    clips = [code_in_step(c, frames, **CLIP) for c in (codec, plain)]
    for number, ((_, ours), (_, theirs)) in enumerate(zip(*clips, strict=True)):
        assert float((ours - theirs).square().mean().sqrt()) < bound, f"frame {number}"


@pytest.mark.parametrize("name", NAMES[:2])
def test_pruned_codecs_are_on_kernels_and_in_step(name: str):
    torch.manual_seed(0)
    model = create(name).eval().requires_grad_(False)
    transforms = family_of(model).transforms(model, "decoder", 64)
    graph, report = trace_model(model, list(transforms)), count(model, transforms)
    pruned = compact(model, masks_for_macs(report, graph, magnitude_scores(model, graph), 0.5), graph).eval()
    codec = compile_codec(pruned, "cuda", torch.float16)
    code_in_step(codec, [x.cuda() for x in moving(8, *SIZE)], **CLIP)
    assert {row.backend for row in codec.report.rows if row.macs and row.op != "Linear"} == {"triton"}


@pytest.mark.parametrize("height, width", [(33, 50), (64, 64), (270, 480), (67, 1021)])
def test_files_of_every_size(model: VideoCodec, height: int, width: int):
    codec, frames = compile_codec(model, "cuda", torch.float16), moving(8, height, width)
    session = codec.encoder(ClipFormat(height, width, rate=(25, 1)), qp=QP, intra_period=5)
    data = b"".join([*(session.push(x) for x in frames), session.finish()])
    decoded = list(codec.decoder(data))
    assert [tuple(x.shape) for x in decoded] == [(1, 3, height, width)] * 8
    late = list(codec.decoder(data, start=6))
    assert len(late) == 2 and all(map(torch.equal, late, decoded[6:]))


def test_clips_in_turns_and_in_threads(model: VideoCodec):
    """Sessions of two sizes share one codec and its graphs."""
    codec = compile_codec(model, "cuda", torch.float16)
    clips = [moving(8, *size, seed=seed) for seed, size in enumerate([(64, 64), SIZE])]

    def encoded(frames: list[torch.Tensor]) -> bytes:
        session = codec.encoder(ClipFormat(*frames[0].shape[2:], rate=(25, 1)), qp=QP)
        return b"".join([*(session.push(x) for x in frames), session.finish()])

    alone = [encoded(frames) for frames in clips]
    expected = [list(codec.decoder(data)) for data in alone]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(encoded, clips * 2)) == alone * 2
        for number, decoded in enumerate(pool.map(lambda data: list(codec.decoder(data)), alone * 2)):
            assert all(map(torch.equal, decoded, expected[number % 2]))


def test_states_are_values(codec: CompiledVideo):
    states_are_values(codec, [x.cuda() for x in moving(4, *SIZE)], QP)


def test_files_of_the_other_device_are_refused(model: VideoCodec):
    codecs = [compile_codec(copy.deepcopy(model), device, torch.float32) for device in ("cpu", "cuda")]
    files = []
    for codec in codecs:
        session = codec.encoder(ClipFormat(*SIZE, rate=(25, 1)), qp=QP)
        files.append(session.push(moving(1, *SIZE)[0]) + session.finish())
    with pytest.raises(ModelMismatchError, match=r"kernels on a GPU in float32.*codec computes with.*video loop"):
        codecs[0].decoder(files[1])
    with pytest.raises(ModelMismatchError, match=r"of one CPU.*codec computes with.*triton"):
        codecs[1].decoder(files[0])
