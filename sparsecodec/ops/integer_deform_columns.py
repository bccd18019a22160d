"""Deformable sampling on integers: what the taps of a 3x3 convolution read, for portable video codecs."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._epilogue import channels_innermost
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects
from sparsecodec.ops.integer_warp import POSITION_BITS, WEIGHT_BITS, between

TAPS = 9
MASK_BITS = 14  # of a factor's fraction: int16 holds factors below 2


def integer_deform_columns_reference(x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
    """`integer_deform_columns` in plain torch."""
    reasons = _rejects_sizes(x, offset, mask) or _rejects_dtypes(x, offset, mask)
    if reasons:
        raise UsageError("; ".join(reasons))
    n, channels, height, width = x.shape
    shape = (n, TAPS * channels, height, width)
    if x.numel() == 0:
        return x.new_empty(shape).contiguous(memory_format=torch.channels_last)
    groups = offset.shape[1] // (2 * TAPS)
    moved = offset.unflatten(1, (groups, TAPS, 2)).long()
    tap = torch.arange(TAPS, device=x.device).view(TAPS, 1, 1)
    rows = ((torch.arange(height, device=x.device).view(height, 1) + tap // 3 - 1) << POSITION_BITS) + moved[:, :, :, 0]
    columns = ((torch.arange(width, device=x.device) + tap % 3 - 1) << POSITION_BITS) + moved[:, :, :, 1]
    (upper, down), (left, across) = _below(rows, height), _below(columns, width)
    samples = TAPS * height * width
    values = x.int().reshape(n, groups, channels // groups, height * width)

    def at(row: Tensor, column: Tensor) -> Tensor:  # [N, G, C / G, 9 H W]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).reshape(n, groups, 1, samples)
        return values.gather(3, index.expand(-1, -1, values.shape[2], -1)).where(inside.reshape(index.shape), 0)

    across, down = (weight.reshape(n, groups, 1, samples) for weight in (across, down))
    top = between(at(upper, left), at(upper, left + 1), across)
    y = between(top, between(at(upper + 1, left), at(upper + 1, left + 1), across), down)
    if mask is not None:
        y = y * mask.int().reshape(across.shape) + (1 << (MASK_BITS - 1)) >> MASK_BITS
    y = y.clamp(-(2**15), 2**15 - 1).to(torch.int16).unflatten(3, (TAPS, height, width))
    return y.permute(0, 4, 5, 3, 1, 2).reshape(n, height, width, TAPS * channels).permute(0, 3, 1, 2)


def _below(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The sample before a position (int64, units of 2^-16), two before the first at least, and the next one's weight"""
    fraction = position & ((1 << POSITION_BITS) - 1)
    return (position >> POSITION_BITS).clamp(-2, size), ((fraction + 2) >> (POSITION_BITS - WEIGHT_BITS)).int()


def _rejects_sizes(x: Tensor, offset: Tensor, mask: Tensor | None) -> list[str]:
    if x.dim() != 4:
        return [f"x.shape={list(x.shape)} (needs [N, C, H, W])"]
    n, channels, height, width = x.shape
    groups = offset.shape[1] // (2 * TAPS) if offset.dim() == 4 else 0
    if groups < 1 or channels % groups or list(offset.shape) != [n, 2 * groups * TAPS, height, width]:
        wanted = f"[{n}, 2 * G * {TAPS}, {height}, {width}], G a divisor of {channels}"
        return [f"offset.shape={list(offset.shape)} (needs {wanted})"]
    if mask is not None and list(mask.shape) != [n, groups * TAPS, height, width]:
        return [f"mask.shape={list(mask.shape)} (needs {[n, groups * TAPS, height, width]})"]
    return []


def _rejects_dtypes(x: Tensor, offset: Tensor, mask: Tensor | None) -> list[str]:
    reasons = []
    for name, value, wanted in (("x", x, torch.int16), ("offset", offset, torch.int32), ("mask", mask, torch.int16)):
        if value is not None and value.dtype != wanted:
            got, needed = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, wanted))
            reasons.append(f"{name}.dtype={got} (needs {needed})")
    return reasons


def _rejects(x: Tensor, offset: Tensor, mask: Tensor | None) -> list[str]:
    """What all kernels ask for."""
    reasons = _rejects_dtypes(x, offset, mask) + _rejects_sizes(x, offset, mask)
    if x.dim() == 4 and not channels_innermost(x):
        reasons.append(f"x.stride={x.stride()} (needs channels innermost, torch.channels_last)")
    return reasons


def _cpu_rejects(x: Tensor, offset: Tensor, mask: Tensor | None = None) -> list[str]:
    given = {name: value for name, value in (("x", x), ("offset", offset), ("mask", mask)) if value is not None}
    wrong = {name: value.device.type for name, value in given.items() if value.device.type != "cpu"}
    reasons = [f"{name}.device={device} (needs cpu)" for name, device in wrong.items()]
    if x.dim() == 4 and (x.shape[2] + 4) * (x.shape[3] + 4) >= 2**31:
        reasons.append(f"x.shape={list(x.shape)} (needs less than 2^31 pixels)")
    return _rejects(x, offset, mask) + reasons


def _triton_rejects(x: Tensor, offset: Tensor, mask: Tensor | None = None) -> list[str]:
    return _rejects(x, offset, mask) + triton_rejects((torch.int16,), x=x)


INTEGER_DEFORM_COLUMNS = register(
    OpSpec(
        name="integer_deform_columns",
        schema="(Tensor x, Tensor offset, Tensor? mask=None) -> Tensor",
        reference=integer_deform_columns_reference,
        impls=(
            Impl(
                "cpu",
                "sparsecodec._C:integer_deform_columns",
                rejects=_cpu_rejects,
                plan="sparsecodec._C:integer_deform_columns_plan",
            ),
            Impl(
                "triton",
                "sparsecodec._triton.integer_deform_columns:integer_deform_columns",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.integer_deform_columns:integer_deform_columns_plan",
            ),
        ),
        exact=True,
    )
)


def integer_deform_columns(x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
    """What each tap of a 3x3 `deform_conv2d` reads: bilinear samples, zeros outside; a product makes it the layer.

    Tap t is i = t // 3, j = t mod 3; k = g 9 + t for channel c of group g = c G // C. ``>>`` rounds to minus infinity,
    and nothing overflows::

        row = 2^16 (h + i - 1) + offset[n,2k,h,w];      r = row >> 16;   b = ((row & 65535) + 2) >> 2
        col = 2^16 (w + j - 1) + offset[n,2k+1,h,w];    s = col >> 16;   a = ((col & 65535) + 2) >> 2
        top    = (x[n,c,r,s] (2^14 - a) + x[n,c,r,s+1] a + 2^13) >> 14;   bottom: the same of row r + 1; x: 0 outside
        sample = (top (2^14 - b) + bottom b + 2^13) >> 14
        out[n, t C + c, h, w] = sample, or clip((sample mask[n,k,h,w] + 2^13) >> 14, -2^15, 2^15 - 1)

    Args:
        x: ``[N, C, H, W]`` int16; channels_last, or a slice of such a tensor's channels, for the kernels.
        offset: ``[N, 18 G, H, W]`` int32, any values, any layout, in units of 2^-16 pixels: rows, then columns, of each
            tap of each group. G divides C.
        mask: ``[N, 9 G, H, W]`` int16, any values, any layout, in units of 2^-14; None for ones.

    Returns:
        ``[N, 9 C, H, W]`` int16, channels_last, all channels of the first tap first.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: sizes that do not fit, or other dtypes.

    Exactness: exact.
    Gradients: none.
    """
    return call(INTEGER_DEFORM_COLUMNS, x, offset, mask)
