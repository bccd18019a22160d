"""The last 1x1 of a spatial prior, for the channels that a pass codes, with the entropy parameters behind it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._epilogue import ACTIVATIONS, activate, channels_innermost, cpu_rejects
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._spatial_prior import groups_of, take_active
from sparsecodec.ops._triton_rules import triton_rejects
from sparsecodec.ops.entropy_parameters import table_index

ORDERS = ("by_group", "scales_means", "means_scales")


def split_parameters(prior: Tensor, part: str, order: str) -> tuple[Tensor, Tensor]:
    """A spatial prior's output ``[N, 2C, H, W]`` -> (scales, means), each ``[N, G, C/G, H, W]``; views."""
    groups = groups_of(part)
    if order not in ORDERS:
        raise UsageError(f"order={order!r} (one of {', '.join(ORDERS)})")
    if prior.shape[1] % (2 * groups):
        raise UsageError(f"weight: {prior.shape[1]} rows (needs a multiple of {2 * groups})")
    channels = prior.shape[1] // (2 * groups)
    if order == "by_group":
        scales, means = prior.unflatten(1, (groups, 2, channels)).unbind(2)
    else:
        scales, means = prior.unflatten(1, (2, groups, channels)).unbind(1)
    return (means, scales) if order == "means_scales" else (scales, means)


def prior_head_reference(
    x: Tensor,
    weight: Tensor,
    thresholds: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    part: str = "all",
    order: str = "scales_means",
    activation: str = "none",
    slope: float = 0.01,
    skip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`prior_head` in plain torch."""
    kernel = weight[:, :, None, None] if weight.dim() == 2 else weight
    prior = activate(F.conv2d(x, kernel.to(x.dtype), None if bias is None else bias.to(x.dtype)), activation, slope)
    scales, means = split_parameters(prior if residual is None else prior + residual, part, order)
    coded_scales = take_active(scales, part)
    indexes = table_index(coded_scales, thresholds)
    if skip is not None:
        indexes = indexes.masked_fill(coded_scales <= skip, -1)
    return indexes, take_active(means, part).contiguous(memory_format=torch.channels_last)


def _rejects_sizes(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, part: str) -> list[str]:
    rows, groups = weight.shape[0], groups_of(part)
    reasons = []
    if weight.dim() not in (2, 4) or x.dim() != 4 or weight.numel() != rows * x.shape[1]:
        reasons.append(f"weight.shape={list(weight.shape)} (needs [2C, K] for x.shape={list(x.shape)})")
    if rows % (2 * groups):
        reasons.append(f"weight: {rows} rows (needs a multiple of {2 * groups})")
    if bias is not None and list(bias.shape) != [rows]:
        reasons.append(f"bias.shape={list(bias.shape)} (needs [{rows}])")
    if residual is not None and list(residual.shape) != [x.shape[0], rows, *x.shape[2:]]:
        reasons.append(f"residual.shape={list(residual.shape)} (needs {[x.shape[0], rows, *x.shape[2:]]})")
    return reasons


def _cpu_rejects(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, part: str, **_: Any
) -> list[str]:
    reasons = cpu_rejects(x=x, residual=residual) + _rejects_sizes(x, weight, bias, residual, part)
    if x.dtype != torch.float32:
        reasons.append(f"x.dtype={str(x.dtype).removeprefix('torch.')} (needs float32)")
    return reasons


def _triton_rejects(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    part: str,
    order: str,
    activation: str,
    **_: Any,
) -> list[str]:
    reasons = triton_rejects((torch.float32,), x=x, residual=residual)
    for name, value in (("x", x), ("residual", residual)):
        if value is not None and value.dim() == 4 and not channels_innermost(value):
            reasons.append(f"{name}.stride={value.stride()} (needs channels innermost, torch.channels_last)")
    if order not in ORDERS:
        reasons.append(f"order={order!r} (one of {', '.join(ORDERS)})")
    if activation not in ACTIVATIONS:
        reasons.append(f"activation={activation!r} (one of {', '.join(ACTIVATIONS)})")
    return reasons + _rejects_sizes(x, weight, bias, residual, part)


PRIOR_HEAD = register(
    OpSpec(
        name="prior_head",
        schema=(
            "(Tensor x, Tensor weight, Tensor thresholds, Tensor? bias=None, Tensor? residual=None, "
            'str part="all", str order="scales_means", str activation="none", float slope=0.01, float? skip=None)'
            " -> (Tensor, Tensor)"
        ),
        reference=prior_head_reference,
        impls=(
            Impl("cpu", "sparsecodec._C:prior_head", rejects=_cpu_rejects, plan="sparsecodec._C:prior_head_plan"),
            Impl(
                "triton",
                "sparsecodec._triton.prior_head:prior_head",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.prior_head:prior_head_plan",
            ),
        ),
        constants=("weight", "thresholds", "bias", "part", "order", "activation", "slope", "skip"),
    )
)


def prior_head(
    x: Tensor,
    weight: Tensor,
    thresholds: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    part: str = "all",
    order: str = "scales_means",
    activation: str = "none",
    slope: float = 0.01,
    skip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Table indexes and means of one pass, straight from the last hidden layer of a spatial prior.

    prior = act(bias + weight x) + residual, of which each position needs only the rows of the group that the pass codes
    there: half of the product, or a quarter. Then indexes = `entropy_parameters` of its scales, and its means.

    Args:
        x: ``[N, K, H, W]`` float32, channels_last for the kernels. Hidden layer.
        weight: ``[2C, K]`` or ``[2C, K, 1, 1]``, any float dtype.
        thresholds: ``[L - 1]`` float32, ascending, as for `entropy_parameters`.
        bias: ``[2C]`` or None.
        residual: ``[N, 2C, H, W]`` or None. Added after the activation.
        part: all | even | odd | quarter0 .. quarter3; the latter code one of G = 2 or 4 groups at each position.
        order: of the 2C rows: by_group = the C/G scales of group 0, its means, the scales of group 1 ..; scales_means =
            C scales, C means; means_scales = the reverse.
        activation: none | relu | leaky_relu | sigmoid_gate (y * sigmoid(4 y)).
        slope: of leaky_relu.
        skip: a position whose scale is <= `skip` gets the index -1: its symbol is 0 and not in the stream. None = code
            every symbol.

    Returns:
        ``[N, C/G, H, W]`` int16 contiguous in 0 .. L - 1, or -1: the order of the stream. ``[N, C/G, H, W]`` float32
        channels_last: the means; `quantize_latent` and `restore_latent` take them for every group as
        ``means.unsqueeze(1).expand(-1, G, -1, -1, -1)``, which copies nothing.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: an unknown part, order or activation, or rows that do not split.

    Exactness: tolerance. The CPU kernel has the bits of `pointwise` followed by `entropy_parameters`.
    Gradients: reference only, of the means.
    """
    return call(PRIOR_HEAD, x, weight, thresholds, bias, residual, part, order, activation, slope, skip)
