"""Gates: one value per channel reaches every parameter that makes or carries the channel, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsecodec.sparsity import ChannelGraph, ChannelMasks, apply_masks, magnitude_scores, trace_model
from sparsecodec.sparsity.gating import Gating, replaced


def _gating(codec) -> Gating:
    graph = trace_model(codec.model, codec.transforms)
    return Gating(graph, list(graph.prunable))


def _values(gating: Gating) -> Tensor:
    return torch.rand(gating.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _gated(codec, gating: Gating, values: Tensor):
    for name, key, gate in gating.gates(codec.model, values):
        parameter = codec.model.get_submodule(name)._parameters[key]
        yield name, key, parameter * gate.to(parameter.dtype)


def _seen(model: nn.Module, layer: str, run) -> Tensor:
    """What `layer` is given while `run` runs."""
    inputs = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().clone()))
    with torch.no_grad():
        run()
    hook.remove()
    return inputs[0]


def test_zeros_and_ones_are_the_pruned_model(codec) -> None:
    gating = _gating(codec)
    masks = ChannelMasks.random(gating.graph, 0.5, 3, 2)
    keep = torch.cat([masks[name] for name in gating.names])
    expected = apply_masks(codec.model, masks, gating.graph)
    followers = [layer.name for layer in gating.layers if layer.follower]  # their weights meet zeros
    with replaced(codec.model, _gated(codec, gating, keep)):
        for (name, ours), (_, theirs) in zip(_tensors(codec.model), _tensors(expected), strict=True):
            if name.removesuffix(".weight") not in followers:
                assert torch.equal(ours, theirs), name


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(f"{path}.{key}", value) for path, m in model.named_modules() for key, value in m._parameters.items()]


@pytest.mark.parametrize(
    ("space", "reader"),
    [
        ("enc.1.block.0.conv1.0", "enc.1.block.0.conv2.0"),  # behind the depthwise convolution and its bias
        ("enc.0.conv2", "enc.1.block.0.conv1.0"),  # behind a residual addition, made by branch and skip
        ("dec.1.subpel_conv.0", "dec.1.conv"),  # behind a PixelShuffle
        ("dec.0.block.1.conv.0", "dec.0.block.1.conv.2"),  # hidden width of an FFN
    ],
)
def test_a_value_is_a_factor_on_the_channel_where_it_is_read(evc, space: str, reader: str) -> None:
    model = evc.model.double()
    gating = _gating(evc)
    values = torch.ones(gating.size, dtype=torch.float64)
    factor = gating.sections(values)[space]
    factor.copy_(_values(gating)[: len(factor)])
    path = space.split(".")[0]
    x = torch.rand(evc.shapes[path], dtype=torch.float64)
    plain = _seen(model, reader, lambda: model.get_submodule(path)(x))
    with replaced(model, _gated(evc, gating, values)):
        gated = _seen(model, reader, lambda: model.get_submodule(path)(x))
    torch.testing.assert_close(gated, plain * factor.view(1, -1, 1, 1), rtol=1e-12, atol=1e-12)


def test_parameters_are_back_after_an_exception(evc) -> None:
    gating = _gating(evc)
    parameters = list(evc.model.parameters())
    with pytest.raises(RuntimeError, match="stop"), replaced(evc.model, _gated(evc, gating, _values(gating))):
        assert not isinstance(evc.model.enc[0].conv1._parameters["weight"], nn.Parameter)
        raise RuntimeError("stop")
    assert all(a is b for a, b in zip(evc.model.parameters(), parameters, strict=True))


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_norms_are_those_of_the_filters_that_make_a_channel(evc, p: float) -> None:
    """Of a sum of four layers, one of them a sub-pixel convolution with four filters a channel."""
    gating = _gating(evc)
    squares = torch.zeros(64)
    for name in ("dec.1.conv", "dec.1.upsample.0", "dec.2.block.0.conv2.0", "dec.2.block.1.conv.2"):
        filters = evc.model.get_submodule(name).weight.detach().flatten(1)
        norms = filters.abs().pow(p).sum(1).pow(1 / p)
        squares += norms.view(64, -1).mean(1).square()
    assert len(evc.model.get_submodule("dec.1.upsample.0").weight) == 256
    norms = gating.sections(gating.norms(evc.model, p))["dec.1.conv"]
    torch.testing.assert_close(norms, squares.sqrt(), rtol=1e-5, atol=0)
    assert torch.equal(magnitude_scores(evc.model, gating.graph, p)["dec.1.conv"], norms)


def test_a_graph_without_prunable_channels_has_no_scores() -> None:
    net = nn.Conv2d(3, 4, 1)
    assert magnitude_scores(net, ChannelGraph.trace(net)) == {}


def test_norm_of_a_zero_filter_has_a_finite_gradient() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[0].weight[1] = 0
    gating = Gating(ChannelGraph.trace(net), ["0"])
    norms = gating.norms(net)
    norms.sum().backward()
    assert norms[1] == 0 and net[0].weight.grad.isfinite().all() and net[0].weight.grad[0].any()
