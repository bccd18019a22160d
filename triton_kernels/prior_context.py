"""`prior_context`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._spatial_prior import active_group, cells_of, groups_of
from sparsecodec._triton._tile import MAP_TILE


@triton.jit
def _clip(values, LIMIT: tl.constexpr):
    return tl.minimum(tl.maximum(values, -LIMIT), LIMIT - 1)


@triton.jit
def _narrowed(values, LEFT: tl.constexpr):
    """Fixed-point -> int16 in units of 2^(-16 - LEFT); nothing leaves 32 bits."""
    if LEFT >= 0:
        values = _clip(values, (1 << 30) >> LEFT) << LEFT
    else:
        values = (values + (1 << (-LEFT - 1))) >> -LEFT
    return _clip(values, 1 << 15).to(tl.int16)


@triton.jit
def _prior_context_fwd_kernel(
    symbols_ptr, means_ptr, scales_ptr, step_ptr, context_ptr, first_ptr,
    H, W, P, C, CHANNELS,
    stride_mn, stride_mc, stride_mh, stride_mw,
    stride_sn, stride_sc, stride_sh, stride_sw,
    stride_qn, stride_qc, stride_qh, stride_qw,
    stride_cn, stride_cc, stride_ch, stride_cw,
    stride_fn, stride_fc, stride_fh, stride_fw,
    CELL0: tl.constexpr, CELL1: tl.constexpr, CELL2: tl.constexpr, CELL3: tl.constexpr, LEFT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*H*W positions of the latent, BLOCK_C of its CHANNELS, C of them in a group."""
    blocks = tl.cdiv(CHANNELS, BLOCK_C)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    active = active_group(p // W % H, p % W, CELL0, CELL1, CELL2, CELL3)
    w = (p % W).to(tl.int64)
    h = (p // W % H).to(tl.int64)
    n = (p // W // H).to(tl.int64)

    # [BLOCK_C]
    channel = pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    in_group = (channel % C).to(tl.int64)
    c = channel.to(tl.int64)

    # [BLOCK_P, BLOCK_C]
    inside = (p < P)[:, None] & (channel < CHANNELS)[None, :]
    coded = inside & (active[:, None] == (channel // C)[None, :])
    from_stream = ((n * C)[:, None] + in_group[None, :]) * H * W + (h * W + w)[:, None]
    symbol = tl.load(symbols_ptr + from_stream, mask=coded, other=0)
    row = n * stride_mn + h * stride_mh + w * stride_mw
    mean = tl.load(means_ptr + row[:, None] + (c * stride_mc)[None, :], mask=inside, other=0)
    row = n * stride_sn + h * stride_sh + w * stride_sw
    scale = tl.load(scales_ptr + row[:, None] + (c * stride_sc)[None, :], mask=inside, other=0)
    row = n * stride_qn + h * stride_qh + w * stride_qw
    step = tl.load(step_ptr + row[:, None] + (c * stride_qc)[None, :], mask=inside, other=0)
    first = tl.where(coded, _clip((_clip(symbol, 1 << 14) << 16) + mean, 1 << 30), 0)

    row = n * stride_fn + h * stride_fh + w * stride_fw
    tl.store(first_ptr + row[:, None] + (c * stride_fc)[None, :], first, mask=inside)
    row = n * stride_cn + h * stride_ch + w * stride_cw
    context_ptr += row[:, None] + (c * stride_cc)[None, :]
    tl.store(context_ptr, _narrowed(first, LEFT), mask=inside)
    tl.store(context_ptr + CHANNELS * stride_cc, _narrowed(mean, LEFT), mask=inside)
    tl.store(context_ptr + 2 * CHANNELS * stride_cc, _narrowed(scale, LEFT), mask=inside)
    tl.store(context_ptr + 3 * CHANNELS * stride_cc, _narrowed(step, LEFT), mask=inside)


def prior_context_plan(exponent, part, dtype):
    """The op with its constants fixed: a callable ``(symbols, means, scales, step, out=None)``."""
    groups, cells = groups_of(part), cells_of(part)

    def run(symbols, means, scales, step, out=None):
        n, channels, height, width = symbols.shape
        latent = groups * channels
        if out is None:
            layout = {"device": symbols.device, "memory_format": torch.channels_last}
            out = (
                torch.empty((n, 4 * latent, height, width), dtype=torch.int16, **layout),
                torch.empty((n, latent, height, width), dtype=torch.int32, **layout),
            )
        if symbols.numel() == 0:
            return out
        context, first = out
        pixels = n * height * width
        grid = (triton.cdiv(pixels, MAP_TILE["BLOCK_P"]) * triton.cdiv(latent, MAP_TILE["BLOCK_C"]),)
        with torch.cuda.device_of(symbols):
            _prior_context_fwd_kernel[grid](
                symbols, means, scales, step, context, first,
                height, width, pixels, channels, latent,
                *means.stride(), *scales.stride(), *step.stride(), *context.stride(), *first.stride(),
                **cells, LEFT=-16 - exponent, **MAP_TILE,
            )  # fmt: skip
        return out

    return run


def prior_context(symbols, means, scales, step, exponent, part):
    """The op on parameters of any layout and contiguous symbols."""
    return prior_context_plan(exponent, part, symbols.dtype)(symbols, means, scales, step)
