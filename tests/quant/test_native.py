"""The processor's own 8-bit convolutions against the same layer without them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsecodec.quant import Precision, native
from sparsecodec.quant.layers import quantized

needs_kernel = pytest.mark.skipif(native.why_unavailable() is not None, reason=f"{native.why_unavailable()}")

# a full vector of channels, one past it, less than one; strides, dilation, groups, depthwise
LAYERS = {
    "64 -> 16, 3x3": lambda: nn.Conv2d(64, 16, 3, padding=1),
    "65 -> 17, 1x1": lambda: nn.Conv2d(65, 17, 1),
    "3 -> 5, strided": lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2),
    "grouped": lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False),
    "wide enough to leave float32": lambda: nn.Conv2d(2000, 2, 1),
}


def frozen(kind: str, weight_bits: int = 8) -> nn.Module:
    torch.manual_seed(0)
    layer = quantized(LAYERS[kind](), Precision(weight_bits, 8))
    layer.set_input_range(-0.7, 2.9)
    layer.freeze()
    return layer


def plain(layer: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    with monkeypatch.context() as context:
        context.setattr(native, "why_unavailable", lambda: "asked not to")
        return layer(x)


@needs_kernel
@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("kind", LAYERS)
def test_same_bits_with_and_without(kind, weight_bits, monkeypatch):
    layer = frozen(kind, weight_bits)
    for shape in [(1, 1), (5, 7), (33, 16)]:
        x = 3 * torch.randn(2, layer.in_channels, *shape)
        assert torch.equal(layer(x), plain(layer, x, monkeypatch))
    assert (layer._kernel is not None) == (kind != "wide enough to leave float32" or weight_bits == 4)


@needs_kernel
def test_extremes_do_not_saturate(monkeypatch):
    layer = frozen("64 -> 16, 3x3")
    layer.weight[:8], layer.weight[8:] = 127, -127
    x = torch.full((1, 64, 6, 6), 9.0)
    x[:, ::2] = -9.0
    assert torch.equal(layer(x), plain(layer, x, monkeypatch))


@needs_kernel
def test_other_weights_make_another_kernel(monkeypatch):
    """After loading, copying and moving, nothing of the old weights is left."""
    layer, x = frozen("grouped"), torch.randn(1, 6, 8, 8)
    before = layer(x)
    other = copy.deepcopy(layer)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    state["weight"] = state["weight"].flip(0)
    other.load_state_dict(state)
    assert torch.equal(other(x), plain(other, x, monkeypatch)) and not torch.equal(other(x), before)
    assert torch.equal(layer(x), before)
    assert torch.equal(copy.deepcopy(layer).to(torch.bfloat16)(x), before)


@needs_kernel
def test_gradients_take_the_differentiable_way():
    layer, x = frozen("3 -> 5, strided"), torch.randn(1, 3, 6, 6, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.abs().sum() > 0


@needs_kernel
def test_result_can_be_used_in_training_after_inference_mode():
    layer = frozen("64 -> 16, 3x3")
    x = torch.randn(1, 64, 4, 4)
    with torch.inference_mode():
        first = layer(x)
    assert torch.equal(layer(x), first)


def test_saturating_processors_are_found_out(monkeypatch):
    native.why_unavailable.cache_clear()
    real = torch.Tensor.to
    monkeypatch.setattr(native, "accumulate", lambda conv, weight, low: lambda q: real(q[:, :16], torch.float32))
    try:
        assert native.why_unavailable() == "this processor's 8-bit products saturate"
    finally:
        native.why_unavailable.cache_clear()
