"""Portable FVC behind EVC: the same symbols, States and pictures whatever computes them."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec import zoo
from sparsecodec._clip_format import ClipFormat
from sparsecodec.errors import BitstreamError, ModelMismatchError, UsageError
from sparsecodec.models import EVC, FVC, VideoCodec
from sparsecodec.models.fvc import FVCState, Widths
from sparsecodec.nn.fvc_layers import PatchAttention
from sparsecodec.nn.integer_attention import attended
from sparsecodec.ops._registry import use_backend
from sparsecodec.quant import is_exact, is_portable, portable, prove_no_overflow
from sparsecodec.quant.layers import QuantDeformableConv2d
from sparsecodec.quant.model import quantized_layers
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.adapters.portable_fvc import PortableFVCCodec
from sparsecodec.runtime.video import VideoState, fingerprint

from ..lively import lively_fvc
from .test_portable_rt import Coded, assert_same, clip, decoded

SIZE = HEIGHT, WIDTH = 64, 128
FRAMES = 6
INTRA_AT = (0, 4)
# In chunks of a vector and beside them; groups of more than one vector; taps that are weighed; frames that are fused.
KINDS = {
    "plain": Widths(12, 12, 12, 2, 1, references=0),
    "fusion": Widths(8, 8, 8, 2, 1, references=3),
    "modulated": Widths(18, 8, 8, 2, 1, modulated=True, references=1),
}
kinds = pytest.mark.parametrize("kind", list(KINDS))


@cache
def float_model(kind: str) -> VideoCodec:
    """Untrained and tiny. Not to be changed."""
    torch.manual_seed(3)
    intra, inter = EVC("nano", "nano"), lively_fvc(FVC(KINDS[kind]).requires_grad_(False))
    with torch.no_grad():  # so that latents fill several symbols, motion changes, and pictures are grey
        inter.motion_codec.analysis[-1].weight *= 40
        inter.residual_codec.analysis[-1].weight *= 25
        inter.motion_codec.synthesis[-1].weight *= 3
        inter.residual_codec.synthesis[-1].weight *= 3
        inter.reconstruction[-1].weight *= 0.2
        inter.reconstruction[-1].bias += 0.4
        for module in inter.modules():
            if isinstance(module, PatchAttention):
                module.score.weight *= 8
    return VideoCodec(intra, inter).eval().requires_grad_(False)


@cache
def model(kind: str) -> VideoCodec:
    return portable(float_model(kind), [clip(4, height=HEIGHT, width=64)])


def compiled(which: VideoCodec) -> PortableFVCCodec:
    return compile_codec(which, stream="portable", dtype=torch.float32)


@cache
def stream(kind: str) -> tuple[Coded, ...]:
    """Frames, two of them coded alone, at qualities that change."""
    codec, frames, state, since = compiled(model(kind)), [], None, 0
    for number, x in enumerate(clip(FRAMES, 1, HEIGHT, WIDTH)):
        qp = (63, 32, 0)[number // 2 % 3]
        if number in INTRA_AT:
            since = number
            payload, state = codec.intra_encode(x[None], qp)
        else:
            payload, state = codec.inter_encode(x[None], state, qp, number - since)
        frames.append(Coded(payload, qp, number - since, state))
    return tuple(frames)


@cache
def expected(kind: str) -> list[tuple[Tensor, VideoState]]:
    return decoded(compiled(model(kind)), stream(kind), *SIZE)


@kinds
def test_decoders_have_the_encoders_states(kind):
    found = [fingerprint(state) for _, state in expected(kind)]
    assert found == [fingerprint(frame.state) for frame in stream(kind)]
    assert len(set(found)) == FRAMES
    assert all(tensor.dtype == torch.int16 for _, state in expected(kind) for tensor in state.tensors())
    most = max(KINDS[kind].references, 1)
    assert [len(state.features) for _, state in expected(kind)] == [min(n, most) for n in (1, 2, 3, 4, 1, 2)]


@kinds
def test_streams_are_lively(kind):
    """The tests here would be worth nothing on latents of zeros, on motion of none or on black and white."""
    sizes = [len(frame.payload) for number, frame in enumerate(stream(kind)) if number not in INTRA_AT]
    assert min(sizes) > 300 and len(set(sizes)) > 2, sizes
    assert all(((x > 0) & (x < 1)).float().mean() > 0.3 for x, _ in expected(kind))
    assert all(len(state.features[0].unique()) > 50 for _, state in expected(kind))


@kinds
def test_offsets_are_of_pixels(kind):
    """Samples would otherwise be those of a plain convolution."""
    codec, found = compiled(model(kind)), []
    network = codec._inter._compensation

    def note(step, values, out):
        result = run(step, values, out)
        if step.op == "integer_deform_columns":
            found.append(values[network._index[step.inputs["offset"]]].float() / 65536)
        return result

    run, network._run = network._run, note
    decoded(codec, stream(kind)[:3], *SIZE)
    assert found and all(float(offset.abs().amax()) > 1 and float(offset.std()) > 0.1 for offset in found)


@kinds
def test_nothing_depends_on_instruction_set_or_threads(kind, any_processor):
    assert_same(decoded(compiled(model(kind)), stream(kind)[:3], *SIZE), expected(kind))


@kinds
def test_nothing_depends_on_the_backend(kind):
    with use_backend("reference"):
        codec = PortableFVCCodec(model(kind), torch.device("cpu"), torch.float32, strict=False)
        found = decoded(codec, stream(kind)[:3], *SIZE)
    assert_same(found, expected(kind))


def test_frames_of_two_clips_in_turns():
    """States are values: no call writes to what another one returned."""
    codec, state, other = compiled(model("fusion")), None, None
    for number in range(2):
        for which in (0, 1):
            frame, before = stream("fusion")[number + 4 * which], (state, other)[which]
            if frame.index == 0:
                x, after = codec.intra_decode(frame.payload, *SIZE, frame.qp)
            else:
                x, after = codec.inter_decode(frame.payload, before, *SIZE, frame.qp, frame.index)
            state, other = (after, other) if which == 0 else (state, after)
            assert_same([(x, after)], [expected("fusion")[number + 4 * which]])


@kinds
def test_pictures_are_fixed_point_numbers(kind):
    x, _ = expected(kind)[2]
    assert x.shape == (1, 3, *SIZE) and x.dtype == torch.float32
    assert torch.equal(x, (x * 65536).round() / 65536) and float(x.min()) >= 0 and float(x.max()) <= 1
    assert PortableFVCCodec.exact_pictures and is_exact(model(kind))


@kinds
def test_report_counts_each_layer_of_the_decoder_once(kind):
    """The native one has no rows for deformable layers and attention."""
    codec = compiled(model(kind))
    decoded(codec, stream(kind)[:2], *SIZE)
    report, widths = codec.report, KINDS[kind]
    integers = [row for row in report.rows if row.transform in report.decoder]
    assert {row.op for row in integers if row.macs} == {"integer_conv2d"}
    deformable = [row for row in integers if row.op == "integer_deform_columns"]
    assert len(deformable) == 1 + widths.references and {row.backend for row in deformable} == {"cpu"}
    assert not [row for row in report.rows if row.op == "not run yet"] and report.buffer_bytes > 0
    counted = [path for row in integers if row.macs for path in row.paths]
    layers = {path for path in quantized_layers(model(kind)) if path.startswith("inter.") and "score" not in path}
    assert layers <= set(counted)
    per_pixel = widths.feature * widths.feature * 9 / 4
    assert [row.macs for row in integers if row.paths[:1] == ("inter.compensation.alignment.conv",) and row.macs] == [
        pytest.approx(per_pixel, rel=1e-6)
    ]


@kinds
def test_computes_what_the_float_codec_computes(kind):
    """Up to the rounding of weights and activations, which latents that round the other way soon make more of."""
    codec, single = compiled(model(kind)), compile_codec(float_model(kind), dtype=torch.float32)
    states, differences = [None, None], []
    for index, frame in enumerate(clip(2, 1, HEIGHT, WIDTH)):
        sizes, pictures = [], []
        for which, either in enumerate((codec, single)):
            if index == 0:
                payload, state = either.intra_encode(frame[None], 32)
                x, _ = either.intra_decode(payload, *SIZE, 32)
            else:
                payload, state = either.inter_encode(frame[None], states[which], 32, index)
                x, _ = either.inter_decode(payload, states[which], *SIZE, 32, index)
            states[which] = state
            sizes.append(len(payload))
            pictures.append(x)
        assert sizes[0] == pytest.approx(sizes[1], rel=0.12, abs=60)
        differences.append(float((pictures[0] - pictures[1]).abs().mean()))
    assert max(differences) < 0.02, differences


@kinds
def test_compensation_and_fusion_compute_what_their_frozen_layers_do(kind):
    """Beside the rounding of what stands between the layers."""
    parts, layers = compiled(model(kind))._inter, model(kind).inter
    generator = torch.Generator().manual_seed(0)
    channels, (of_motion, of_feature) = KINDS[kind].feature, parts._compensation.exponents
    assert of_feature == parts._exponent

    def some(exponent: int, size: float) -> Tensor:
        values = torch.randn((1, channels, 12, 20), generator=generator) * size
        values = (values * 2.0**-exponent).clamp(-(2**15), 2**15 - 1).to(torch.int16)
        return values.contiguous(memory_format=torch.channels_last)

    state = stream(kind)[1].state.features[0].float() * 2.0**of_feature
    motion = some(of_motion, 0.3 * 2.0**15 * 2.0**of_motion / 8)
    features = [some(of_feature, float(state.std())) for _ in range(4)]
    floats = [feature.double() * 2.0**of_feature for feature in features]
    wanted = layers.compensation((motion.double() * 2.0**of_motion).float(), floats[0].float())
    found = parts._compensation(motion, features[0]) / 65536
    assert float((found - wanted).abs().max()) < 0.05 * float(wanted.std())
    if layers.fusion is not None:
        references = tuple(features[1 : 1 + KINDS[kind].references])
        wanted = layers.fusion(floats[0].float(), tuple(x.float() for x in floats[1 : 1 + len(references)]))
        found = parts._fusion(features[0], references) / 65536 + floats[0]
        assert float((found - wanted).abs().max()) < 0.05 * float(wanted.std())


def test_saves_and_loads(tmp_path):
    kind = "modulated"
    zoo.save(model(kind), tmp_path / "fvc")
    loaded = zoo.load(tmp_path / "fvc")
    assert is_portable(loaded) and not is_portable(float_model(kind))
    assert isinstance(loaded.inter.compensation.alignment.conv, QuantDeformableConv2d)
    codec = compiled(loaded)
    assert codec.model_hash == compiled(model(kind)).model_hash
    assert_same(decoded(codec, stream(kind)[:3], *SIZE), expected(kind))
    assert portable(loaded) is not None  # asks for no clips


@kinds
def test_files_of_the_container(kind):
    codec, frames = compiled(model(kind)), clip(4, 1, HEIGHT, WIDTH)[:, :, :41, :70]
    encoder = codec.encoder(ClipFormat(41, 70), qp=40, intra_period=3)
    data = b"".join(encoder.push(frame[None]) for frame in frames) + encoder.finish()
    found = list(compiled(model(kind)).decoder(data))
    assert [x.shape for x in found] == [(1, 3, 41, 70)] * 4
    again = list(compiled(model(kind)).decoder(data, start=3))
    assert len(again) == 1 and torch.equal(again[0], found[3])


def test_a_weight_that_differs_is_found():
    """Of a decoder with other integers the model's hash differs; if it lies, the fingerprint of the first State."""
    codec = compiled(model("plain"))
    encoder = codec.encoder(ClipFormat(*SIZE), qp=40)
    data = b"".join(encoder.push(frame[None]) for frame in clip(3, 1, HEIGHT, WIDTH)) + encoder.finish()
    other = copy.deepcopy(model("plain"))
    other.inter.compensation.alignment.conv.weight[0] *= -1
    broken = compiled(other)
    with pytest.raises(ModelMismatchError, match="was made by model"):
        list(broken.decoder(data))
    broken.model_hash = codec.model_hash
    frames = broken.decoder(data)
    assert torch.equal(next(iter(frames)), next(iter(codec.decoder(data))))
    with pytest.raises(ModelMismatchError, match="frame 1: decoding leaves the state"):
        list(broken.decoder(data))


def test_damaged_payloads_are_reported_or_decode_to_something():
    codec, generator = compiled(model("fusion")), torch.Generator().manual_seed(0)
    whole, after = stream("fusion")[1], stream("fusion")[0].state
    reported = 0
    for _ in range(30):
        payload = bytearray(whole.payload)
        at = int(torch.randint(len(payload), (), generator=generator))
        payload[at] ^= 1 << int(torch.randint(8, (), generator=generator))
        try:
            x, _ = codec.inter_decode(bytes(payload), after, *SIZE, whole.qp, 1)
        except BitstreamError:
            reported += 1
        else:
            assert x.shape == (1, 3, *SIZE)
    assert reported > 15
    for cut in (0, 1, len(whole.payload) // 2):
        with pytest.raises(BitstreamError):
            codec.inter_decode(whole.payload[:cut], after, *SIZE, whole.qp, 1)


def test_wrong_arguments_are_ours():
    codec, x, after = compiled(model("fusion")), clip(1, 1, HEIGHT, WIDTH), stream("fusion")[0].state
    payload, (feature,) = stream("fusion")[1].payload, after.features
    reason = r"feature 0 of the state is \(1, 8, 32, 64\) torch.int16 \(needs \(1, 8, 64, 64\) torch.int16\)"
    with pytest.raises(UsageError, match=reason):
        codec.inter_decode(payload, after, 128, 128, 63, 1)
    with pytest.raises(UsageError, match="feature 1 of the state is .* torch.float32"):
        codec.inter_decode(payload, FVCState((feature, feature.float())), *SIZE, 63, 1)
    for count in (0, 4):
        with pytest.raises(UsageError, match=rf"a state of {count} frames \(needs 1 to 3\)"):
            codec.inter_decode(payload, FVCState((feature,) * count), *SIZE, 63, 1)
    with pytest.raises(UsageError, match="qp=64"):
        codec.inter_encode(x, after, 64, 1)
    with pytest.raises(UsageError, match="needs finite ones"):
        codec.inter_encode(x.clone().fill_(float("nan")), after, 63, 1)
    with pytest.raises(UsageError, match="state is a Tensor"):
        codec.inter_encode(x, x, 63, 1)
    with pytest.raises(UsageError, match="no portable video codec"):
        PortableFVCCodec(float_model("fusion"), torch.device("cpu"))


@kinds
def test_no_accumulator_overflows(kind):
    bounds = prove_no_overflow(model(kind))
    assert "inter.compensation.alignment.conv" in bounds and max(bounds.values()) < 2**31


def test_attention_is_the_float_one_but_for_rounding():
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(-(2**15), 2**15, (1, 5, 6, 7), generator=generator).to(torch.int16)
    scores = torch.randint(-4 * 65536, 4 * 65536, (1, 1, 6, 7), generator=generator).to(torch.int32)
    near, around = (F.unfold(F.pad(values.double(), (1,) * 4, "replicate"), 3) for values in (scores, source))
    weights = (near / 65536).softmax(1)
    wanted = (around.view(1, 5, 9, 42) * weights[:, None]).sum(2).view(1, 5, 6, 7)
    # Nine weights of 15 bits, scores in steps of 2^-11, one rounding.
    assert float((attended(source, scores, 3) - wanted).abs().max()) <= 9 / 2 + 2**15 * 2.0**-11 + 0.5
    same = attended(source, torch.zeros_like(scores), 3)
    assert float((same - around.view(1, 5, 9, 42).mean(2).view(1, 5, 6, 7)).abs().max()) <= 5
    for far in (-(2**31), 2**31 - 1):  # one position takes all, or gives nothing
        scores[0, 0, 2, 3] = far
        found = attended(source, scores, 3)
        if far > 0:
            assert torch.equal(found[0, :, 1:4, 2:5], source[0, :, 2, 3, None, None].expand(5, 3, 3))


def test_weights_of_equal_scores_fill_the_range():
    """(2^15 + 4) / 9 rounds nine times the same way: 3641 each, one more than 2^15 in all; what is more saturates."""
    source = torch.full((1, 1, 3, 3), -(2**15), dtype=torch.int16)
    assert attended(source, torch.zeros(1, 1, 3, 3, dtype=torch.int32), 3).unique().tolist() == [-(2**15)]
    assert attended(-(source + 1), torch.zeros(1, 1, 3, 3, dtype=torch.int32), 3).unique().tolist() == [2**15 - 1]
