"""Convolution of integers, scaled back to integers: what computes the entropy networks of portable streams."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._epilogue import channels_innermost
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects

LIMIT = 1 << 30  # the two terms of a sum stay below it, so that the sum is an int32
MAX_INPUT_SHIFT = 15
DTYPES = {16: torch.int16, 32: torch.int32}  # of the result, by its bits


def shifted(x: Tensor, left: int) -> Tensor:
    """``x * 2^left`` rounded to the nearest integer, halves upwards, clipped to ``[-2^30, 2^30)``.

    Args:
        x: any shape, int64, magnitude below 2^31.
        left: -30 to 30.
    """
    x = x << left if left >= 0 else (x + (1 << (-left - 1))) >> -left
    return x.clamp(-LIMIT, LIMIT - 1)


def integer_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    residual_shift: int = 0,
    padding: int = 0,
    stride: int = 1,
    groups: int = 1,
    bits: int = 16,
    shuffle: int = 1,
    input_shift: int = 0,
    input_low: int | None = None,
) -> Tensor:
    """`integer_conv2d` in plain torch."""
    if bits not in DTYPES:
        raise UsageError(f"bits={bits} (one of {', '.join(map(str, DTYPES))})")
    if reasons := _stride_rejects(stride) + _narrowing_rejects(input_shift, input_low):
        raise UsageError("; ".join(reasons))
    if isinstance(x, FakeTensor):  # a plan asks for the shape alone, of every layer
        sides = zip(x.shape[2:], weight.shape[2:], strict=True)
        rows, columns = ((side + 2 * padding - k) // stride + 1 for side, k in sides)
        shape = (len(x), len(weight) // shuffle**2, rows * shuffle, columns * shuffle)
        return torch.empty(shape, dtype=DTYPES[bits], device=x.device, memory_format=torch.channels_last)
    if input_low is not None:
        x = shifted(x.long(), -input_shift).clamp(input_low, input_low + 255)
    # float64 holds every partial sum exactly
    acc = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding, 1, groups).round().long()
    shift = shift.long().view(-1, 1, 1)
    factor = torch.where(acc < 0, multiplier[1].long().view(-1, 1, 1), multiplier[0].long().view(-1, 1, 1))
    y = ((acc * factor + (1 << (shift - 1))) >> shift).clamp(-LIMIT, LIMIT - 1)
    if shuffle != 1:
        y = F.pixel_shuffle(y, shuffle)
    if residual is not None:
        y = y + shifted(residual.long(), residual_shift)
    top = (1 << (bits - 1)) - 1
    return y.clamp(-top - 1, top).to(DTYPES[bits])


def _rejects(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    groups: int,
    **_: Any,
) -> list[str]:
    """What all kernels ask for."""
    reasons = []
    wanted = {
        "x": (x, (torch.int16,)),
        "weight": (weight, (torch.int8, torch.int16)),
        "bias": (bias, (torch.int32,)),
        "multiplier": (multiplier, (torch.int32,)),
        "shift": (shift, (torch.int32,)),
        "residual": (residual, (torch.int16, torch.int32)),
    }
    for name, (value, dtypes) in wanted.items():
        if value is None:
            continue
        if value.dtype not in dtypes:
            needed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            reasons.append(f"{name}.dtype={str(value.dtype).removeprefix('torch.')} (needs {needed})")
        if name in ("x", "residual") and value.dim() != 4:
            reasons.append(f"{name}.shape={list(value.shape)} (needs [N, C, H, W])")
        elif name in ("x", "residual") and not channels_innermost(value):
            reasons.append(f"{name}.stride={value.stride()} (needs channels innermost, torch.channels_last)")
    if groups != 1 and (weight.shape[1] != 1 or weight.shape[0] != groups):
        reasons.append(f"groups={groups} of weight.shape={list(weight.shape)} (needs 1, or depthwise: C_in = C_out)")
    return reasons


def _cpu_rejects(**arguments: Any) -> list[str]:
    devices = {name: value.device.type for name, value in arguments.items() if isinstance(value, Tensor)}
    wrong = [f"{name}.device={device} (needs cpu)" for name, device in devices.items() if device != "cpu"]
    return _rejects(**arguments) + wrong


def _stride_rejects(stride: int) -> list[str]:
    return [f"stride={stride} (needs stride >= 1)"] if stride < 1 else []


def _narrowing_rejects(input_shift: int, input_low: int | None) -> list[str]:
    reasons = []
    if input_low is None and input_shift:
        reasons.append(f"input_shift={input_shift} (needs 0 where input_low is None)")
    if input_low is not None and not -255 <= input_low <= 0:
        reasons.append(f"input_low={input_low} (needs -255 to 0)")
    if abs(input_shift) > MAX_INPUT_SHIFT:
        reasons.append(f"input_shift={input_shift} (needs -{MAX_INPUT_SHIFT} to {MAX_INPUT_SHIFT})")
    return reasons


def _triton_rejects(**arguments: Any) -> list[str]:
    reasons = _rejects(**arguments)
    for name in ("x", "residual"):
        value = arguments[name]
        if value is not None:
            reasons += triton_rejects((value.dtype,), **{name: value})
    reasons += _stride_rejects(arguments["stride"])
    reasons += _narrowing_rejects(arguments["input_shift"], arguments["input_low"])
    if arguments["bits"] not in DTYPES:
        reasons.append(f"bits={arguments['bits']} (needs one of {', '.join(map(str, DTYPES))})")
    return reasons


INTEGER_CONV2D = register(
    OpSpec(
        name="integer_conv2d",
        schema=(
            "(Tensor x, Tensor weight, Tensor bias, Tensor multiplier, Tensor shift, Tensor? residual=None, "
            "int residual_shift=0, int padding=0, int stride=1, int groups=1, int bits=16, int shuffle=1, "
            "int input_shift=0, int? input_low=None) -> Tensor"
        ),
        reference=integer_conv2d_reference,
        impls=(
            Impl(
                "cpu",
                "sparsecodec._C:integer_conv2d",
                rejects=_cpu_rejects,
                plan="sparsecodec._C:integer_conv2d_plan",
            ),
            Impl(
                "triton",
                "sparsecodec._triton.integer_conv2d:integer_conv2d",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.integer_conv2d:integer_conv2d_plan",
            ),
        ),
        constants=(
            "weight", "bias", "multiplier", "shift", "residual_shift", "padding", "stride", "groups", "bits",
            "shuffle", "input_shift", "input_low",
        ),
        exact=True,
    )
)  # fmt: skip


def integer_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    residual_shift: int = 0,
    padding: int = 0,
    stride: int = 1,
    groups: int = 1,
    bits: int = 16,
    shuffle: int = 1,
    input_shift: int = 0,
    input_low: int | None = None,
) -> Tensor:
    """A convolution in int32, requantised channel by channel; the same bits on every backend.

    ::

        q   = x, or clip(x 2^-input_shift, input_low, input_low + 255)        halves upwards; if input_low is given
        acc = bias[o] + sum weight[o,i,k,l] q[n,i,s h+k-p,s w+l-p]             zeros outside
        f   = multiplier[0,o] if acc >= 0 else multiplier[1,o]
        v   = clip((acc f + 2^(shift[o]-1)) >> shift[o], -2^30, 2^30 - 1)     arithmetic shift of a 64-bit product
        y   = pixel_shuffle(v) + clip(residual 2^residual_shift)              halves upwards, to the same range
        out = clip(y, -2^(bits-1), 2^(bits-1) - 1)

    Two factors make activations free: equal ones are the identity, a second one of 0 is a ReLU, of ``slope * f`` a
    LeakyReLU.

    Args:
        x: ``[N, C_in, H, W]`` int16; channels_last for the kernels.
        weight: ``[C_out, C_in / groups, Kh, Kw]`` int8|int16.
        bias: ``[C_out]`` int32, in units of the accumulator.
        multiplier: ``[2, C_out]`` int32, 0 to 2^30 - 1.
        shift: ``[C_out]`` int32, 1 to 62.
        residual: shape of the result, int16|int32, or None.
        residual_shift: -30 to 30; negative ones round.
        padding: p, zeros on all four sides.
        stride: s, of both axes; 1 or more.
        groups: 1, or C_in = C_out (depthwise).
        bits: 16 or 32, of the result.
        shuffle: r of `torch.nn.PixelShuffle`; C_out is a multiple of r^2.
        input_shift: -15 to 15; 0 where `input_low` is None.
        input_low: -255 to 0: inputs of 8 bits, which CPUs with VNNI and GPUs multiply at twice the rate; None: of 16.

    The caller proves that no partial sum leaves int32: ``|bias[o]| + 2^15 sum |weight[o]| < 2^31``; of inputs of 8 bits
    with 255 for 2^15.

    Returns:
        ``[N, C_out / r^2, H' r, W' r]`` int16 or int32, with ``H' = floor((H + 2p - Kh) / s) + 1``.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: other bits, a stride below 1, or a narrowing out of range.

    Exactness: exact.
    Gradients: none.
    """
    return call(
        INTEGER_CONV2D, x, weight, bias, multiplier, shift, residual, residual_shift, padding, stride, groups, bits,
        shuffle, input_shift, input_low,
    )  # fmt: skip
