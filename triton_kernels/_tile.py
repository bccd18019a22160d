"""Block sizes, and what the interpreter needs done differently."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# TRITON_INTERPRET=1 runs kernels on CPU tensors through NumPy, which has no bfloat16: products of two 16-bit tensors
# would be garbage and a cast to bfloat16 would truncate (Triton 3.6 to 3.9).
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

# Bytes per element -> launch options by BLOCK_N, for products [P, K] x [K, N]; 16-bit types run on tensor cores,
# float32 as plain FMA. Chosen so that nothing spills on sm_80 and sm_90 even where every element has its own address
# (bench/results/aot.json); none has been timed on a GPU.
DOT_TILES = {
    2: {
        16: {"BLOCK_P": 128, "BLOCK_N": 16, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
        32: {"BLOCK_P": 128, "BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
        64: {"BLOCK_P": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3},
        128: {"BLOCK_P": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
    },
    4: {
        16: {"BLOCK_P": 64, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
        32: {"BLOCK_P": 64, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2},
        64: {"BLOCK_P": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2},
    },
}
# Per position and channel, without a product.
MAP_TILE = {"BLOCK_P": 64, "BLOCK_C": 32, "num_warps": 8, "num_stages": 1}


def dot_tile(dtype: torch.dtype, columns: int) -> dict[str, int]:
    """Launch options for a product with `columns` columns.

    Each block of columns reads the pixels again, which is counted as 32 more columns.
    """
    tiles = DOT_TILES[dtype.itemsize]
    return tiles[min(tiles, key=lambda block: triton.cdiv(columns, block) * (block + 32))]


@triton.jit
def narrow(value, DTYPE: tl.constexpr):
    """float32 `value` in DTYPE, rounded to nearest even in the interpreter too."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(DTYPE)
