"""`entropy_parameters`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._spatial_prior import active_group, cells_of, grouped, groups_of, pad_thresholds, table_index
from sparsecodec._triton._tile import MAP_TILE


@triton.jit
def _entropy_parameters_fwd_kernel(
    scales_ptr, thresholds_ptr, out_ptr,
    H, W, P, C, THRESHOLDS,
    stride_sn, stride_sg, stride_sc, stride_sh, stride_sw,
    CELL0: tl.constexpr, CELL1: tl.constexpr, CELL2: tl.constexpr, CELL3: tl.constexpr, STEPS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: the indexes of BLOCK_P of the P = N*H*W positions, BLOCK_C of the C channels of a group."""
    blocks = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    w = p % W
    h = p // W % H
    n = (p // W // H).to(tl.int64)
    group = active_group(h, w, CELL0, CELL1, CELL2, CELL3).to(tl.int64)
    row = n * stride_sn + group * stride_sg + h.to(tl.int64) * stride_sh + w.to(tl.int64) * stride_sw

    # [BLOCK_C]
    c = (pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)

    # [BLOCK_P, BLOCK_C]
    inside = (p < P)[:, None] & (c < C)[None, :]
    scale = tl.load(scales_ptr + row[:, None] + (c * stride_sc)[None, :], mask=inside, other=0.0)
    index = table_index(scale, thresholds_ptr, THRESHOLDS, STEPS)
    out = ((n * C)[:, None] + c[None, :]) * H * W + (h * W + w)[:, None]
    tl.store(out_ptr + out, index.to(tl.int16), mask=inside)


def _launch(scales, thresholds, count, part, out):
    n, channels, height, width = out.shape
    if out.numel() == 0:
        return
    scales = grouped(scales, groups_of(part))
    pixels = n * height * width
    grid = (triton.cdiv(pixels, MAP_TILE["BLOCK_P"]) * triton.cdiv(channels, MAP_TILE["BLOCK_C"]),)
    with torch.cuda.device_of(scales):
        _entropy_parameters_fwd_kernel[grid](
            scales, thresholds, out,
            height, width, pixels, channels, count, *scales.stride(),
            **cells_of(part), STEPS=count.bit_length(), **MAP_TILE,
        )  # fmt: skip


def entropy_parameters_plan(thresholds, part, dtype):
    """The op with its constants packed: a callable ``(scales, out=None)``; `out` is contiguous int16."""
    count, padded = thresholds.shape[0], pad_thresholds(thresholds, dtype)
    groups = groups_of(part)

    def run(scales, out=None):
        if out is None:
            channels = scales.shape[2] if scales.dim() == 5 else scales.shape[1] // groups
            shape = (scales.shape[0], channels, *scales.shape[-2:])
            out = torch.empty(shape, dtype=torch.int16, device=scales.device)
        _launch(scales, padded, count, part, out)
        return out

    return run


def entropy_parameters(scales, thresholds, part="all"):
    """The op on float32 scales of any layout."""
    return entropy_parameters_plan(thresholds, part, scales.dtype)(scales)
