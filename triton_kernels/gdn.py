"""`gdn`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._autotune import choose
from sparsecodec._triton._tile import (
    INTERPRETED,
    PAD_K,
    dot_tiles,
    multiply,
    narrow,
    offset,
    packed_product,
    position,
    source,
    vector,
)

UNSPECIALISED = (
    "H", "W", "P", "C_IN", "K_PADS",
    "stride_xn", "stride_xh", "stride_xw",
    "stride_on", "stride_oh", "stride_ow",
)  # fmt: skip


@triton.jit
def _round_tf32(value):
    """float32 `value` with 10 bits of mantissa; tensor cores would cut the others off."""
    return ((value.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=UNSPECIALISED)
def _gdn_fwd_kernel(
    x_ptr, gamma_ptr, beta_ptr, out_ptr,
    H, W, P, C_IN, K_PADS,
    stride_xn, stride_xh, stride_xw,
    stride_on, stride_oh, stride_ow,
    INVERSE: tl.constexpr, VEC_IN: tl.constexpr, VEC_OUT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*H*W pixels, BLOCK_N of the C_IN channels.

    Squares of float16 leave its range above 255, so they are multiplied as tf32, which has as many digits and the range
    of float32. gamma is packed as ``[N, K_PADS * PAD_K]``. C_IN and the strides of x count in VEC_IN, the
    strides of the output in VEC_OUT.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    channels = C_IN * VEC_IN
    blocks = tl.cdiv(channels, BLOCK_N)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    in_image = p < P
    n, h, w = position(p, H, W)
    x_row = (n * stride_xn + h.to(tl.int64) * stride_xh + w.to(tl.int64) * stride_xw) * VEC_IN
    out_row = (n * stride_on + h.to(tl.int64) * stride_oh + w.to(tl.int64) * stride_ow) * VEC_OUT

    # [BLOCK_N]
    j = pid % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    # The sum starts at beta: with products in ascending order, that pins every bit of a float32 result.
    beta = tl.load(beta_ptr + j, mask=j < channels, other=1.0)
    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32) + beta[None, :]
    gamma_row = j.to(tl.int64) * (K_PADS * PAD_K)
    for start in range(0, channels, BLOCK_K):
        # [BLOCK_K]
        k = start + tl.arange(0, BLOCK_K)
        # [BLOCK_P, BLOCK_K]
        inside = in_image[:, None] & (k < channels)[None, :]
        square = tl.load(x_ptr + x_row[:, None] + k[None, :], mask=inside, other=0.0).to(tl.float32)
        square = square * square
        # [BLOCK_K, BLOCK_N]
        gamma = tl.load(gamma_ptr + gamma_row[None, :] + k[:, None])
        if DTYPE == tl.float16:
            square = _round_tf32(square)
            acc = tl.dot(square, gamma, acc, input_precision="ieee" if INTERPRETED else "tf32")
        else:
            acc = multiply(narrow(square, DTYPE), gamma, acc)

    # [BLOCK_P, BLOCK_N]
    inside = in_image[:, None] & (j < channels)[None, :]
    x = tl.load(x_ptr + x_row[:, None] + j[None, :], mask=inside, other=0.0).to(tl.float32)
    norm = tl.sqrt_rn(acc)
    if INVERSE:
        value = x * norm
    else:
        value = tl.div_rn(x, norm)
    tl.store(out_ptr + out_row[:, None] + j[None, :], narrow(value, DTYPE), mask=inside)


def gdn_plan(beta, gamma, inverse, dtype):
    """The op with its constants packed: a callable ``(x, out=None)``; `out` is not `x`."""
    channels = beta.shape[0]
    factors = torch.float32 if dtype == torch.float16 else dtype
    gamma, beta = packed_product(gamma.unsqueeze(0), beta, torch.arange(channels).unsqueeze(0), factors)
    if dtype == torch.float16:
        gamma = ((gamma.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)  # as `_round_tf32`

    def run(x, out=None):
        n, _, height, width = x.shape
        if out is None:
            out = torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)
        if out.numel() == 0:
            return out
        pixels = n * height * width
        read = source(x, channels)

        def launch(tile, out=out):
            strides = (channels, out.stride(0), out.stride(2), out.stride(3))
            unit = vector(offset(out), *strides)
            grid = (triton.cdiv(pixels, tile["BLOCK_P"]) * triton.cdiv(channels, tile["BLOCK_N"]),)
            with torch.cuda.device_of(x):
                _gdn_fwd_kernel[grid](
                    x_ptr=x, gamma_ptr=gamma, beta_ptr=beta, out_ptr=out,
                    H=height, W=width, P=pixels, K_PADS=gamma.shape[2] // PAD_K.value,
                    stride_on=strides[1] // unit, stride_oh=strides[2] // unit, stride_ow=strides[3] // unit,
                    INVERSE=bool(inverse), VEC_OUT=unit, **read, **tile,
                )  # fmt: skip

        def trial():
            scratch = torch.empty_like(out)
            return lambda tile: launch(tile, scratch)

        key = (str(dtype), channels, inverse, pixels.bit_length(), read["VEC_IN"])
        tiles = dot_tiles(dtype.itemsize, channels, read["VEC_IN"] > 1)
        if dtype == torch.float16:  # whose factors are twice as long
            tiles = tuple(tile | {"BLOCK_K": 32} for tile in tiles)
        launch(choose("gdn", key, tiles, x.device, trial))
        return out

    return run


def gdn(x, beta, gamma, inverse=False):
    """The op on a channels_last tensor."""
    return gdn_plan(beta, gamma, inverse, x.dtype)(x)
