"""From frozen dyadic layers to a program of `integer_conv2d` and `integer_gate` steps, none of which overflows.

docs/portable.md, sections 2 and 6, say what a network computes; everything is decided from the stored integers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.nn.integer_functions import gate_table
from sparsecodec.ops.integer_conv2d import LIMIT, MAX_INPUT_SHIFT
from sparsecodec.runtime.fusion import fuse_neighbours
from sparsecodec.runtime.gates import apply, gate
from sparsecodec.runtime.integer_steps import GATE, SUM, is_unshuffle, split_additions, split_downsampling, split_gates
from sparsecodec.runtime.lowering import CONVOLUTIONS, PLAIN, Program, Step, lower, lower_conv
from sparsecodec.sparsity.rules import is_quantized
from sparsecodec.sparsity.scatter import ScatterConv2d

RESULT_EXPONENT = -16  # of a network's result, and of what only additions read
MANTISSA_BITS = 15
MAX_SHIFT = 62
MAX_RESIDUAL_SHIFT = 30
ACCUMULATOR_LIMIT = 2**31
INPUT_LIMIT = 2**15
BYTE_LIMIT = 255  # of inputs narrowed to 8 bits
BYTE_HEADROOM = 7  # bits that a tensor has below the step of a layer that narrows it: together they fill 16


def integer_program(
    networks: Mapping[str, nn.Module], source: int | None = None, result: int | None = None
) -> tuple[Program, int]:
    """Lowers networks that follow each other, taken as one.

    Args:
        networks: path in the model -> module of frozen dyadic layers, in order of execution.
        source: exponent of the input, at least that which the layers ask for; None = that one.
        result: exponent of an int16 result; None: the result is int32 in units of ``2^RESULT_EXPONENT``.

    Returns:
        The program, each step but the input one call of `integer_conv2d` or `integer_gate`, or a pixel unshuffle, and
        the exponent of its int16 input.

    Raises:
        UsageError: a layer is float, or on other integers.
        GraphError: a structure that integers have no rule for, or an accumulator that could overflow; the message
            names the layer.
    """
    name = "+".join(networks)
    named = OrderedDict((path.replace(".", "/"), module) for path, module in networks.items())  # torch wants no dots
    program = lower(nn.Sequential(named), "")
    for step in program.steps:
        step.paths = tuple(path.replace("/", ".") for path in step.paths)
    for step in list(program.steps):
        if step.op == PLAIN and isinstance(step.function, nn.Module) and is_quantized(_convolution(step)):
            program.merge([step], _as_convolution(step))
    apply(program, gate)
    fuse_neighbours(program)
    for rule in (split_downsampling, split_gates, split_additions):
        rule(program)
    for step in program.steps[1:]:
        _check(step, name)
    exponents = _exponents(program, source, result, name)
    wide = {step for step in program.steps if not _readers(program, step)}
    if result is not None:
        wide.discard(program.output)
    device = next(tensor for module in networks.values() for tensor in module.buffers()).device
    for step in program.steps[1:]:
        if step.op == GATE:
            step.constants["table"] = gate_table(exponents[step]).to(device)
        elif step.op == SUM:
            step.op, step.constants = "integer_conv2d", _sum_constants(step, exponents, device)
        elif not is_unshuffle(step):
            constants = _constants(step, exponents, 32 if step in wide else 16)
            step.op, step.constants, step.function = "integer_conv2d", constants, None
    return program, exponents[program.steps[0]]


def _convolution(step: Step) -> nn.Module:
    return step.function.conv if isinstance(step.function, ScatterConv2d) else step.function


def _as_convolution(step: Step) -> Step:
    """The step of a quantised layer as that of a float one, which the patterns know; `function` keeps the layer."""
    (x,), layer = step.args, step.function
    conv = lower_conv(_convolution(step), x, step.paths[0])
    conv.function = layer
    if isinstance(layer, ScatterConv2d):
        conv.constants["out_index"] = layer.out_index
    return conv


def _check(step: Step, name: str) -> None:
    label = ", ".join(step.paths) or step.op
    if step.op in (GATE, SUM) or is_unshuffle(step):
        return
    if step.op not in (*CONVOLUTIONS, "depthwise"):
        raise GraphError(f"{name}: {label} has no rule for integers {step.reason}".rstrip())
    layer = None if step.function is None else _convolution(step)
    if layer is None or not is_quantized(layer):
        raise UsageError(f"{label} is a float layer (a portable stream needs integers: see quant.portable)")
    if not (layer.frozen and layer.precision.dyadic):
        raise UsageError(f"{label} is quantised, but not to frozen dyadic integers")
    if step.constants.get("stride", 1) != 1 and step.op != "conv_transpose2d_act":
        raise GraphError(f"{label}: stride {step.constants['stride']} has no rule for integers")
    if not 0 <= step.constants.get("slope", 1.0) <= 1:
        raise GraphError(f"{label}: an activation of slope {step.constants['slope']} (needs 0 to 1)")


def _power_of_two(scale: Tensor) -> int:
    """X of ``2^X``."""
    mantissa, exponent = torch.frexp(scale.double())
    if float(mantissa) != 0.5:
        raise UsageError(f"input_scale={float(scale)} (needs a power of two)")
    return int(exponent) - 1


def _wanted(layer: nn.Module) -> int:
    """The exponent that a layer wants its input to have."""
    return _power_of_two(layer.input_scale) - (BYTE_HEADROOM if layer.activation_bits == 8 else 0)


def _readers(program: Program, step: Step) -> list[Step]:
    """Who reads a step's result as int16: all but the additions."""
    return [user for user in program.users(step) if user.op != SUM and step in (user.inputs.get("x"), *user.args)]


def _exponents(program: Program, source: int | None, result: int | None, name: str) -> dict[Step, int]:
    """Of each result: the coarsest that a convolution reads it with; a gate reads what it gives; else the network's."""
    exponents: dict[Step, int] = {}
    for step in reversed(program.steps):
        readers = _readers(program, step)
        if step is program.output:
            if readers:
                raise GraphError(f"{name}: {', '.join(step.paths)} is both a result and read by {readers[0].paths[0]}")
            if result is None and step.op == GATE:
                raise GraphError(f"{name}: a result of 32 bits cannot be a gate's")
            exponents[step] = RESULT_EXPONENT if result is None else result
            continue
        wanted = [
            exponents[user] if user.op == GATE or is_unshuffle(user) else _wanted(_convolution(user))
            for user in readers
        ]
        if step.op == GATE and not wanted:
            raise GraphError(f"{name}: what a gate gives is only added, {', '.join(step.paths)}")
        exponents[step] = max(wanted, default=RESULT_EXPONENT)
    first = program.steps[0]
    if source is not None:
        if source < exponents[first]:
            raise GraphError(f"{name}: an input of exponent {source} (needs {exponents[first]} or more)")
        exponents[first] = source
    return exponents


def _sum_constants(step: Step, exponents: Mapping[Step, int], device: torch.device) -> dict[str, Any]:
    """Arguments of the depthwise 1x1 of ones that adds two tensors."""
    width, (x, residual), label = step.constants["width"], step.inputs.values(), ", ".join(step.paths)
    ones = torch.ones(width, dtype=torch.float32, device=device)
    return scale_constants(ones, exponents[x], exponents[step], 32, label) | {
        "residual_shift": _residual_shift(exponents[residual], exponents[step], label)
    }


def scale_constants(factors: Tensor, source: int, result: int, bits: int, label: str) -> dict[str, Any]:
    """Arguments of `integer_conv2d`, beside the tensors, of the product of each channel with a factor.

    Args:
        factors: ``[C]`` float32, each an integer of magnitude below 2^15 times a power of two.
        source, result: exponents.
        bits: of the result, 16 or 32.
        label: for messages.
    """
    multiplier, shift = _factors(factors.abs(), source - result, 1.0, label)
    return {
        "weight": torch.where(factors < 0, -1, 1).to(torch.int8).view(-1, 1, 1, 1),
        "bias": torch.zeros(len(factors), dtype=torch.int32, device=factors.device),
        "multiplier": multiplier.to(torch.int32).contiguous(),
        "shift": shift.to(torch.int32),
        "groups": len(factors),
        "bits": bits,
    }


def _residual_shift(source: int, result: int, label: str) -> int:
    if abs(source - result) > MAX_RESIDUAL_SHIFT:
        raise GraphError(f"{label} adds a tensor whose unit is 2^{source - result} of its own (needs 2^-30 to 2^30)")
    return source - result


def _constants(step: Step, exponents: Mapping[Step, int], bits: int) -> dict[str, Any]:
    """The arguments of `integer_conv2d` beside the tensors."""
    layer, label = _convolution(step), ", ".join(step.paths)
    source, result = exponents[step.inputs["x"]], exponents[step]
    weight, bias, padding, shuffle = _plain_convolution(step, layer)
    own, limit, narrowing = _power_of_two(layer.input_scale), INPUT_LIMIT, {}
    if layer.activation_bits == 8:
        narrowing = {"input_shift": own - source, "input_low": int(layer.input_low)}
        if abs(own - source) > MAX_INPUT_SHIFT:
            raise GraphError(f"{label} reads a tensor of 2^{source} in steps of 2^{own} (needs 2^-15 to 2^15 of it)")
        source, limit = own, BYTE_LIMIT
    bias = shifted_unclipped(bias, own - source)
    bound = bias.abs() + limit * weight.long().abs().flatten(1).sum(1)
    if int(bound.max()) >= ACCUMULATOR_LIMIT:
        raise GraphError(f"{label}: an accumulator can reach {int(bound.max())} (needs less than {ACCUMULATOR_LIMIT})")
    multiplier, shift = _factors(layer.weight_scale, source - result, step.constants.get("slope", 1.0), label)
    repeats = len(weight) // len(shift)
    multiplier, shift = multiplier.repeat_interleave(repeats, 1), shift.repeat_interleave(repeats)
    if "out_index" in step.constants:
        place, width = step.constants["out_index"], step.function.out_channels
        weight, bias, shift = (_scattered(values, place, width) for values in (weight, bias, shift))
        multiplier = _scattered(multiplier.T, place, width).T
        shift = shift.clamp(min=1)
    residual = step.inputs.get("residual")
    residual_shift = 0 if residual is None else _residual_shift(exponents[residual], result, label)
    return {
        "weight": weight.contiguous(),
        "bias": bias.to(torch.int32),
        "multiplier": multiplier.to(torch.int32).contiguous(),
        "shift": shift.to(torch.int32),
        "residual_shift": residual_shift,
        "padding": padding,
        "groups": layer.groups,
        "bits": bits,
        "shuffle": shuffle * step.constants.get("shuffle", 1),
        **narrowing,
    }


def _scattered(values: Tensor, place: Tensor, width: int) -> Tensor:
    """``[kept, ...] -> [width, ...]`` with zeros between."""
    return values.new_zeros(width, *values.shape[1:]).index_copy_(0, place.to(values.device), values)


def shifted_unclipped(values: Tensor, left: int) -> Tensor:
    """``values * 2^left`` for left <= 0, int64, to the nearest, halves upwards."""
    return values.long() if left == 0 else (values.long() + (1 << (-left - 1))) >> -left


def _plain_convolution(step: Step, layer: nn.Module) -> tuple[Tensor, Tensor, int, int]:
    """(weight ``[C_out, C_in / groups, Kh, Kw]``, bias ``[C_out]`` int64, padding, shuffle) of stride 1."""
    weight = layer.weight
    channels = layer.out_channels
    bias = torch.zeros(channels, dtype=torch.int64, device=weight.device) if layer.bias is None else layer.bias.long()
    if step.op == "pointwise":  # also what reads an unshuffled tensor, whose channels are the taps
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


def _factors(weight_scale: Tensor, gain: int, slope: float, label: str) -> tuple[Tensor, Tensor]:
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
