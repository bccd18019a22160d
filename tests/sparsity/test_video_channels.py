"""Channels of video codecs: what is masked and what is compacted stay equal over several frames, state included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecodec.models import dcvc as dcvc_model
from sparsecodec.models import fvc as fvc_model
from sparsecodec.models.dcvc import DCVC
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage, HEMImageWidths
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo, HEMVideoWidths
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.models.evc import EVC
from sparsecodec.models.fvc import FVC
from sparsecodec.models.video import VideoCodec
from sparsecodec.ops import warp
from sparsecodec.sparsity import (
    ChannelMasks,
    apply_compact_config,
    apply_masks,
    compact,
    compact_config,
    count,
    trace_model,
)
from sparsecodec.sparsity.channel_graph import ChannelGraph
from sparsecodec.training import family_of

TOLERANCE = 2e-5  # smaller sums are added up in another order


def rt() -> VideoCodec:
    intra = DCVCRTImage(RTImageWidths(16, 8, 16, 1, 1, 1, 1))
    return VideoCodec(intra, DCVCRTVideo(RTVideoWidths(16, 8, 24, 16, 1, 1, 1)))


def hem() -> VideoCodec:
    inter = DCVCHEMVideo(HEMVideoWidths(8, 8, 8, 8, (4, 8, 8), (8, 8, 8, 8)))
    return VideoCodec(DCVCHEMImage(HEMImageWidths(8, 8, (4, 8, 8))), inter)


def dcvc() -> VideoCodec:
    return VideoCodec(EVC("nano", "nano"), DCVC(dcvc_model.Widths(8, 8, 12, 8, (4, 4, 4, 4))))


def fvc() -> VideoCodec:
    return VideoCodec(EVC("nano", "nano"), FVC(fvc_model.Widths(8, 12, 12, 2, 1, references=2)))


def fvc_without_fusion() -> VideoCodec:
    return VideoCodec(EVC("nano", "nano"), FVC(fvc_model.Widths(16, 12, 12, 2, 1, modulated=True, references=0)))


FAMILIES = {"rt": rt, "hem": hem, "dcvc": dcvc, "fvc": fvc, "fvc_without_fusion": fvc_without_fusion}


def codec_of(name: str) -> nn.Module:
    """Random weights, and tables of steps that differ from channel to channel: a row cut wrongly must show."""
    torch.manual_seed(1)
    model = FAMILIES[name]().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".q_" in f".{key}":
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    return model


@pytest.mark.parametrize(("state", "branches"), [("locked", True), ("locked", False), ("coupled", True)])
@pytest.mark.parametrize("name", FAMILIES)
def test_masked_and_compacted_codecs_agree_over_four_frames(name, state, branches):
    model = codec_of(name)
    family = family_of(model)
    shapes = family.transforms(model, "all", 64)
    graph = trace_model(model, list(shapes), state)
    graph = graph if branches else graph.without_branches()
    masks = ChannelMasks.random(graph, 0.5, seed=2)
    masked, small = apply_masks(model, masks, graph), compact(model, masks, graph)
    assert count(small, family.transforms(small, "all", 64)).macs < 0.6 * count(model, shapes).macs

    x = torch.rand(1, 4, 3, 64, 64)
    rate = len(family.lambdas or (0,)) // 2
    with torch.no_grad():
        expected, _ = family.forward(masked, x, rate)
        found, _ = family.forward(small, x, rate)
        dense, _ = family.forward(model, x, rate)
    assert torch.allclose(found["x_hat"], expected["x_hat"], atol=TOLERANCE)
    assert torch.allclose(found["bpp"], expected["bpp"], rtol=1e-4)
    assert not torch.allclose(found["x_hat"], dense["x_hat"], atol=0.01)

    rebuilt = apply_compact_config(FAMILIES[name](), compact_config(masks, graph))
    rebuilt.load_state_dict(small.state_dict())


@pytest.mark.parametrize("name", ["rt", "hem", "dcvc"])
def test_coupled_widths_are_read_off_a_state_dict(name):
    model = codec_of(name)
    shapes = {k: v for k, v in family_of(model).transforms(model, "all", 64).items() if k.startswith("inter.")}
    graph = trace_model(model, list(shapes), "coupled").without_branches()
    inter = compact(model, ChannelMasks.random(graph, 0.5, seed=2), graph).inter
    loaded = type(inter).from_state_dict(inter.state_dict())
    x, rate = torch.rand(3, 1, 3, 64, 64), None if name == "dcvc" else 0
    with torch.no_grad():
        expected, found = (net(x[1], net.start(x[0]), rate) for net in (inter, loaded))
        expected, found = (net(x[2], out["state"], rate) for net, out in ((inter, expected), (loaded, found)))
    assert torch.equal(found["x_hat"], expected["x_hat"]) and torch.equal(found["bpp"], expected["bpp"])


def test_tables_of_steps_shrink_with_the_channels_they_multiply():
    model = codec_of("rt")
    graph = trace_model(model, ["inter.recon_generation_net", "inter.encoder"])
    space = graph.banks["inter.q_recon"].spaces()
    assert space == ("inter.recon_generation_net.conv.0.adaptor",)
    keep = torch.zeros(16, dtype=torch.bool)
    keep[[1, 4, 5, 11]] = True
    small = compact(model, ChannelMasks({space[0]: keep}), graph)
    assert torch.equal(small.inter.q_recon, model.inter.q_recon[:, keep])
    assert torch.equal(small.inter.q_encoder, model.inter.q_encoder)
    assert torch.equal(model.inter.q_recon, codec_of("rt").inter.q_recon)  # the dense one is as it was


def test_a_table_beside_an_output_locks_nothing_else_and_stays():
    graph = trace_model(codec_of("rt"), ["inter.decoder", "inter.feature_extractor"])
    locked = {graph.spaces[name].locked for name in graph.banks["inter.q_decoder"].spaces()}
    assert None not in locked  # the feature is state: every frame must find it in full


class _Warped(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.feature = nn.Conv2d(3, 8, 3, padding=1)
        self.motion = nn.Conv2d(3, 2, 3, padding=1)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x, reference):
        feature, motion = self.feature(reference), self.motion(x)
        if self.kind == "op":
            return self.out(warp(feature, motion))
        return self.out(F.grid_sample(feature, motion.permute(0, 2, 3, 1), align_corners=True))


@pytest.mark.parametrize("kind", ["op", "grid_sample"])
def test_a_warp_carries_channels_and_locks_what_says_where(kind):
    torch.manual_seed(0)
    module = _Warped(kind)
    graph = ChannelGraph.trace(module)
    assert graph.spaces["feature"].locked is None and graph.spaces["motion"].locked is not None
    masks = ChannelMasks.random(graph, 0.5, seed=0)
    x, reference = torch.rand(2, 1, 3, 8, 8).unbind()
    expected = apply_masks(module, masks, graph)(x, reference)
    assert torch.allclose(compact(module, masks, graph)(x, reference), expected, atol=1e-6)
