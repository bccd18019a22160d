"""Portable DCVC-RT, beside what all portable video codecs share (test_portable_video.py)."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from sparsecodec.entropy import dcvc_gaussian16_tables
from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.models.video import VideoCodec
from sparsecodec.nn.integer_part import product, with_skip_row
from sparsecodec.ops._registry import use_backend
from sparsecodec.quant import W8A8, W8A16, portable
from sparsecodec.runtime.adapters.portable_rt import PortableRTCodec
from sparsecodec.runtime.video import fingerprint

from .conftest import INTERPRETED
from .portable_clips import Kind, assert_same, clip, coded, decoded

SKIP = 0.4


def untrained(skip: float | None = None) -> VideoCodec:
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


RT = Kind(
    untrained,
    size=(48, 80),  # latents of 3 x 5: the hyper-latent's are cropped
    frames=32,
    alone=(0, 20),
    ops=frozenset({"integer_conv2d"}),
    paths=frozenset({"intra.dec.dec_2.ffn.2", "inter.recon_generation_net.head", "inter.encoder.down"}),
    behind_symbols=lambda inter: inter.decoder.conv2,
    least_bytes=60,
    layers=60,
)


@INTERPRETED
def test_nothing_depends_on_the_backend():
    frames = RT.stream[:2]  # which other kernels encode
    with use_backend("triton"):
        codec = PortableRTCodec(RT.model, torch.device("cpu"), torch.float32, strict=False)
        found = decoded(codec, frames, RT.size)
    assert_same(found, RT.expected)


def test_report_has_gates():
    report = RT.compiled().report
    integers = [row for row in report.rows if row.transform in report.decoder]
    assert "integer_gate" in {row.op for row in integers} and {row.dtype for row in integers} == {"int16"}


@cache
def skipping() -> VideoCodec:
    return portable(untrained(SKIP), [F.interpolate(clip(4), (64, 80))])


def test_scales_up_to_the_threshold_cost_nothing():
    codec = RT.compiled(skipping())
    few = coded(codec, RT.clip(RT.frames), RT.alone)
    assert sum(len(frame.payload) for frame in few) < 0.98 * sum(len(frame.payload) for frame in RT.stream)
    thresholds = skipping().inter.portable.thresholds
    assert int(thresholds[0]) == int(SKIP * 65536) and bool((thresholds.long().diff() >= 0).all())
    found = decoded(codec, few, RT.size)
    assert [fingerprint(state) for _, state in found] == [fingerprint(frame.state) for frame in few]


def test_a_small_difference_of_a_weight_is_a_difference():
    other = copy.deepcopy(RT.model)
    layer = RT.behind_symbols(other.inter)
    layer.weight[0, 0] += 9 if int(layer.weight[0, 0]) < 0 else -9
    after = decoded(RT.compiled(other), RT.stream[:2], RT.size)[1][1]
    assert fingerprint(after) != fingerprint(RT.stream[1].state)


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
        portable(RT.float_model, clips)
    assert reason in str(caught.value)


def test_other_precisions():
    small = portable(RT.float_model, F.interpolate(clip(3), (64, 80))[None], W8A8)
    codec = RT.compiled(small)
    payload, state = codec.intra_encode(RT.clip(1), 20)
    assert torch.equal(codec.intra_decode(payload, *RT.size, 20)[1].frame, state.frame)
    assert small.intra.hyper_dec[0].up.conv[0].precision == W8A8 != W8A16
