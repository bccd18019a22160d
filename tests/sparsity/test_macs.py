"""Counts against torch's own flop counter, against published figures, and before against after compaction."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsecodec.errors import UsageError
from sparsecodec.models.evc import EVC
from sparsecodec.sparsity import (
    ChannelMasks,
    compact,
    count,
    magnitude_scores,
    masked_macs,
    masked_params,
    masks_for_macs,
    trace_model,
)


def test_equals_the_flop_counter(codec) -> None:
    report = count(codec.model, codec.shapes)
    for path, shape in codec.shapes.items():
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            codec.model.get_submodule(path)(torch.zeros(shape))
        counted = sum(layer.macs for layer in report.layers if (layer.name + ".").startswith(path + "."))
        assert 2 * counted == flops.get_total_flops()
        assert counted > 0


@pytest.mark.parametrize(("preset", "gmacs"), [("l", 536.0), ("m", 256.6), ("s", 72.8)])
def test_evc_decoder_at_1080p(preset: str, gmacs: float) -> None:
    with torch.device("meta"):
        model = EVC(preset, preset)
    report = count(model, {"dec": (1, 192, 68, 120)})
    assert report.macs / 1e9 == pytest.approx(gmacs, rel=1e-3)


@pytest.mark.parametrize(("sparsity", "round_to"), [(0.5, 1), (0.7, 8)])
def test_masked_estimate_equals_the_compact_count(codec, sparsity: float, round_to: int) -> None:
    graph = trace_model(codec.model, codec.transforms)
    masks = ChannelMasks.random(graph, sparsity, 0, round_to)
    dense, small = count(codec.model, codec.shapes), count(compact(codec.model, masks, graph), codec.shapes)
    assert masked_macs(dense, graph, masks) == small.macs < dense.macs
    assert small.params < dense.params
    assert [layer.name for layer in small.layers] == [layer.name for layer in dense.layers]
    assert masked_macs(dense, graph, {}) == dense.macs
    assert masked_params(codec.model, dense, graph, masks) == small.params
    assert masked_params(codec.model, dense, graph, {}) == dense.params


@pytest.mark.parametrize("grouped", [nn.Conv2d(8, 4, 3, groups=2), nn.ConvTranspose2d(8, 4, 3, groups=2)])
def test_grouped_layers_are_estimated_as_counted(grouped: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), grouped, nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1))
    report, graph = count(net, {"": (1, 3, 8, 8)}), trace_model(net, [""])
    assert masked_params(net, report, graph, {}) == report.params == sum(p.numel() for p in net.parameters())
    assert masked_macs(report, graph, {}) == report.macs


def test_parameters_are_the_transforms_own(codec) -> None:
    report = count(codec.model, codec.shapes)
    expected = sum(p.numel() for path in codec.transforms for p in codec.model.get_submodule(path).parameters())
    assert report.params == expected


@pytest.mark.parametrize("round_to", [1, 16])
def test_masks_for_macs_reach_the_target(evc, round_to: int) -> None:
    graph = trace_model(evc.model, evc.transforms)
    report = count(evc.model, evc.shapes)
    masks = masks_for_macs(report, graph, magnitude_scores(evc.model, graph), 0.65, round_to)
    left = masked_macs(report, graph, masks) / report.macs
    assert (0.34 if round_to == 1 else 0.29) < left <= 0.35


def test_unreachable_reduction_says_what_is_possible(evc) -> None:
    graph = trace_model(evc.model, ["dec"])
    report = count(evc.model, evc.shapes)
    with pytest.raises(UsageError, match="at most 0.[0-9]+ of the MACs can be removed; locked: .*output"):
        masks_for_macs(report, graph, magnitude_scores(evc.model, graph), 0.99, 16)


def test_table_shows_before_and_after(evc) -> None:
    graph = trace_model(evc.model, ["dec"])
    shapes = {"dec": evc.shapes["dec"]}
    dense = count(evc.model, shapes)
    small = count(compact(evc.model, ChannelMasks.random(graph, 0.5, 0), graph), shapes)
    lines = dense.table(small).splitlines()
    assert len(lines) == len(dense.layers) + 2
    assert lines[-1].split()[-1] == f"{small.macs / dense.macs:.1%}"


def test_wrong_input_shape_is_named() -> None:
    with pytest.raises(UsageError, match=r"does not take an input \(1, 4, 8, 8\)"):
        count(nn.Sequential(nn.Conv2d(3, 3, 1)), {"": (1, 4, 8, 8)})
