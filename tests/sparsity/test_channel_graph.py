"""What the channel graph finds: spaces, branches, locks and their reasons."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.errors import GraphError
from sparsecodec.sparsity import ChannelGraph, ChannelMasks, compact, trace_model


class Net(nn.Module):
    """conv `a` (4 -> 8), a function, conv `b` (c -> 4)."""

    def __init__(self, function, c: int = 8) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 8, 3, padding=1)
        self.b = nn.Conv2d(c, 4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def test_plain_chain_has_one_prunable_space_between_locked_ends() -> None:
    graph = ChannelGraph.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(inplace=True), nn.Conv2d(8, 2, 3)), "g_a")
    assert list(graph.spaces) == ["g_a.0", "g_a.2"]
    assert graph.spaces["g_a.0"].locked is None
    assert graph.spaces["g_a.0"].consumers == ("g_a.2",)
    assert graph.spaces["g_a.2"].locked == "it is an output"
    assert graph.layers["g_a.0"].inputs.parts[0][0] is None


def test_evc_decoder_joins_and_branches(evc) -> None:
    graph = trace_model(evc.model, ["dec"])
    first_join = graph.spaces["dec.0.block.0.conv2.0"]  # added to the latent, so it cannot shrink
    assert "add" in first_join.locked
    join = graph.spaces["dec.1.conv"]
    assert join.locked is None
    assert join.producers == ("dec.1.conv", "dec.1.upsample.0", "dec.2.block.0.conv2.0", "dec.2.block.1.conv.2")
    assert join.consumers == (
        "dec.2.block.0.conv1.0",
        "dec.2.block.1.conv.0",
        "dec.3.subpel_conv.0",
        "dec.3.upsample.0",
    )
    inner = graph.spaces["dec.2.block.0.conv1.0"]
    assert inner.consumers == ("dec.2.block.0.depth_conv.0", "dec.2.block.0.conv2.0")
    assert graph.spaces["branch:dec.0.block.1.conv.2"].joined == "dec.0.block.0.conv2.0"
    assert "branch:dec.1.upsample.0" not in graph.spaces  # a skip is no branch
    assert graph.spaces["dec.1.subpel_conv.0"].width == 64  # of 256 filters, before PixelShuffle(2)
    assert graph.spaces["dec.7.0"].locked == "it is an output"


def test_adaptor_of_a_block_is_its_skip(evc) -> None:
    graph = trace_model(evc.model, ["y_prior_fusion"])
    assert "branch:y_prior_fusion.0.block.0.conv2" in graph.spaces
    assert "branch:y_prior_fusion.0.block.0.adaptor" not in graph.spaces


def test_gdn_and_transposed_convolutions_are_prunable(codec) -> None:
    graph = trace_model(codec.model, codec.transforms)
    assert len(graph.prunable) >= 4 + 2 * (len(codec.transforms) > 2)
    for transform in codec.transforms:
        outputs = [s for s in graph.spaces.values() if s.name.startswith(transform) and s.locked == "it is an output"]
        assert len(outputs) == 1
    for space in graph.spaces.values():
        assert space.locked is None or "output" in space.locked or "add" in space.locked, space


@pytest.mark.parametrize(
    ("function", "c"),
    [
        (lambda x: F.pixel_shuffle(x, 2), 2),
        (lambda x: x[:, :, 1:, ::2], 8),
        (lambda x: torch.cat([x, F.relu(x)], 1), 16),
        (lambda x: x.chunk(2, 1)[0] + x.chunk(2, 1)[1], 4),
        (lambda x: x * torch.sigmoid(4.0 * x), 8),
        (lambda x: F.pad(x, (0, 1, 0, 2)), 8),
        (lambda x: F.interpolate(x, scale_factor=2) * 0.5, 8),
        (lambda x: torch.clamp(x, -1, 1) / 3, 8),
        (lambda x: torch.pow(F.pixel_shuffle(x, upscale_factor=2), exponent=2), 2),
    ],
    ids=["pixel_shuffle", "crop", "cat", "chunk_add", "gate", "pad", "upsample", "clamp", "keywords"],
)
def test_operator_keeps_its_space_prunable(function, c: int) -> None:
    graph = ChannelGraph.trace(Net(function, c))
    assert graph.spaces["a"].locked is None
    assert graph.layers["b"].input_keeps_zero


@pytest.mark.parametrize(
    "function",
    [torch.sigmoid, lambda x: F.softplus(x) + 1, lambda x: x + 0.5, lambda x: torch.clamp(x, 0.1, 1)],
    ids=["sigmoid", "softplus", "add_constant", "clamp_above_zero"],
)
def test_constant_behind_a_mask_is_noticed(function) -> None:
    graph = ChannelGraph.trace(Net(function))
    assert graph.spaces["a"].locked is None
    assert not graph.layers["b"].input_keeps_zero


@pytest.mark.parametrize(
    ("function", "c", "reason"),
    [
        (lambda x: F.softmax(x, 1), 8, "softmax (net.softmax) has no rule"),
        (lambda x: x[:, :4], 4, "fixed channel numbers"),
        (lambda x: x.split([4, 4], 1)[0], 4, "split"),
        (lambda x: x.flip(1), 8, "flip"),
        (lambda x: x * x.shape[1], 8, "its number of channels is read"),
        (lambda x: torch.cat([x, x], 2), 8, "along dimension 2"),
        (lambda x: 1 / x, 8, "division"),
        (lambda x: F.conv2d(x, torch.ones(8, 8, 1, 1)), 8, "conv2d"),
        (lambda x: x.mT, 8, "mT of a tensor (net.getattr_1) has no rule"),
        (lambda x: torch.max(x, 1).values[:, None].expand(-1, 8, -1, -1), 8, "along one dimension"),
        (lambda x: torch.relu(input=x), 8, "by keywords alone"),
        (lambda x: F.hardtanh(x, 0.5, 1.0), 8, "hardtanh"),
        (lambda x: F.relu(x) * torch.ones(x.shape), 8, "ones (net.ones) has no rule"),
        (lambda x: F.pad(x, (1, 1, 1, 1), value=x.shape[2]), 8, "pad"),
    ],
    ids=[
        *("softmax", "slice", "split", "flip", "shape", "cat_rows", "divide", "functional", "attribute", "max_of_rows"),
        *("keywords", "hardtanh", "handed_shape", "unknown_pad"),
    ],
)
def test_operator_without_a_rule_locks_and_says_why(function, c: int, reason: str) -> None:
    graph = ChannelGraph.trace(Net(function, c), "net")
    assert reason in graph.spaces["net.a"].locked
    assert f"locked, because {graph.spaces['net.a'].locked}" in graph.report()


class Bounded(Net):
    """Clamps by a buffer of one element, whose value the graph does not know."""

    def __init__(self) -> None:
        super().__init__(None)
        self.register_buffer("bound", torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.clamp(self.a(x), self.bound))


def test_clamp_by_an_unknown_bound_locks() -> None:
    assert ChannelGraph.trace(Bounded()).spaces["a"].locked == "clamp (clamp) has no rule"


@pytest.mark.parametrize("change", [lambda x: x.add_(1), lambda x: x.add_(x.sigmoid()), lambda x: x.clamp_(0.5, 1)])
def test_constant_added_in_place_locks(change) -> None:
    """Whoever holds the tensor under its old name reads the constant, too."""

    class Aliased(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            change(x)
            return self.b(x)

    assert "in place" in ChannelGraph.trace(Aliased(None)).spaces["a"].locked


class Squeezed(nn.Module):
    """conv `a` (4 -> 8), its channels weighted by two Linears of what `pool` makes of them, conv `b` (8 -> 4)."""

    def __init__(self, pool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.fc = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 8), nn.Sigmoid())
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x * self.fc(self.pool(x))[:, :, None, None])


@pytest.mark.parametrize(
    "pool", [lambda x: x.mean((-1, -2)), lambda x: torch.mean(x, dim=(2, 3))], ids=["method", "function"]
)
def test_squeeze_and_excitation_is_one_space_and_its_middle_another(pool) -> None:
    graph = ChannelGraph.trace(Squeezed(pool))
    assert graph.spaces["a"].producers == ("a", "fc.2") and graph.spaces["a"].locked is None
    assert graph.spaces["a"].consumers == ("fc.0", "b")
    assert graph.spaces["fc.0"].width == 3 and graph.spaces["fc.0"].locked is None
    assert graph.layers["b"].input_keeps_zero


@pytest.mark.parametrize(
    ("function", "c", "reason"),
    [
        (lambda x: x * x.mean((-1, -2)), 8, "broadcasts channels over rows or columns"),
        (lambda x: x * x.mean((1, 2))[:, :, None, None], 8, "other dimensions than those of space"),
        (lambda x: x * x.mean(1, keepdim=True), 8, "other dimensions than those of space"),
        (lambda x: x * x.mean((2, 3))[:, :4].mean((0, 1)), 8, "indexing"),
        (lambda x: x * x.mean((2, 3)).shape[-1], 8, "its number of channels is read"),
        (lambda x: x[:, :, :1, :1] * F.pad(x.mean((2, 3)), (0, 1))[:, :-1, None, None], 8, "pad"),
    ],
    ids=["rows", "channels_and_rows", "channels", "slice", "shape", "pad"],
)
def test_means_that_no_longer_tell_channels_apart_lock(function, c: int, reason: str) -> None:
    assert reason in ChannelGraph.trace(Net(function, c)).spaces["a"].locked


def test_linear_of_a_picture_s_rows_locks() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Linear(8, 8), nn.Conv2d(8, 4, 1))
    assert ChannelGraph.trace(net).spaces["0"].locked == "Linear (1) does not read means over space"


def test_grouped_convolution_and_unknown_module_lock() -> None:
    grouped = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 4, 1))
    graph = ChannelGraph.trace(grouped)
    assert "grouped" in graph.spaces["0"].locked and "grouped" in graph.spaces["1"].locked
    normed = nn.Sequential(nn.Conv2d(4, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1))
    assert ChannelGraph.trace(normed).spaces["0"].locked == "GroupNorm (1) has no rule"


def test_parametrised_weight_locks() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    torch.nn.utils.parametrizations.weight_norm(net[1])
    assert "not a plain parameter" in ChannelGraph.trace(net).spaces["0"].locked


def test_layer_that_runs_twice_ties_both_of_its_spaces() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.shared, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.shared(F.relu(self.shared(self.a(x)))))

    graph = ChannelGraph.trace(Twice())
    assert graph.spaces["a"].producers == ("a", "shared")
    assert graph.spaces["a"].locked is None


def test_layer_that_also_reads_the_input_locks_what_it_reads_elsewhere() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.shared(F.relu(self.shared(x))))

    assert ChannelGraph.trace(Again()).spaces["shared"].locked == "it is joined with channels from outside"


def test_report_lists_every_space(evc) -> None:
    graph = trace_model(evc.model, evc.transforms)
    report = graph.report()
    for name in graph.spaces:
        assert f"{name}: " in report


@pytest.mark.parametrize(
    ("paths", "message"),
    [(["decoder"], "no module 'decoder'"), (["dec", "dec.0"], "inside"), (["dec", "dec"], "twice")],
)
def test_wrong_transform_paths_are_named(evc, paths: list[str], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        trace_model(evc.model, paths)


def test_data_dependent_forward_is_an_error_that_names_the_module() -> None:
    class Depends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(GraphError, match="branchy cannot be traced"):
        ChannelGraph.trace(Depends(), "branchy")


def test_a_layer_that_two_transforms_share_keeps_its_channels() -> None:
    """Each would be cut by its own transform's masks, and the second cut undo the first."""

    def chain(shared: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 8, 3), shared, nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3))

    shared = nn.Conv2d(8, 8, 3)
    model = nn.ModuleDict({"a": chain(shared), "b": chain(shared)})
    graph = trace_model(model, ["a", "b"])
    reason = "a.1 and b.1 share their weights"
    assert {name for name, space in graph.spaces.items() if space.locked == reason} == {"a.0", "a.1", "b.0", "b.1"}
    assert graph.spaces["a.2"].locked is None and graph.spaces["b.2"].locked is None
    alone = trace_model(model, ["a"])
    assert alone.spaces["a.1"].locked is None

    model["b"][1] = nn.Conv2d(8, 8, 3)
    model["b"][1].weight = shared.weight
    assert trace_model(model, ["a", "b"]).spaces["b.1"].locked == reason
    masks = ChannelMasks.random(graph, sparsity=0.5, seed=0)
    small, x = compact(model, masks, graph), torch.randn(1, 4, 12, 12)
    assert small["a"](x).shape == small["b"](x).shape == (1, 4, 4, 4)
