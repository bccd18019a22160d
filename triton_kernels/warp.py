"""`warp`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._tile import FEW_CHANNELS_TILE, MAP_TILE, narrow


@triton.jit
def _neighbours(position, LAST):
    """The two samples around a position in 0 .. LAST, and the second one's weight: NaN where the position is."""
    position = tl.where(position < 0, 0.0, position)
    position = tl.where(position > LAST, LAST * 1.0, position)
    low = tl.where(position == position, position, 0.0).to(tl.int32)
    high = tl.minimum(low + 1, LAST)
    return low.to(tl.int64), high.to(tl.int64), position - low.to(tl.float32)


@triton.jit
def _warp_fwd_kernel(
    x_ptr, flow_ptr, out_ptr,
    H, W, P, C,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_fn, stride_fc, stride_fh, stride_fw,
    stride_on, stride_oc, stride_oh, stride_ow,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*H*W positions, BLOCK_C of the C channels."""
    blocks = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    in_image = p < P
    w = (p % W).to(tl.int64)
    h = (p // W % H).to(tl.int64)
    n = (p // W // H).to(tl.int64)
    flow_row_ptr = flow_ptr + n * stride_fn + h * stride_fh + w * stride_fw
    left, right, fx = _neighbours(w.to(tl.float32) + tl.load(flow_row_ptr, mask=in_image, other=0.0), W - 1)
    upper, lower, fy = _neighbours(
        h.to(tl.float32) + tl.load(flow_row_ptr + stride_fc, mask=in_image, other=0.0), H - 1
    )
    upper = n * stride_xn + upper * stride_xh
    lower = n * stride_xn + lower * stride_xh
    left *= stride_xw
    right *= stride_xw

    # [BLOCK_C]
    c = (pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    column_ptr = x_ptr + c * stride_xc

    # [BLOCK_P, BLOCK_C]
    inside = in_image[:, None] & (c < C)[None, :]
    value = tl.load(column_ptr[None, :] + (upper + left)[:, None], mask=inside, other=0.0).to(tl.float32)
    y = value * ((1 - fx) * (1 - fy))[:, None]
    value = tl.load(column_ptr[None, :] + (upper + right)[:, None], mask=inside, other=0.0).to(tl.float32)
    y += value * (fx * (1 - fy))[:, None]
    value = tl.load(column_ptr[None, :] + (lower + left)[:, None], mask=inside, other=0.0).to(tl.float32)
    y += value * ((1 - fx) * fy)[:, None]
    value = tl.load(column_ptr[None, :] + (lower + right)[:, None], mask=inside, other=0.0).to(tl.float32)
    y += value * (fx * fy)[:, None]
    out = (n * stride_on + h * stride_oh + w * stride_ow)[:, None] + (c * stride_oc)[None, :]
    tl.store(out_ptr + out, narrow(y, out_ptr.dtype.element_ty), mask=inside)


def _launch(x, flow, out):
    n, channels, height, width = x.shape
    if x.numel() == 0:
        return
    tile = FEW_CHANNELS_TILE if channels <= FEW_CHANNELS_TILE["BLOCK_C"] else MAP_TILE
    pixels = n * height * width
    grid = (triton.cdiv(pixels, tile["BLOCK_P"]) * triton.cdiv(channels, tile["BLOCK_C"]),)
    with torch.cuda.device_of(x):
        _warp_fwd_kernel[grid](
            x, flow, out,
            height, width, pixels, channels, *x.stride(), *flow.stride(), *out.stride(),
            **tile, enable_fp_fusion=False,
        )  # fmt: skip


def warp_plan(dtype):
    """The op, which has no constants: a callable ``(x, flow, out=None)``."""

    def run(x, flow, out=None):
        out = torch.empty_like(x, memory_format=torch.channels_last) if out is None else out
        _launch(x, flow, out)
        return out

    return run


def warp(x, flow):
    """The op on tensors of any layout."""
    return warp_plan(x.dtype)(x, flow)
