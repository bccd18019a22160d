"""Predicted scales to rows of the entropy tables, one pass of a spatial prior at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._spatial_prior import cpu_rejects_grouped, split_groups, take_active
from sparsecodec.ops._triton_rules import triton_rejects_grouped


def entropy_parameters_reference(scales: Tensor, thresholds: Tensor, part: str = "all") -> Tensor:
    """`entropy_parameters` in plain torch."""
    return table_index(take_active(split_groups(scales, part, "scales"), part), thresholds)


def table_index(scales: Tensor, thresholds: Tensor) -> Tensor:
    """How many thresholds lie below each scale, int16 contiguous."""
    # searchsorted treats NaN as larger than every threshold.
    return torch.searchsorted(thresholds.to(scales.dtype), scales.contiguous()).to(torch.int16)


def _check(thresholds: Tensor, part: str) -> None:
    if thresholds.dim() != 1 or bool((thresholds[1:] < thresholds[:-1]).any()):
        raise UsageError(f"thresholds: {list(thresholds.shape)} (needs [L - 1], ascending)")


def _cpu_rejects(scales: Tensor, **_: Any) -> list[str]:
    return cpu_rejects_grouped(scales=scales)


def _triton_rejects(scales: Tensor, part: str, **_: Any) -> list[str]:
    return triton_rejects_grouped(part, scales=scales)


def _cuda_rejects(scales: Tensor, part: str, **_: Any) -> list[str]:
    reasons = triton_rejects_grouped(part, scales=scales)  # the same shapes of the same dtype
    return reasons or ([] if scales.device.type == "cuda" else [f"scales.device={scales.device.type} (needs cuda)"])


ENTROPY_PARAMETERS = register(
    OpSpec(
        name="entropy_parameters",
        schema='(Tensor scales, Tensor thresholds, str part="all") -> Tensor',
        reference=entropy_parameters_reference,
        impls=(
            Impl(
                "cpu",
                "sparsecodec._C:entropy_parameters",
                rejects=_cpu_rejects,
                plan="sparsecodec._C:entropy_parameters_plan",
            ),
            Impl(
                "triton",
                "sparsecodec._triton.entropy_parameters:entropy_parameters",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.entropy_parameters:entropy_parameters_plan",
            ),
            Impl(
                "cuda",
                "sparsecodec._cuda:entropy_parameters",
                rejects=_cuda_rejects,
                plan="sparsecodec._cuda:entropy_parameters_plan",
            ),
        ),
        constants=("thresholds", "part"),
        exact=True,
        check=_check,
    )
)


def entropy_parameters(scales: Tensor, thresholds: Tensor, part: str = "all") -> Tensor:
    """Table indexes of one pass: how many thresholds lie below the scale.

    Comparisons only, so the indexes do not depend on how a device rounds a logarithm. A NaN scale lies above all
    thresholds: it gets the last table, never an index outside of them.

    Args:
        scales: ``[N, C, H, W]`` float32, channels_last for the CPU kernel; or ``[N, G, C/G, H, W]``, groups apart.
        thresholds: ``[L - 1]`` float32, ascending: `evc_scale_thresholds` or `scale_table_thresholds`.
        part: all | even | odd | quarter0 .. quarter3; the latter code one of G = 2 or 4 groups at each position.

    Returns:
        ``[N, C/G, H, W]`` int16 contiguous in 0 .. L - 1, the order of the stream.
    """
    return call(ENTROPY_PARAMETERS, scales, thresholds, part)
