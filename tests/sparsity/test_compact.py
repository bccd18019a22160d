"""Masked output equals compacted output, for every rule and every family."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.models.evc import EVC
from sparsecodec.nn.hem_layers import ExcitedBlock
from sparsecodec.sparsity import (
    ChannelGraph,
    ChannelMasks,
    ScatterConv2d,
    apply_compact_config,
    apply_masks,
    compact,
    compact_config,
    trace_model,
)


def _input(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).sub(0.5).to(dtype)


def _random(graph: ChannelGraph, kind: str) -> ChannelMasks:
    scores = {
        name: torch.rand(space.width, generator=torch.Generator().manual_seed(4))
        for name, space in graph.prunable.items()
        if (space.joined is not None) == (kind == "free")
    }
    return ChannelMasks.from_scores(graph, scores, 0.5)


@pytest.mark.parametrize(("sparsity", "round_to", "seed"), [(0.3, 1, 0), (0.5, 4, 1), (0.8, 1, 2)])
def test_masked_equals_compacted(codec, sparsity: float, round_to: int, seed: int) -> None:
    model = codec.model.double()
    graph = trace_model(model, codec.transforms)
    masks = ChannelMasks.random(graph, sparsity, seed, round_to)
    masked, small = apply_masks(model, masks, graph), compact(model, masks, graph)
    for path, shape in codec.shapes.items():
        x = _input(shape, torch.float64)
        with torch.no_grad():
            dense, expected, got = (m.get_submodule(path)(x.clone()) for m in (model, masked, small))
        assert got.shape == dense.shape
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
        if any(name.removeprefix("branch:").startswith(path) for name in graph.prunable):
            assert (got - dense).abs().max() > 1e-4, "nothing was pruned"


def test_float32_error_is_the_reference_s_own(codec) -> None:
    graph = trace_model(codec.model, codec.transforms)
    masks = ChannelMasks.random(graph, 0.5, 3, 2)
    masked, small = apply_masks(codec.model, masks, graph), compact(codec.model, masks, graph)
    truth = copy.deepcopy(masked).double()
    for path, shape in codec.shapes.items():
        x = _input(shape, torch.float32)
        with torch.no_grad():
            exact = truth.get_submodule(path)(x.double())
            reference = (masked.get_submodule(path)(x.clone()) - exact).abs().max()
            error = (small.get_submodule(path)(x.clone()) - exact).abs().max()
        ulps = 2 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert error <= 2 * reference + ulps


@pytest.mark.parametrize("kind", ["coupled", "free"])
def test_coupled_and_free_joins_alone(evc, kind: str) -> None:
    model = evc.model.double()
    graph = trace_model(model, ["dec", "y_prior_fusion"])
    masks = _random(graph, kind)
    masked, small = apply_masks(model, masks, graph), compact(model, masks, graph)
    for path in graph.transforms:
        x = _input(evc.shapes[path], torch.float64)
        with torch.no_grad():
            expected, got = masked.get_submodule(path)(x), small.get_submodule(path)(x)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    scattered = [m for m in small.modules() if isinstance(m, ScatterConv2d)]
    assert bool(scattered) == (kind == "free")
    if kind == "free":
        assert all(m.out_channels == 2 * len(m.out_index) for m in scattered)


def test_whole_codec_forward_runs_compacted(evc) -> None:
    model = evc.model.double()
    graph = trace_model(model, evc.transforms)
    masks = ChannelMasks.random(graph, 0.5, 5, 16)
    x = _input((1, 3, 64, 128), torch.float64) + 0.5
    with torch.no_grad():
        expected, got = apply_masks(model, masks, graph)(x, 1.0), compact(model, masks, graph)(x, 1.0)
    for seen in (expected, got):
        seen.update({f"latent {name}": latent.likelihoods for name, latent in seen.pop("latents").items()})
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=1e-8)


class Odd(nn.Module):
    """Constructs of codecs that the shipped families lack: unshuffle, halves added, gates, constants behind masks."""

    def __init__(self) -> None:
        super().__init__()
        self.unshuffled = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(16, 12, 1)
        self.carry = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.ffn_in = nn.Conv2d(12, 24, 1)
        self.ffn_out = nn.Conv2d(12, 12, 1, bias=False)
        self.left = nn.Conv2d(12, 6, 1)
        self.right = nn.Conv2d(12, 6, 1)
        self.deconv = nn.ConvTranspose2d(12, 8, 5, 2, 2, 1)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(F.pixel_unshuffle(self.unshuffled(x), 2), 0.1)
        x = self.carry(torch.sigmoid(self.down(x)))
        a, b = self.ffn_in(x).chunk(2, 1)
        x = x + self.ffn_out(a * torch.sigmoid(4 * a) + b)
        x = torch.cat([F.softplus(self.left(x)), self.right(x) * 2], 1)
        return self.out(F.relu(self.deconv(x)))


@pytest.mark.parametrize("seed", range(4))
def test_rare_constructs(seed: int) -> None:
    torch.manual_seed(seed)
    model = Odd().double()
    graph = ChannelGraph.trace(model)
    assert set(graph.prunable) >= {"unshuffled", "down", "ffn_in", "left", "right", "deconv"}
    masks = ChannelMasks.random(graph, 0.5, seed)
    x = _input((2, 3, 10, 14), torch.float64)
    expected, got = apply_masks(model, masks, graph)(x), compact(model, masks, graph)(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    assert compact(model, masks, graph).ffn_in.out_channels == 2 * masks.widths["ffn_in"][0]


class Split(nn.Module):
    """Halves that never meet in one operator: they must still stay equally wide."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Conv2d(3, 16, 1)
        self.first, self.second = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.both(x)).chunk(2, 1)
        return torch.cat([self.first(a), self.second(b)], 1)


class MaskedConv2d(nn.Conv2d):
    """An autoregressive convolution that masks its weight in its forward."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 5, padding=2)
        self.register_buffer("mask", torch.ones_like(self.weight))
        self.mask[:, :, 2, 2:] = 0
        self.mask[:, :, 3:] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


@pytest.mark.parametrize(
    "make",
    [
        Split,
        lambda: nn.Sequential(MaskedConv2d(3, 8), nn.ReLU(), MaskedConv2d(8, 8), nn.ReLU(), MaskedConv2d(8, 2)),
        lambda: nn.Sequential(ExcitedBlock(3, 48), ExcitedBlock(48, 32), nn.Conv2d(32, 2, 1)),  # middles of 3 and 2
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_chunks_masking_convolutions_and_squeezes(make, seed: int) -> None:
    torch.manual_seed(seed)
    model = make().double()
    graph = ChannelGraph.trace(model)
    masks = ChannelMasks.random(graph, 0.4, seed)
    x = _input((2, 3, 7, 9), torch.float64)
    expected, got = apply_masks(model, masks, graph)(x), compact(model, masks, graph)(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_masked_channels_are_zero_where_they_are_read(evc) -> None:
    graph = trace_model(evc.model, ["dec"])
    masks = ChannelMasks.random(graph, 0.5, 6)
    masked = apply_masks(evc.model, masks, graph)
    seen: dict[str, Tensor] = {}
    for name in graph.layers:
        masked.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0]}))
    with torch.no_grad():
        masked.dec(_input(evc.shapes["dec"], torch.float32))
    dropped = 0
    for name, layer in graph.layers.items():
        gone = seen[name][:, ~layer.inputs.keep(masks)]
        dropped += gone.shape[1]
        assert not gone.any(), name
    assert dropped > 100


def test_the_given_model_is_not_edited(codec) -> None:
    before = {name: tensor.clone() for name, tensor in codec.model.state_dict().items()}
    graph = trace_model(codec.model, codec.transforms)
    masks = ChannelMasks.random(graph, 0.5, 0)
    apply_masks(codec.model, masks, graph)
    compact(codec.model, masks, graph)
    after = codec.model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_rebuilt_from_json_and_state_dict(codec) -> None:
    graph = trace_model(codec.model, codec.transforms)
    masks = ChannelMasks.random(graph, 0.5, 8, 2)
    small = compact(codec.model, masks, graph)
    config = json.loads(json.dumps(compact_config(masks, graph)))
    other = copy.deepcopy(codec.model)
    for parameter in other.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 0.2)
    rebuilt = apply_compact_config(other, config)
    rebuilt.load_state_dict(small.state_dict())
    for path, shape in codec.shapes.items():
        x = _input(shape, torch.float32)
        with torch.no_grad():
            assert torch.equal(small.get_submodule(path)(x.clone()), rebuilt.get_submodule(path)(x.clone()))


def test_compact_keeps_training_state_and_memory_format(evc) -> None:
    model = evc.model.to(memory_format=torch.channels_last).train()
    model.dec[2].block[1].conv[0].weight.requires_grad_(False)
    graph = trace_model(model, ["dec"])
    small = compact(model, ChannelMasks.random(graph, 0.5, 0), graph)
    conv = small.dec[1].get_submodule("conv")
    conv = conv.conv if isinstance(conv, ScatterConv2d) else conv
    assert conv.training and conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not small.dec[2].block[1].conv[0].weight.requires_grad


def test_foreign_configurations_are_refused(evc) -> None:
    with pytest.raises(UsageError, match="format 7"):
        apply_compact_config(evc.model, {"format": 7, "transforms": [], "kept": {}})
    graph = trace_model(evc.model, ["dec"])
    config = compact_config(ChannelMasks.random(graph, 0.5, 0), graph)
    with pytest.raises(GraphError, match="has 128 channels|has 192|has 32|has 96"):
        apply_compact_config(EVC("s", "s"), config)
