"""Portable DCVC-RT: the same symbols, States and pictures whatever computes them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from sparsecodec import zoo
from sparsecodec._clip_format import ClipFormat
from sparsecodec.entropy import dcvc_gaussian16_tables
from sparsecodec.errors import BitstreamError, ModelMismatchError, UsageError
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.models.video import VideoCodec
from sparsecodec.nn.integer_part import product, with_skip_row
from sparsecodec.ops._registry import use_backend
from sparsecodec.quant import W8A8, W8A16, is_portable, portable, prove_no_overflow
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.adapters.portable_rt import IntegerState, PortableRTCodec
from sparsecodec.runtime.video import CompiledVideo, VideoState, fingerprint

from .conftest import INTERPRETED

HEIGHT, WIDTH = 48, 80  # latents of 3 x 5: the hyper-latent's are cropped
FRAMES = 32
INTRA_AT = (0, 20)


def clip(frames: int, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """``[T, 3, H, W]``: waves that move, and noise that does not."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    tints = torch.tensor([1.0, 0.4, -0.3]).view(3, 1, 1)
    noise = 0.05 * torch.randn(3, height, width, generator=generator)
    waves = [torch.sin(0.2 * columns + 0.3 * t) * torch.cos(0.17 * rows - 0.2 * t) for t in range(frames)]
    return torch.stack([(0.5 + 0.3 * tints * wave + noise).clamp(0, 1) for wave in waves])


@cache
def float_model(skip: float | None = None) -> VideoCodec:
    """Untrained and tiny. Not to be changed."""
    torch.manual_seed(3)
    intra = DCVCRTImage(RTImageWidths(16, 8, 24, 1, 1, fusion_blocks=1, spatial_blocks=1))
    inter = DCVCRTVideo(RTVideoWidths(16, 8, 24, 16, shared_blocks=1, context_blocks=1, recon_blocks=1))
    with torch.no_grad():  # so that latents fill several symbols and tables
        intra.enc.enc_2[-1].weight *= 6
        inter.encoder.down.weight *= 6
        for bank in (inter.q_feature, inter.q_recon):  # which begin as ones
            bank *= 0.5 + torch.rand_like(bank)
        intra.y_prior_fusion[-1].bias[2:18] += 0.8
        inter.y_prior_fusion.conv[-1].bias[16:32] += 0.8
    intra.force_zero_thres = inter.force_zero_thres = skip
    return VideoCodec(intra, inter).eval()


@cache
def model(skip: float | None = None) -> VideoCodec:
    calibration = torch.nn.functional.interpolate(clip(4), (64, 80))
    return portable(float_model(skip), [calibration])


def compiled(which: VideoCodec | None = None) -> PortableRTCodec:
    return compile_codec(which or model(), stream="portable", dtype=torch.float32)


@dataclass
class Coded:
    payload: bytes
    qp: int
    index: int  # 0: stands alone
    state: VideoState


@cache
def stream(skip: float | None = None) -> tuple[Coded, ...]:
    """32 frames, two of them coded alone, at qualities that change."""
    codec, frames, state, since = compiled(model(skip)), [], None, 0
    for number, x in enumerate(clip(FRAMES, seed=1)):
        qp = (63, 32, 0, 47)[number // 2 % 4]
        if number in INTRA_AT:
            since = number
            payload, state = codec.intra_encode(x[None], qp)
        else:
            payload, state = codec.inter_encode(x[None], state, qp, number - since)
        frames.append(Coded(payload, qp, number - since, state))
    return tuple(frames)


def decoded(
    codec: CompiledVideo, frames: tuple[Coded, ...], height: int = HEIGHT, width: int = WIDTH
) -> list[tuple[Tensor, VideoState]]:
    results, state = [], None
    for frame in frames:
        if frame.index == 0:
            x, state = codec.intra_decode(frame.payload, height, width, frame.qp)
        else:
            x, state = codec.inter_decode(frame.payload, state, height, width, frame.qp, frame.index)
        results.append((x, state))
    return results


@cache
def expected() -> list[tuple[Tensor, IntegerState]]:
    return decoded(compiled(), stream())


def assert_same(found: list[tuple[Tensor, VideoState]], wanted: list[tuple[Tensor, VideoState]]) -> None:
    for number, ((x, state), (y, other)) in enumerate(zip(found, wanted, strict=False)):
        assert all(map(torch.equal, state.tensors(), other.tensors())), f"the state after frame {number}"
        assert torch.equal(x, y), f"frame {number}"


def test_decoders_have_the_encoders_states():
    found = [fingerprint(state) for _, state in expected()]
    assert found == [fingerprint(frame.state) for frame in stream()]
    assert len(set(found)) == FRAMES
    assert all(state.tensors()[0].dtype == torch.int16 for _, state in expected())


def test_streams_are_lively():
    """The tests here would be worth nothing on latents of zeros, or on pictures that are clipped to black and white."""
    sizes = [len(frame.payload) for frame in stream()]
    assert min(sizes) > 60 and len(set(sizes)) > 10
    inside = [((x > 0) & (x < 1)).float().mean() for x, _ in expected()]
    assert sum(inside) / FRAMES > 0.3


def test_nothing_depends_on_instruction_set_or_threads(any_processor):
    assert_same(decoded(compiled(), stream()), expected())


@pytest.mark.parametrize(("backend", "frames"), [("reference", 4), pytest.param("triton", 2, marks=INTERPRETED)])
def test_nothing_depends_on_the_backend(backend, frames):
    with use_backend(backend):
        found = decoded(PortableRTCodec(model(), torch.device("cpu"), torch.float32, strict=False), stream()[:frames])
    assert_same(found, expected())


def test_frames_of_two_clips_in_turns():
    """States are values: no call writes to what another one returned."""
    codec = compiled()
    first, second = stream()[:6], stream()[20:26]
    alone = decoded(codec, first), decoded(codec, second)
    states, results = [None, None], ([], [])
    for pair in zip(first, second, strict=True):
        for which, frame in enumerate(pair):
            if frame.index == 0:
                x, states[which] = codec.intra_decode(frame.payload, HEIGHT, WIDTH, frame.qp)
            else:
                call = frame.payload, states[which], HEIGHT, WIDTH, frame.qp, frame.index
                x, states[which] = codec.inter_decode(*call)
            results[which].append((x, states[which]))
    assert_same(results[0], alone[0])
    assert_same(results[1], alone[1])


def test_pictures_are_fixed_point_numbers():
    x, _ = expected()[3]
    assert x.shape == (1, 3, HEIGHT, WIDTH) and x.dtype == torch.float32
    assert torch.equal(x, (x * 65536).round() / 65536) and float(x.min()) >= 0 and float(x.max()) <= 1
    assert PortableRTCodec.exact_pictures


def test_report_counts_each_layer_of_the_decoder_once():
    report, native = compiled().report, compile_codec(float_model()).report
    assert report.macs == pytest.approx(native.macs, rel=1e-6)
    assert report.dense_macs == pytest.approx(native.dense_macs, rel=1e-6)
    integers = [row for row in report.rows if row.transform in report.decoder]
    assert {row.op for row in integers if row.macs} == {"integer_conv2d"}
    assert "integer_gate" in {row.op for row in integers}
    assert {row.dtype for row in integers} == {"int16"} and not [row for row in report.rows if row.op == "not run yet"]
    assert report.buffer_bytes > 0
    paths = {path for row in report.rows for path in row.paths}
    assert {name.split(".")[0] for name in paths} == {"intra", "inter"}
    assert {"intra.dec.dec_2.ffn.2", "inter.recon_generation_net.head", "inter.encoder.down"} <= paths


def test_computes_what_the_float_codec_computes():
    """Up to the rounding of weights and activations, and to what escapes cost, which differs between the coders."""
    codec, frames, single = compiled(), clip(3, seed=1), copy.deepcopy(float_model())
    single.intra.update()
    single.inter.update()
    with torch.no_grad():
        for qp in (0, 32, 63):
            one = single.intra.compress(frames[:1], qp)
            payload, state = codec.intra_encode(frames[:1], qp)
            assert len(payload) == pytest.approx(len(one["bit_stream"]), rel=0.12, abs=20)
            x, _ = codec.intra_decode(payload, HEIGHT, WIDTH, qp)
            assert float((x - one["x_hat"]).abs().mean()) < 0.02
            before = single.inter.start(one["x_hat"])
            theirs, after = single.inter.compress_frame(frames[1:2], before, qp + 8)
            payload, _ = codec.inter_encode(frames[1:2], state, qp, 1)
            assert len(payload) == pytest.approx(len(theirs), rel=0.12, abs=20)
            x, _ = codec.inter_decode(payload, state, HEIGHT, WIDTH, qp, 1)
            assert float((x - single.inter.picture(after.feature, qp + 8)).abs().mean()) < 0.02


def test_scales_up_to_the_threshold_cost_nothing():
    skip = 0.4
    few, all_of_them = stream(skip), stream()
    assert sum(len(frame.payload) for frame in few) < 0.98 * sum(len(frame.payload) for frame in all_of_them)
    thresholds = model(skip).inter.portable.thresholds
    assert int(thresholds[0]) == int(skip * 65536) and bool((thresholds.long().diff() >= 0).all())
    found = decoded(compiled(model(skip)), few)
    assert [fingerprint(state) for _, state in found] == [fingerprint(frame.state) for frame in few]


def test_saves_and_loads(tmp_path):
    zoo.save(model(), tmp_path / "rt")
    loaded = zoo.load(tmp_path / "rt")
    assert is_portable(loaded) and not is_portable(float_model())
    codec = compiled(loaded)
    assert codec.model_hash == compiled().model_hash
    assert_same(decoded(codec, stream()[:3]), expected())
    assert portable(loaded) is not None  # asks for no clips


def test_files_of_the_container():
    codec, frames = compiled(), clip(4, seed=1)[:, :, :41, :70]
    encoder = codec.encoder(ClipFormat(41, 70), qp=40, intra_period=3)
    data = b"".join(encoder.push(frame[None]) for frame in frames) + encoder.finish()
    found = list(compiled().decoder(data))
    assert [x.shape for x in found] == [(1, 3, 41, 70)] * 4
    again = list(compiled().decoder(data, start=3))
    assert len(again) == 1 and torch.equal(again[0], found[3])


def test_a_weight_that_differs_is_found():
    """Of a decoder with one other integer the model's hash differs; if it lies, the fingerprint of the first State."""
    codec = compiled()
    encoder = codec.encoder(ClipFormat(HEIGHT, WIDTH), qp=40)
    data = b"".join(encoder.push(frame[None]) for frame in clip(3, seed=1)) + encoder.finish()
    other = copy.deepcopy(model())
    layer = other.inter.decoder.conv2
    layer.weight[0, 0] += 9 if int(layer.weight[0, 0]) < 0 else -9
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
    for _ in range(40):
        payload = bytearray(whole.payload)
        at = int(torch.randint(len(payload), (), generator=generator))
        payload[at] ^= 1 << int(torch.randint(8, (), generator=generator))
        try:
            x, _ = codec.inter_decode(bytes(payload), after, HEIGHT, WIDTH, whole.qp, 1)
        except BitstreamError:
            reported += 1
        else:
            assert x.shape == (1, 3, HEIGHT, WIDTH)
    assert reported > 20
    for cut in (0, 1, len(whole.payload) // 2):
        with pytest.raises(BitstreamError):
            codec.inter_decode(whole.payload[:cut], after, HEIGHT, WIDTH, whole.qp, 1)


def test_no_accumulator_overflows():
    bounds = prove_no_overflow(model())
    assert len(bounds) > 60 and max(bounds.values()) < 2**31


def test_products_saturate():
    a = torch.tensor([3 << 15, -(3 << 15), 2**30 - 1, -(2**30), 1], dtype=torch.int32)
    b = torch.tensor([1 << 15, 1 << 15, 2**30 - 1, 2**30 - 1, 1 << 15], dtype=torch.int32)
    assert product(a, b).tolist() == [3 << 14, -(3 << 14), 2**30 - 1, -(2**30), 1]


def test_the_row_of_skipped_symbols():
    tables = dcvc_gaussian16_tables()
    more = with_skip_row(tables)
    assert more.rows == tables.rows + 1 and more.cdf[0, :3].tolist() == [0, 65535, 65536]
    assert more.lengths[0] == 3 and more.offsets[0] == 0
    assert (more.cdf[1:] == tables.cdf).all() and (more.offsets[1:] == tables.offsets).all()


@pytest.mark.parametrize(
    ("clips", "reason"),
    [
        (None, "give calibration clips"),
        ([], "no clip"),
        ([torch.rand(2, 3, 64, 64)], "2 frames of 64 x 64"),
        ([torch.rand(3, 3, 48, 64)], "3 frames of 48 x 64"),
        ([torch.rand(3, 1, 64, 64)], "needs [T, 3, H, W]"),
        ([torch.rand(3, 3, 64, 64) * 2], "needs [0, 1]"),
    ],
)
def test_clips_that_calibration_does_not_take(clips, reason):
    with pytest.raises(UsageError) as caught:
        portable(float_model(), clips)
    assert reason in str(caught.value)


def test_refuses_a_codec_that_is_not_portable():
    with pytest.raises(UsageError, match="no portable video codec"):
        PortableRTCodec(float_model(), torch.device("cpu"))


def test_other_precisions():
    small = portable(float_model(), torch.nn.functional.interpolate(clip(3), (64, 80))[None], W8A8)
    codec = compiled(small)
    payload, state = codec.intra_encode(clip(1), 20)
    assert torch.equal(codec.intra_decode(payload, HEIGHT, WIDTH, 20)[1].frame, state.frame)
    assert small.intra.hyper_dec[0].up.conv[0].precision == W8A8 != W8A16
