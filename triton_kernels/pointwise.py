"""`pointwise`: one kernel, one launcher."""

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

UNSPECIALISED = (
    "H", "W", "P", "C_IN", "C_OUT", "COLUMNS", "K_PADS", "N_PADS",
    "stride_xn", "stride_xh", "stride_xw",
    "stride_rn", "stride_rh", "stride_rw",
    "stride_on", "stride_oh", "stride_ow",
)  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALISED)
def _pointwise_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, in_index_ptr, column_ptr, residual_ptr, scale_ptr, out_ptr,
    H, W, P, C_IN, C_OUT, COLUMNS, K_PADS, N_PADS, slope, slope_rest,
    stride_xn, stride_xh, stride_xw,
    stride_rn, stride_rh, stride_rw,
    stride_on, stride_oh, stride_ow,
    ACTIVATION: tl.constexpr, SHUFFLE: tl.constexpr, CHUNKS: tl.constexpr,
    VEC_IN: tl.constexpr, VEC_OUT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*H*W pixels, BLOCK_N of the columns that `finish` writes.

    Weights and biases are packed as ``[CHUNKS, N_PADS * PAD_N, K_PADS * PAD_K]``, rows in the order of the columns.
    C_IN and the strides of x count in VEC_IN, those of `finish` in VEC_OUT.
    """
    blocks = tl.cdiv(COLUMNS * VEC_OUT, BLOCK_N)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    in_image = p < P
    n, h, w = position(p, H, W)
    x_row = (n * stride_xn + h.to(tl.int64) * stride_xh + w.to(tl.int64) * stride_xw) * VEC_IN

    # [BLOCK_N]
    first = pid % blocks * BLOCK_N
    j = first + tl.arange(0, BLOCK_N)
    terms = C_IN * VEC_IN
    if column_ptr is not None:
        terms = tl.where(first < C_OUT * VEC_OUT, terms, 0)  # nothing to multiply where all columns are copies

    total = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for chunk in range(CHUNKS):
        row = chunk * N_PADS * PAD_N + j
        weight_row = row.to(tl.int64) * (K_PADS * PAD_K)
        # The sum starts at the bias: with products in ascending order, that pins every bit of a float32 result.
        bias = tl.load(bias_ptr + row, mask=j < C_OUT * VEC_OUT, other=0.0)
        acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32) + bias[None, :]
        for start in range(0, terms, BLOCK_K):
            # [BLOCK_K]
            k = start + tl.arange(0, BLOCK_K)
            channel = k
            if in_index_ptr is not None:
                channel = tl.load(in_index_ptr + k)
            # [BLOCK_P, BLOCK_K]
            inside = in_image[:, None] & (k < C_IN * VEC_IN)[None, :]
            x = tl.load(x_ptr + x_row[:, None] + channel[None, :], mask=inside, other=0.0)
            # [BLOCK_K, BLOCK_N]
            weight = tl.load(weight_ptr + weight_row[None, :] + k[:, None])
            acc = multiply(x, weight, acc)
        here = slope
        if slope_rest is not None:
            here = tl.where(chunk == 0, slope, slope_rest)
        total += activate(acc, here, ACTIVATION)

    finish(
        total, j, in_image, n, h, w,
        column_ptr, residual_ptr, scale_ptr, out_ptr, C_OUT, COLUMNS,
        stride_rn, stride_rh, stride_rw, stride_on, stride_oh, stride_ow,
        SHUFFLE, VEC_OUT,
    )  # fmt: skip


def pointwise_plan(weight, bias, in_index, out_index, activation, slope, shuffle, chunks, interleaved, dtype):
    """The op with its constants packed: a callable ``(x, residual=None, scale=None, out=None)``.

    `out` may be `residual`. Two values of `slope`: the second is that of the chunks behind the first one, if not None.
    """
    c_out, c_in = weight.shape[:2]
    rows = column_rows(c_out, shuffle, chunks, interleaved)
    weight, bias = packed_product(weight.reshape(1, c_out, c_in), bias, rows, dtype)
    in_index = packed_index(in_index)
    slope, slope_rest = slope if isinstance(slope, tuple) else (slope, None)
    slope = float(slope)  # an int would be compiled into the kernel
    destination = Destination(c_out // chunks, out_index, shuffle, dtype)

    def run(x, residual=None, scale=None, out=None):
        n, _, height, width = x.shape
        order = destination.order(residual, scale, out)
        if out is None:
            out = destination.empty(n, height, width, residual, x.device)
        if out.numel() == 0:
            return out
        pixels = n * height * width
        read = source(x, c_in)
        written = destination.arguments(order, residual, scale, out)
        columns = written["COLUMNS"] * written["VEC_OUT"]

        def launch(tile, written=written):
            grid = (triton.cdiv(pixels, tile["BLOCK_P"]) * triton.cdiv(columns, tile["BLOCK_N"]),)
            with torch.cuda.device_of(x):
                _pointwise_fwd_kernel[grid](
                    x_ptr=x, weight_ptr=weight, bias_ptr=bias, in_index_ptr=in_index,
                    H=height, W=width, P=pixels,
                    K_PADS=weight.shape[2] // PAD_K.value, N_PADS=weight.shape[1] // PAD_N.value,
                    slope=slope, slope_rest=slope_rest, ACTIVATION=activation, CHUNKS=chunks, **read, **written, **tile,
                )  # fmt: skip

        def trial():
            scratch = destination.arguments(order, residual, scale, torch.empty_like(out))  # `residual` may be `out`
            return lambda tile: launch(tile, scratch)

        sizes = (c_in, c_out, columns, chunks, shuffle, pixels.bit_length())
        layout = (read["VEC_IN"], written["VEC_OUT"], in_index is None, order is None, residual is None)
        key = (str(dtype), *sizes, *layout)
        launch(choose("pointwise", key, destination.tiles(read, written, in_index), x.device, trial))
        return out

    return run


def pointwise(
    x,
    weight,
    bias=None,
    in_index=None,
    out_index=None,
    residual=None,
    scale=None,
    activation="none",
    slope=0.01,
    shuffle=1,
    chunks=1,
    interleaved=False,
):
    """The op on channels_last tensors."""
    plan = pointwise_plan(weight, bias, in_index, out_index, activation, slope, shuffle, chunks, interleaved, x.dtype)
    return plan(x, residual, scale)
