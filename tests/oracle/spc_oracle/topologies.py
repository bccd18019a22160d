"""The layers of the networks that docs/portable.md names, as `Layer` counts them."""

from __future__ import annotations

from fractions import Fraction

from spc_oracle.integer import Layer, Tensors

_TENTH, _HUNDREDTH = Fraction(0.1), Fraction(0.01)  # as binary64 numbers


def _depth_conv_and_ffn(layers: list[Layer], name: str, tensors: Tensors) -> None:
    """Behind what `layers` end with: 1x1, depthwise 3x3 and 1x1 beside a skip, then two 1x1 beside another."""
    x = len(layers)
    first = f"{name}.block.0"
    skip = x
    layers.append(Layer(f"{first}.conv1.0", x, _HUNDREDTH))
    layers.append(Layer(f"{first}.depth_conv", len(layers)))
    middle = len(layers)
    if f"{first}.adaptor.weight" in tensors:
        layers.append(Layer(f"{first}.adaptor", x))
        skip = len(layers)
    layers.append(Layer(f"{first}.conv2", middle, added=skip))
    x = len(layers)
    layers.append(Layer(f"{name}.block.1.conv.0", x, _TENTH))
    layers.append(Layer(f"{name}.block.1.conv.2", len(layers), _TENTH, added=x))


def evc_first(tensors: Tensors) -> list[Layer]:
    layers: list[Layer] = []
    for i in range(2):
        _depth_conv_and_ffn(layers, f"hyper_dec.{i}", tensors)
        layers.append(Layer(f"hyper_dec.{i}.block.2", len(layers), shuffle=2))
    for name in ("hyper_dec.2", "y_prior_fusion.0", "y_prior_fusion.1"):
        _depth_conv_and_ffn(layers, name, tensors)
    return layers


def evc_second(tensors: Tensors) -> list[Layer]:
    layers: list[Layer] = []
    for i in range(3):
        _depth_conv_and_ffn(layers, f"y_spatial_prior.{i}", tensors)
    return layers


def compressai(slope: Fraction, last_slope: Fraction) -> list[Layer]:
    """h_s of CompressAI's hyperpriors: two transposed convolutions of stride 2 and a convolution."""
    return [
        Layer("h_s.0", 0, slope, shuffle=2, stride=2),
        Layer("h_s.2", 1, slope, shuffle=2, stride=2),
        Layer("h_s.4", 2, last_slope),
    ]


def scale_hyperprior() -> list[Layer]:
    return compressai(Fraction(0), Fraction(0))


def mean_scale_hyperprior() -> list[Layer]:
    return compressai(_HUNDREDTH, Fraction(1))
