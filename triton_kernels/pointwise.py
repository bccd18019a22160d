"""`pointwise`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._tile import INTERPRETED, dot_tile, narrow


@triton.jit
def _pointwise_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, in_index_ptr, column_ptr, residual_ptr, out_ptr,
    H, W, P, C_IN, C_OUT, COLUMNS, slope,
    stride_xn, stride_xh, stride_xw,
    stride_rn, stride_rh, stride_rw,
    stride_on, stride_oh, stride_ow,
    ACTIVATION: tl.constexpr, SHUFFLE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*H*W pixels, BLOCK_N of the COLUMNS written channels.

    Written column j < C_OUT is a product; the others, with `column_ptr` only, copy the residual. `column_ptr` names the
    channel of each column. With a shuffle columns are ordered (position in the r x r cell, channel), so that neighbours
    lie next to each other in the output.
    """
    blocks = tl.cdiv(COLUMNS, BLOCK_N)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    in_image = p < P
    w = p % W
    h = p // W % H
    n = (p // W // H).to(tl.int64)
    x_row = n * stride_xn + h.to(tl.int64) * stride_xh + w.to(tl.int64) * stride_xw
    to_h = (h * SHUFFLE).to(tl.int64)
    to_w = (w * SHUFFLE).to(tl.int64)

    # [BLOCK_N]
    first = pid % blocks * BLOCK_N
    j = first + tl.arange(0, BLOCK_N)
    written = j < COLUMNS
    computed = j < C_OUT
    if SHUFFLE > 1:
        cell = j // (C_OUT // (SHUFFLE * SHUFFLE))
        channel = j % (C_OUT // (SHUFFLE * SHUFFLE))
        weight_row = channel * (SHUFFLE * SHUFFLE) + cell
        dh = (cell // SHUFFLE).to(tl.int64)
        dw = (cell % SHUFFLE).to(tl.int64)
    else:
        channel = j
        weight_row = j
        dh = tl.zeros((BLOCK_N,), tl.int64)
        dw = dh
    terms = C_IN
    if column_ptr is not None:
        channel = tl.load(column_ptr + j, mask=written, other=0)
        terms = tl.where(first < C_OUT, C_IN, 0)  # nothing to multiply where all columns are copies

    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    weight_row_ptr = weight_ptr + weight_row.to(tl.int64) * C_IN
    for start in range(0, terms, BLOCK_K):
        # [BLOCK_K]
        k = start + tl.arange(0, BLOCK_K)
        in_sum = k < C_IN
        source = k
        if in_index_ptr is not None:
            source = tl.load(in_index_ptr + k, mask=in_sum, other=0)
        # [BLOCK_P, BLOCK_K]
        x = tl.load(x_ptr + x_row[:, None] + source[None, :], mask=in_image[:, None] & in_sum[None, :], other=0.0)
        # [BLOCK_K, BLOCK_N]
        weight = tl.load(weight_row_ptr[None, :] + k[:, None], mask=in_sum[:, None] & computed[None, :], other=0.0)
        if INTERPRETED:
            x = x.to(tl.float32)
            weight = weight.to(tl.float32)
        acc = tl.dot(x, weight, acc, input_precision="ieee")

    # [BLOCK_P, BLOCK_N]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + weight_row, mask=computed, other=0.0)[None, :]
    if ACTIVATION == "relu":
        acc = tl.where(acc < 0, 0.0, acc)  # NaN stays NaN
    elif ACTIVATION == "leaky_relu":
        acc = tl.where(acc < 0, acc * slope, acc)
    elif ACTIVATION == "sigmoid_gate":
        acc = acc * tl.sigmoid(4 * acc)
    inside = in_image[:, None] & written[None, :]
    if residual_ptr is not None:
        if column_ptr is not None:
            acc = tl.where(computed[None, :], acc, 0.0)  # 0 * inf is NaN
        residual_row = n * stride_rn + to_h * stride_rh + to_w * stride_rw
        residual_column = dh * stride_rh + dw * stride_rw + channel
        residual = tl.load(residual_ptr + residual_row[:, None] + residual_column[None, :], mask=inside, other=0.0)
        acc += residual.to(tl.float32)
    out_row = n * stride_on + to_h * stride_oh + to_w * stride_ow
    out_column = dh * stride_oh + dw * stride_ow + channel
    tl.store(out_ptr + out_row[:, None] + out_column[None, :], narrow(acc, out_ptr.dtype.element_ty), mask=inside)


def _launch(x, weight, bias, in_index, columns, residual, out, activation, slope, shuffle):
    n, _, height, width = x.shape
    pixels = n * height * width
    n_columns = weight.shape[0] if columns is None else columns.shape[0]
    if pixels == 0 or n_columns == 0:
        return
    tile = dot_tile(x.dtype, n_columns)
    grid = (triton.cdiv(pixels, tile["BLOCK_P"]) * triton.cdiv(n_columns, tile["BLOCK_N"]),)
    strides = (0, 0, 0) if residual is None else (residual.stride(0), residual.stride(2), residual.stride(3))
    with torch.cuda.device_of(x):
        _pointwise_fwd_kernel[grid](
            x, weight, bias, in_index, columns, residual, out,
            height, width, pixels, weight.shape[1], weight.shape[0], n_columns, slope,
            x.stride(0), x.stride(2), x.stride(3), *strides, out.stride(0), out.stride(2), out.stride(3),
            ACTIVATION=activation, SHUFFLE=shuffle, **tile,
        )  # fmt: skip


def _columns(out_index, full):
    """``[full]`` int32: the channels of `out_index`, then all others, found without waiting for the device."""
    taken = torch.zeros(full, dtype=torch.int32, device=out_index.device)
    taken[out_index.long()] = 1
    others = torch.argsort(taken, stable=True)[: full - out_index.shape[0]]
    return torch.cat([out_index.int(), others.int()])


def pointwise_plan(weight, bias, in_index, out_index, activation, slope, shuffle, chunks, interleaved, dtype):
    """The op with its constants packed: a callable ``(x, residual=None, out=None)``; `out` may be `residual`."""
    weight = weight.detach().reshape(weight.shape[0], -1).to(dtype, copy=True).contiguous()
    bias = None if bias is None else bias.detach().to(torch.float32, copy=True).contiguous()
    in_index = None if in_index is None else in_index.to(torch.int32, copy=True).contiguous()
    out_index = None if out_index is None else out_index.to(torch.int32, copy=True).contiguous()
    columns = {}  # channels of the residual -> which are written, in the kernel's order

    def run(x, residual=None, scale=None, out=None):
        n, _, height, width = x.shape
        in_place = out is not None and residual is not None and out.data_ptr() == residual.data_ptr()
        written = None
        if out_index is not None:
            full = residual.shape[1]
            if full not in columns:
                columns[full] = _columns(out_index, full)
            written = out_index if in_place else columns[full]
        if out is None:
            channels = full if out_index is not None else weight.shape[0] // shuffle**2
            shape = (n, channels, height * shuffle, width * shuffle)
            out = torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)
        _launch(x, weight, bias, in_index, written, residual, out, activation, slope, shuffle)
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
    constants = (activation, slope, shuffle, chunks, interleaved)
    return pointwise_plan(weight, bias, in_index, out_index, *constants, x.dtype)(x, residual, scale)
