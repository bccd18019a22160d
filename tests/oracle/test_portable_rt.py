"""Portable frames of DCVC-RT: the package against the decoder written from docs/portable.md."""

from __future__ import annotations

import numpy as np
import torch
from spc_oracle import rt as oracle
from spc_oracle import tables

from sparsecodec.entropy import dcvc_gaussian16_tables
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.models.video import VideoCodec
from sparsecodec.nn.integer_functions import EXPONENTIALS, gate_table
from sparsecodec.quant import portable
from sparsecodec.runtime import compile_codec

HEIGHT, WIDTH = 32, 48
RATE_SHIFTS = (0, 8, 0, 4, 0, 4, 0, 4)


def codec_and_frames(skip):
    torch.manual_seed(1)
    intra = DCVCRTImage(RTImageWidths(8, 4, 12, 1, 1, fusion_blocks=1, spatial_blocks=1))
    inter = DCVCRTVideo(RTVideoWidths(8, 4, 12, 8, shared_blocks=1, context_blocks=1, recon_blocks=1))
    with torch.no_grad():
        intra.enc.enc_2[-1].weight *= 6
        inter.encoder.down.weight *= 6
        for bank in (
            intra.q_scale_dec,
            inter.q_decoder,
            inter.q_feature,
            inter.q_recon,
        ):  # no two rows or channels alike
            bank *= (0.5 + torch.rand_like(bank)) * torch.where(torch.rand_like(bank) < 0.2, -1, 1)
    intra.force_zero_thres = inter.force_zero_thres = skip
    grid = torch.arange(64.0)
    clip = torch.stack([(0.5 + 0.4 * torch.sin(grid * 0.3 + t) * torch.cos(grid[:, None] * 0.2)) for t in range(4)])
    clip = (clip[:, None] + 0.1 * torch.rand(1, 3, 64, 64)).clamp(0, 1)
    model = portable(VideoCodec(intra, inter).eval(), clip[None])
    return compile_codec(model, stream="portable", dtype=torch.float32), model, clip[:, :, :HEIGHT, :WIDTH]


def test_the_constants_are_what_the_page_says():
    assert list(oracle.C.values()) == list(EXPONENTIALS)
    v = np.arange(-(2**15), 2**15)
    for exponent in (-14, -10, -5):
        assert (oracle.gate(oracle.Tensor(v, exponent)).v == gate_table(exponent).numpy()).all()


def test_states_and_pictures_of_portable_frames():
    for skip in (None, 0.3):
        codec, model, clip = codec_and_frames(skip)
        tensors = {key: value.numpy() for key, value in model.state_dict().items()}
        gaussian = dcvc_gaussian16_tables()
        gaussians = tables.rows(gaussian.cdf.tolist(), gaussian.lengths.tolist(), gaussian.offsets.tolist())
        parts = [oracle.Part(name, tensors, gaussians) for name in ("intra", "inter")]
        qp, state, known = 40, None, None
        for index, frame in enumerate(clip):
            x = codec.padded(frame[None])
            if index == 0:
                payload, state = codec.intra_encode(x, qp)
                found, _ = codec.intra_decode(payload, HEIGHT, WIDTH, qp)
                picture = oracle.intra(payload, parts[0], HEIGHT // 16, WIDTH // 16, qp)
                known = oracle.start(picture, parts[1])
            else:
                before = state
                payload, state = codec.inter_encode(x, before, qp, index)
                found, _ = codec.inter_decode(payload, before, HEIGHT, WIDTH, qp, index)
                picture, known = oracle.inter(payload, parts[1], known, qp + RATE_SHIFTS[index])
            assert (state.tensors()[0][0].numpy() == known.v).all(), (skip, index)
            assert (found[0].double().numpy() * 65536 == picture).all(), (skip, index)
            assert len(payload) > 10
