"""Decoded integers to latents, one pass of a spatial prior at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._spatial_prior import (
    active_group,
    cpu_rejects_grouped,
    groups_of,
    sizes_that_differ,
    split_groups,
)
from sparsecodec.ops._triton_rules import triton_rejects, triton_rejects_grouped


def restore_latent_reference(
    symbols: Tensor,
    means: Tensor | None = None,
    base: Tensor | None = None,
    step: Tensor | None = None,
    gain: Tensor | None = None,
    part: str = "all",
) -> Tensor:
    """`restore_latent` in plain torch."""
    if symbols.dim() != 4 or symbols.dtype != torch.int32:
        raise UsageError(f"symbols: {list(symbols.shape)} {symbols.dtype} (needs [N, C, H, W] int32)")
    groups = groups_of(part)
    n, channels, height, width = symbols.shape
    shape = (n, groups, channels, height, width)
    floats = [value for value in (means, base, step, gain) if value is not None]
    dtype = floats[0].dtype if floats else torch.float32
    value = symbols.to(dtype).unsqueeze(1).expand(shape)
    if means is not None:
        value = value + split_groups(means, part, "means")
    others = torch.zeros((), dtype=dtype, device=symbols.device) if base is None else split_groups(base, part, "base")
    active = active_group(part, height, width, symbols.device)
    here = active == torch.arange(groups, device=symbols.device).view(groups, 1, 1, 1)
    value = torch.where(here, value, others)
    if step is not None:
        value = value * split_groups(step, part, "step")
    if gain is not None:
        value = value * gain.reshape(1, groups, channels, 1, 1)
    return value.reshape(n, groups * channels, height, width).contiguous(memory_format=torch.channels_last)


def _cpu_rejects(
    symbols: Tensor, means: Tensor | None, base: Tensor | None, step: Tensor | None, gain: Tensor | None, **_: Any
) -> list[str]:
    reasons = cpu_rejects_grouped(means=means, base=base, step=step) + _rejects_dense(symbols, gain)
    if symbols.device.type != "cpu":
        reasons.append(f"symbols.device={symbols.device} (needs cpu)")
    return reasons


def _triton_rejects(
    symbols: Tensor,
    means: Tensor | None,
    base: Tensor | None,
    step: Tensor | None,
    gain: Tensor | None,
    part: str,
) -> list[str]:
    reasons = triton_rejects_grouped(part, means=means, base=base, step=step) + _rejects_dense(symbols, gain)
    reasons += triton_rejects((torch.int32,), symbols=symbols)
    if symbols.dim() != 4:
        return [*reasons, f"symbols.shape={list(symbols.shape)} (needs [N, C, H, W])"]
    channels = groups_of(part) * symbols.shape[1]
    if gain is not None and gain.numel() != channels:
        reasons.append(f"gain.shape={list(gain.shape)} (needs {channels} values)")
    return reasons + sizes_that_differ(symbols.shape, part, means=means, base=base, step=step)


def _rejects_dense(symbols: Tensor, gain: Tensor | None) -> list[str]:
    reasons = []
    if symbols.dtype != torch.int32 or not symbols.is_contiguous():
        reasons.append(f"symbols: {symbols.dtype}, strides {symbols.stride()} (needs contiguous int32)")
    if gain is not None and (gain.dtype != torch.float32 or not gain.is_contiguous()):
        reasons.append(f"gain: {gain.dtype}, strides {gain.stride()} (needs contiguous float32)")
    return reasons


RESTORE_LATENT = register(
    OpSpec(
        name="restore_latent",
        schema=(
            "(Tensor symbols, Tensor? means=None, Tensor? base=None, Tensor? step=None, Tensor? gain=None, "
            'str part="all") -> Tensor'
        ),
        reference=restore_latent_reference,
        impls=(
            Impl(
                "cpu", "sparsecodec._C:restore_latent", rejects=_cpu_rejects, plan="sparsecodec._C:restore_latent_plan"
            ),
            Impl(
                "triton",
                "sparsecodec._triton.restore_latent:restore_latent",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.restore_latent:restore_latent_plan",
            ),
        ),
        constants=("part",),
        exact=True,
    )
)


def restore_latent(
    symbols: Tensor,
    means: Tensor | None = None,
    base: Tensor | None = None,
    step: Tensor | None = None,
    gain: Tensor | None = None,
    part: str = "all",
) -> Tensor:
    """The latent after one pass: (symbols + means where the pass codes, base elsewhere) * step * gain.

    Each operation is one float32 rounding, in this order, so that both ends of a stream agree. The bound op accepts
    ``out=base``, and as ``out`` channels of a wider tensor.

    Args:
        symbols: ``[N, C/G, H, W]`` int32 contiguous. What the coder returned for this pass.
        means: ``[N, C, H, W]`` float32, channels_last for the CPU kernel; or ``[N, G, C/G, H, W]``;
            or None.
        base: as `means`. The latent before the pass; None = zeros.
        step: as `means`, or None. Factor of each element.
        gain: C values in any shape, or None. Factor of each channel.
        part: all | even | odd | quarter0 .. quarter3.

    Returns:
        ``[N, C, H, W]`` float32, channels_last.
    """
    return call(RESTORE_LATENT, symbols, means, base, step, gain, part)
