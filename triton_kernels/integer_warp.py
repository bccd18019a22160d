"""`integer_warp`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._tile import FEW_CHANNELS_TILE, MAP_TILE


@triton.jit
def _neighbours(at, moved, SIZE):
    """The two samples around 2^16 at + moved on a side of SIZE pixels, and the second one's weight, 0 to 2^14."""
    position = at * 65536 + moved.to(tl.int64)
    last = tl.cast(SIZE - 1, tl.int64)
    position = tl.minimum(tl.maximum(position, 0), last * 65536)
    low = position >> 16
    weight = ((position & 65535) + 2) >> 2
    return low, tl.minimum(low + 1, last), weight.to(tl.int32)


@triton.jit
def _between(first, second, weight):
    return (first * (16384 - weight)[:, None] + second * weight[:, None] + 8192) >> 14


@triton.jit
def _integer_warp_fwd_kernel(
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
    left, right, across = _neighbours(w, tl.load(flow_row_ptr, mask=in_image, other=0), W)
    upper, lower, down = _neighbours(h, tl.load(flow_row_ptr + stride_fc, mask=in_image, other=0), H)
    upper = n * stride_xn + upper * stride_xh
    lower = n * stride_xn + lower * stride_xh
    left *= stride_xw
    right *= stride_xw

    # [BLOCK_C]
    c = (pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    column_ptr = x_ptr + c * stride_xc

    # [BLOCK_P, BLOCK_C]
    inside = in_image[:, None] & (c < C)[None, :]
    first = tl.load(column_ptr[None, :] + (upper + left)[:, None], mask=inside, other=0).to(tl.int32)
    second = tl.load(column_ptr[None, :] + (upper + right)[:, None], mask=inside, other=0).to(tl.int32)
    top = _between(first, second, across)
    first = tl.load(column_ptr[None, :] + (lower + left)[:, None], mask=inside, other=0).to(tl.int32)
    second = tl.load(column_ptr[None, :] + (lower + right)[:, None], mask=inside, other=0).to(tl.int32)
    y = _between(top, _between(first, second, across), down)
    out = (n * stride_on + h * stride_oh + w * stride_ow)[:, None] + (c * stride_oc)[None, :]
    tl.store(out_ptr + out, y.to(tl.int16), mask=inside)


def integer_warp_plan(dtype):
    """The op, which has no constants: a callable ``(x, flow, out=None)``."""

    def run(x, flow, out=None):
        out = torch.empty_like(x, memory_format=torch.channels_last) if out is None else out
        if x.numel() == 0:
            return out
        n, channels, height, width = x.shape
        tile = FEW_CHANNELS_TILE if channels <= FEW_CHANNELS_TILE["BLOCK_C"] else MAP_TILE
        pixels = n * height * width
        grid = (triton.cdiv(pixels, tile["BLOCK_P"]) * triton.cdiv(channels, tile["BLOCK_C"]),)
        with torch.cuda.device_of(x):
            _integer_warp_fwd_kernel[grid](
                x, flow, out, height, width, pixels, channels, *x.stride(), *flow.stride(), *out.stride(), **tile
            )
        return out

    return run


def integer_warp(x, flow):
    """The op on tensors of any layout."""
    return integer_warp_plan(x.dtype)(x, flow)
