"""Between the two networks of a portable dual prior: values of the first pass, and what the second network reads."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._epilogue import channels_innermost
from sparsecodec.ops._fixed_point import fixed_point, narrowed
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._spatial_prior import coded_only, groups_of, split_groups
from sparsecodec.ops._triton_rules import triton_rejects

LEAST_EXPONENT, LARGEST_EXPONENT = -45, 14


def prior_context_reference(
    symbols: Tensor, means: Tensor, scales: Tensor, step: Tensor, exponent: int, part: str = "all"
) -> tuple[Tensor, Tensor]:
    """`prior_context` in plain torch."""
    reasons = _rejects(symbols, means, scales, step, exponent, part)
    if reasons:
        raise UsageError("; ".join(reasons))
    first = coded_only(fixed_point(symbols.unsqueeze(1), split_groups(means, part, "means")), part)
    context = torch.cat([narrowed(values, exponent) for values in (first, means, scales, step)], 1)
    return context.contiguous(memory_format=torch.channels_last), first


def _rejects(symbols: Tensor, means: Tensor, scales: Tensor, step: Tensor, exponent: int, part: str) -> list[str]:
    """What no implementation takes."""
    parameters = {"means": means, "scales": scales, "step": step}
    reasons = [
        f"{name}.dtype={str(value.dtype).removeprefix('torch.')} (needs int32)"
        for name, value in {"symbols": symbols, **parameters}.items()
        if value.dtype != torch.int32
    ]
    if not LEAST_EXPONENT <= exponent <= LARGEST_EXPONENT:
        reasons.append(f"exponent={exponent} (needs {LEAST_EXPONENT} to {LARGEST_EXPONENT})")
    groups = groups_of(part)
    if symbols.dim() != 4:
        return [*reasons, f"symbols.shape={list(symbols.shape)} (needs [N, C/{groups}, H, W])"]
    n, channels, height, width = symbols.shape
    wanted = [n, groups * channels, height, width]
    for name, value in parameters.items():
        if list(value.shape) != wanted:
            reasons.append(f"{name}.shape={list(value.shape)} (needs {wanted})")
    return reasons


def _kernel_rejects(symbols: Tensor, exponent: int, part: str, **parameters: Tensor) -> list[str]:
    """What all kernels ask for."""
    reasons = _rejects(symbols, **parameters, exponent=exponent, part=part)
    if not symbols.is_contiguous():
        reasons.append(f"symbols.stride={symbols.stride()} (needs contiguous)")
    for name, value in parameters.items():
        if value.dim() == 4 and not channels_innermost(value):
            reasons.append(f"{name}.stride={value.stride()} (needs channels innermost, torch.channels_last)")
    return reasons


def _cpu_rejects(symbols: Tensor, exponent: int, part: str, **parameters: Tensor) -> list[str]:
    reasons = _kernel_rejects(symbols, exponent, part, **parameters)
    for name, value in {"symbols": symbols, **parameters}.items():
        if value.device.type != "cpu":
            reasons.append(f"{name}.device={value.device.type} (needs cpu)")
    return reasons


def _triton_rejects(symbols: Tensor, exponent: int, part: str, **parameters: Tensor) -> list[str]:
    reasons = _kernel_rejects(symbols, exponent, part, **parameters)
    return reasons + triton_rejects((torch.int32,), symbols=symbols, **parameters)


PRIOR_CONTEXT = register(
    OpSpec(
        name="prior_context",
        schema=(
            "(Tensor symbols, Tensor means, Tensor scales, Tensor step, int exponent, "
            'str part="all") -> (Tensor, Tensor)'
        ),
        reference=prior_context_reference,
        impls=(
            Impl("cpu", "sparsecodec._C:prior_context", rejects=_cpu_rejects, plan="sparsecodec._C:prior_context_plan"),
            Impl(
                "triton",
                "sparsecodec._triton.prior_context:prior_context",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.prior_context:prior_context_plan",
            ),
        ),
        constants=("exponent", "part"),
        exact=True,
    )
)


def prior_context(
    symbols: Tensor, means: Tensor, scales: Tensor, step: Tensor, exponent: int, part: str = "all"
) -> tuple[Tensor, Tensor]:
    """Fixed-point values of the symbols of one pass, and with its parameters what the network of the next pass reads.

    first   = clip(clip(symbols, -2^14, 2^14 - 1) 2^16 + means, -2^30, 2^30 - 1) where the pass codes, 0 elsewhere
    context = first, means, scales, step, end to end, each narrowed to int16 in units of 2^exponent

    where with n = -16 - exponent narrowing is, of v with the unit 2^-16,

    clip(clip(v, -(2^30 >> n), (2^30 >> n) - 1) 2^n, -2^15, 2^15 - 1)   n >= 0
    clip((v + 2^(-n-1)) >> -n, -2^15, 2^15 - 1)                         n < 0: to the nearest, halves upwards

    Args:
        symbols: ``[N, C/G, H, W]`` int32 contiguous, any value. What the coder returned for this pass.
        means, scales, step: ``[N, C, H, W]`` int32, channels_last for the kernels, or channels of such a tensor; in
            units of 2^-16, in [-2^30, 2^30).
        exponent: -45 to 14.
        part: all | even | odd | quarter0 .. quarter3; the latter code one of G = 2 or 4 groups at each position.

    Returns:
        context ``[N, 4C, H, W]`` int16 and first ``[N, C, H, W]`` int32, both channels_last.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: an unknown part, another dtype, sizes that differ, or an exponent out of range.

    Exactness: exact.
    Gradients: none.
    """
    return call(PRIOR_CONTEXT, symbols, means, scales, step, exponent, part)
