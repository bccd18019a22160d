"""`conv_transpose2d_act`: one kernel; where it has few output channels, that of `conv2d_act`."""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl

from sparsecodec._triton._autotune import choose
from sparsecodec._triton._epilogue import Destination, activate, column_rows, finish
from sparsecodec._triton._tile import DOT_TILES, PAD_K, PAD_N, multiply, packed_product, position, source
from sparsecodec._triton.conv2d_act import conv2d_act_plan

UNSPECIALISED = (
    "H", "W", "TO_H", "TO_W", "P", "C_IN", "C_OUT", "COLUMNS", "K_PADS", "N_PADS", "PADDING",
    "stride_xn", "stride_xh", "stride_xw",
    "stride_rn", "stride_rh", "stride_rw",
    "stride_on", "stride_oh", "stride_ow",
)  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALISED)
def _conv_transpose2d_act_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, column_ptr, residual_ptr, scale_ptr, out_ptr,
    H, W, TO_H, TO_W, P, C_IN, C_OUT, COLUMNS, K_PADS, N_PADS, PADDING, slope,
    stride_xn, stride_xh, stride_xw,
    stride_rn, stride_rh, stride_rw,
    stride_on, stride_oh, stride_ow,
    ACTIVATION: tl.constexpr, SHUFFLE: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr,
    VEC_IN: tl.constexpr, VEC_OUT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P positions of one phase of the output, BLOCK_N of the columns that `finish` writes.

    A phase is the rows and columns with equal remainders by STRIDE: the same taps reach all of its P positions, a dense
    convolution. Programs of all phases of the same positions, which read the same input, are neighbours. Weights are
    packed as ``[KH * KW, N_PADS * PAD_N, K_PADS * PAD_K]``. C_IN and the strides of x count in VEC_IN, those of
    `finish` in VEC_OUT.
    """
    blocks = tl.cdiv(COLUMNS * VEC_OUT, BLOCK_N)
    pid = tl.program_id(0)
    phase = pid // blocks % (STRIDE * STRIDE)
    phase_h = phase // STRIDE
    phase_w = phase % STRIDE

    # [BLOCK_P]
    p = pid // blocks // (STRIDE * STRIDE) * BLOCK_P + tl.arange(0, BLOCK_P)
    n, h, w = position(p, tl.cdiv(TO_H, STRIDE), tl.cdiv(TO_W, STRIDE))
    to_h = h * STRIDE + phase_h
    to_w = w * STRIDE + phase_w
    in_image = (p < P) & (to_h < TO_H) & (to_w < TO_W)
    x_image = n * stride_xn * VEC_IN
    # Input row h + (phase_h + PADDING) // STRIDE - t reaches the output through kernel row ky + STRIDE * t.
    ky = (phase_h + PADDING) % STRIDE
    kx = (phase_w + PADDING) % STRIDE
    taps_h = (KH - ky + STRIDE - 1) // STRIDE
    taps_w = (KW - kx + STRIDE - 1) // STRIDE
    from_h = h + (phase_h + PADDING) // STRIDE
    from_w = w + (phase_w + PADDING) // STRIDE

    # [BLOCK_N]
    j = pid % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    channels = C_IN * VEC_IN
    steps = tl.cdiv(channels, BLOCK_K)  # of one tap

    # The sum starts at the bias: with products in ascending order, that pins every bit of a float32 result.
    bias = tl.load(bias_ptr + j, mask=j < C_OUT * VEC_OUT, other=0.0)
    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32) + bias[None, :]
    weight_row = j.to(tl.int64) * (K_PADS * PAD_K)
    for step in range(0, taps_h * taps_w * steps):
        tap = step // steps
        tap_h = tap // taps_w
        tap_w = tap % taps_w
        # [BLOCK_K]
        k = step % steps * BLOCK_K + tl.arange(0, BLOCK_K)
        # [BLOCK_P]
        at_h = from_h - tap_h
        at_w = from_w - tap_w
        inside = in_image & (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W)
        row = x_image + (at_h.to(tl.int64) * stride_xh + at_w.to(tl.int64) * stride_xw) * VEC_IN
        # [BLOCK_P, BLOCK_K]
        x = tl.load(x_ptr + row[:, None] + k[None, :], mask=inside[:, None] & (k < channels)[None, :], other=0.0)
        # [BLOCK_K, BLOCK_N]
        tap = (ky + STRIDE * tap_h) * KW + kx + STRIDE * tap_w
        weight_tap = weight_ptr + tap.to(tl.int64) * N_PADS * K_PADS * (PAD_N * PAD_K)
        weight = tl.load(weight_tap + weight_row[None, :] + k[:, None])
        acc = multiply(x, weight, acc)

    finish(
        activate(acc, slope, ACTIVATION), j, in_image, n, to_h, to_w,
        column_ptr, residual_ptr, scale_ptr, out_ptr, C_OUT, COLUMNS,
        stride_rn, stride_rh, stride_rw, stride_on, stride_oh, stride_ow,
        SHUFFLE, VEC_OUT,
    )  # fmt: skip


def _reach(k: int, stride: int, padding: int) -> int:
    """The farthest input row, from row i, that adds to one of the output rows i * stride to (i + 1) * stride - 1."""
    rows = [(phase + padding - tap) // stride for phase in range(stride) for tap in range(k)
            if (phase + padding - tap) % stride == 0]  # fmt: skip
    return max(map(abs, rows), default=0)


def _as_convolution(weight, stride, padding):
    """``[C_out * stride^2, C_in, Kh, Kw]``: the weight of a convolution that a shuffle makes the same of.

    The rows are the phases of each channel; taps that do not reach a phase are zero.
    """
    c_in, c_out, kh, kw = weight.shape
    sizes = [2 * _reach(k, stride, padding) + 1 for k in (kh, kw)]
    result = weight.new_zeros(c_out, stride, stride, c_in, *sizes)
    for ky, kx, phase_h, phase_w in product(range(kh), range(kw), range(stride), range(stride)):
        (h, h_rest), (w, w_rest) = divmod(phase_h + padding - ky, stride), divmod(phase_w + padding - kx, stride)
        if h_rest == w_rest == 0:
            result[:, phase_h, phase_w, :, h + sizes[0] // 2, w + sizes[1] // 2] = weight[:, :, ky, kx].t()
    return result.flatten(0, 2)


def _pays_as_convolution(weight, stride, padding, output_padding, dtype) -> bool:
    """Whether all phases at once multiply less than one after the other: few columns leave most of a tile empty.

    float32 keeps its order of taps, and the output must be `stride` times as large as the input.
    """
    _, c_out, kh, kw = weight.shape
    if dtype == torch.float32 or stride == 1 or kh != kw or kh + output_padding != stride + 2 * padding:
        return False
    least = min(tile["BLOCK_N"] for tile in DOT_TILES[dtype.itemsize])
    phases, once = (triton.cdiv(columns, least) for columns in (c_out, c_out * stride**2))
    return (2 * _reach(kh, stride, padding) + 1) ** 2 * once < kh * kw * phases


def conv_transpose2d_act_plan(weight, bias, stride, padding, output_padding, activation, slope, pinned, dtype):
    """The op with its constants packed: a callable ``(x, out=None)``; `pinned` as for `conv2d_act_plan`."""
    weight = weight.detach()
    if _pays_as_convolution(weight, stride, padding, output_padding, dtype):
        phases = _as_convolution(weight, stride, padding)
        biases = None if bias is None else bias.repeat_interleave(stride**2)
        reach = phases.shape[2] // 2
        run = conv2d_act_plan(phases, biases, 1, reach, None, None, activation, slope, stride, pinned, dtype)
        return lambda x, out=None: run(x, out=out)
    return _phases_plan(weight, bias, stride, padding, output_padding, activation, slope, dtype)


def _phases_plan(weight, bias, stride, padding, output_padding, activation, slope, dtype):
    """The plan that launches the kernel above."""
    c_in, c_out, kh, kw = weight.shape
    taps = weight.permute(2, 3, 1, 0).reshape(kh * kw, c_out, c_in)
    weight, bias = packed_product(taps, bias, column_rows(c_out, 1), dtype)
    slope = float(slope)  # an int would be compiled into the kernel
    destination = Destination(c_out, None, 1, dtype)

    def run(x, out=None):
        n, _, height, width = x.shape
        to_h, to_w = ((size - 1) * stride - 2 * padding + k + output_padding for size, k in ((height, kh), (width, kw)))
        if out is None:
            out = destination.empty(n, to_h, to_w, None, x.device)
        if out.numel() == 0:
            return out
        pixels = n * triton.cdiv(to_h, stride) * triton.cdiv(to_w, stride)
        read = source(x, c_in)
        written = destination.arguments(None, None, None, out)

        def launch(tile, written=written):
            blocks = triton.cdiv(pixels, tile["BLOCK_P"]) * triton.cdiv(c_out, tile["BLOCK_N"])
            with torch.cuda.device_of(x):
                _conv_transpose2d_act_fwd_kernel[(blocks * stride**2,)](
                    x_ptr=x, weight_ptr=weight, bias_ptr=bias,
                    H=height, W=width, TO_H=to_h, TO_W=to_w, P=pixels,
                    K_PADS=weight.shape[2] // PAD_K.value, N_PADS=weight.shape[1] // PAD_N.value,
                    PADDING=padding, slope=slope, ACTIVATION=activation, KH=kh, KW=kw, STRIDE=stride,
                    **read, **written, **tile,
                )  # fmt: skip

        def trial():
            scratch = destination.arguments(None, None, None, torch.empty_like(out))
            return lambda tile: launch(tile, scratch)

        key = (str(dtype), c_in, c_out, kh, kw, stride, pixels.bit_length(), read["VEC_IN"], written["VEC_OUT"])
        launch(choose("conv_transpose2d_act", key, destination.tiles(read, written, None), x.device, trial))
        return out

    return run


def conv_transpose2d_act(
    x, weight, bias=None, stride=1, padding=0, output_padding=0, activation="none", slope=0.01, pinned=True
):  # fmt: skip
    """The op on a channels_last tensor."""
    plan = conv_transpose2d_act_plan(weight, bias, stride, padding, output_padding, activation, slope, pinned, x.dtype)
    return plan(x)
