"""Integers times a factor for each channel and sign, plus another tensor: what stands between convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._epilogue import channels_innermost
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects
from sparsecodec.ops.integer_conv2d import DTYPES, LIMIT, shifted

MAX_RESIDUAL_SHIFT = 30
ACTIVATIONS = (torch.int16, torch.int32)


def integer_scale_reference(
    x: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    residual_shift: int = 0,
    bits: int = 16,
) -> Tensor:
    """`integer_scale` in plain torch."""
    if reasons := _size_rejects(x, multiplier, shift, residual) + _number_rejects(residual_shift, bits):
        raise UsageError("; ".join(reasons))
    if isinstance(x, FakeTensor):  # a plan asks for the shape alone, of every layer
        return torch.empty(x.shape, dtype=DTYPES[bits], device=x.device, memory_format=torch.channels_last)
    x, shift = x.long(), shift.long().view(-1, 1, 1)
    positive, negative = multiplier.long().view(2, -1, 1, 1)
    y = ((x * torch.where(x < 0, negative, positive) + (1 << (shift - 1))) >> shift).clamp(-LIMIT, LIMIT - 1)
    if residual is not None:
        y = y + shifted(residual.long(), residual_shift)
    top = (1 << (bits - 1)) - 1
    return y.clamp(-top - 1, top).to(DTYPES[bits], memory_format=torch.channels_last)


def _size_rejects(x: Tensor, multiplier: Tensor, shift: Tensor, residual: Tensor | None) -> list[str]:
    if x.dim() != 4:
        return [f"x.shape={list(x.shape)} (needs [N, C, H, W])"]
    wanted = {"multiplier": (multiplier, (2, x.shape[1])), "shift": (shift, (x.shape[1],))}
    if residual is not None:
        wanted["residual"] = residual, x.shape
    return [
        f"{name}.shape={list(value.shape)} (needs {list(shape)})"
        for name, (value, shape) in wanted.items()
        if value.shape != shape
    ]


def _number_rejects(residual_shift: int, bits: int) -> list[str]:
    reasons = []
    if bits not in DTYPES:
        reasons.append(f"bits={bits} (needs one of {', '.join(map(str, DTYPES))})")
    if abs(residual_shift) > MAX_RESIDUAL_SHIFT:
        reasons.append(f"residual_shift={residual_shift} (needs -{MAX_RESIDUAL_SHIFT} to {MAX_RESIDUAL_SHIFT})")
    return reasons


def _rejects(
    x: Tensor, multiplier: Tensor, shift: Tensor, residual: Tensor | None, residual_shift: int, bits: int
) -> list[str]:
    """What all kernels ask for."""
    reasons = _size_rejects(x, multiplier, shift, residual) + _number_rejects(residual_shift, bits)
    wanted = {
        "x": (x, ACTIVATIONS),
        "multiplier": (multiplier, (torch.int32,)),
        "shift": (shift, (torch.int32,)),
        "residual": (residual, ACTIVATIONS),
    }
    for name, (value, dtypes) in wanted.items():
        if value is None:
            continue
        if value.dtype not in dtypes:
            needed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            reasons.append(f"{name}.dtype={str(value.dtype).removeprefix('torch.')} (needs {needed})")
        if name in ("multiplier", "shift"):
            if not value.is_contiguous():
                reasons.append(f"{name}.stride={value.stride()} (needs contiguous)")
        elif value.dim() == 4 and not channels_innermost(value):
            reasons.append(f"{name}.stride={value.stride()} (needs channels innermost, torch.channels_last)")
    return reasons


def _cpu_rejects(**arguments: Any) -> list[str]:
    devices = {name: value.device.type for name, value in arguments.items() if isinstance(value, Tensor)}
    wrong = [f"{name}.device={device} (needs cpu)" for name, device in devices.items() if device != "cpu"]
    return _rejects(**arguments) + wrong


def _triton_rejects(**arguments: Any) -> list[str]:
    reasons = _rejects(**arguments)
    for name in ("x", "residual"):
        value = arguments[name]
        if value is not None:
            reasons += triton_rejects((value.dtype,), **{name: value})
    return reasons


INTEGER_SCALE = register(
    OpSpec(
        name="integer_scale",
        schema=(
            "(Tensor x, Tensor multiplier, Tensor shift, Tensor? residual=None, int residual_shift=0, int bits=16) "
            "-> Tensor"
        ),
        reference=integer_scale_reference,
        impls=(
            Impl("cpu", "sparsecodec._C:integer_scale", rejects=_cpu_rejects, plan="sparsecodec._C:integer_scale_plan"),
            Impl(
                "triton",
                "sparsecodec._triton.integer_scale:integer_scale",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.integer_scale:integer_scale_plan",
            ),
        ),
        constants=("shift", "residual_shift", "bits"),
        exact=True,
    )
)


def integer_scale(
    x: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    residual_shift: int = 0,
    bits: int = 16,
) -> Tensor:
    """Each channel times a factor that depends on the sign, plus another tensor; the same bits on every backend.

    ::

        f   = multiplier[0,c] if x >= 0 else multiplier[1,c]
        v   = clip((x f + 2^(shift[c]-1)) >> shift[c], -2^30, 2^30 - 1)       arithmetic shift of a 64-bit product
        y   = v + clip(residual 2^residual_shift)                             halves upwards, to the same range
        out = clip(y, -2^(bits-1), 2^(bits-1) - 1)

    What `integer_conv2d` does to an accumulator: a LeakyReLU in front of a convolution, factors of channels, the sum of
    two tensors. The multiplier is no constant, because squeeze-and-excitation computes it from a picture.

    Args:
        x: ``[N, C, H, W]`` int16|int32; channels_last for the kernels.
        multiplier: ``[2, C]`` int32, -(2^30 - 1) to 2^30 - 1, which only the CPU checks; contiguous for the kernels.
        shift: ``[C]`` int32, 1 to 62; contiguous for the kernels.
        residual: shape of x, int16|int32, or None; channels_last for the kernels.
        residual_shift: -30 to 30; negative ones round.
        bits: 16 or 32, of the result.

    Returns:
        ``[N, C, H, W]`` int16 or int32, channels_last.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: other shapes, or numbers out of range.

    Exactness: exact.
    Gradients: none.
    """
    return call(INTEGER_SCALE, x, multiplier, shift, residual, residual_shift, bits)
