"""Motion compensation: features read at positions that a flow has moved."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._epilogue import cpu_rejects
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two samples around a position and the second one's weight, which is NaN where the position is."""
    position = position.clamp(0, size - 1)
    low = position.detach().nan_to_num(0.0).floor().long()
    return low, (low + 1).clamp(max=size - 1), position - low


def warp_reference(x: Tensor, flow: Tensor) -> Tensor:
    """`warp` in plain torch."""
    reasons = rejects_sizes(x, flow)
    if reasons:
        raise UsageError("; ".join(reasons))
    n, _, height, width = x.shape
    flow = flow.to(torch.promote_types(flow.dtype, torch.float32))  # bfloat16 would round positions
    values = x.to(torch.promote_types(x.dtype, flow.dtype))
    columns = torch.arange(width, device=x.device) + flow[:, 0]
    rows = torch.arange(height, device=x.device)[:, None] + flow[:, 1]
    left, right, fx = _neighbours(columns, width)
    upper, lower, fy = _neighbours(rows, height)
    image = torch.arange(n, device=x.device).view(n, 1, 1)

    def part(row: Tensor, column: Tensor, weight: Tensor) -> Tensor:  # [N, H, W, C]
        return weight[..., None] * values[image, :, row, column]

    y = part(upper, left, (1 - fx) * (1 - fy))
    y = y + part(upper, right, fx * (1 - fy))
    y = y + part(lower, left, (1 - fx) * fy)
    y = y + part(lower, right, fx * fy)
    return y.to(x.dtype).permute(0, 3, 1, 2)


def rejects_sizes(x: Tensor, flow: Tensor) -> list[str]:
    """What is wrong with the sizes of a picture and its flow."""
    if x.dim() != 4:
        return [f"x.shape={list(x.shape)} (needs [N, C, H, W])"]
    wanted = [x.shape[0], 2, *x.shape[2:]]
    return [] if list(flow.shape) == wanted else [f"flow.shape={list(flow.shape)} (needs {wanted})"]


def _rejects_flow(x: Tensor, flow: Tensor) -> list[str]:
    reasons = rejects_sizes(x, flow)
    if flow.dtype != torch.float32:
        reasons.append(f"flow.dtype={str(flow.dtype).removeprefix('torch.')} (needs float32)")
    return reasons


def _cpu_rejects(x: Tensor, flow: Tensor) -> list[str]:
    return cpu_rejects(x=x) + _rejects_flow(x, flow)


def _triton_rejects(x: Tensor, flow: Tensor) -> list[str]:
    return triton_rejects((torch.float16, torch.bfloat16, torch.float32), x=x) + _rejects_flow(x, flow)


WARP = register(
    OpSpec(
        name="warp",
        schema="(Tensor x, Tensor flow) -> Tensor",
        reference=warp_reference,
        impls=(
            Impl("cpu", "sparsecodec._C:warp", rejects=_cpu_rejects, plan="sparsecodec._C:warp_plan"),
            Impl(
                "triton",
                "sparsecodec._triton.warp:warp",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.warp:warp_plan",
            ),
        ),
        exact=True,
    )
)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Bilinear samples at (column + flow[:, 0], row + flow[:, 1]), positions clamped to the border.

    As `torch.nn.functional.grid_sample` with padding_mode="border" and align_corners=True, but in pixels: nothing is
    divided by size - 1, so one row or column is no exception. Upper left, upper right, lower left, lower right are
    weighted and added in this order in float32; then one rounding to the dtype of `x`.

    Args:
        x: ``[N, C, H, W]`` float16|bfloat16|float32, channels_last for the CPU kernel (which takes no float16).
        flow: ``[N, 2, H, W]`` float32, any layout, in pixels. NaN gives NaN in all channels of its pixel.

    Returns:
        ``[N, C, H, W]``, dtype of `x`, channels_last.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: sizes that do not fit.

    Exactness: exact.
    Gradients: reference only, of `x` and of `flow`.
    """
    return call(WARP, x, flow)
