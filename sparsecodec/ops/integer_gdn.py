"""Divisive normalisation on integers: `gdn` for portable video codecs, the same bits on every backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._epilogue import channels_innermost
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects
from sparsecodec.ops.integer_conv2d import DTYPES, LIMIT

NORM_LIMIT = 2**52  # no sum is larger: float64 holds it and every part of it, and its root is at most 2^26
SQUARE_LIMIT = 2**30  # of int16
SHIFTS = {True: (1, 48), False: (0, 35)}  # by `inverse`; what is shifted further down would be 0


def norm_bound(beta: Tensor, gamma: Tensor) -> Tensor:
    """``[C]`` int64: what no norm exceeds, for any input."""
    return beta.long() + gamma.long().sum(1) * SQUARE_LIMIT


def integer_gdn_reference(
    x: Tensor, beta: Tensor, gamma: Tensor, shift: Tensor, inverse: bool = False, bits: int = 16
) -> Tensor:
    """`integer_gdn` in plain torch."""
    if reasons := _size_rejects(x, beta, gamma, shift, bits):
        raise UsageError("; ".join(reasons))
    if isinstance(x, FakeTensor):  # a plan asks for the shape alone, of every layer
        return torch.empty(x.shape, dtype=DTYPES[bits], device=x.device, memory_format=torch.channels_last)
    if reasons := _number_rejects(beta, gamma, shift, inverse):
        raise UsageError("; ".join(reasons))
    values = x.long()
    squares = (values * values).double().flatten(2)  # [N, C, H W]
    norm = (torch.matmul(gamma.double(), squares) + beta.double()[:, None]).long().view(x.shape)
    root = norm.double().sqrt().long()
    root -= (root * root > norm).long()
    root += ((root + 1) * (root + 1) <= norm).long()
    shift = shift.long().view(-1, 1, 1)
    if inverse:
        y = (values * root + (1 << (shift - 1))) >> shift
    else:
        root = root.clamp(min=1)
        y = torch.div((values << (shift + 1)) + root, 2 * root, rounding_mode="floor")
    top = (1 << (bits - 1)) - 1
    y = y.clamp(-LIMIT, LIMIT - 1).clamp(-top - 1, top)
    return y.to(DTYPES[bits], memory_format=torch.channels_last)


def _size_rejects(x: Tensor, beta: Tensor, gamma: Tensor, shift: Tensor, bits: int) -> list[str]:
    if x.dim() != 4:
        return [f"x.shape={list(x.shape)} (needs [N, C, H, W])"]
    channels = x.shape[1]
    wanted = {"beta": (beta, (channels,)), "gamma": (gamma, (channels, channels)), "shift": (shift, (channels,))}
    reasons = [
        f"{name}.shape={list(value.shape)} (needs {list(shape)})"
        for name, (value, shape) in wanted.items()
        if value.shape != shape
    ]
    return reasons if bits in DTYPES else [*reasons, f"bits={bits} (needs one of {', '.join(map(str, DTYPES))})"]


def _number_rejects(beta: Tensor, gamma: Tensor, shift: Tensor, inverse: bool) -> list[str]:
    if beta.numel() == 0:
        return []
    reasons = []
    if min(int(beta.min()), int(gamma.min())) < 0 or int(norm_bound(beta, gamma).max()) > NORM_LIMIT:
        reasons.append("beta, gamma: not in 0 <= beta + 2^30 sum gamma <= 2^52")
    low, high = SHIFTS[inverse]
    if int(shift.min()) < low or int(shift.max()) > high:
        reasons.append(f"shift from {int(shift.min())} to {int(shift.max())} (needs {low} to {high})")
    return reasons


def _rejects(x: Tensor, beta: Tensor, gamma: Tensor, shift: Tensor, inverse: bool, bits: int) -> list[str]:
    """What all kernels ask for."""
    reasons = _size_rejects(x, beta, gamma, shift, bits)
    wanted = {
        "x": (x, torch.int16),
        "beta": (beta, torch.int64),
        "gamma": (gamma, torch.int32),
        "shift": (shift, torch.int32),
    }
    for name, (value, dtype) in wanted.items():
        if value.dtype != dtype:
            got, needed = (str(each).removeprefix("torch.") for each in (value.dtype, dtype))
            reasons.append(f"{name}.dtype={got} (needs {needed})")
        if name != "x":
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
    return _rejects(**arguments) + triton_rejects((torch.int16,), x=arguments["x"])


INTEGER_GDN = register(
    OpSpec(
        name="integer_gdn",
        schema="(Tensor x, Tensor beta, Tensor gamma, Tensor shift, bool inverse=False, int bits=16) -> Tensor",
        reference=integer_gdn_reference,
        impls=(
            Impl("cpu", "sparsecodec._C:integer_gdn", rejects=_cpu_rejects, plan="sparsecodec._C:integer_gdn_plan"),
            Impl(
                "triton",
                "sparsecodec._triton.integer_gdn:integer_gdn",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.integer_gdn:integer_gdn_plan",
            ),
        ),
        constants=("beta", "gamma", "shift", "inverse", "bits"),
        exact=True,
    )
)


def integer_gdn(x: Tensor, beta: Tensor, gamma: Tensor, shift: Tensor, inverse: bool = False, bits: int = 16) -> Tensor:
    """Each value times, or divided by, the root of a weighed sum of squares of its position's values.

    ::

        n[i] = beta[i] + sum_j gamma[i,j] x[j]^2                                exact, at most 2^52
        r[i] = floor(sqrt(n[i]))
        v[i] = (x[i] r[i] + 2^(shift[i]-1)) >> shift[i]                         inverse
               floor((x[i] 2^(shift[i]+1) + m) / (2 m)), m = max(r[i], 1)       else: to the nearest, halves upwards
        out  = clip(clip(v, -2^30, 2^30 - 1), -2^(bits-1), 2^(bits-1) - 1)

    Sums of integers below 2^53 are exact in float64, in any order; so is, behind a floor, the root of one up to 2^52,
    and the quotient of two whose numerator stays below 2^52.

    Args:
        x: ``[N, C, H, W]`` int16; channels_last for the kernels.
        beta: ``[C]`` int64, >= 0; contiguous for the kernels.
        gamma: ``[C, C]`` int32, >= 0; row i weighs the squares for channel i. ``beta + 2^30 gamma.sum(1) <= 2^52``,
            which Triton does not check; contiguous for the kernels.
        shift: ``[C]`` int32, 1 to 48 with `inverse`, else 0 to 35, which Triton does not check; contiguous for the
            kernels.
        inverse: multiply by the root instead of dividing.
        bits: 16 or 32, of the result.

    Returns:
        ``[N, C, H, W]`` int16 or int32, channels_last.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: other shapes, or numbers out of range.

    Exactness: exact.
    Gradients: none.
    """
    return call(INTEGER_GDN, x, beta, gamma, shift, inverse, bits)
