"""`conv2d_act`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._autotune import choose
from sparsecodec._triton._epilogue import Destination, activate, column_rows, finish
from sparsecodec._triton._tile import (
    PAD_K,
    PAD_N,
    multiply,
    packed_index,
    packed_product,
    position,
    source,
)

MERGED_BELOW = 16  # input channels: fewer than the least BLOCK_K would leave most of a tile of one tap empty
UNSPECIALISED = (
    "H", "W", "TO_H", "TO_W", "P", "C_IN", "C_OUT", "COLUMNS", "K_PADS", "N_PADS", "TAPS", "STRIDE", "PADDING",
    "stride_xn", "stride_xh", "stride_xw",
    "stride_rn", "stride_rh", "stride_rw",
    "stride_on", "stride_oh", "stride_ow",
)  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALISED)
def _conv2d_act_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, in_index_ptr, column_ptr, residual_ptr, scale_ptr, out_ptr,
    H, W, TO_H, TO_W, P, C_IN, C_OUT, COLUMNS, K_PADS, N_PADS, TAPS, STRIDE, PADDING, slope,
    stride_xn, stride_xh, stride_xw,
    stride_rn, stride_rh, stride_rw,
    stride_on, stride_oh, stride_ow,
    ACTIVATION: tl.constexpr, SHUFFLE: tl.constexpr, KW: tl.constexpr, MERGED: tl.constexpr,
    VEC_IN: tl.constexpr, VEC_OUT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*TO_H*TO_W positions, BLOCK_N of the columns that `finish` writes.

    Weights are packed as ``[TAPS, N_PADS * PAD_N, K_PADS * PAD_K]``, rows in the order of the columns. MERGED: as
    ``[N_PADS * PAD_N, K_PADS * PAD_K]``, K running over taps and channels. One loop runs over all steps of all taps, so
    that loads of the next tap overlap the products of this one. C_IN and the strides of x count in VEC_IN, those of
    `finish` in VEC_OUT.
    """
    blocks = tl.cdiv(COLUMNS * VEC_OUT, BLOCK_N)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    in_image = p < P
    n, h, w = position(p, TO_H, TO_W)
    x_image = n * stride_xn * VEC_IN
    from_h = h * STRIDE - PADDING
    from_w = w * STRIDE - PADDING

    # [BLOCK_N]
    first = pid % blocks * BLOCK_N
    j = first + tl.arange(0, BLOCK_N)
    channels = C_IN * VEC_IN
    steps = tl.cdiv(channels, BLOCK_K)  # of one tap
    total = TAPS * steps
    if MERGED:
        total = tl.cdiv(TAPS * channels, BLOCK_K)
    if column_ptr is not None:
        total = tl.where(first < C_OUT * VEC_OUT, total, 0)  # nothing to multiply where all columns are copies

    # The sum starts at the bias: with products in ascending order, that pins every bit of a float32 result.
    bias = tl.load(bias_ptr + j, mask=j < C_OUT * VEC_OUT, other=0.0)
    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32) + bias[None, :]
    weight_row = j.to(tl.int64) * (K_PADS * PAD_K)
    for step in range(0, total):
        if MERGED:
            # [BLOCK_K]
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            channel = k % channels
            tap = k // channels
            # [BLOCK_P, BLOCK_K]
            at_h = from_h[:, None] + (tap // KW)[None, :]
            at_w = from_w[:, None] + (tap % KW)[None, :]
            in_sum = tap < TAPS
            weight_tap = weight_ptr
        else:
            k = step % steps * BLOCK_K + tl.arange(0, BLOCK_K)
            channel = k
            tap = step // steps
            # [BLOCK_P, 1]
            at_h = (from_h + tap // KW)[:, None]
            at_w = (from_w + tap % KW)[:, None]
            in_sum = k < channels
            weight_tap = weight_ptr + tap.to(tl.int64) * N_PADS * K_PADS * (PAD_N * PAD_K)
        if in_index_ptr is not None:
            channel = tl.load(in_index_ptr + channel)
        # [BLOCK_P, BLOCK_K]
        inside = in_image[:, None] & (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W) & in_sum[None, :]
        row = x_image[:, None] + (at_h.to(tl.int64) * stride_xh + at_w.to(tl.int64) * stride_xw) * VEC_IN
        x = tl.load(x_ptr + row + channel[None, :], mask=inside, other=0.0)
        # [BLOCK_K, BLOCK_N]
        weight = tl.load(weight_tap + weight_row[None, :] + k[:, None])
        acc = multiply(x, weight, acc)

    finish(
        activate(acc, slope, ACTIVATION), j, in_image, n, h, w,
        column_ptr, residual_ptr, scale_ptr, out_ptr, C_OUT, COLUMNS,
        stride_rn, stride_rh, stride_rw, stride_on, stride_oh, stride_ow,
        SHUFFLE, VEC_OUT,
    )  # fmt: skip


def conv2d_act_plan(
    weight, bias, stride, padding, in_index, out_index, activation, slope, shuffle, pinned, dtype
):  # fmt: skip
    """The op with its constants packed: a callable ``(x, residual=None, out=None)``; `out` may be `residual`.

    `pinned` is for the CPU; the sums here have one order in any case.
    """
    c_out, c_in, kh, kw = weight.shape
    merged = c_in < MERGED_BELOW
    taps = weight.detach().permute(2, 3, 0, 1).reshape(kh * kw, c_out, c_in)
    if merged:
        taps = taps.permute(1, 0, 2).reshape(1, c_out, kh * kw * c_in)
    weight, bias = packed_product(taps, bias, column_rows(c_out, shuffle), dtype)
    in_index = packed_index(in_index)
    slope = float(slope)  # an int would be compiled into the kernel
    destination = Destination(c_out, out_index, shuffle, dtype)

    def run(x, residual=None, out=None):
        n, _, height, width = x.shape
        to_h, to_w = ((size + 2 * padding - k) // stride + 1 for size, k in ((height, kh), (width, kw)))
        order = destination.order(residual, None, out)
        if out is None:
            out = destination.empty(n, to_h, to_w, residual, x.device)
        if out.numel() == 0:
            return out
        pixels = n * to_h * to_w
        read = source(x, c_in)
        written = destination.arguments(order, residual, None, out)
        columns = written["COLUMNS"] * written["VEC_OUT"]

        def launch(tile, written=written):
            grid = (triton.cdiv(pixels, tile["BLOCK_P"]) * triton.cdiv(columns, tile["BLOCK_N"]),)
            with torch.cuda.device_of(x):
                _conv2d_act_fwd_kernel[grid](
                    x_ptr=x, weight_ptr=weight, bias_ptr=bias, in_index_ptr=in_index,
                    H=height, W=width, TO_H=to_h, TO_W=to_w, P=pixels,
                    K_PADS=weight.shape[2] // PAD_K.value, N_PADS=weight.shape[1] // PAD_N.value,
                    TAPS=kh * kw, STRIDE=stride, PADDING=padding, slope=slope,
                    ACTIVATION=activation, KW=kw, MERGED=merged, **read, **written, **tile,
                )  # fmt: skip

        def trial():
            scratch = destination.arguments(order, residual, None, torch.empty_like(out))  # `residual` may be `out`
            return lambda tile: launch(tile, scratch)

        sizes = (c_in, c_out, columns, kh, kw, stride, shuffle, pixels.bit_length())
        layout = (read["VEC_IN"], written["VEC_OUT"], in_index is None, order is None, residual is None)
        key = (str(dtype), *sizes, *layout)
        launch(choose("conv2d_act", key, destination.tiles(read, written, in_index), x.device, trial))
        return out

    return run


def conv2d_act(
    x,
    weight,
    bias=None,
    stride=1,
    padding=0,
    in_index=None,
    out_index=None,
    residual=None,
    activation="none",
    slope=0.01,
    shuffle=1,
    pinned=True,
):
    """The op on channels_last tensors."""
    options = (stride, padding, in_index, out_index, activation, slope, shuffle, pinned)
    return conv2d_act_plan(weight, bias, *options, x.dtype)(x, residual)
