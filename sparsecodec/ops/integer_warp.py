"""Motion compensation on integers: `warp` for portable video codecs, the same bits on every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._epilogue import channels_innermost
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects
from sparsecodec.ops.warp import rejects_sizes

POSITION_BITS = 16  # of a fraction of a pixel in a flow
WEIGHT_BITS = 14  # both weights of two samples fit int16, and a sum of two products int32


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two samples around positions (int64, units of 2^-16), and the second one's weight, 0 to 2^14."""
    one = 1 << POSITION_BITS
    position = position.clamp(0, one * (size - 1))
    low = position >> POSITION_BITS
    weight = ((position & (one - 1)) + 2) >> (POSITION_BITS - WEIGHT_BITS)
    return low, (low + 1).clamp(max=size - 1), weight.int()[..., None]


def between(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Between two samples, int32, by the second one's weight, 0 to 2^14."""
    return (first * ((1 << WEIGHT_BITS) - weight) + second * weight + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS


def integer_warp_reference(x: Tensor, flow: Tensor) -> Tensor:
    """`integer_warp` in plain torch."""
    reasons = rejects_sizes(x, flow) + _rejects_dtypes(x, flow)
    if reasons:
        raise UsageError("; ".join(reasons))
    n, _, height, width = x.shape
    if x.numel() == 0:  # no last sample to clamp to
        return torch.empty_like(x, memory_format=torch.channels_last)
    values = x.int()
    columns = (torch.arange(width, device=x.device) << POSITION_BITS) + flow[:, 0]  # int64: 32 bits do not suffice
    rows = (torch.arange(height, device=x.device) << POSITION_BITS)[:, None] + flow[:, 1]
    left, right, across = _neighbours(columns, width)
    upper, lower, down = _neighbours(rows, height)
    image = torch.arange(n, device=x.device).view(n, 1, 1)
    top = between(values[image, :, upper, left], values[image, :, upper, right], across)  # [N, H, W, C]
    bottom = between(values[image, :, lower, left], values[image, :, lower, right], across)
    return between(top, bottom, down).to(torch.int16).permute(0, 3, 1, 2)


def _rejects_dtypes(x: Tensor, flow: Tensor) -> list[str]:
    reasons = []
    for name, value, wanted in (("x", x, torch.int16), ("flow", flow, torch.int32)):
        if value.dtype != wanted:
            got, needed = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, wanted))
            reasons.append(f"{name}.dtype={got} (needs {needed})")
    return reasons


def _rejects(x: Tensor, flow: Tensor) -> list[str]:
    """What all kernels ask for."""
    reasons = _rejects_dtypes(x, flow) + rejects_sizes(x, flow)
    if x.dim() == 4 and not channels_innermost(x):
        reasons.append(f"x.stride={x.stride()} (needs channels innermost, torch.channels_last)")
    return reasons


def _cpu_rejects(x: Tensor, flow: Tensor) -> list[str]:
    wrong = {name: value.device.type for name, value in (("x", x), ("flow", flow)) if value.device.type != "cpu"}
    return _rejects(x, flow) + [f"{name}.device={device} (needs cpu)" for name, device in wrong.items()]


def _triton_rejects(x: Tensor, flow: Tensor) -> list[str]:
    return _rejects(x, flow) + triton_rejects((torch.int16,), x=x)


INTEGER_WARP = register(
    OpSpec(
        name="integer_warp",
        schema="(Tensor x, Tensor flow) -> Tensor",
        reference=integer_warp_reference,
        impls=(
            Impl("cpu", "sparsecodec._C:integer_warp", rejects=_cpu_rejects, plan="sparsecodec._C:integer_warp_plan"),
            Impl(
                "triton",
                "sparsecodec._triton.integer_warp:integer_warp",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.integer_warp:integer_warp_plan",
            ),
        ),
        exact=True,
    )
)


def integer_warp(x: Tensor, flow: Tensor) -> Tensor:
    """Bilinear samples at (column + flow[:, 0] / 2^16, row + flow[:, 1] / 2^16), positions clamped to the border.

    ``>>`` rounds to minus infinity, and nothing overflows::

        col = clip(2^16 w + flow[n,0,h,w], 0, 2^16 (W-1));   i = col >> 16;   a = ((col & 65535) + 2) >> 2
        row = clip(2^16 h + flow[n,1,h,w], 0, 2^16 (H-1));   j = row >> 16;   b = ((row & 65535) + 2) >> 2
        i' = min(i + 1, W - 1);   j' = min(j + 1, H - 1)
        top    = (x[n,c,j,i] (2^14 - a) + x[n,c,j,i'] a + 2^13) >> 14;   bottom: the same of row j'
        out[n,c,h,w] = (top (2^14 - b) + bottom b + 2^13) >> 14

    Args:
        x: ``[N, C, H, W]`` int16; channels_last, or a slice of such a tensor's channels, for the kernels.
        flow: ``[N, 2, H, W]`` int32, any values, any layout, in units of 2^-16 pixels.

    Returns:
        ``[N, C, H, W]`` int16, channels_last.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: sizes that do not fit, or other dtypes.

    Exactness: exact.
    Gradients: none.
    """
    return call(INTEGER_WARP, x, flow)
