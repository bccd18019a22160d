"""`quantize_latent`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._spatial_prior import active_group, cells_of, grouped, groups_of, round_half_even, strides_of
from sparsecodec._triton._tile import MAP_TILE


@triton.jit
def _quantize_latent_fwd_kernel(
    y_ptr, means_ptr, step_ptr, out_ptr,
    H, W, P, C, limit,
    stride_yn, stride_yg, stride_yc, stride_yh, stride_yw,
    stride_mn, stride_mg, stride_mc, stride_mh, stride_mw,
    stride_sn, stride_sg, stride_sc, stride_sh, stride_sw,
    CELL0: tl.constexpr, CELL1: tl.constexpr, CELL2: tl.constexpr, CELL3: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: the symbols of BLOCK_P of the P = N*H*W positions, BLOCK_C of the C channels of a group."""
    blocks = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    g = active_group(p // W % H, p % W, CELL0, CELL1, CELL2, CELL3).to(tl.int64)
    w = (p % W).to(tl.int64)
    h = (p // W % H).to(tl.int64)
    n = (p // W // H).to(tl.int64)

    # [BLOCK_C]
    c = (pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)

    # [BLOCK_P, BLOCK_C]
    inside = (p < P)[:, None] & (c < C)[None, :]
    y_row = n * stride_yn + g * stride_yg + h * stride_yh + w * stride_yw
    value = tl.load(y_ptr + y_row[:, None] + (c * stride_yc)[None, :], mask=inside, other=0.0)
    if step_ptr is not None:
        step_row = n * stride_sn + g * stride_sg + h * stride_sh + w * stride_sw
        step = tl.load(step_ptr + step_row[:, None] + (c * stride_sc)[None, :], mask=inside, other=1.0)
        value = tl.div_rn(value, step)
    if means_ptr is not None:
        means_row = n * stride_mn + g * stride_mg + h * stride_mh + w * stride_mw
        value -= tl.load(means_ptr + means_row[:, None] + (c * stride_mc)[None, :], mask=inside, other=0.0)
    symbol = round_half_even(value)
    symbol = tl.where(symbol < -limit, -limit, symbol)
    symbol = tl.where(symbol > limit, limit, symbol)
    symbol = tl.where(symbol == symbol, symbol, 0.0)
    out = ((n * C)[:, None] + c[None, :]) * H * W + (h * W + w)[:, None]
    tl.store(out_ptr + out, symbol.to(tl.int32), mask=inside)


def _launch(y, means, step, part, limit, out):
    n, channels, height, width = out.shape
    if out.numel() == 0:
        return
    y, means, step = (grouped(value, groups_of(part)) for value in (y, means, step))
    pixels = n * height * width
    grid = (triton.cdiv(pixels, MAP_TILE["BLOCK_P"]) * triton.cdiv(channels, MAP_TILE["BLOCK_C"]),)
    with torch.cuda.device_of(y):
        _quantize_latent_fwd_kernel[grid](
            y, means, step, out,
            height, width, pixels, channels, float(limit),
            *strides_of(y), *strides_of(means), *strides_of(step),
            **cells_of(part), **MAP_TILE, enable_fp_fusion=False,
        )  # fmt: skip


def quantize_latent_plan(part, limit, dtype):
    """The op with its constants fixed: a callable ``(y, means=None, step=None, out=None)``; `out` is contiguous."""
    groups = groups_of(part)

    def run(y, means=None, step=None, out=None):
        if out is None:
            channels = y.shape[2] if y.dim() == 5 else y.shape[1] // groups
            out = torch.empty((y.shape[0], channels, *y.shape[-2:]), dtype=torch.int32, device=y.device)
        _launch(y, means, step, part, limit, out)
        return out

    return run


def quantize_latent(y, means=None, step=None, part="all", limit=30000):
    """The op on float32 tensors of any layout."""
    return quantize_latent_plan(part, limit, y.dtype)(y, means, step)
