"""`deform_conv2d`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._tile import PAD_K, PAD_N, multiply, narrow, packed_product, position

# Bytes per element -> launch options. Each position of a tile has addresses of its own for every channel, so the tiles
# are small; nothing has been timed on a GPU.
TILES = {
    2: {"BLOCK_P": 64, "BLOCK_N": 32, "BLOCK_K": 16, "num_warps": 8, "num_stages": 1, "enable_fp_fusion": False},
    4: {"BLOCK_P": 32, "BLOCK_N": 32, "BLOCK_K": 16, "num_warps": 8, "num_stages": 1, "enable_fp_fusion": False},
}


@triton.jit
def _below(position, SIZE, OUTSIDE: tl.constexpr):
    """The sample before a position, which is clamped, and the weight of the next one: NaN where the position is."""
    last = (SIZE - 1 + OUTSIDE) * 1.0
    position = tl.where(position < -OUTSIDE, -OUTSIDE * 1.0, position)
    position = tl.where(position > last, last, position)
    low = tl.floor(tl.where(position == position, position, 0.0)).to(tl.int32)
    return low, position - low.to(tl.float32)


@triton.jit
def _sample(image_ptr, row, column, weight, inside, H, W, stride_xh, stride_xw):
    """`weight` times the sample at integer positions, zero outside of the picture."""
    inside = inside & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    at = row.to(tl.int64) * stride_xh + column.to(tl.int64) * stride_xw
    return tl.load(image_ptr + at, mask=inside, other=0.0).to(tl.float32) * weight


@triton.jit
def _deform_conv2d_fwd_kernel(
    x_ptr, offset_ptr, mask_ptr, weight_ptr, bias_ptr, out_ptr,
    H, W, P, C_IN, C_OUT, GROUPED, K_PADS, N_PADS,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_fn, stride_fc, stride_fh, stride_fw,
    stride_mn, stride_mc, stride_mh, stride_mw,
    stride_on, stride_oc, stride_oh, stride_ow,
    KH: tl.constexpr, KW: tl.constexpr, OUTSIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*H*W positions, BLOCK_N of the C_OUT channels.

    GROUPED channels share their offsets; positions lie at most OUTSIDE pixels beyond the first and the last one.
    Weights are packed as ``[KH * KW, N_PADS * PAD_N, K_PADS * PAD_K]``.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    TAPS: tl.constexpr = KH * KW
    blocks = tl.cdiv(C_OUT, BLOCK_N)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    in_image = p < P
    n, h, w = position(p, H, W)
    offset_row = offset_ptr + n * stride_fn + h.to(tl.int64) * stride_fh + w.to(tl.int64) * stride_fw
    if mask_ptr is not None:
        mask_row = mask_ptr + n * stride_mn + h.to(tl.int64) * stride_mh + w.to(tl.int64) * stride_mw

    # [BLOCK_N]
    j = pid % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    # The sum starts at the bias: with products in ascending order, that pins every bit of a float32 result.
    bias = tl.load(bias_ptr + j, mask=j < C_OUT, other=0.0)
    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32) + bias[None, :]
    weight_row = j.to(tl.int64) * (K_PADS * PAD_K)
    steps = tl.cdiv(C_IN, BLOCK_K)
    for step in range(0, TAPS * steps):
        tap = step // steps
        # [BLOCK_K]
        k = step % steps * BLOCK_K + tl.arange(0, BLOCK_K)
        at = (k // GROUPED * TAPS + tap).to(tl.int64)
        # [BLOCK_P, BLOCK_K]
        inside = in_image[:, None] & (k < C_IN)[None, :]
        moved_ptr = offset_row[:, None] + (2 * at * stride_fc)[None, :]
        rows = (h + tap // KW - KH // 2).to(tl.float32)[:, None] + tl.load(moved_ptr, mask=inside, other=0.0)
        moved = tl.load(moved_ptr + stride_fc, mask=inside, other=0.0)
        columns = (w + tap % KW - KW // 2).to(tl.float32)[:, None] + moved
        upper, fy = _below(rows, H, OUTSIDE)
        left, fx = _below(columns, W, OUTSIDE)
        factor = 1.0
        if mask_ptr is not None:
            factor = tl.load(mask_row[:, None] + (at * stride_mc)[None, :], mask=inside, other=0.0)
        image_ptr = x_ptr + (n * stride_xn)[:, None] + (k.to(tl.int64) * stride_xc)[None, :]
        x = _sample(image_ptr, upper, left, (1 - fx) * (1 - fy) * factor, inside, H, W, stride_xh, stride_xw)
        x += _sample(image_ptr, upper, left + 1, fx * (1 - fy) * factor, inside, H, W, stride_xh, stride_xw)
        x += _sample(image_ptr, upper + 1, left, (1 - fx) * fy * factor, inside, H, W, stride_xh, stride_xw)
        x += _sample(image_ptr, upper + 1, left + 1, fx * fy * factor, inside, H, W, stride_xh, stride_xw)
        # [BLOCK_K, BLOCK_N]
        weight_tap = weight_ptr + tap.to(tl.int64) * N_PADS * K_PADS * (PAD_N * PAD_K)
        weight = tl.load(weight_tap + weight_row[None, :] + k[:, None])
        acc = multiply(narrow(x, DTYPE), weight, acc)

    # [BLOCK_P, BLOCK_N]
    out = (n * stride_on + h.to(tl.int64) * stride_oh + w.to(tl.int64) * stride_ow)[:, None]
    out = out + (j.to(tl.int64) * stride_oc)[None, :]
    tl.store(out_ptr + out, narrow(acc, DTYPE), mask=in_image[:, None] & (j < C_OUT)[None, :])


def deform_conv2d_plan(weight, bias, border, dtype):
    """The op with its constants packed: a callable ``(x, offset, mask=None, out=None)``."""
    c_out, c_in, kh, kw = weight.shape
    taps = weight.detach().permute(2, 3, 0, 1).reshape(kh * kw, c_out, c_in)
    weight, bias = packed_product(taps, bias, torch.arange(c_out).unsqueeze(0), dtype)

    def run(x, offset, mask=None, out=None):
        n, _, height, width = x.shape
        if out is None:
            shape = (n, c_out, height, width)
            out = torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)
        if out.numel() == 0:
            return out
        pixels, tile = n * height * width, TILES[dtype.itemsize]
        grid = (triton.cdiv(pixels, tile["BLOCK_P"]) * triton.cdiv(c_out, tile["BLOCK_N"]),)
        factors = (0, 0, 0, 0) if mask is None else mask.stride()
        with torch.cuda.device_of(x):
            _deform_conv2d_fwd_kernel[grid](
                x, offset, mask, weight, bias, out,
                height, width, pixels, c_in, c_out, c_in // (offset.shape[1] // (2 * kh * kw)),
                weight.shape[2] // PAD_K.value, weight.shape[1] // PAD_N.value,
                *x.stride(), *offset.stride(), *factors, *out.stride(), kh, kw, 0 if border else 1, **tile,
            )  # fmt: skip
        return out

    return run


def deform_conv2d(x, offset, weight, bias=None, mask=None, border=False):
    """The op on tensors of any layout."""
    return deform_conv2d_plan(weight, bias, border, x.dtype)(x, offset, mask)
