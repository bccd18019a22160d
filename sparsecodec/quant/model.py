"""Quantised codecs: which layers, at how many bits, and the JSON that rebuilds them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.quant.fixed_point import ACCUMULATOR_BITS
from sparsecodec.quant.gdn import QuantGDN
from sparsecodec.quant.layers import QuantLayer, quantized, why_float
from sparsecodec.quant.precision import Precision
from sparsecodec.quant.tables import empty_tables
from sparsecodec.quant.video_families import family_of
from sparsecodec.sparsity.rules import is_conv, is_gdn

CONFIG_FORMAT = 1


def find_layers(
    model: nn.Module, transforms: Sequence[str], required: bool = True, dyadic: bool = False
) -> tuple[list[str], dict[str, str]]:
    """The layers of some transforms that can be quantised, and why the others cannot.

    Args:
        model: a codec, dense or compact.
        transforms: dotted paths, such as ``["enc", "dec"]``.
        required: finding nothing is an error.
        dyadic: those, too, that have dyadic integers only.

    Returns:
        Paths of the convolutions in order of definition (inside a `ScatterConv2d` the path ends in ``.conv``), and
        path -> reason of each layer with weights that stays float.

    Raises:
        GraphError: a path does not exist, or there is nothing to quantise.
    """
    found: list[str] = []
    left: dict[str, str] = {}
    for path in transforms:
        for name, layer in _layers(_submodule(model, path), path):
            reason = why_float(layer, dyadic)
            if reason is None:
                found.append(name)
            else:
                left[name] = reason
    if required and not found:
        raise GraphError(f"{', '.join(transforms) or 'no transforms'}: nothing to quantise; {left or 'no layers'}")
    return found, left


def quantize_layers(model: nn.Module, precisions: Mapping[str, Precision]) -> nn.Module:
    """A copy of `model` whose named layers compute on integers and can be calibrated and trained.

    Their scales clip nothing of the weights; those of their inputs are to be set (`calibration`).

    Args:
        model: not modified.
        precisions: path of a convolution -> its bits.

    Raises:
        GraphError: a path does not exist.
        UsageError: a layer has no integer rule.
    """
    model = copy.deepcopy(model)
    for name, precision in precisions.items():
        layer = _submodule(model, name)
        try:
            replacement = quantized(layer, precision)
        except UsageError as error:
            raise UsageError(f"{name} {error}") from error
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, replacement)
    return model


def quantized_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """The quantised layers of a model by path, in order of definition."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantLayer)}


def freeze(model: nn.Module) -> nn.Module:
    """A copy of a quantised model that holds integers only: smaller, for inference, with the same output.

    Its attribute ``quantization`` is the `quantization_config`, so `zoo.save` can write it.

    Raises:
        UsageError: nothing is quantised, or a weight is not finite.
    """
    return _frozen(copy.deepcopy(model))


def _frozen(model: nn.Module) -> nn.Module:
    """`freeze` of the model itself."""
    model.quantization = quantization_config(model)
    for name, layer in quantized_layers(model).items():
        try:
            layer.freeze()
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
    return model


def quantization_config(model: nn.Module) -> dict[str, Any]:
    """What `apply_quantization` needs beside the float architecture: ``{"format": 1, "layers": {path: bits}}``.

    Of a portable codec also ``"portable": True``: it stores its tables (`empty_tables`); of a portable video codec
    ``["intra", "inter"]``, whose models store theirs.

    Raises:
        UsageError: no layer is quantised, and it stores no tables either; or one model of a video codec is portable,
            and the other is not.
    """
    layers = {name: layer.precision.to_json() for name, layer in quantized_layers(model).items()}
    tables = {"portable": True} if hasattr(model, "portable") else {}
    parts = [name for name, part in model.named_children() if hasattr(part, "portable")]
    if parts:
        tables = {"portable": parts}
        family = family_of(model)
        if family is not None and set(parts) != set(family.tables):
            raise UsageError(f"{parts[0]} is portable, the codec is not: quant.portable makes it so")
    if not layers and not tables:
        raise UsageError(f"{type(model).__name__} has no quantised layer")
    return {"format": CONFIG_FORMAT, "layers": layers, **tables}


def apply_quantization(model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """The frozen quantised architecture of a `quantization_config`; a state dict of `freeze`'s result loads into it.

    Args:
        model: the float architecture, dense or compact, with any finite weights; not modified.
        config: from `quantization_config`.

    Raises:
        UsageError: the configuration is malformed, of another format, or names a layer without an integer rule.
        GraphError: it belongs to another architecture.
    """
    layers = config.get("layers")
    something = isinstance(layers, Mapping) and (layers or config.get("portable"))
    if config.get("format") != CONFIG_FORMAT or not something:
        raise UsageError(f"quantisation of format {config.get('format')!r} (needs {CONFIG_FORMAT}, and its layers)")
    if not all(isinstance(values, Mapping) for values in layers.values()):
        raise UsageError("quantisation: a layer's entry is no table of bits")
    model = quantize_layers(model, {name: Precision.from_json(values) for name, values in layers.items()})
    parts = config.get("portable")
    if parts is True:
        model.portable = empty_tables(model)
    elif parts:
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise UsageError(f"quantisation: portable={parts!r} (needs true or the names of models)")
        family = family_of(model)
        if family is None:
            raise UsageError(f"quantisation: portable={parts!r} of a {type(model).__name__}, which has no such form")
        if set(parts) != set(family.tables):
            raise UsageError(f"quantisation: portable={parts!r} (needs {list(family.tables)})")
        for part in parts:
            _submodule(model, part).portable = family.tables[part]()
    return _frozen(model)


def prove_no_overflow(model: nn.Module, bits: int = ACCUMULATOR_BITS) -> dict[str, int]:
    """Proves that no accumulator of `bits` bits overflows in any quantised layer, for any input and order of summation.

    Norms (`QuantGDN`) have 64 bits and a limit of their own, which no such layer exceeds.

    Returns:
        Path -> the largest magnitude that any partial sum can reach.

    Raises:
        GraphError: a layer could overflow; the message names it and its bound.
    """
    layers = {name: layer for name, layer in quantized_layers(model).items() if not isinstance(layer, QuantGDN)}
    bounds = {name: int(layer.accumulator_bound().max()) for name, layer in layers.items()}
    for name, bound in bounds.items():
        if bound >= 2 ** (bits - 1):
            raise GraphError(f"{name}: an accumulator can reach {bound} ({bits} bits hold {2 ** (bits - 1) - 1})")
    return bounds


@torch.no_grad()
def stored_bytes(model: nn.Module) -> int:
    """Bytes of the state dict as `zoo.save` writes it."""
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def trained_numbers(model: nn.Module) -> int:
    """How many numbers training gave: parameters, and weights and biases that are buffers because they are frozen."""
    integers = [layer for layer in quantized_layers(model).values() if not list(layer.parameters())]
    frozen = [tensor for layer in integers for tensor in layer.integers() if tensor is not None]
    return sum(tensor.numel() for tensor in (*model.parameters(), *frozen))


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        children = ", ".join(name for name, _ in model.named_children())
        raise GraphError(f"{type(model).__name__} has no module {path!r}; it has {children}") from error


def _layers(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold weights of their own, outermost first; what is inside a convolution or a GDN belongs to it."""
    if is_conv(module) or is_gdn(module):
        yield path, module
        return
    if next(module.parameters(recurse=False), None) is not None:
        yield path, module
    for name, child in module.named_children():
        yield from _layers(child, f"{path}.{name}" if path else name)
