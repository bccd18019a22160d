"""The arguments of integer ops beside the tensors, from the integers that a frozen layer stores (docs/portable.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.ops.integer_conv2d import LIMIT, MAX_INPUT_SHIFT
from sparsecodec.runtime.lowering import Step
from sparsecodec.sparsity.rules import is_deformable
from sparsecodec.sparsity.scatter import ScatterConv2d

MANTISSA_BITS = 15
MAX_SHIFT = 62
MAX_RESIDUAL_SHIFT = 30
ACCUMULATOR_LIMIT = 2**31
INPUT_LIMIT = 2**15
BYTE_LIMIT = 255  # of inputs narrowed to 8 bits
BYTE_HEADROOM = 7  # bits that a tensor has below the step of a layer that narrows it: together they fill 16


def layer_of(step: Step) -> nn.Module:
    """The quantised layer that a step stands for."""
    return step.function.conv if isinstance(step.function, ScatterConv2d) else step.function


def power_of_two(scale: Tensor) -> int:
    """X of ``2^X``."""
    mantissa, exponent = torch.frexp(scale.double())
    if float(mantissa) != 0.5:
        raise UsageError(f"input_scale={float(scale)} (needs a power of two)")
    return int(exponent) - 1


def wanted_exponent(layer: nn.Module) -> int:
    """The exponent that a layer wants its input to have."""
    return power_of_two(layer.input_scale) - (BYTE_HEADROOM if layer.activation_bits == 8 else 0)


def conv_constants(step: Step, source: int, result: int, bits: int, residual: int | None) -> dict[str, Any]:
    """Arguments of `integer_conv2d` beside the tensors.

    Args:
        step: of a frozen dyadic layer, with what follows it: slope, shuffle, scattered channels; or of those of its
            ``channels`` that are in a range.
        source, result, residual: exponents of input, result and of what is added; None: nothing is.
        bits: of the result, 16 or 32.
    """
    layer, label = layer_of(step), ", ".join(step.paths)
    weight, bias, padding, shuffle = _plain_convolution(step, layer)
    start, stop = step.constants.get("channels", (0, None))
    weight, bias, scale = weight[start:stop], bias[start:stop], layer.weight_scale[start:stop]
    own, limit, narrowing = power_of_two(layer.input_scale), INPUT_LIMIT, {}
    if layer.activation_bits == 8:
        narrowing = {"input_shift": own - source, "input_low": int(layer.input_low)}
        if abs(own - source) > MAX_INPUT_SHIFT:
            raise GraphError(f"{label} reads a tensor of 2^{source} in steps of 2^{own} (needs 2^-15 to 2^15 of it)")
        source, limit = own, BYTE_LIMIT
    bias = shifted_unclipped(bias, own - source)
    bound = bias.abs() + limit * weight.long().abs().flatten(1).sum(1)
    if int(bound.max()) >= ACCUMULATOR_LIMIT:
        raise GraphError(f"{label}: an accumulator can reach {int(bound.max())} (needs less than {ACCUMULATOR_LIMIT})")
    multiplier, shift = factors(scale, source - result, step.constants.get("slope", 1.0), label)
    repeats = len(weight) // len(shift)
    multiplier, shift = multiplier.repeat_interleave(repeats, 1), shift.repeat_interleave(repeats)
    if "out_index" in step.constants:
        place, width = step.constants["out_index"], step.function.out_channels
        weight, bias, shift = (_scattered(values, place, width) for values in (weight, bias, shift))
        multiplier = _scattered(multiplier.T, place, width).T
        shift = shift.clamp(min=1)
    return {
        "weight": weight.contiguous(),
        "bias": bias.to(torch.int32),
        "multiplier": multiplier.to(torch.int32).contiguous(),
        "shift": shift.to(torch.int32),
        "residual_shift": 0 if residual is None else residual_shift(residual, result, label),
        "padding": padding,
        "stride": 1 if step.op == "conv_transpose2d_act" else step.constants.get("stride", 1),
        "groups": getattr(layer, "groups", 1),
        "bits": bits,
        "shuffle": shuffle * step.constants.get("shuffle", 1),
        **narrowing,
    }


def scale_constants(values: Tensor, gain: int, slope: float, label: str) -> dict[str, Tensor]:
    """``multiplier`` and ``shift`` of `integer_scale`, of the product of each channel with ``values 2^gain``.

    Args:
        values: ``[C]`` float32, each an integer of magnitude below 2^15 times a power of two.
        gain: exponent of the input minus that of the result.
        slope: what negative inputs are multiplied with, too.
        label: for messages.
    """
    multiplier, shift = factors(values.abs(), gain, slope, label)
    multiplier = torch.where(values < 0, -multiplier, multiplier)
    return {"multiplier": multiplier.to(torch.int32).contiguous(), "shift": shift.to(torch.int32)}


def residual_shift(source: int, result: int, label: str) -> int:
    """By which a tensor that is added has to be shifted to the left."""
    if abs(source - result) > MAX_RESIDUAL_SHIFT:
        raise GraphError(f"{label} adds a tensor whose unit is 2^{source - result} of its own (needs 2^-30 to 2^30)")
    return source - result


def _scattered(values: Tensor, place: Tensor, width: int) -> Tensor:
    """``[kept, ...] -> [width, ...]`` with zeros between."""
    return values.new_zeros(width, *values.shape[1:]).index_copy_(0, place.to(values.device), values)


def shifted_unclipped(values: Tensor, left: int) -> Tensor:
    """``values * 2^left`` for left <= 0, int64 below 2^61, to the nearest, halves upwards."""
    left = max(left, -MAX_SHIFT)  # nothing is left beyond it
    return values.long() if left == 0 else (values.long() + (1 << (-left - 1))) >> -left


def _plain_convolution(step: Step, layer: nn.Module) -> tuple[Tensor, Tensor, int, int]:
    """(weight ``[C_out, C_in / groups, Kh, Kw]``, bias ``[C_out]`` int64, padding, shuffle)."""
    weight = layer.weight
    channels = layer.out_channels
    bias = torch.zeros(channels, dtype=torch.int64, device=weight.device) if layer.bias is None else layer.bias.long()
    if step.op == "pointwise":  # also what reads an unshuffled tensor, whose channels are the taps
        if is_deformable(layer):  # samples of all channels of a tap lie beside each other
            weight = weight.permute(0, 2, 3, 1)
        return weight.flatten(1)[:, :, None, None], bias, 0, 1
    if step.op != "conv_transpose2d_act":
        return weight, bias, layer.padding[0], 1
    stride, padding, kernel = layer.stride[0], layer.padding[0], layer.kernel_size[0]
    if kernel - 2 * padding + layer.output_padding[0] != stride:
        raise GraphError(f"{', '.join(step.paths)}: a transposed convolution that does not grow by its stride exactly")
    subpixel, reach = as_convolution(weight, stride, padding)
    return subpixel, bias.repeat_interleave(stride * stride), reach, stride


def as_convolution(weight: Tensor, stride: int, padding: int) -> tuple[Tensor, int]:
    """A transposed convolution as a convolution of stride 1 before a pixel shuffle by `stride`.

    Output position ``s q + a`` reads input ``q + d`` through tap ``a + padding - s d``.

    Args:
        weight: ``[C_in, C_out, K, K]``.
        stride: s.
        padding: of the transposed convolution, whose output is s times as large as its input.

    Returns:
        ``[C_out s^2, C_in, 2D + 1, 2D + 1]``, zeros where there is no tap, and its padding D.
    """
    kernel = weight.shape[2]
    taps = [  # (phase, displacement, tap)
        (phase, (phase + padding - tap) // stride, tap)
        for phase in range(stride)
        for tap in range(kernel)
        if (phase + padding - tap) % stride == 0
    ]
    reach = max(abs(displacement) for _, displacement, _ in taps)
    width = 2 * reach + 1
    result = weight.new_zeros(weight.shape[1], stride, stride, weight.shape[0], width, width)
    for a, dy, ky in taps:
        for b, dx, kx in taps:
            result[:, a, b, :, dy + reach, dx + reach] = weight[:, :, ky, kx].T
    return result.flatten(0, 2), reach


def factors(weight_scale: Tensor, gain: int, slope: float, label: str) -> tuple[Tensor, Tensor]:
    """``[2, C]`` and ``[C]`` int64 on the device of the scale: `multiplier` and `shift` of ``scale 2^gain``."""
    mantissa, exponent = torch.frexp(weight_scale.double())
    m = (mantissa * 2**MANTISSA_BITS).long()
    if not torch.equal(m.double(), mantissa * 2**MANTISSA_BITS):
        raise UsageError(f"{label}: a weight_scale is no integer below 2^{MANTISSA_BITS} times a power of two")
    e = exponent.long() - MANTISSA_BITS + gain
    shift = (MANTISSA_BITS - e).clamp(max=MAX_SHIFT)
    if int(shift.min()) < 1:
        worst = int(shift.argmin())
        factor = f"{int(m[worst])} 2^{int(e[worst])}"
        raise GraphError(f"{label}: a factor of {factor} (needs less than 2^{2 * MANTISSA_BITS - 1})")
    positive = _shifted_each(m, shift + e)
    top, bottom = slope.as_integer_ratio()  # exact: Python's integers have no limit
    negative = [(2 * top * value + bottom) // (2 * bottom) for value in positive.tolist()]
    return torch.stack([positive, torch.tensor(negative, device=positive.device)]), shift


def _shifted_each(values: Tensor, left: Tensor) -> Tensor:
    """`shifted` by another number of bits for each value, 0 where more than 30 bits are lost; all int64."""
    right = (-left).clamp(1, MAX_RESIDUAL_SHIFT)
    down = ((values + (1 << (right - 1))) >> right) * (left >= -MAX_RESIDUAL_SHIFT)
    return torch.where(left >= 0, values << left.clamp(min=0), down).clamp(-LIMIT, LIMIT - 1)
