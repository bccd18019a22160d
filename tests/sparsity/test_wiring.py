"""Wires: what transforms hand on to each other shrinks as one, from frame to frame, or says why it does not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo, HEMVideoWidths
from sparsecodec.nn.fvc_layers import DeformableAlignment
from sparsecodec.sparsity import (
    ChannelGraph,
    ChannelMasks,
    DecayConfig,
    GradientDecay,
    apply_compact_config,
    apply_masks,
    compact,
    compact_config,
    count,
    trace_model,
)
from sparsecodec.sparsity.freeze import freeze_masks

PATHS = ("again", "middle", "last")


class Head(nn.Module):
    """Two maps of 8 channels -> a picture and the feature for the next frame."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.picture = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        feature = torch.relu(self.mix(x))
        return self.picture(feature), feature


class Recurrent(nn.Module):
    """A picture starts the feature, which every frame reads and makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.middle = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 1))
        self.last = Head()
        self.wires = {
            "first": ((None,), ("adapted",)),
            "again": (("feature",), ("adapted",)),
            "middle": (("adapted",), ("middle",)),
            "last": ((("middle", "adapted"),), (None, "feature")),
        }
        self.stand_ins = {"first": "again"}

    def forward(self, x: Tensor, frames: int) -> tuple[list[Tensor], Tensor]:
        pictures, feature = [], None
        for _ in range(frames):
            adapted = self.first(x) if feature is None else self.again(feature)
            picture, feature = self.last(torch.cat([self.middle(adapted), adapted], 1))
            pictures.append(picture)
        return pictures, feature


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inter = Recurrent()


@pytest.fixture
def model() -> Recurrent:
    torch.manual_seed(0)
    return Recurrent().double()


def test_what_transforms_hand_on_is_one_space_at_every_frame(model: Recurrent) -> None:
    graph = trace_model(model, PATHS, "coupled")
    assert graph.transforms == ("first", *PATHS)
    assert graph.spaces["first"].producers == ("first", "again")
    assert graph.spaces["first"].consumers == ("middle.0", "last.mix")
    assert graph.spaces["last.mix"].consumers == ("again", "last.picture")
    assert set(graph.prunable) == {"first", "middle.0", "middle.2", "last.mix"}


def test_a_state_is_locked_unless_it_is_coupled(model: Recurrent) -> None:
    assert set(trace_model(model, PATHS).prunable) == {"middle.0"}
    assert set(trace_model(model, PATHS, "locked").prunable) == {"middle.0"}
    with pytest.raises(UsageError, match="state='free'.*locked, coupled"):
        trace_model(model, PATHS, "free")


@pytest.mark.parametrize("seed", range(3))
def test_compact_states_fit_the_next_frame(model: Recurrent, seed: int) -> None:
    graph = trace_model(model, PATHS, "coupled")
    masks = ChannelMasks.random(graph, 0.4, seed)
    masked, small = apply_masks(model, masks, graph), compact(model, masks, graph)
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    (expected, wide), (found, narrow) = masked(x, 4), small(x, 4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(narrow, wide[:, masks["last.mix"]], rtol=0, atol=1e-12)
    assert narrow.shape[1] == 5 and not wide[:, ~masks["last.mix"]].any()
    assert (model(x, 4)[0][-1] - found[-1]).abs().max() > 1e-3, "nothing was pruned"


def test_a_configuration_remembers_that_states_were_coupled(model: Recurrent) -> None:
    owner = Owner().double()
    owner.inter.load_state_dict(model.state_dict())
    graph = trace_model(owner, [f"inter.{path}" for path in PATHS], "coupled")
    masks = ChannelMasks.random(graph, 0.4, 0)
    small = compact(owner, masks, graph)
    rebuilt = apply_compact_config(copy.deepcopy(owner), compact_config(masks, graph))
    rebuilt.load_state_dict(small.state_dict())
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(rebuilt.inter(x, 3)[0][-1], small.inter(x, 3)[0][-1])


def test_a_wire_with_an_end_that_is_not_traced_is_locked(model: Recurrent) -> None:
    graph = trace_model(model, ("again", "middle"), "coupled")
    assert graph.spaces["first"].locked == "last, which is not traced, makes or reads it"
    assert set(graph.prunable) == {"middle.0"}


def test_what_is_not_zero_where_it_is_masked_is_not_handed_on(model: Recurrent) -> None:
    model.middle.append(nn.Sigmoid())
    graph = trace_model(model, PATHS, "coupled")
    assert "not zero where it is masked" in graph.spaces["middle.2"].locked
    assert "first" in graph.prunable


def test_hem_has_one_space_for_each_scale_and_for_the_feature() -> None:
    model = DCVCHEMVideo(HEMVideoWidths(8, 8, 8, 8, (4, 8, 8), (8, 8, 8, 8)))
    paths = [path for path in model.wires if path != "feature_adaptor_I"]
    graph = trace_model(model, paths, "coupled")
    feature = graph.spaces["recon_generation_net.unet_2.up_conv2.up_dim"]
    assert {"feature_adaptor_P", "recon_generation_net.recon_conv"} <= set(feature.consumers)
    assert graph.spaces["feature_adaptor_I"].producers == ("feature_adaptor_I", "feature_adaptor_P")
    quarter = graph.spaces["feature_extractor.conv3"]
    assert "context_fusion_net.conv3_out" in quarter.producers and "context_fusion_net.conv3_up.0" in quarter.consumers
    assert {"temporal_prior_encoder.0", "contextual_encoder.conv3"} <= set(quarter.consumers)
    assert not [space.name for space in graph.spaces.values() if space.locked not in (None, "it is an output")]


class Joined(nn.Module):
    """Two convolutions side by side, and one that is added to both: one space, made in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.inner, self.both, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.last(x + self.both(torch.relu(self.inner(x))))


def test_no_layer_of_a_joined_space_loses_all_of_its_channels() -> None:
    graph = ChannelGraph.trace(Joined())
    scores = {name: torch.arange(1.0, space.width + 1) for name, space in graph.prunable.items()}
    assert [part.tolist() for part in graph.parts("left")] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    kept = [0, 0, 0, 1, 0, 0, 1, 1]  # `left` has the lower scores
    assert ChannelMasks.from_scores(graph, scores, 0.6)["left"].tolist() == kept
    report = count(Joined(), {"": (1, 3, 4, 4)})
    frozen = freeze_masks(graph, report, scores, {name: 8 for name in scores}, 0.5, 1)
    assert frozen["left"][:4].any() and frozen["left"].sum() < 8
    config = DecayConfig(sparsity=0.5, t0=1, t1=2)
    decay = GradientDecay(Joined(), graph, report, config, {n: (v > 4).float() for n, v in scores.items()})
    with torch.no_grad():
        decay.theta.fill_(0.9)
    decay.set_step(1)
    assert decay.masks()["left"][:4].sum() == 1
    with pytest.raises(GraphError, match="'left' keeps none of its 4 channels"):
        ChannelMasks({"left": torch.arange(8) > 3}).validate(graph)


class Aligned(nn.Module):
    """A convolution, a deformable one whose offsets come from another map, and a last one."""

    def __init__(self, groups: int, modulated: bool) -> None:
        super().__init__()
        self.before, self.motion = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(3, 12, 3, padding=1)
        self.alignment = DeformableAlignment(12, groups, modulated)
        self.after = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.after(self.alignment(self.motion(y), self.before(x)))


@pytest.mark.parametrize(("groups", "modulated"), [(1, False), (3, True), (4, False)])
def test_groups_of_a_deformable_convolution_keep_the_same_channels(groups: int, modulated: bool) -> None:
    torch.manual_seed(groups)
    model = nn.Sequential()
    model.net = Aligned(groups, modulated).double()
    with torch.no_grad():
        for parameter in model.net.alignment.parameters():
            parameter.copy_(torch.randn_like(parameter) / 5)
    graph = trace_model(model, ["net"])
    assert graph.spaces["net.before"].width == 12 // groups and graph.spaces["net.before"].locked is None
    assert graph.spaces["net.alignment.conv"].width == 12 and graph.spaces["net.motion"].locked is None
    assert "fixed channel numbers" in graph.spaces["net.alignment.offsets"].locked
    masks = ChannelMasks.random(graph, 0.5, 1)
    masked, small = apply_masks(model, masks, graph).net, compact(model, masks, graph).net
    x, y = torch.rand(2, 1, 3, 7, 9, dtype=torch.float64).unbind()
    y = y.float().double()
    torch.testing.assert_close(small(x, y), masked(x, y), rtol=0, atol=1e-7)
    assert (model.net(x, y) - small(x, y)).abs().max() > 1e-3, "nothing was pruned"
    kept = masks["net.before"].sum().item() * groups
    assert small.alignment.conv.weight.shape[:2] == (6, kept)
    before, after = (count(net, {"": ((1, 3, 8, 8), (1, 3, 8, 8))}) for net in (model.net, small))
    macs = {layer.name: layer.macs for layer in after.layers}
    assert macs["alignment.conv"] == 6 * kept * 9 * 64 and after.macs < before.macs
