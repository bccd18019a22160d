"""Portable DCVC-HEM: the same symbols, States and pictures whatever computes them."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor

from sparsecodec import zoo
from sparsecodec._clip_format import ClipFormat
from sparsecodec.errors import BitstreamError, ModelMismatchError, UsageError
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage, HEMImageWidths
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo, HEMVideoWidths
from sparsecodec.models.video import VideoCodec
from sparsecodec.nn.hem_inter import HEMState
from sparsecodec.nn.integer_prior import fixed_gain
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
from sparsecodec.runtime.adapters.portable_hem import PortableHEMCodec, halved
from sparsecodec.runtime.video import VideoState, fingerprint

from .test_portable_rt import Coded, assert_same, clip, decoded

SIZE = HEIGHT, WIDTH = 64, 128
FRAMES = 8
INTRA_AT = (0, 5)
INTRA_WIDTHS = HEMImageWidths(16, 8, (8, 8, 16), 16)
INTER_WIDTHS = HEMVideoWidths(8, 8, 16, 8, (8, 8, 16), (8, 8, 8, 8))


@cache
def float_model() -> VideoCodec:
    """Untrained and tiny. Not to be changed."""
    torch.manual_seed(3)
    intra, inter = DCVCHEMImage(INTRA_WIDTHS), DCVCHEMVideo(INTER_WIDTHS)
    with torch.no_grad():  # so that latents fill several symbols and tables, motion goes far, and pictures are grey
        intra.enc[-1].weight *= 60
        inter.contextual_encoder.conv4.weight *= 80
        inter.mv_encoder[-1].weight *= 800
        inter.mv_decoder[-1][0].weight *= 20
        for network, latent in ((intra.y_prior_fusion, 16), (inter.y_prior_fusion, 16), (inter.mv_y_prior_fusion, 8)):
            network[-1].bias[latent : 2 * latent] += 0.8
        intra.refine[-1].bias += 0.4
        inter.recon_generation_net.recon_conv.bias += 0.4
    return VideoCodec(intra, inter).eval()


@cache
def model() -> VideoCodec:
    return portable(float_model(), [clip(4, height=HEIGHT, width=WIDTH)])


def compiled(which: VideoCodec | None = None) -> PortableHEMCodec:
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
    assert [len(state.tensors()) for _, state in expected()] == [1 if i in INTRA_AT else 4 for i in range(FRAMES)]


def test_streams_are_lively():
    """The tests here would be worth nothing on latents of zeros, on motion of none or on black and white."""
    sizes = [len(frame.payload) for frame in stream()]
    assert min(sizes) > 100 and len(set(sizes)) > 5, sizes
    assert all(((x > 0) & (x < 1)).float().mean() > 0.3 for x, _ in expected())
    assert all(
        len(state.mv.unique()) > 3 and len(state.y.unique()) > 3 for _, state in expected() if state.mv is not None
    )


def test_nothing_depends_on_instruction_set_or_threads(any_processor):
    assert_same(decoded(compiled(), stream(), *SIZE), expected())


def test_nothing_depends_on_the_backend():
    """Triton's interpreter would take minutes; test_integer_structures runs it on each kind of network."""
    with use_backend("reference"):
        codec = PortableHEMCodec(model(), torch.device("cpu"), torch.float32, strict=False)
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
    assert PortableHEMCodec.exact_pictures and is_exact(model())


def test_report_counts_each_layer_of_the_decoder_once():
    report, native = compiled().report, compile_codec(float_model()).report
    assert report.macs == pytest.approx(native.macs, rel=1e-6)
    assert report.dense_macs == pytest.approx(native.dense_macs, rel=1e-6)
    integers = [row for row in report.rows if row.transform in report.decoder]
    assert {row.op for row in integers if row.macs} == {"integer_conv2d", "Excitation"}
    assert not [row for row in report.rows if row.op == "not run yet"] and report.buffer_bytes > 0
    paths = {path for row in report.rows for path in row.paths}
    assert {"intra.refine.1", "inter.recon_generation_net.unet_1.conv1.conv.3.fc.2", "inter.mv_encoder.6"} <= paths


def test_computes_what_the_float_codec_computes():
    """Up to the rounding of weights and activations, and to what escapes cost, which differs between the coders."""
    codec, single = compiled(), compile_codec(float_model(), dtype=torch.float32)
    frames = clip(3, 1, HEIGHT, WIDTH)
    for qp in (0, 32, 63):
        states = [None, None]
        for index, frame in enumerate(frames):
            sizes, pictures = [], []
            for which, either in enumerate((codec, single)):
                if index == 0:
                    payload, state = either.intra_encode(frame[None], qp)
                    x, _ = either.intra_decode(payload, *SIZE, qp)
                else:
                    payload, state = either.inter_encode(frame[None], states[which], qp, index)
                    x, _ = either.inter_decode(payload, states[which], *SIZE, qp, index)
                states[which] = state
                sizes.append(len(payload))
                pictures.append(x)
            assert sizes[0] == pytest.approx(sizes[1], rel=0.12, abs=20)
            assert float((pictures[0] - pictures[1]).abs().mean()) < 0.02


def test_saves_and_loads(tmp_path):
    zoo.save(model(), tmp_path / "hem")
    loaded = zoo.load(tmp_path / "hem")
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


def test_a_weight_that_differs_is_found():
    """Of a decoder with other integers the model's hash differs; if it lies, the fingerprint of the first State."""
    codec = compiled()
    encoder = codec.encoder(ClipFormat(*SIZE), qp=40)
    data = b"".join(encoder.push(frame[None]) for frame in clip(3, 1, HEIGHT, WIDTH)) + encoder.finish()
    other = copy.deepcopy(model())
    layer = other.inter.recon_generation_net.first_conv  # behind all symbols of a frame
    layer.weight[0] *= -1
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
    with pytest.raises(UsageError, match="qp=64"):
        codec.inter_encode(x, after, 64, 1)
    with pytest.raises(UsageError, match="needs finite ones"):
        codec.inter_encode(x.clone().fill_(float("nan")), after, 63, 1)
    with pytest.raises(UsageError, match="state is a Tensor"):
        codec.inter_encode(x, x, 63, 1)
    with pytest.raises(UsageError, match="no portable video codec"):
        PortableHEMCodec(float_model(), torch.device("cpu"))


def test_states_of_another_shape_are_refused():
    codec, state = compiled(), stream()[1].state
    for changed in (
        {"feature": state.feature[:, :4]},
        {"y": state.y[..., :4]},
        {"mv": None},
        {"frame": state.frame.float()},
    ):
        with pytest.raises(UsageError, match=f"{next(iter(changed))} of the state is"):
            codec.inter_decode(stream()[2].payload, HEMState(**{**vars(state), **changed}), *SIZE, 32, 2)


def test_no_accumulator_overflows():
    bounds = prove_no_overflow(model())
    assert len(bounds) > 100 and max(bounds.values()) < 2**31


def test_stored_integers_that_cannot_be_are_refused(tmp_path):
    for key, value in (("steps", 0), ("thresholds", None)):
        other = copy.deepcopy(model())
        tensor = getattr(other.inter.portable, key)
        tensor.view(-1)[-1] = tensor.view(-1)[0] - 1 if value is None else value
        with pytest.raises(UsageError, match=key):
            zoo.save(other, tmp_path / key)


def test_half_a_portable_codec_is_refused():
    """Both models of a file store their tables."""
    half = VideoCodec(model().intra, float_model().inter)
    with pytest.raises(UsageError, match="intra is portable, the codec is not"):
        quantization_config(half)
    for parts in (["intra"], ["intra", "intra.dec"], ["inter", "intra", "more"]):
        with pytest.raises(UsageError, match=r"needs \['intra', 'inter'\]"):
            apply_quantization(float_model(), {"format": 1, "layers": {}, "portable": parts})


def test_flows_of_half_the_size():
    flow = torch.tensor([[5, 6], [7, 9]], dtype=torch.int32).repeat(2, 1, 1)[None] * torch.tensor([1, -1]).view(
        1, 2, 1, 1
    )
    assert halved(flow.int()).flatten().tolist() == [3, -3]  # 27 / 8 and its negative, to the nearest
    far = torch.full((1, 2, 2, 2), 2**31 - 1, dtype=torch.int32)
    assert halved(far).flatten().tolist() == [2**30, 2**30]


def test_gains_are_products_of_integers():
    basic = torch.tensor([0.25, 1.0, 2.0**-16, 3.3]).view(1, 4, 1, 1)
    assert fixed_gain(basic, 150).tolist() == [49152, 98304, 49152, (round(3.3 * 65536) * 150 + 50) // 100]
