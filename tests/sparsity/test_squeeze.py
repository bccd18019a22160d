"""Squeeze-and-excitation under everything that counts, scores and gates channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsecodec.nn.hem_layers import ExcitedBlock
from sparsecodec.sparsity import ChannelGraph, ChannelMasks, apply_masks, compact, count, magnitude_scores
from sparsecodec.sparsity.energy import channel_energies
from sparsecodec.sparsity.gating import Gating
from sparsecodec.sparsity.macs import masked_macs, masked_params

SHAPE = (2, 3, 6, 10)
WIDE, MIDDLE = "net.0.up_dim", "net.0.conv.3.fc.0"


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.net = nn.Sequential(ExcitedBlock(3, 48), ExcitedBlock(48, 32), nn.Conv2d(32, 2, 1))
    return model


@pytest.fixture
def graph(model: nn.Module) -> ChannelGraph:
    return ChannelGraph.trace(model.net, "net")


def test_macs_and_parameters_of_masks_are_those_of_the_compact_model(model: nn.Module, graph: ChannelGraph) -> None:
    report, masks = count(model, {"net": SHAPE}), ChannelMasks.random(graph, 0.4, 1)
    small = compact(model, masks, graph)
    after = count(small, {"net": SHAPE})
    assert {layer.kind for layer in report.layers} == {"conv", "linear"}
    assert masked_macs(report, graph, masks) == after.macs < 0.6 * report.macs
    assert masked_params(model, report, graph, masks) == after.params
    squeeze = small.net[0].conv[3].fc
    assert (squeeze[0].in_features, squeeze[0].out_features) == (29, 2) == squeeze[2].weight.shape
    assert sum(parameter.numel() for parameter in small.parameters()) == after.params


def test_gates_mask_what_masks_mask(model: nn.Module, graph: ChannelGraph) -> None:
    masks = ChannelMasks.random(graph, 0.4, 2)
    gating = Gating(graph, list(graph.prunable))
    expected = dict(apply_masks(model, masks, graph).named_parameters())
    gated = {
        f"{name}.{key}": model.get_submodule(name)._parameters[key] * gate
        for name, key, gate in gating.gates(model, torch.cat([masks[name] for name in gating.names]))
    }
    assert f"{MIDDLE}.weight" in gated and f"{WIDE}.bias" in gated
    assert all(torch.equal(value, expected[name]) for name, value in gated.items())
    norms = gating.sections(gating.norms(model))
    for name, scores in magnitude_scores(model, graph).items():
        assert torch.equal(norms[name], scores)
    assert torch.allclose(norms[MIDDLE], model.get_submodule(MIDDLE).weight.norm(dim=1))


def test_energies_are_what_the_middle_says_to_the_gates(model: nn.Module, graph: ChannelGraph) -> None:
    seen = []
    model.net[0].conv[3].fc[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(SHAPE)
    energies = channel_energies(model, graph, lambda: model.net(x))
    (middle,) = seen
    expected = middle.square().mean(0) * model.net[0].conv[3].fc[2].weight.square().sum(0)
    assert middle.shape == (2, 3) and expected.any()
    assert torch.allclose(energies[MIDDLE], expected)
    assert energies[WIDE].shape == (48,) and (energies[WIDE] > 0).all()
