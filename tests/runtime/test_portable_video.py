"""Portable video codecs: the same symbols, States and pictures whatever computes them."""

from __future__ import annotations

import copy

import pytest
import torch

from sparsecodec import zoo
from sparsecodec._clip_format import ClipFormat
from sparsecodec.errors import BitstreamError, ModelMismatchError, UsageError
from sparsecodec.models.video import VideoCodec
from sparsecodec.ops._registry import use_backend
from sparsecodec.quant import (
    apply_quantization,
    is_exact,
    is_portable,
    portable,
    prove_no_overflow,
    quantization_config,
)
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.video import fingerprint

from .portable_clips import Kind, assert_same, decoded, decoded_frame
from .test_portable_dcvc import DCVC_2021
from .test_portable_fvc import FVCS
from .test_portable_hem import HEM
from .test_portable_rt import RT

KINDS = {"dcvc-rt": RT, "dcvc-hem": HEM, "dcvc": DCVC_2021, **FVCS}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def test_decoders_have_the_encoders_states(kind: Kind):
    found = [fingerprint(state) for _, state in kind.expected]
    assert found == [fingerprint(frame.state) for frame in kind.stream]
    assert len(set(found)) == kind.frames
    assert all(tensor.dtype == torch.int16 for _, state in kind.expected for tensor in state.tensors())


def test_streams_are_lively(kind: Kind):
    """The tests here would be worth nothing on latents of zeros, or on pictures that are clipped to black and white."""
    sizes = [len(frame.payload) for frame in kind.stream]
    assert min(sizes) > kind.least_bytes and len(set(sizes)) > kind.frames // 2, sizes
    inside = [float(((x > 0) & (x < 1)).float().mean()) for x, _ in kind.expected]
    assert sum(inside) / kind.frames > 0.3


def test_nothing_depends_on_instruction_set_or_threads(kind: Kind, any_processor):
    assert_same(decoded(kind.compiled(), kind.stream, kind.size), kind.expected)


def test_nothing_depends_on_the_backend(kind: Kind):
    """Triton's interpreter takes minutes: test_integer_structures runs it on each kind of network."""
    frames, made = kind.stream[:3], type(kind.compiled())  # which other kernels encode
    with use_backend("reference"):
        codec = made(kind.model, torch.device("cpu"), torch.float32, strict=False)
        found = decoded(codec, frames, kind.size)
    assert_same(found, kind.expected)


def test_frames_of_two_clips_in_turns(kind: Kind):
    """States are values: no call writes to what another one returned."""
    codec, states = kind.compiled(), [None, None]
    for step in range(3):
        for which, start in enumerate(kind.alone):
            x, states[which] = decoded_frame(codec, kind.stream[start + step], states[which], kind.size)
            assert_same([(x, states[which])], [kind.expected[start + step]])


def test_pictures_are_fixed_point_numbers(kind: Kind):
    x, _ = kind.expected[3]
    assert x.shape == (1, 3, *kind.size) and x.dtype == torch.float32
    assert torch.equal(x, (x * 65536).round() / 65536) and float(x.min()) >= 0 and float(x.max()) <= 1
    assert kind.compiled().exact_pictures and is_exact(kind.model)


def test_report_counts_each_layer_of_the_decoder_once(kind: Kind):
    report, native = kind.compiled().report, compile_codec(kind.float_model).report
    macs, dense_macs = kind.uncounted
    assert report.macs == pytest.approx(native.macs + macs, rel=1e-6)
    assert report.dense_macs == pytest.approx(native.dense_macs + dense_macs, rel=1e-6)
    integers = [row for row in report.rows if row.transform in report.decoder]
    assert {row.op for row in integers if row.macs} == kind.ops
    assert not [row for row in report.rows if row.op == "not run yet"] and report.buffer_bytes > 0
    paths = {path for row in report.rows for path in row.paths}
    assert {name.split(".")[0] for name in paths} == {"intra", "inter"} and kind.paths <= paths


def test_computes_what_the_float_codec_computes(kind: Kind):
    """Up to the rounding of weights and activations, and to what escapes cost, which differs between the coders."""
    codecs = kind.compiled(), compile_codec(kind.float_model, dtype=torch.float32)
    for qp in (0, 32, 63):
        states = [None, None]
        for index, frame in enumerate(kind.clip(3)):
            sizes, pictures = [], []
            for which, codec in enumerate(codecs):
                if index == 0:
                    payload, state = codec.intra_encode(frame[None], qp)
                    x, _ = codec.intra_decode(payload, *kind.size, qp)
                else:
                    payload, state = codec.inter_encode(frame[None], states[which], qp, index)
                    x, _ = codec.inter_decode(payload, states[which], *kind.size, qp, index)
                states[which] = state
                sizes.append(len(payload))
                pictures.append(x)
            header = 0 if index else 40  # native frames alone may be files of their image codec
            assert sizes[0] == pytest.approx(sizes[1], rel=0.12, abs=20 + header)
            assert float((pictures[0] - pictures[1]).abs().mean()) < 0.02


def test_saves_and_loads(kind: Kind, tmp_path):
    zoo.save(kind.model, tmp_path / "codec")
    loaded = zoo.load(tmp_path / "codec")
    assert is_portable(loaded) and not is_portable(kind.float_model)
    codec = kind.compiled(loaded)
    assert codec.model_hash == kind.compiled().model_hash
    assert_same(decoded(codec, kind.stream[:3], kind.size), kind.expected)
    assert portable(loaded) is not None  # asks for no clips


def test_files_of_the_container(kind: Kind):
    codec, frames = kind.compiled(), kind.clip(4)[:, :, :41, :70]
    encoder = codec.encoder(ClipFormat(41, 70), qp=40, intra_period=3)
    data = b"".join(encoder.push(frame[None]) for frame in frames) + encoder.finish()
    found = list(kind.compiled().decoder(data))
    assert [x.shape for x in found] == [(1, 3, 41, 70)] * 4
    again = list(kind.compiled().decoder(data, start=3))
    assert len(again) == 1 and torch.equal(again[0], found[3])


def test_a_weight_that_differs_is_found(kind: Kind):
    """Of a decoder with other integers the model's hash differs; if it lies, the fingerprint of the first State."""
    codec = kind.compiled()
    encoder = codec.encoder(ClipFormat(*kind.size), qp=40)
    data = b"".join(encoder.push(frame[None]) for frame in kind.clip(3)) + encoder.finish()
    other = copy.deepcopy(kind.model)
    kind.behind_symbols(other.inter).weight[0] *= -1
    broken = kind.compiled(other)
    with pytest.raises(ModelMismatchError, match="was made by model"):
        list(broken.decoder(data))
    broken.model_hash = codec.model_hash
    frames = broken.decoder(data)
    assert torch.equal(next(iter(frames)), next(iter(codec.decoder(data))))
    with pytest.raises(ModelMismatchError, match="frame 1: decoding leaves the state"):
        list(broken.decoder(data))


def test_damaged_payloads_are_reported_or_decode_to_something(kind: Kind):
    codec, generator = kind.compiled(), torch.Generator().manual_seed(0)
    whole, after = kind.stream[1], kind.stream[0].state
    reported = 0
    for _ in range(30):
        payload = bytearray(whole.payload)
        at = int(torch.randint(len(payload), (), generator=generator))
        payload[at] ^= 1 << int(torch.randint(8, (), generator=generator))
        try:
            x, _ = codec.inter_decode(bytes(payload), after, *kind.size, whole.qp, 1)
        except BitstreamError:
            reported += 1
        else:
            assert x.shape == (1, 3, *kind.size)
    assert reported > 15
    for cut in (0, 1, len(whole.payload) // 2):
        with pytest.raises(BitstreamError):
            codec.inter_decode(whole.payload[:cut], after, *kind.size, whole.qp, 1)


def test_wrong_arguments_are_ours(kind: Kind):
    codec, x, after = kind.compiled(), kind.clip(1), kind.stream[0].state
    with pytest.raises(UsageError, match=r"state .*\(needs .*\b(128|64)(,| x) (192|96)\b"):
        codec.inter_decode(kind.stream[1].payload, after, 128, 192, 63, 1)
    with pytest.raises(UsageError, match="qp=64"):
        codec.inter_encode(x, after, 64, 1)
    with pytest.raises(UsageError, match="needs finite ones"):
        codec.inter_encode(x.clone().fill_(float("nan")), after, 63, 1)
    with pytest.raises(UsageError, match="state is a Tensor"):
        codec.inter_encode(x, x, 63, 1)
    with pytest.raises(UsageError, match="no portable video codec"):
        type(codec)(kind.float_model, torch.device("cpu"))


def test_no_accumulator_overflows(kind: Kind):
    bounds = prove_no_overflow(kind.model)
    assert len(bounds) > kind.layers and max(bounds.values()) < 2**31


def test_half_a_portable_codec_is_refused(kind: Kind):
    """Both models of a file store their tables."""
    half = VideoCodec(kind.model.intra, kind.float_model.inter)
    with pytest.raises(UsageError, match="intra is portable, the codec is not"):
        quantization_config(half)
    for parts in (["intra"], ["intra", "intra.dec"], ["inter", "intra", "more"]):
        with pytest.raises(UsageError, match=r"needs \['intra', 'inter'\]"):
            apply_quantization(kind.float_model, {"format": 1, "layers": {}, "portable": parts})
