"""Portable DCVC-HEM, beside what all portable video codecs share (test_portable_video.py)."""

from __future__ import annotations

import copy

import pytest
import torch

from sparsecodec import zoo
from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage, HEMImageWidths
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo, HEMVideoWidths
from sparsecodec.models.video import VideoCodec
from sparsecodec.nn.hem_inter import HEMState
from sparsecodec.nn.integer_prior import fixed_gain
from sparsecodec.runtime.adapters.portable_hem import halved

from .portable_clips import Kind

INTRA_WIDTHS = HEMImageWidths(16, 8, (8, 8, 16), 16)
INTER_WIDTHS = HEMVideoWidths(8, 8, 16, 8, (8, 8, 16), (8, 8, 8, 8))


def untrained() -> VideoCodec:
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


HEM = Kind(
    untrained,
    size=(64, 128),
    frames=8,
    alone=(0, 5),
    ops=frozenset({"integer_conv2d", "Excitation"}),
    paths=frozenset(
        {"intra.refine.1", "inter.recon_generation_net.unet_1.conv1.conv.3.fc.2", "inter.mv_encoder.6"},
    ),
    behind_symbols=lambda inter: inter.recon_generation_net.first_conv,
    least_bytes=100,
    layers=100,
)


def test_states_and_motion():
    states = [state for _, state in HEM.expected]
    assert [len(state.tensors()) for state in states] == [1 if i in HEM.alone else 4 for i in range(HEM.frames)]
    assert all(len(state.mv.unique()) > 3 and len(state.y.unique()) > 3 for state in states if state.mv is not None)


def test_states_of_another_shape_are_refused():
    codec, state = HEM.compiled(), HEM.stream[1].state
    for changed in (
        {"feature": state.feature[:, :4]},
        {"y": state.y[..., :4]},
        {"mv": None},
        {"frame": state.frame.float()},
    ):
        with pytest.raises(UsageError, match=f"{next(iter(changed))} of the state is"):
            codec.inter_decode(HEM.stream[2].payload, HEMState(**{**vars(state), **changed}), *HEM.size, 32, 2)


def test_stored_integers_that_cannot_be_are_refused(tmp_path):
    for key, value in (("steps", 0), ("thresholds", None)):
        other = copy.deepcopy(HEM.model)
        tensor = getattr(other.inter.portable, key)
        tensor.view(-1)[-1] = tensor.view(-1)[0] - 1 if value is None else value
        with pytest.raises(UsageError, match=key):
            zoo.save(other, tmp_path / key)


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
