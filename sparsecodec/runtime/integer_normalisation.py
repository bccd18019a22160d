"""The arguments of `integer_gdn`, from the integers that a frozen layer stores (docs/portable.md, section 9)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sparsecodec.errors import GraphError
from sparsecodec.ops.integer_gdn import SHIFTS
from sparsecodec.runtime.integer_constants import power_of_two, shifted_unclipped


def gdn_constants(layer: nn.Module, source: int, result: int, bits: int, label: str) -> dict[str, Any]:
    """Arguments of `integer_gdn` beside the tensor.

    Args:
        layer: a frozen `QuantGDN`.
        source, result: exponents of input and result; that of the input is the layer's own or larger.
        bits: of the result, 16 or 32.
        label: for messages.
    """
    beta = shifted_unclipped(layer.beta, 2 * (power_of_two(layer.input_scale) - source))
    _, exponent = torch.frexp(layer.gamma_scale.double())
    power = (1 - exponent.long()) // 2  # a root counts in 2^(source - power)
    shift = power + result - 2 * source if layer.inverse else power - result
    low, high = SHIFTS[layer.inverse]
    if layer.inverse:
        shift = shift.clamp(max=high)  # nothing is left beyond it
    if shift.numel() and not low <= int(shift.min()) <= int(shift.max()) <= high:
        raise GraphError(
            f"{label}: a shift of {int(shift.min())} to {int(shift.max())} from 2^{source} to 2^{result} "
            f"(needs {low} to {high})"
        )
    constants = {"beta": beta, "gamma": layer.gamma.contiguous(), "shift": shift.to(torch.int32)}
    return {**constants, "inverse": layer.inverse, "bits": bits}
