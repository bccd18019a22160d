"""Portable DCVC (2021): the same symbols, States and pictures whatever computes them."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor

from sparsecodec import zoo
from sparsecodec._clip_format import ClipFormat
from sparsecodec.errors import BitstreamError, ModelMismatchError, UsageError
from sparsecodec.models import DCVC, EVC
from sparsecodec.models.dcvc import DCVCState, Widths
from sparsecodec.models.video import VideoCodec
from sparsecodec.nn.dcvc_coder import FRAME, MOTION
from sparsecodec.nn.dcvc_layers import PlainGDN
from sparsecodec.ops._registry import use_backend
from sparsecodec.quant import is_exact, is_portable, portable, prove_no_overflow, quantized_layers
from sparsecodec.quant.gdn import QuantGDN
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.adapters import portable_dcvc
from sparsecodec.runtime.adapters.portable_dcvc import PortableDCVCCodec
from sparsecodec.runtime.video import VideoState, fingerprint
from sparsecodec.sparsity import ChannelMasks, compact, trace_model
from sparsecodec.training import family_of

from ..lively import lively_dcvc
from .test_portable_rt import Coded, assert_same, clip, decoded

SIZE = HEIGHT, WIDTH = 64, 128
FRAMES = 8
INTRA_AT = (0, 5)
WIDTHS = Widths(12, 10, 14, 8, (8, 8, 8, 8))


@cache
def float_model() -> VideoCodec:
    """Untrained and tiny. Not to be changed."""
    torch.manual_seed(3)
    intra, inter = EVC("nano", "nano"), lively_dcvc(DCVC(WIDTHS))
    with torch.no_grad():  # so that latents fill several symbols and tables, motion goes far, and pictures are grey
        intra.enc[-1].weight *= 40
        intra.y_prior_fusion[-1].block[1].conv[2].bias[64:128] += 0.8
        intra.dec[-1][0].bias += 0.4
        inter.mvEncoder[-1].weight *= 20
        inter.contextualEncoder[-1].weight *= 30
        inter.contextualDecoder_part2[-1].weight *= 0.1
        inter.contextualDecoder_part2[-1].bias += 0.4
        for layer in inter.modules():
            if isinstance(layer, PlainGDN):
                layer.gamma.uniform_(0, 0.1)
    return VideoCodec(intra, inter).eval()


@cache
def model() -> VideoCodec:
    return portable(float_model(), [clip(4, height=HEIGHT, width=WIDTH)])


def compiled(which: VideoCodec | None = None) -> PortableDCVCCodec:
    return compile_codec(which or model(), stream="portable", dtype=torch.float32)


@cache
def stream() -> tuple[Coded, ...]:
    """Frames, two of them coded alone, at qualities that change."""
    codec, frames, state, since = compiled(), [], None, 0
    for number, x in enumerate(clip(FRAMES, 1, HEIGHT, WIDTH)):
        qp = (63, 32, 0, 47)[number // 2 % 4]
        if number in INTRA_AT:
            since = number
            payload, state = codec.intra_encode(x[None], qp)
        else:
            payload, state = codec.inter_encode(x[None], state, qp, number - since)
        frames.append(Coded(payload, qp, number - since, state))
    return tuple(frames)


@cache
def expected() -> list[tuple[Tensor, VideoState]]:
    return decoded(compiled(), stream(), *SIZE)


def test_decoders_have_the_encoders_states():
    found = [fingerprint(state) for _, state in expected()]
    assert found == [fingerprint(frame.state) for frame in stream()]
    assert len(set(found)) == FRAMES
    assert all(tensor.dtype == torch.int16 for _, state in expected() for tensor in state.tensors())


def test_streams_are_lively(monkeypatch):
    """The tests here would be worth nothing on latents of zeros, on motion of none or on black and white."""
    sizes = [len(frame.payload) for frame in stream()]
    assert min(sizes) > 400 and len(set(sizes)) > 5, sizes
    assert all(((x > 0) & (x < 1)).float().mean() > 0.3 for x, _ in expected())
    flows = []
    warp = portable_dcvc.integer_warp
    monkeypatch.setattr(portable_dcvc, "integer_warp", lambda x, flow: flows.append(flow) or warp(x, flow))
    decoded(compiled(), stream()[:2], *SIZE)
    assert float(flows[0].abs().max()) > 2**16  # a pixel


def test_nothing_depends_on_instruction_set_or_threads(any_processor):
    assert_same(decoded(compiled(), stream(), *SIZE), expected())


def test_nothing_depends_on_the_backend():
    """Triton's interpreter would take minutes; test_integer_structures runs it on each kind of network."""
    with use_backend("reference"):
        codec = PortableDCVCCodec(model(), torch.device("cpu"), torch.float32, strict=False)
        found = decoded(codec, stream()[:3], *SIZE)
    assert_same(found, expected())


def test_frames_of_two_clips_in_turns():
    """States are values: no call writes to what another one returned."""
    codec, state, other = compiled(), None, None
    for number in range(3):
        for which in (0, 1):
            frame, before = stream()[number + 5 * which], (state, other)[which]
            if frame.index == 0:
                x, after = codec.intra_decode(frame.payload, *SIZE, frame.qp)
            else:
                x, after = codec.inter_decode(frame.payload, before, *SIZE, frame.qp, frame.index)
            state, other = (after, other) if which == 0 else (state, after)
            assert_same([(x, after)], [expected()[number + 5 * which]])


def test_pictures_are_fixed_point_numbers():
    x, _ = expected()[3]
    assert x.shape == (1, 3, *SIZE) and x.dtype == torch.float32
    assert torch.equal(x, (x * 65536).round() / 65536) and float(x.min()) >= 0 and float(x.max()) <= 1
    assert PortableDCVCCodec.exact_pictures and is_exact(model())


def test_report_counts_each_layer_of_the_decoder_once():
    report = compiled().report
    integers = [row for row in report.rows if row.transform in report.decoder and row.macs]
    assert {row.op for row in integers} == {"integer_conv2d", "integer_gdn"}
    rows = {path: row.macs for row in integers for path in row.paths}
    of_masked = rows["inter.auto_regressive"], rows["inter.auto_regressive_mv"]
    assert of_masked == (12 * 2 * WIDTHS.latent**2 / 256, 12 * 2 * WIDTHS.motion**2 / 256)
    assert rows["inter.contextualDecoder_part1.6"] == WIDTHS.feature**2 / 4
    layers = [name for name in quantized_layers(model()) if name.startswith("inter.")]
    assert {path for path in rows if path.startswith("inter.")} >= set(layers)
    assert not [row for row in report.rows if row.op == "not run yet"] and report.buffer_bytes > 0


def test_computes_what_the_float_codec_computes():
    """Up to the rounding of weights and activations, and to what escapes cost, which differs between the coders."""
    calm = copy.deepcopy(float_model())  # the lively one's latents are far outside of their tables
    with torch.no_grad():
        calm.inter.contextualEncoder[-1].weight /= 8
        calm.inter.mvEncoder[-1].weight /= 8
    frames = clip(3, 1, HEIGHT, WIDTH)
    codec = compiled(portable(calm, [clip(3, height=HEIGHT, width=WIDTH)]))
    single = compile_codec(calm, dtype=torch.float32)
    states, both = [None, None], (codec, single)
    for index, frame in enumerate(frames):
        sizes, pictures = [], []
        for which, either in enumerate(both):
            if index == 0:
                payload, state = either.intra_encode(frame[None], 32)
                x, _ = either.intra_decode(payload, *SIZE, 32)
            else:
                payload, state = either.inter_encode(frame[None], states[which], 32, index)
                x, _ = either.inter_decode(payload, states[which], *SIZE, 32, index)
            states[which] = state
            sizes.append(len(payload))
            pictures.append(x)
        assert sizes[0] == pytest.approx(sizes[1], rel=0.05, abs=60)  # native payloads have other headers
        assert float((pictures[0] - pictures[1]).abs().mean()) < 0.02


def test_a_pruned_codec_is_portable():
    graph = trace_model(float_model(), list(family_of(float_model()).transforms(float_model(), "all")), "coupled")
    thin = compact(float_model(), ChannelMasks.random(graph, 0.4, 0), graph)
    assert thin.inter.entropy_parameters[0].out_channels < float_model().inter.entropy_parameters[0].out_channels
    codec = compiled(portable(thin, [clip(3, height=HEIGHT, width=WIDTH)]))
    state = after = codec.intra_encode(clip(1, 1, HEIGHT, WIDTH), 32)[1]
    for index, x in enumerate(clip(3, 1, HEIGHT, WIDTH)[1:], 1):
        payload, state = codec.inter_encode(x[None], state, 32, index)
        _, after = codec.inter_decode(payload, after, *SIZE, 32, index)
        assert torch.equal(state.frame, after.frame) and len(payload) > 300


def test_saves_and_loads(tmp_path):
    zoo.save(model(), tmp_path / "dcvc")
    loaded = zoo.load(tmp_path / "dcvc")
    assert is_portable(loaded) and not is_portable(float_model())
    codec = compiled(loaded)
    assert codec.model_hash == compiled().model_hash
    assert_same(decoded(codec, stream()[:3], *SIZE), expected())
    assert portable(loaded) is not None  # asks for no clips


def test_files_of_the_container():
    codec, frames = compiled(), clip(4, 1, HEIGHT, WIDTH)[:, :, :41, :70]
    encoder = codec.encoder(ClipFormat(41, 70), qp=40, intra_period=3)
    data = b"".join(encoder.push(frame[None]) for frame in frames) + encoder.finish()
    found = list(compiled().decoder(data))
    assert [x.shape for x in found] == [(1, 3, 41, 70)] * 4
    again = list(compiled().decoder(data, start=3))
    assert len(again) == 1 and torch.equal(again[0], found[3])


@pytest.mark.parametrize("path", ["contextualDecoder_part2.3.weight", "contextualDecoder_part1.6.beta"])
def test_a_number_that_differs_is_found(path):
    """Of a decoder with other integers the model's hash differs; if it lies, the fingerprint of the first State."""
    codec = compiled()
    encoder = codec.encoder(ClipFormat(*SIZE), qp=40)
    data = b"".join(encoder.push(frame[None]) for frame in clip(3, 1, HEIGHT, WIDTH)) + encoder.finish()
    other = copy.deepcopy(model())
    other.inter.get_buffer(path)[:3] //= 2  # behind all symbols of a frame
    broken = compiled(other)
    with pytest.raises(ModelMismatchError, match="was made by model"):
        list(broken.decoder(data))
    broken.model_hash = codec.model_hash
    frames = broken.decoder(data)
    assert torch.equal(next(iter(frames)), next(iter(codec.decoder(data))))
    with pytest.raises(ModelMismatchError, match="frame 1: decoding leaves the state"):
        list(broken.decoder(data))


def test_damaged_payloads_are_reported_or_decode_to_something():
    codec, generator = compiled(), torch.Generator().manual_seed(0)
    whole, after = stream()[1], stream()[0].state
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
    codec, x, after = compiled(), clip(1, 1, HEIGHT, WIDTH), stream()[0].state
    reason = r"frame of the state is \(1, 3, 64, 128\) torch.int16 \(needs \(1, 3, 128, 128\) torch.int16\)"
    with pytest.raises(UsageError, match=reason):
        codec.inter_decode(stream()[1].payload, after, 128, 128, 63, 1)
    with pytest.raises(UsageError, match="frame of the state is"):
        codec.inter_decode(stream()[1].payload, DCVCState(after.frame.float()), *SIZE, 63, 1)
    with pytest.raises(UsageError, match="qp=64"):
        codec.inter_encode(x, after, 64, 1)
    with pytest.raises(UsageError, match="needs finite ones"):
        codec.inter_encode(x.clone().fill_(float("nan")), after, 63, 1)
    with pytest.raises(UsageError, match="state is a Tensor"):
        codec.inter_encode(x, x, 63, 1)
    with pytest.raises(UsageError, match="no portable video codec"):
        PortableDCVCCodec(float_model(), torch.device("cpu"))


def test_no_accumulator_overflows():
    layers = quantized_layers(model().inter)
    norms = [layer for layer in layers.values() if isinstance(layer, QuantGDN)]
    assert len(norms) == 9 and all(layer.frozen and not layer._faults() for layer in norms)
    bounds = prove_no_overflow(model())
    assert len(bounds) > 100 and max(bounds.values()) < 2**31


@pytest.mark.parametrize("name", ["beta", "gamma", "gamma_scale", "input_scale"])
def test_norms_that_cannot_be_are_refused(name, tmp_path):
    other = copy.deepcopy(model())
    layer = other.inter.mvDecoder_part1[1]
    wrong = {"beta": 2**52, "gamma": -1, "gamma_scale": 2.0**-21, "input_scale": 0.3}
    getattr(layer, name).view(-1)[-1] = wrong[name]
    with pytest.raises(UsageError, match=rf"mvDecoder_part1.1.(gamma, beta: not in|{name}: not all powers)"):
        zoo.save(other, tmp_path / name)


def test_both_latents_have_their_networks():
    inter = compiled()._inter
    assert inter.latents == WIDTHS.motion + WIDTHS.latent
    for prior, suffix in ((inter.motion, MOTION), (inter.latent, FRAME)):
        paths = {path for row in prior.parameters.report_rows(256) for path in row.paths}
        assert f"inter.auto_regressive{suffix}" in paths and f"inter.entropy_parameters{suffix}.4" in paths
