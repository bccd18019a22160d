"""`integer_gdn`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._requantize import clip
from sparsecodec._triton._tile import position

DTYPES = {16: torch.int16, 32: torch.int32}  # of the result, by its bits
# 64-bit sums: four a thread.
TILE = {"BLOCK_P": 32, "BLOCK_C": 32, "num_warps": 8, "num_stages": 1}


@triton.jit
def _integer_gdn_fwd_kernel(
    x_ptr, beta_ptr, gamma_ptr, shift_ptr, out_ptr,
    H, W, P, C,
    stride_xn, stride_xh, stride_xw,
    stride_on, stride_oh, stride_ow,
    INVERSE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*H*W positions, BLOCK_C of the C channels, which lie next to each other.

    gamma is transposed: ``[C in, C out]``. A factor of 31 bits times one of 23 plus 64 bits is one instruction.
    """
    blocks = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    n, h, w = position(p, H, W)
    h = h.to(tl.int64)
    w = w.to(tl.int64)
    x_row = n * stride_xn + h * stride_xh + w * stride_xw

    # [BLOCK_C]
    c = pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    beta = tl.load(beta_ptr + c, mask=c < C, other=0)
    shift = tl.load(shift_ptr + c, mask=c < C, other=1).to(tl.int64)

    # [BLOCK_P, BLOCK_C]
    norm = tl.zeros((BLOCK_P, BLOCK_C), tl.int64) + beta[None, :]
    for j in range(C):
        square = tl.load(x_ptr + x_row + j, mask=p < P, other=0).to(tl.int32)
        square = square * square
        gamma = tl.load(gamma_ptr + j * C + c, mask=c < C, other=0)
        norm += square.to(tl.int64)[:, None] * gamma.to(tl.int64)[None, :]
    root = tl.sqrt(norm.to(tl.float64)).to(tl.int64)
    root -= (root * root > norm).to(tl.int64)
    root += ((root + 1) * (root + 1) <= norm).to(tl.int64)
    inside = (p < P)[:, None] & (c < C)[None, :]
    x = tl.load(x_ptr + x_row[:, None] + c[None, :], mask=inside, other=0).to(tl.int64)
    one = tl.full((1, 1), 1, tl.int64)
    if INVERSE:
        value = (x * root + ((one << shift[None, :]) >> 1)) >> shift[None, :]
    else:
        # Quotients of what is not negative: `//` rounds towards zero here and downwards in the interpreter.
        root = tl.maximum(root, 1)
        top = x * (one << (shift[None, :] + 1)) + root
        below = top < 0
        value = tl.where(below, 2 * root - 1 - top, top) // (2 * root)
        value = tl.where(below, -value, value)
    value = clip(clip(value, 31), out_ptr.dtype.element_ty.primitive_bitwidth).to(out_ptr.dtype.element_ty)
    out_at = (n * stride_on + h * stride_oh + w * stride_ow)[:, None] + c[None, :]
    tl.store(out_ptr + out_at, value, mask=inside)


def integer_gdn_plan(beta, gamma, shift, inverse, bits, dtype):
    """The op with its constants: a callable ``(x, out=None)``."""
    gamma = gamma.T.contiguous()

    def run(x, out=None):
        n, channels, height, width = x.shape
        if out is None:
            out = torch.empty(x.shape, dtype=DTYPES[bits], device=x.device, memory_format=torch.channels_last)
        if out.numel() == 0:
            return out
        pixels = n * height * width
        grid = (triton.cdiv(pixels, TILE["BLOCK_P"]) * triton.cdiv(channels, TILE["BLOCK_C"]),)
        with torch.cuda.device_of(x):
            _integer_gdn_fwd_kernel[grid](
                x, beta, gamma, shift, out, height, width, pixels, channels,
                x.stride(0), x.stride(2), x.stride(3), out.stride(0), out.stride(2), out.stride(3),
                INVERSE=bool(inverse), **TILE,
            )  # fmt: skip
        return out

    return run


def integer_gdn(x, beta, gamma, shift, inverse=False, bits=16):
    """The op on a channels_last tensor."""
    return integer_gdn_plan(beta, gamma, shift, inverse, bits, x.dtype)(x)
