"""Deformable convolution: each tap reads where an offset has moved it. FVC's motion compensation."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._epilogue import cpu_rejects
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects


def deform_conv2d_reference(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    border: bool = False,
) -> Tensor:
    """`deform_conv2d` in plain torch."""
    reasons = _rejects_sizes(x, offset, weight, mask)
    if reasons:
        raise UsageError("; ".join(reasons))
    n, channels, height, width = x.shape
    c_out, _, kh, kw = weight.shape
    taps = kh * kw
    offset = offset.to(torch.promote_types(offset.dtype, torch.float32))  # bfloat16 would round positions
    groups = offset.shape[1] // (2 * taps)
    moved = offset.unflatten(1, (groups, taps, 2))
    tap = torch.arange(taps, device=x.device).view(taps, 1, 1)
    rows = torch.arange(height, device=x.device).view(height, 1) + (tap // kw - kh // 2) + moved[:, :, :, 0]
    columns = torch.arange(width, device=x.device) + (tap % kw - kw // 2) + moved[:, :, :, 1]
    upper, fy = _below(rows, height, border)
    left, fx = _below(columns, width, border)
    samples = taps * height * width
    factor = 1.0 if mask is None else mask.unflatten(1, (groups, taps))
    values = x.to(torch.promote_types(x.dtype, offset.dtype)).reshape(n, groups, channels // groups, height * width)

    def part(row: Tensor, column: Tensor, weight: Tensor) -> Tensor:  # [N, G, C / G, K * H * W]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).reshape(n, groups, 1, samples)
        sample = values.gather(3, index.expand(-1, -1, values.shape[2], -1))
        return sample.where(inside.reshape(index.shape), 0.0) * (weight * factor).reshape(index.shape)

    y = part(upper, left, (1 - fx) * (1 - fy))
    y = y + part(upper, left + 1, fx * (1 - fy))
    y = y + part(upper + 1, left, (1 - fx) * fy)
    y = y + part(upper + 1, left + 1, fx * fy)
    y = y.to(x.dtype).reshape(n, channels * taps, height * width)
    y = weight.to(x.dtype).flatten(1) @ y
    y = y if bias is None else y + bias.to(x.dtype)[:, None]
    return y.view(n, c_out, height, width).contiguous(memory_format=torch.channels_last)


def _below(position: Tensor, size: int, border: bool) -> tuple[Tensor, Tensor]:
    """The sample before a position, which is clamped, and the weight of the next one: NaN where the position is."""
    position = position.clamp(0, size - 1) if border else position.clamp(-1, size)
    low = position.detach().nan_to_num(0.0).floor().long()
    return low, position - low


def _rejects_sizes(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None) -> list[str]:
    if x.dim() != 4 or weight.dim() != 4:
        shapes = f"x.shape={list(x.shape)}, weight.shape={list(weight.shape)}"
        return [f"{shapes} (needs [N, C_in, H, W] and [C_out, C_in, Kh, Kw])"]
    (n, channels, height, width), taps = x.shape, weight.shape[2] * weight.shape[3]
    reasons = []
    if weight.shape[1] != channels or weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        reasons.append(f"weight.shape={list(weight.shape)} (needs [C_out, {channels}, Kh, Kw], Kh and Kw odd)")
    groups = offset.shape[1] // (2 * taps) if offset.dim() == 4 else 0
    if groups < 1 or channels % groups or list(offset.shape) != [n, 2 * groups * taps, height, width]:
        wanted = f"[{n}, 2 * G * {taps}, {height}, {width}], G a divisor of {channels}"
        reasons.append(f"offset.shape={list(offset.shape)} (needs {wanted})")
    elif mask is not None and list(mask.shape) != [n, groups * taps, height, width]:
        reasons.append(f"mask.shape={list(mask.shape)} (needs {[n, groups * taps, height, width]})")
    return reasons


def _rejects(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None) -> list[str]:
    reasons = _rejects_sizes(x, offset, weight, mask)
    for name, value in (("offset", offset), ("mask", mask)):
        if value is not None and value.dtype != torch.float32:
            reasons.append(f"{name}.dtype={str(value.dtype).removeprefix('torch.')} (needs float32)")
    return reasons


def _cpu_rejects(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, border: bool = False
) -> list[str]:
    return cpu_rejects(x=x) + _rejects(x, offset, weight, mask)


def _triton_rejects(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, border: bool = False
) -> list[str]:
    return triton_rejects((torch.float16, torch.bfloat16, torch.float32), x=x) + _rejects(x, offset, weight, mask)


DEFORM_CONV2D = register(
    OpSpec(
        name="deform_conv2d",
        schema=(
            "(Tensor x, Tensor offset, Tensor weight, Tensor? bias=None, Tensor? mask=None, bool border=False) "
            "-> Tensor"
        ),
        reference=deform_conv2d_reference,
        impls=(
            Impl(
                "cpu",
                "sparsecodec._C:deform_conv2d",
                rejects=_cpu_rejects,
                plan="sparsecodec._C:deform_conv2d_plan",
            ),
            Impl(
                "triton",
                "sparsecodec._triton.deform_conv2d:deform_conv2d",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.deform_conv2d:deform_conv2d_plan",
            ),
        ),
        constants=("weight", "bias", "border"),
    )
)


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    border: bool = False,
) -> Tensor:
    """Convolution of stride 1 and same size whose taps are moved (arXiv 1703.06211), and weighed (arXiv 1811.11168).

    y[n,:,h,w] = bias + sum over taps (i, j), channels c of weight[:,c,i,j] * mask[n,t,h,w]
        * x[n,c](h + i - Kh // 2 + offset[n,2t,h,w], w + j - Kw // 2 + offset[n,2t+1,h,w])

    with t = (c * G // C_in) * Kh * Kw + i * Kw + j: channels share offsets in G groups. x(., .) is bilinear, zero
    outside, or with `border` that of the nearest position in the picture. Channel order of offsets and mask as in
    ``torchvision.ops.deform_conv2d``. Samples are added up as in `warp`, the mask multiplied into their weights, in
    float32, then rounded once to the dtype of `x`.

    Args:
        x: ``[N, C_in, H, W]`` float16|bfloat16|float32, channels_last for the CPU kernel (which takes no float16).
        offset: ``[N, 2 G Kh Kw, H, W]`` float32, any layout, in pixels: rows, then columns, of each tap of each group.
        weight: ``[C_out, C_in, Kh, Kw]``, any float dtype, Kh and Kw odd.
        bias: ``[C_out]`` or None.
        mask: ``[N, G Kh Kw, H, W]`` float32, any layout, or None for ones.
        border: whether positions are clamped to the picture, as `warp`'s are.

    Returns:
        ``[N, C_out, H, W]``, dtype of `x`, channels_last.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: sizes that do not fit.

    Exactness: tolerance. The float32 kernels are pinned: acc = bias, then acc = fma(sample, w, acc) over kernel row,
        kernel column, input channel; their bits do not depend on instruction set, threads, tile, batch or image size.
    Gradients: reference only, of all tensors.
    """
    return call(DEFORM_CONV2D, x, offset, weight, bias, mask, border)
