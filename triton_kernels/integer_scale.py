"""`integer_scale`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._requantize import clip, requantized, shifted
from sparsecodec._triton._tile import MAP_TILE, position

DTYPES = {16: torch.int16, 32: torch.int32}  # of the result, by its bits
UNSPECIALISED = ("LEFT", "RIGHT")


@triton.jit(do_not_specialize=UNSPECIALISED)
def _integer_scale_fwd_kernel(
    x_ptr, multiplier_ptr, shift_ptr, residual_ptr, out_ptr,
    H, W, P, C, LEFT, RIGHT,
    stride_xn, stride_xh, stride_xw,
    stride_rn, stride_rh, stride_rw,
    stride_on, stride_oh, stride_ow,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*H*W positions, BLOCK_C of the C channels, which lie next to each other.

    The residual is multiplied by 2^LEFT / 2^RIGHT, one of them 1.
    """
    blocks = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    n, h, w = position(p, H, W)
    h = h.to(tl.int64)
    w = w.to(tl.int64)

    # [BLOCK_C]
    c = pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    above = tl.load(multiplier_ptr + c, mask=c < C, other=0)
    below = tl.load(multiplier_ptr + C + c, mask=c < C, other=0)
    shift = tl.load(shift_ptr + c, mask=c < C, other=1)

    # [BLOCK_P, BLOCK_C]
    inside = (p < P)[:, None] & (c < C)[None, :]
    x_at = (n * stride_xn + h * stride_xh + w * stride_xw)[:, None] + c[None, :]
    x = tl.load(x_ptr + x_at, mask=inside, other=0).to(tl.int32)
    value = requantized(x, above[None, :], below[None, :], shift[None, :])
    if residual_ptr is not None:
        residual_at = (n * stride_rn + h * stride_rh + w * stride_rw)[:, None] + c[None, :]
        value += shifted(tl.load(residual_ptr + residual_at, mask=inside, other=0), LEFT, RIGHT)
    value = clip(value, out_ptr.dtype.element_ty.primitive_bitwidth).to(out_ptr.dtype.element_ty)
    out_at = (n * stride_on + h * stride_oh + w * stride_ow)[:, None] + c[None, :]
    tl.store(out_ptr + out_at, value, mask=inside)


def _rows(image):
    """Strides of images, rows and columns; channels lie next to each other."""
    return (0, 0, 0) if image is None else (image.stride(0), image.stride(2), image.stride(3))


def integer_scale_plan(shift, residual_shift, bits, dtype):
    """The op with its constants: a callable ``(x, multiplier, residual=None, out=None)``."""
    left, right = max(residual_shift, 0), max(-residual_shift, 0)

    def run(x, multiplier, residual=None, out=None):
        n, channels, height, width = x.shape
        if out is None:
            out = torch.empty(x.shape, dtype=DTYPES[bits], device=x.device, memory_format=torch.channels_last)
        if out.numel() == 0:
            return out
        pixels = n * height * width
        grid = (triton.cdiv(pixels, MAP_TILE["BLOCK_P"]) * triton.cdiv(channels, MAP_TILE["BLOCK_C"]),)
        with torch.cuda.device_of(x):
            _integer_scale_fwd_kernel[grid](
                x, multiplier, shift, residual, out, height, width, pixels, channels, left, right,
                *_rows(x), *_rows(residual), *_rows(out), **MAP_TILE,
            )  # fmt: skip
        return out

    return run


def integer_scale(x, multiplier, shift, residual=None, residual_shift=0, bits=16):
    """The op on channels_last tensors."""
    return integer_scale_plan(shift, residual_shift, bits, x.dtype)(x, multiplier, residual)
