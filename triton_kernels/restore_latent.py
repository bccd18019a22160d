"""`restore_latent`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._spatial_prior import active_group, cells_of, grouped, groups_of, strides_of
from sparsecodec._triton._tile import MAP_TILE


@triton.jit
def _restore_latent_fwd_kernel(
    symbols_ptr, means_ptr, base_ptr, step_ptr, gain_ptr, out_ptr,
    H, W, P, C, CHANNELS,
    stride_mn, stride_mg, stride_mc, stride_mh, stride_mw,
    stride_bn, stride_bg, stride_bc, stride_bh, stride_bw,
    stride_sn, stride_sg, stride_sc, stride_sh, stride_sw,
    stride_on, stride_og, stride_oc, stride_oh, stride_ow,
    CELL0: tl.constexpr, CELL1: tl.constexpr, CELL2: tl.constexpr, CELL3: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*H*W positions of the latent, BLOCK_C of its CHANNELS, C of them in a group.

    An element is read and written by the same program, so the output may be the base.
    """
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
    g = (channel // C).to(tl.int64)
    c = (channel % C).to(tl.int64)

    # [BLOCK_P, BLOCK_C]
    inside = (p < P)[:, None] & (channel < CHANNELS)[None, :]
    coded = inside & (active[:, None] == (channel // C)[None, :])
    from_stream = ((n * C)[:, None] + c[None, :]) * H * W + (h * W + w)[:, None]
    value = tl.load(symbols_ptr + from_stream, mask=coded, other=0).to(tl.float32)
    if means_ptr is not None:
        row = n * stride_mn + h * stride_mh + w * stride_mw
        value += tl.load(means_ptr + row[:, None] + (g * stride_mg + c * stride_mc)[None, :], mask=coded, other=0.0)
    if base_ptr is not None:
        row = n * stride_bn + h * stride_bh + w * stride_bw
        others = base_ptr + row[:, None] + (g * stride_bg + c * stride_bc)[None, :]
        value = tl.where(coded, value, tl.load(others, mask=inside & (coded == 0), other=0.0))
    if step_ptr is not None:
        row = n * stride_sn + h * stride_sh + w * stride_sw
        value *= tl.load(step_ptr + row[:, None] + (g * stride_sg + c * stride_sc)[None, :], mask=inside, other=0.0)
    if gain_ptr is not None:
        value *= tl.load(gain_ptr + channel, mask=channel < CHANNELS, other=0.0)[None, :]
    row = n * stride_on + h * stride_oh + w * stride_ow
    tl.store(out_ptr + row[:, None] + (g * stride_og + c * stride_oc)[None, :], value, mask=inside)


def _launch(symbols, means, base, step, gain, part, out):
    n, channels, height, width = symbols.shape
    if symbols.numel() == 0:
        return
    groups = groups_of(part)
    means, base, step, out = (grouped(value, groups) for value in (means, base, step, out))
    pixels = n * height * width
    grid = (triton.cdiv(pixels, MAP_TILE["BLOCK_P"]) * triton.cdiv(groups * channels, MAP_TILE["BLOCK_C"]),)
    with torch.cuda.device_of(symbols):
        _restore_latent_fwd_kernel[grid](
            symbols, means, base, step, gain, out,
            height, width, pixels, channels, groups * channels,
            *strides_of(means), *strides_of(base), *strides_of(step), *strides_of(out),
            **cells_of(part), **MAP_TILE, enable_fp_fusion=False,
        )  # fmt: skip


def restore_latent_plan(part, dtype):
    """The op with its constants fixed: a callable of the other arguments and ``out=None``; `out` may be `base`."""
    groups = groups_of(part)

    def run(symbols, means=None, base=None, step=None, gain=None, out=None):
        if out is None:
            n, channels, height, width = symbols.shape
            shape = (n, groups * channels, height, width)
            out = torch.empty(shape, device=symbols.device, memory_format=torch.channels_last)
        _launch(symbols, means, base, step, gain, part, out)
        return out

    return run


def restore_latent(symbols, means=None, base=None, step=None, gain=None, part="all"):
    """The op on float32 tensors of any layout and contiguous symbols."""
    return restore_latent_plan(part, torch.float32)(symbols, means, base, step, gain)
