"""Latents to integers for the entropy coder, one pass of a spatial prior at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._spatial_prior import cpu_rejects_grouped, sizes_that_differ, split_groups, take_active
from sparsecodec.ops._triton_rules import triton_rejects_grouped

MAX_LIMIT = 2**24  # float32 holds every integer up to here


def quantize_latent_reference(
    y: Tensor, means: Tensor | None = None, step: Tensor | None = None, part: str = "all", limit: int = 30000
) -> Tensor:
    """`quantize_latent` in plain torch. Integers have no gradient; training rounds in its own way."""
    if not 0 <= limit <= MAX_LIMIT:
        raise UsageError(f"limit={limit} (needs 0 .. 2^24)")
    residual = split_groups(y, part, "y")
    if step is not None:
        residual = residual / split_groups(step, part, "step")
    if means is not None:
        residual = residual - split_groups(means, part, "means")
    rounded = take_active(residual, part).round().clamp(-limit, limit)
    return rounded.nan_to_num(0.0).to(torch.int32).contiguous()


def _cpu_rejects(y: Tensor, means: Tensor | None, step: Tensor | None, **_: Any) -> list[str]:
    return cpu_rejects_grouped(y=y, means=means, step=step)


def _triton_rejects(y: Tensor, means: Tensor | None, step: Tensor | None, part: str, limit: int) -> list[str]:
    reasons = triton_rejects_grouped(part, y=y, means=means, step=step)
    if not 0 <= limit <= MAX_LIMIT:
        reasons.append(f"limit={limit} (needs 0 .. 2^24)")
    if not reasons:
        reasons = sizes_that_differ(split_groups(y, part, "y")[:, 0].shape, part, means=means, step=step)
    return reasons


QUANTIZE_LATENT = register(
    OpSpec(
        name="quantize_latent",
        schema=('(Tensor y, Tensor? means=None, Tensor? step=None, str part="all", int limit=30000) -> Tensor'),
        reference=quantize_latent_reference,
        impls=(
            Impl(
                "cpu",
                "sparsecodec._C:quantize_latent",
                rejects=_cpu_rejects,
                plan="sparsecodec._C:quantize_latent_plan",
            ),
            Impl(
                "triton",
                "sparsecodec._triton.quantize_latent:quantize_latent",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.quantize_latent:quantize_latent_plan",
            ),
        ),
        constants=("part", "limit"),
        exact=True,
    )
)


def quantize_latent(
    y: Tensor, means: Tensor | None = None, step: Tensor | None = None, part: str = "all", limit: int = 30000
) -> Tensor:
    """Symbols of one pass: round(y / step - means) where the pass codes, ties to even.

    Bits are part of the stream: one division, one subtraction, one rounding, each in float32.

    Args:
        y: ``[N, C, H, W]`` float32, channels_last for the CPU kernel; or ``[N, G, C/G, H, W]``, groups apart. Latent.
        means: as `y`, or None. Predicted means.
        step: as `y`, or None. Quantisation steps.
        part: all | even | odd | quarter0 .. quarter3; the latter code one of G = 2 or 4 groups at each position.
        limit: symbols are clipped to [-limit, limit], at most 2^24. NaN gives 0.

    Returns:
        ``[N, C/G, H, W]`` int32 contiguous, the order of the stream.
    """
    return call(QUANTIZE_LATENT, y, means, step, part, limit)
