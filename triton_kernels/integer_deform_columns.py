"""`integer_deform_columns`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TAPS = tl.constexpr(9)
# Of one tap of one group; groups of FVC have 6 to 8 channels.
TILE = {"BLOCK_P": 64, "BLOCK_C": 8, "num_warps": 4, "num_stages": 1}


@triton.jit
def _below(at, moved, SIZE):
    """The sample before 2^16 at + moved, two before the first at least, and the next one's weight, 0 to 2^14."""
    low = tl.minimum(tl.maximum(at + (moved >> 16), -2), SIZE)
    return low, ((moved & 65535) + 2) >> 2


@triton.jit
def _between(first, second, weight):
    return (first * (16384 - weight)[:, None] + second * weight[:, None] + 8192) >> 14


@triton.jit
def _sample(channel_ptr, row, column, stride_h, stride_w, H, W, inside):
    """[BLOCK_P, BLOCK_C] int32; zeros outside the picture."""
    there = (row >= 0) & (row < H) & (column >= 0) & (column < W)
    at = row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w
    return tl.load(channel_ptr + at[:, None], mask=inside & there[:, None], other=0).to(tl.int32)


@triton.jit
def _integer_deform_columns_fwd_kernel(
    x_ptr, offset_ptr, mask_ptr, out_ptr,
    H, W, P, C, EACH,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_fn, stride_fc, stride_fh, stride_fw,
    stride_mn, stride_mc, stride_mh, stride_mw,
    stride_on, stride_oc, stride_oh, stride_ow,
    HAS_MASK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*H*W positions, one tap, BLOCK_C of the EACH channels of a group."""
    blocks = tl.cdiv(EACH, BLOCK_C)
    pid = tl.program_id(0)
    tap = pid % TAPS
    block = pid // TAPS % blocks
    groups = C // EACH
    group = pid // TAPS // blocks % groups
    place = (group * TAPS + tap).to(tl.int64)

    # [BLOCK_P]
    p = pid // TAPS // blocks // groups * BLOCK_P + tl.arange(0, BLOCK_P)
    in_image = p < P
    w = p % W
    h = p // W % H
    n = (p // W // H).to(tl.int64)
    moved_ptr = offset_ptr + n * stride_fn + h.to(tl.int64) * stride_fh + w.to(tl.int64) * stride_fw
    moved_ptr += 2 * place * stride_fc
    upper, down = _below(h + tap // 3 - 1, tl.load(moved_ptr, mask=in_image, other=0), H)
    left, across = _below(w + tap % 3 - 1, tl.load(moved_ptr + stride_fc, mask=in_image, other=0), W)

    # [BLOCK_C]
    i = block * BLOCK_C + tl.arange(0, BLOCK_C)
    c = (group * EACH + i).to(tl.int64)

    # [BLOCK_P, BLOCK_C]
    inside = in_image[:, None] & (i < EACH)[None, :]
    channel_ptr = x_ptr + (n * stride_xn)[:, None] + (c * stride_xc)[None, :]
    first = _sample(channel_ptr, upper, left, stride_xh, stride_xw, H, W, inside)
    second = _sample(channel_ptr, upper, left + 1, stride_xh, stride_xw, H, W, inside)
    top = _between(first, second, across)
    first = _sample(channel_ptr, upper + 1, left, stride_xh, stride_xw, H, W, inside)
    second = _sample(channel_ptr, upper + 1, left + 1, stride_xh, stride_xw, H, W, inside)
    y = _between(top, _between(first, second, across), down)
    if HAS_MASK:
        factor_ptr = mask_ptr + n * stride_mn + h.to(tl.int64) * stride_mh + w.to(tl.int64) * stride_mw
        factor = tl.load(factor_ptr + place * stride_mc, mask=in_image, other=0).to(tl.int32)
        y = (y * factor[:, None] + 8192) >> 14
    y = tl.minimum(tl.maximum(y, -32768), 32767)
    out = (n * stride_on + h.to(tl.int64) * stride_oh + w.to(tl.int64) * stride_ow)[:, None]
    out += ((tap * C + c) * stride_oc)[None, :]
    tl.store(out_ptr + out, y.to(tl.int16), mask=inside)


def integer_deform_columns_plan(dtype):
    """The op, which has no constants: a callable ``(x, offset, mask=None, out=None)``."""

    def run(x, offset, mask=None, out=None):
        n, channels, height, width = x.shape
        taps = TAPS.value
        if out is None:
            shape = (n, taps * channels, height, width)
            out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        if x.numel() == 0:
            return out
        groups = offset.shape[1] // (2 * taps)
        each, pixels = channels // groups, n * height * width
        blocks = triton.cdiv(each, TILE["BLOCK_C"])
        grid = (triton.cdiv(pixels, TILE["BLOCK_P"]) * taps * groups * blocks,)
        factors = x if mask is None else mask
        with torch.cuda.device_of(x):
            _integer_deform_columns_fwd_kernel[grid](
                x, offset, factors, out, height, width, pixels, channels, each,
                *x.stride(), *offset.stride(), *factors.stride(), *out.stride(),
                HAS_MASK=mask is not None, **TILE,
            )  # fmt: skip
        return out

    return run


def integer_deform_columns(x, offset, mask=None):
    """The op on tensors of any layout."""
    return integer_deform_columns_plan(x.dtype)(x, offset, mask)
