"""`integer_gate`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._tile import MAP_TILE


@triton.jit
def _integer_gate_fwd_kernel(
    x_ptr, table_ptr, out_ptr,
    H, W, P, C, CHUNKS,
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_on, stride_oc, stride_oh, stride_ow,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_P of the P = N*H*W positions, BLOCK_C of the C channels of the result."""
    blocks = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0)

    # [BLOCK_P]
    p = pid // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    w = (p % W).to(tl.int64)
    h = (p // W % H).to(tl.int64)
    n = (p // W // H).to(tl.int64)

    # [BLOCK_C]
    c = (pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)

    # [BLOCK_P, BLOCK_C]
    inside = (p < P)[:, None] & (c < C)[None, :]
    from_ptr = x_ptr + (n * stride_xn + h * stride_xh + w * stride_xw)[:, None] + (c * stride_xc)[None, :]
    total = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.int32)
    for _ in range(CHUNKS):
        entry = tl.load(from_ptr, mask=inside, other=0).to(tl.int32) + 32768
        total += tl.load(table_ptr + entry, mask=inside, other=0).to(tl.int32)
        from_ptr += C * stride_xc
    total = tl.minimum(tl.maximum(total, -32768), 32767)
    out = (n * stride_on + h * stride_oh + w * stride_ow)[:, None] + (c * stride_oc)[None, :]
    tl.store(out_ptr + out, total.to(tl.int16), mask=inside)


def integer_gate_plan(table, chunks, dtype):
    """The op with its table: a callable ``(x, out=None)``."""

    def run(x, out=None):
        n, channels, height, width = x.shape
        channels //= chunks
        if out is None:
            out = x.new_empty((n, channels, height, width)).to(memory_format=torch.channels_last)
        if out.numel() == 0:
            return out
        pixels = n * height * width
        grid = (triton.cdiv(pixels, MAP_TILE["BLOCK_P"]) * triton.cdiv(channels, MAP_TILE["BLOCK_C"]),)
        with torch.cuda.device_of(x):
            _integer_gate_fwd_kernel[grid](
                x, table, out, height, width, pixels, channels, chunks, *x.stride(), *out.stride(), **MAP_TILE
            )
        return out

    return run


def integer_gate(x, table, chunks):
    """The op on tensors of any layout."""
    return integer_gate_plan(table, chunks, x.dtype)(x)
