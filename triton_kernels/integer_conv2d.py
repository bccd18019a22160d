"""`integer_conv2d`: a kernel for products, one for depthwise convolutions, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._autotune import choose
from sparsecodec._triton._epilogue import Destination, cell_of, column_rows
from sparsecodec._triton._requantize import clip, requantized, shifted
from sparsecodec._triton._tile import MAP_TILE, PAD_K, PAD_N, integer_tiles, padded, position, source

DTYPES = {16: torch.int16, 32: torch.int32}  # of the result, by its bits
UNUSED = ("column_ptr", "scale_ptr", "COLUMNS")  # of what `Destination` names
UNSPECIALISED = (
    "H", "W", "TO_H", "TO_W", "P", "C_IN", "C_OUT", "N_PADS", "K_PADS", "TAPS", "PADDING", "LEFT", "RIGHT",
    "INPUT_LEFT", "INPUT_RIGHT", "LOW",
    "stride_xn", "stride_xh", "stride_xw",
    "stride_rn", "stride_rh", "stride_rw",
    "stride_on", "stride_oh", "stride_ow",
)  # fmt: skip


@triton.jit
def _narrow(x, INPUT_LEFT, INPUT_RIGHT, LOW):
    """int16 x 2^INPUT_LEFT / 2^INPUT_RIGHT, one of them 1, halves upwards, clipped to ``[LOW, LOW + 255]``: int32."""
    q = ((x.to(tl.int32) << INPUT_LEFT) + ((1 << INPUT_RIGHT) >> 1)) >> INPUT_RIGHT
    return tl.minimum(tl.maximum(q, LOW), LOW + 255)


@triton.jit
def _finish(
    acc, j, in_image, n, h, w,
    channel_ptr, residual_ptr, out_ptr, C_OUT, N_PADS, LEFT, RIGHT,
    stride_rn, stride_rh, stride_rw,
    stride_on, stride_oh, stride_ow,
    SHUFFLE: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Requantises the sums ``[P, N]`` int32 of columns j at (n, h, w), adds the residual, and stores.

    `channel_ptr` holds ``[4, N_PADS * PAD_N]`` int32: bias, factors of sums from 0 and below 0, shift. The residual is
    multiplied by 2^LEFT / 2^RIGHT, one of them 1. Columns are ordered as in `_epilogue.finish`.
    """
    # [N]
    columns = N_PADS * PAD_N
    written = j < C_OUT * VEC
    above = tl.load(channel_ptr + columns + j)[None, :]
    below = tl.load(channel_ptr + columns * 2 + j)[None, :]
    shift = tl.load(channel_ptr + columns * 3 + j)[None, :]
    column_r = j
    column_o = j
    if SHUFFLE > 1:
        dh, dw, channel = cell_of(j, C_OUT, SHUFFLE, VEC)
        column_r = (dh * stride_rh + dw * stride_rw) * VEC + channel
        column_o = (dh * stride_oh + dw * stride_ow) * VEC + channel
    # [P]
    to_h = (h * SHUFFLE).to(tl.int64)
    to_w = (w * SHUFFLE).to(tl.int64)
    # [P, N]
    inside = in_image[:, None] & written[None, :]
    value = requantized(acc, above, below, shift)
    if residual_ptr is not None:
        row = (n * stride_rn + to_h * stride_rh + to_w * stride_rw) * VEC
        residual = tl.load(residual_ptr + row[:, None] + column_r[None, :], mask=inside, other=0)
        value += shifted(residual, LEFT, RIGHT)
    row = (n * stride_on + to_h * stride_oh + to_w * stride_ow) * VEC
    value = clip(value, out_ptr.dtype.element_ty.primitive_bitwidth).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] + column_o[None, :], value, mask=inside)


@triton.jit(do_not_specialize=UNSPECIALISED)
def _integer_conv2d_fwd_kernel(
    x_ptr, weight_ptr, channel_ptr, residual_ptr, out_ptr,
    H, W, TO_H, TO_W, P, C_IN, C_OUT, N_PADS, K_PADS, TAPS, PADDING, LEFT, RIGHT,
    INPUT_LEFT, INPUT_RIGHT, LOW,
    stride_xn, stride_xh, stride_xw,
    stride_rn, stride_rh, stride_rw,
    stride_on, stride_oh, stride_ow,
    NARROW: tl.constexpr, WIDE: tl.constexpr, SHUFFLE: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr,
    VEC_IN: tl.constexpr, VEC_OUT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*TO_H*TO_W positions, BLOCK_N of the columns that `_finish` writes.

    Tensor cores multiply bytes: ``x = 256 x_high + x_low + 128`` with both in int8, and 128 times the sum of a column's
    weights is in its bias. Zeros of the padding are split like all others, so that every tap counts. WIDE: so is
    ``w = 256 w_high + w_low + 128``; what 128 times the sum of x adds depends on the position, padding adds none.
    NARROW: x is first narrowed to 8 bits, and unless WIDE only ``q - LOW - 128`` is multiplied; the bias holds what is
    missing.

    Weights are packed as int8 ``[1 + WIDE, TAPS, N_PADS * PAD_N, K_PADS * PAD_K]``, low bytes first. C_IN and the
    strides of x count in VEC_IN, those of `_finish` in VEC_OUT. A sum of parts may leave int32 and come back.
    """
    blocks = tl.cdiv(C_OUT * VEC_OUT, BLOCK_N)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    in_image = p < P
    n, h, w = position(p, TO_H, TO_W)
    x_image = n * stride_xn * VEC_IN
    x_sum = tl.zeros((BLOCK_P,), tl.int32)

    # [BLOCK_N]
    j = pid % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    bias = tl.load(channel_ptr + j)
    weight_row = j.to(tl.int64) * (K_PADS * PAD_K)
    plane = tl.zeros((), tl.int64) + N_PADS * K_PADS * (PAD_N * PAD_K)  # one tap

    # [BLOCK_P, BLOCK_N], in units of 1, 2^8 and 2^16
    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.int32) + bias[None, :]
    acc_8 = tl.zeros((BLOCK_P, BLOCK_N), tl.int32)
    acc_16 = tl.zeros((BLOCK_P, BLOCK_N), tl.int32)
    channels = C_IN * VEC_IN
    steps = tl.cdiv(channels, BLOCK_K)  # of one tap
    for step in range(0, TAPS * steps):
        tap = step // steps
        # [BLOCK_K]
        k = step % steps * BLOCK_K + tl.arange(0, BLOCK_K)
        # [BLOCK_P]
        at_h = h * STRIDE + (tap // KW - PADDING)
        at_w = w * STRIDE + (tap % KW - PADDING)
        inside = in_image & (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W)
        row = x_image + (at_h.to(tl.int64) * stride_xh + at_w.to(tl.int64) * stride_xw) * VEC_IN
        # [BLOCK_P, BLOCK_K]
        x = tl.load(x_ptr + row[:, None] + k[None, :], mask=inside[:, None] & (k < channels)[None, :], other=0)
        if NARROW:
            x = _narrow(x, INPUT_LEFT, INPUT_RIGHT, LOW)
        # [BLOCK_K, BLOCK_N]
        weight_at = tap * plane + weight_row[None, :] + k[:, None]
        weight = tl.load(weight_ptr + weight_at)
        if NARROW and not WIDE:
            acc = tl.dot((x - (LOW + 128)).to(tl.int8), weight, acc, out_dtype=tl.int32)
        else:
            x_high = (x >> 8).to(tl.int8)
            x_low = (x ^ 128).to(tl.int8)  # the lower byte, less 128
            acc = tl.dot(x_low, weight, acc, out_dtype=tl.int32)
            acc_8 = tl.dot(x_high, weight, acc_8, out_dtype=tl.int32)
        if WIDE:
            x_sum += tl.sum(x.to(tl.int32), axis=1)
            weight = tl.load(weight_ptr + TAPS * plane + weight_at)
            acc_8 = tl.dot(x_low, weight, acc_8, out_dtype=tl.int32)
            acc_16 = tl.dot(x_high, weight, acc_16, out_dtype=tl.int32)
    acc += acc_8 << 8
    if WIDE:
        acc += (acc_16 << 16) + (x_sum << 7)[:, None]

    _finish(
        acc, j, in_image, n, h, w,
        channel_ptr, residual_ptr, out_ptr, C_OUT, N_PADS, LEFT, RIGHT,
        stride_rn, stride_rh, stride_rw, stride_on, stride_oh, stride_ow,
        SHUFFLE, VEC_OUT,
    )  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALISED)
def _integer_conv2d_depthwise_fwd_kernel(
    x_ptr, weight_ptr, channel_ptr, residual_ptr, out_ptr,
    H, W, TO_H, TO_W, P, C_IN, C_OUT, N_PADS, TAPS, PADDING, LEFT, RIGHT,
    INPUT_LEFT, INPUT_RIGHT, LOW,
    stride_xn, stride_xh, stride_xw,
    stride_rn, stride_rh, stride_rw,
    stride_on, stride_oh, stride_ow,
    NARROW: tl.constexpr, SHUFFLE: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr,
    VEC_IN: tl.constexpr, VEC_OUT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*TO_H*TO_W positions, BLOCK_C of the columns; weights ``[TAPS, N_PADS*PAD_N]``.

    C_IN and the strides of x count in VEC_IN, those of `_finish` in VEC_OUT.
    """
    blocks = tl.cdiv(C_OUT * VEC_OUT, BLOCK_C)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    in_image = p < P
    n, h, w = position(p, TO_H, TO_W)
    x_image = n * stride_xn * VEC_IN

    # [BLOCK_C]
    j = pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    written = j < C_IN * VEC_IN
    channel = j
    if SHUFFLE > 1:
        dh, dw, to_channel = cell_of(j, C_OUT, SHUFFLE, VEC_OUT)
        channel = (to_channel * SHUFFLE + dh) * SHUFFLE + dw

    # [BLOCK_P, BLOCK_C]
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.int32) + tl.load(channel_ptr + j)[None, :]
    for tap in range(0, TAPS):
        at_h = h * STRIDE + (tap // KW - PADDING)
        at_w = w * STRIDE + (tap % KW - PADDING)
        inside = in_image & (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W)
        row = x_image + (at_h.to(tl.int64) * stride_xh + at_w.to(tl.int64) * stride_xw) * VEC_IN
        x = tl.load(x_ptr + row[:, None] + channel[None, :], mask=inside[:, None] & written[None, :], other=0)
        if NARROW:
            x = _narrow(x, INPUT_LEFT, INPUT_RIGHT, LOW)
        acc += x.to(tl.int32) * tl.load(weight_ptr + tap * (N_PADS * PAD_N) + j).to(tl.int32)[None, :]

    _finish(
        acc, j, in_image, n, h, w,
        channel_ptr, residual_ptr, out_ptr, C_OUT, N_PADS, LEFT, RIGHT,
        stride_rn, stride_rh, stride_rw, stride_on, stride_oh, stride_ow,
        SHUFFLE, VEC_OUT,
    )  # fmt: skip


def _bytes(weight: torch.Tensor) -> torch.Tensor:
    """``[...]`` -> ``[planes, ...]``: one plane of int8, or of int16 the lower bytes less 128, then the upper ones."""
    weight = weight.int()
    return torch.stack([(weight & 255) - 128, weight >> 8])


def integer_conv2d_plan(
    weight, bias, multiplier, shift, residual_shift, padding, stride, groups, bits, shuffle, input_shift, input_low,
    dtype,
):  # fmt: skip
    """The op with its constants packed: a callable ``(x, residual=None, out=None)``; `out` may be `residual`."""
    c_out, _, kh, kw = weight.shape
    wide = weight.dtype == torch.int16
    depthwise = groups > 1
    c_in = groups if depthwise else weight.shape[1]
    rows = column_rows(c_out, shuffle)[0].to(weight.device)
    taps = weight.detach().permute(2, 3, 0, 1).flatten(0, 1)[:, rows]
    bias = bias.long()[rows]
    narrow = input_low is not None
    sizes = {"TAPS": kh * kw, "KW": kw, "PADDING": padding, "STRIDE": stride, "NARROW": narrow}
    sizes |= {"LOW": input_low or 0, "INPUT_LEFT": max(-input_shift, 0), "INPUT_RIGHT": max(input_shift, 0)}
    if depthwise:
        weight = padded(taps[..., 0], weight.dtype, PAD_N.value)
    else:
        less = input_low + 128 if narrow and not wide else 128  # than the bytes' sum
        bias += less * (taps.long() - 128 * wide).sum((0, 2))
        weight = padded(_bytes(taps) if wide else taps[None], torch.int8, PAD_N.value, PAD_K.value)
        sizes |= {"WIDE": wide, "K_PADS": weight.shape[3] // PAD_K.value}
    per_channel = torch.stack([bias, *multiplier.long()[:, rows], shift.long()[rows]])
    per_channel = padded(per_channel, torch.int32, PAD_N.value)
    sizes |= {"N_PADS": per_channel.shape[1] // PAD_N.value}
    sizes |= {"LEFT": max(residual_shift, 0), "RIGHT": max(-residual_shift, 0)}
    kernel = _integer_conv2d_depthwise_fwd_kernel if depthwise else _integer_conv2d_fwd_kernel
    destination = Destination(c_out, None, shuffle, DTYPES[bits])

    def arguments(residual, out):
        written = destination.arguments(None, residual, None, out)
        return {name: value for name, value in written.items() if name not in UNUSED}

    def run(x, residual=None, out=None):
        n, _, height, width = x.shape
        to_h, to_w = ((size + 2 * padding - k) // stride + 1 for size, k in ((height, kh), (width, kw)))
        if out is None:
            out = destination.empty(n, to_h, to_w, residual, x.device)
        if out.numel() == 0:
            return out
        pixels = n * to_h * to_w
        read = source(x, c_in)
        written = arguments(residual, out)

        def launch(tile, written=written):
            columns = tile["BLOCK_C"] if depthwise else tile["BLOCK_N"]
            grid = (triton.cdiv(pixels, tile["BLOCK_P"]) * triton.cdiv(c_out, columns),)
            with torch.cuda.device_of(x):
                kernel[grid](
                    x_ptr=x, weight_ptr=weight, channel_ptr=per_channel,
                    H=height, W=width, TO_H=to_h, TO_W=to_w, P=pixels,
                    **sizes, **read, **written, **tile,
                )  # fmt: skip

        def trial():
            scratch = arguments(residual, torch.empty_like(out))  # `residual` may be `out`
            return lambda tile: launch(tile, scratch)

        layout = (read["VEC_IN"], written["VEC_OUT"], residual is None)
        key = (wide, narrow, bits, c_in, c_out, kh, kw, stride, shuffle, pixels.bit_length(), *layout)
        tiles = (MAP_TILE,)
        if not depthwise:
            tiles = integer_tiles(1 + wide, c_out, read["VEC_IN"] > 1 and written["VEC_OUT"] > 1)
        launch(choose("integer_conv2d", key, tiles, x.device, trial))
        return out

    return run


def integer_conv2d(
    x,
    weight,
    bias,
    multiplier,
    shift,
    residual=None,
    residual_shift=0,
    padding=0,
    stride=1,
    groups=1,
    bits=16,
    shuffle=1,
    input_shift=0,
    input_low=None,
):
    """The op on channels_last tensors."""
    plan = integer_conv2d_plan(
        weight, bias, multiplier, shift, residual_shift, padding, stride, groups, bits, shuffle, input_shift, input_low,
        x.dtype,
    )  # fmt: skip
    return plan(x, residual)
