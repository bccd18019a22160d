"""Arguments of the wrong kind: one sentence that names the value and what would be right, whatever is called."""

from __future__ import annotations

import copy
import io
import re

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

from sparsecodec import compile_codec, load
from sparsecodec._clip_format import ClipFormat
from sparsecodec.entropy import Container, NalReader, VideoReader
from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.models import create
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.models.inputs import check_size
from sparsecodec.models.video import VideoCodec

X = torch.full((1, 3, 64, 64), 0.5)


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return compile_codec(create("evc-nano"))


@pytest.mark.parametrize("limit", ["1G", -5, 0, float("nan"), float("inf"), True, [1]])
def test_limits_that_are_no_numbers_are_named(codec, limit):
    blob = codec.encode(X)
    calls = {
        "max_memory": [
            lambda: codec.encode(X, max_memory=limit),
            lambda: codec.decode(blob, max_memory=limit),
            lambda: codec.decode_batch([blob], max_memory=limit),
        ],
        "max_pixels": [
            lambda: codec.decode(blob, max_pixels=limit),
            lambda: codec.decode_batch([blob], max_pixels=limit),
            lambda: Container.from_bytes(blob, max_pixels=limit),
            lambda: VideoReader(io.BytesIO(), max_pixels=limit),
            lambda: NalReader("rt", io.BytesIO(), max_pixels=limit),
        ],
    }
    for name, functions in calls.items():
        for function in functions:
            with pytest.raises(UsageError, match=re.escape(f"{name}={limit!r} (needs a positive, finite number)")):
                function()


@pytest.mark.parametrize("side", [64.0, "64", True, 63, -64, 2**24])
def test_sides_of_tiles_that_the_format_does_not_hold_are_named(codec, side):
    with pytest.raises(UsageError, match=re.escape(f"tile side {side!r} (needs a multiple of 64")):
        codec.encode(X, tile=side)


@pytest.mark.parametrize("overlap", [16.0, "16", 15, -16, 48])
def test_overlaps_that_the_format_does_not_hold_are_named(codec, overlap):
    with pytest.raises(
        UsageError, match=re.escape(f"overlap {overlap!r} of tiles of 64 pixels (needs a multiple of 16")
    ):
        codec.encode(X, tile=64, overlap=overlap)


def test_what_is_no_sequence_no_model_and_no_device_is_named(codec):
    with pytest.raises(UsageError, match="pictures is a NoneType"):
        codec.encode_batch(None)
    with pytest.raises(UsageError, match="model is a int .needs a name or a path"):
        load(5)
    with pytest.raises(UsageError, match="device='gpu' .needs one that torch knows"):
        compile_codec(create("evc-nano"), device="gpu")
    with pytest.raises(UsageError, match="calibration: int .needs a tensor or a sequence"):
        compile_codec(create("evc-nano"), stream="portable", calibration=5)


@pytest.mark.parametrize("name", ["dcvc-rt-tiny", "dcvc-hem-tiny", "dcvc-tiny", "fvc-tiny"])
def test_a_precision_without_kernels_is_refused_when_compiling(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = create(name)
    for part in (model, model.inter, copy.deepcopy(model.inter).half()):
        with pytest.raises(
            NoBackendError, match=r"^dtype=torch.float16 on a CPU .needs torch.float32 or torch.bfloat16"
        ):
            compile_codec(part, dtype=torch.float16)
    assert compile_codec(model.inter, dtype=torch.float16, original=True) is not None
    assert compile_codec(model.inter, dtype=torch.float16, strict=False) is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_references_that_are_not_finite_are_refused_by_compiled_models(value):
    """They would be coded, without an error, into a stream of noise."""
    torch.manual_seed(0)
    finite = "needs finite ones"
    rt, hem, dcvc = (compile_codec(create(name).inter) for name in ("dcvc-rt-tiny", "dcvc-hem-tiny", "dcvc-tiny"))
    bad = X.clone()
    bad[0, 1, 5, 9] = value
    with pytest.raises(UsageError, match=f"the reference's frame .*{finite}"):
        rt.add_ref_frame(None, bad)
    assert not rt.dpb, "a refused reference must not stay"
    rt.add_ref_frame(None, X)
    rt.compress(X, 30)
    with pytest.raises(UsageError, match=f"the reference's feature .*{finite}"):
        rt.add_ref_frame(rt.dpb[0].feature * value, None)

    coded = hem.compress(X, hem.dpb_of(hem.start(X)), 1.0, 1.0)
    for name, field in coded["dbp"].items():
        dpb = coded["dbp"] | {name: field + value}
        with pytest.raises(UsageError, match=f"{name} .*{finite}"):
            hem.compress(X, dpb, 1.0, 1.0)
        with pytest.raises(UsageError, match=f"{name} .*{finite}"):
            hem.decompress(dpb, coded["bit_stream"], 64, 64, 1.0, 1.0)

    with pytest.raises(UsageError, match=f"referframe .*{finite}"):
        dcvc.compress(bad, X)
    strings = [dcvc.compress(X, X)[f"{name}_string"] for name in ("mv_y", "mv_z", "y", "z")]
    with pytest.raises(UsageError, match=f"referframe .*{finite}"):
        dcvc.decompress(bad, *strings, 64, 64)


def test_sources_and_numbers_of_clips_are_checked():
    torch.manual_seed(0)
    intra = DCVCRTImage(RTImageWidths(16, 8, 16, 1, 1, 1, 1))
    codec = compile_codec(VideoCodec(intra, DCVCRTVideo(RTVideoWidths(16, 8, 24, 16, 1, 1, 1))))
    encoder = codec.encoder(ClipFormat(64, 64))
    data = encoder.push(X) + encoder.finish()
    for kind in (bytes, bytearray, memoryview):
        assert len(list(codec.decoder(kind(data)))) == 1
    for source in (None, 5, "clip.spv", io.StringIO("SPV")):
        with pytest.raises(UsageError, match=f"a {type(source).__name__} .needs bytes, a binary file or a reader"):
            codec.decoder(source)
    for start in (-1, 0.5, "1"):
        with pytest.raises(UsageError, match=re.escape(f"start={start!r} (needs 0 .. ")):
            codec.decoder(data, start)
    for period in (-1, 2.0, None):
        with pytest.raises(UsageError, match=re.escape(f"intra_period={period!r} (needs 0 .. ")):
            codec.encoder(ClipFormat(64, 64), intra_period=period)
    with pytest.raises(UsageError, match=r"form is a tuple \(needs a sparsecodec.data.ClipFormat"):
        codec.encoder((64, 64))


def test_weights_that_hooks_compute_are_no_weights():
    model = create("dcvc-rt-tiny")
    prune.l1_unstructured(model.inter.encoder.conv1, "weight", 0.5)
    message = r"VideoCodec: inter.encoder.conv1.weight is no weight .* \(torch.nn.utils.prune.remove"
    with pytest.raises(UsageError, match=message):
        compile_codec(model)
    prune.remove(model.inter.encoder.conv1, "weight")
    compile_codec(model)


@pytest.mark.parametrize("path", ["dec.0", ""])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_that_would_not_run_are_refused(path: str, kind: str):
    model = create("evc-tiny")
    hook = getattr(model.get_submodule(path), kind)(lambda *_: None)
    with pytest.raises(UsageError, match=f"EVC: {path or 'the model'} has a forward hook, which no compiled network"):
        compile_codec(model)
    hook.remove()
    compile_codec(model)


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_a_device_without_kernels_is_refused(device: str):
    with pytest.raises(UsageError, match=f"device={device}: no kernels for it .needs 'cpu' or 'cuda'"):
        compile_codec(create("evc-tiny"), device=device)


@pytest.mark.parametrize("name", ["dcvc-rt-tiny", "dcvc-hem-tiny", "dcvc-tiny", "fvc-tiny"])
def test_weights_cannot_be_loaded_into_compiled_models(name):
    model = create(name).inter
    compiled = compile_codec(model)
    for strict in (True, False):
        with pytest.raises(UsageError, match=f"a {type(compiled).__name__} is compiled with its weights"):
            compiled.load_state_dict(model.state_dict(), strict=strict)


@pytest.mark.parametrize("original", [True, False])
def test_weights_cannot_be_loaded_by_their_published_name_either(original: bool):
    """DCVC's coding tables are packed with its weights in the original arithmetic, too."""
    model = create("dcvc-tiny").inter
    compiled = compile_codec(model, original=original)
    for loading in (compiled.load_dict, compiled.load_state_dict):
        with pytest.raises(UsageError, match="is compiled with its weights .*call compile_codec again"):
            loading(model.state_dict())


def video_codec(name: str):
    torch.manual_seed(0)
    portable = name.endswith("-portable")
    return compile_codec(load(name) if portable else create(name), stream="portable" if portable else "native")


VIDEO = ["dcvc-rt-tiny", "dcvc-rt-tiny-portable", "dcvc-hem-tiny", "dcvc-tiny", "fvc-tiny"]


@pytest.mark.parametrize("name", VIDEO)
def test_frames_and_states_of_single_calls_fit_each_other(name):
    codec, larger = video_codec(name), torch.full((1, 3, 128, 64), 0.5)
    _, state = codec.intra_encode(X, 32)
    payload, _ = codec.inter_encode(X, state, 32, 1)
    for bad, message in {
        "ndarray": (X.numpy(), "is a ndarray"),
        "uint8": (X.byte(), "torch.uint8"),
        "size": (X[..., :60], "needs multiples of"),
        "batch": (X.expand(2, -1, -1, -1), "batch of 2"),
        "nan": (X * float("nan"), "nan"),
        "other": (larger, "128, 64|128 x 64|64, 32"),
    }.values():
        with pytest.raises(UsageError, match=message):
            codec.inter_encode(bad, state, 32, 1)
    with pytest.raises(UsageError, match="128, 64|128 x 64|64, 32"):
        codec.inter_decode(payload, state, 128, 64, 32, 1)
    with pytest.raises(UsageError, match="needs multiples of"):
        codec.intra_encode(X[..., :60], 32)


@pytest.mark.parametrize("name", VIDEO)
def test_qualities_and_states_of_compiled_codecs_are_checked(name):
    codec = video_codec(name)
    payload, state = codec.intra_encode(X, 32)
    for qp in (-1, 64, 30.5, None):
        with pytest.raises(UsageError, match=re.escape(f"qp={qp!r}")):
            codec.intra_encode(X, qp)
    predicted, _ = codec.inter_encode(X, state, 32, 1)
    with pytest.raises(UsageError, match="state is a NoneType"):
        codec.inter_encode(X, None, 32, 1)
    with pytest.raises(UsageError, match="state is a NoneType"):
        codec.inter_decode(predicted, None, 64, 64, 32, 1)
    if "rt" in name:  # the others move no rate
        with pytest.raises(UsageError, match=re.escape("index=1.5 (needs 0 .. ")):
            codec.inter_encode(X, state, 32, 1.5)


def test_sizes_may_be_numpy_integers_and_no_bools():
    check_size(np.int64(64), 64)
    for side in (True, 64.0, "64", 0):
        with pytest.raises(UsageError, match="needs at least 1 x 1, whole numbers"):
            check_size(64, side)


def test_the_quality_of_a_dropped_feature_is_checked():
    model = create("dcvc-rt-tiny").inter
    for qp in (-1, 99, 30.5, None):
        with pytest.raises(UsageError, match=re.escape(f"{qp!r}")):
            model.prepare_feature_adaptor_i(qp)


def test_a_session_leaves_the_number_of_streams_that_was_set():
    torch.manual_seed(0)
    intra = DCVCRTImage(RTImageWidths(16, 8, 16, 1, 1, 1, 1))
    codec = compile_codec(VideoCodec(intra, DCVCRTVideo(RTVideoWidths(16, 8, 24, 16, 1, 1, 1))))
    codec.intra.set_use_two_entropy_coders(True)
    expected = codec.intra.compress(X, 30)["bit_stream"]
    encoder = codec.encoder(ClipFormat(64, 64))
    encoder.push(X)
    encoder.push(X)
    assert codec.intra.compress(X, 30)["bit_stream"] == expected
    assert codec.intra.uses_two_entropy_coders and not codec.inter.uses_two_entropy_coders
