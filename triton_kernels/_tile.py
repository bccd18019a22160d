"""Tiles, packed weights, and what the interpreter needs done differently."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# TRITON_INTERPRET=1 runs kernels on CPU tensors through NumPy, which has no bfloat16: products of two 16-bit tensors
# would be garbage and a cast to bfloat16 would truncate (Triton 3.6 to 3.9).
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


def _tile(p: int, n: int, k: int, warps: int, stages: int) -> dict[str, int]:
    return {"BLOCK_P": p, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages}


def _pinned(p: int, n: int, k: int, warps: int, stages: int) -> dict[str, int]:
    """Products are fused multiply-adds all the same; a rounding between a product and a later sum stays."""
    return _tile(p, n, k, warps, stages) | {"enable_fp_fusion": False}


# Bytes per element -> launch options for products [P, K] x [K, N]; 16-bit types run on tensor cores, float32 as plain
# FMA. Nothing spills on sm_80 and sm_90 (bench/results/aot.json). Of tiles with equal BLOCK_N the first is taken where
# nothing can be timed; none has been timed on a GPU.
DOT_TILES = {
    2: (
        _tile(128, 16, 64, 8, 3),
        _tile(64, 16, 64, 4, 3),
        _tile(128, 32, 64, 8, 3),
        _tile(64, 32, 64, 4, 3),
        _tile(128, 64, 32, 8, 3),
        _tile(64, 64, 64, 8, 3),
        _tile(64, 128, 64, 8, 3),
        _tile(128, 128, 32, 8, 3),
    ),
    4: (
        _pinned(64, 16, 16, 4, 2),
        _pinned(64, 32, 16, 8, 2),
        _pinned(32, 32, 32, 4, 2),
        _pinned(64, 64, 32, 8, 2),
        _pinned(64, 64, 16, 4, 2),
    ),
}
# Where every element has an address of its own a thread has registers for few of them.
SCALAR_TILES = {
    2: (
        _tile(64, 16, 32, 4, 3),
        _tile(64, 32, 32, 4, 3),
        _tile(128, 32, 32, 8, 3),
        _tile(64, 64, 32, 8, 3),
    ),
    4: DOT_TILES[4][:4],
}
# Planes of int8 weights -> launch options for products of bytes, whose least BLOCK_K is 32; x is read as int16.
INTEGER_TILES = {
    1: (
        _tile(64, 32, 64, 4, 3),
        _tile(128, 32, 64, 8, 3),
        _tile(64, 64, 64, 4, 3),
        _tile(128, 64, 64, 8, 3),
        _tile(64, 128, 64, 8, 3),
    ),
    2: (
        _tile(64, 32, 64, 4, 3),
        _tile(64, 64, 64, 8, 3),
    ),
}
INTEGER_SCALAR_TILES = (
    _tile(64, 16, 32, 4, 3),
    _tile(64, 32, 32, 8, 3),
)
CANDIDATES = 4  # tiles that are timed for one shape
# Per position and channel, without a product.
MAP_TILE = {"BLOCK_P": 64, "BLOCK_C": 32, "num_warps": 8, "num_stages": 1}
FEW_CHANNELS_TILE = {"BLOCK_P": 256, "BLOCK_C": 4, "num_warps": 4, "num_stages": 1}  # the same of pictures

# Packed weights are padded with zeros to multiples of these, so that no tile needs a mask for them.
PAD_N = tl.constexpr(max(tile["BLOCK_N"] for tiles in DOT_TILES.values() for tile in tiles))
PAD_K = tl.constexpr(max(tile["BLOCK_K"] for tiles in DOT_TILES.values() for tile in tiles))


def dot_tiles(itemsize: int, columns: int, vectors: bool = True) -> tuple[dict[str, int], ...]:
    """Launch options for a product with `columns` columns, the likely best first.

    `vectors`: neighbours in memory are loaded and stored at once.
    """
    return _likely((DOT_TILES if vectors else SCALAR_TILES)[itemsize], columns)


def integer_tiles(planes: int, columns: int, vectors: bool = True) -> tuple[dict[str, int], ...]:
    """`dot_tiles` of int16 activations with weights of this many bytes."""
    return _likely(INTEGER_TILES[planes] if vectors else INTEGER_SCALAR_TILES, columns)


def _likely(tiles: tuple[dict[str, int], ...], columns: int) -> tuple[dict[str, int], ...]:
    """The likely best first: each block of columns reads the pixels again, which is counted as 32 more columns."""
    tiles = sorted(tiles, key=lambda tile: triton.cdiv(columns, tile["BLOCK_N"]) * (tile["BLOCK_N"] + 32))
    return tuple(tiles[:CANDIDATES])


def padded(values: torch.Tensor, dtype: torch.dtype, *multiples: int) -> torch.Tensor:
    """A copy in `dtype`, its last axes padded with zeros to these multiples."""
    leading = values.dim() - len(multiples)
    sizes = [triton.cdiv(size, to) * to for size, to in zip(values.shape[leading:], multiples, strict=True)]
    result = torch.zeros((*values.shape[:leading], *sizes), dtype=dtype, device=values.device)
    result[tuple(slice(size) for size in values.shape)] = values.detach()
    return result


def packed_product(
    weight: torch.Tensor, bias: torch.Tensor | None, rows: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights ``[T, C_out, K]`` (T taps) and bias ``[C_out]``, their rows taken in the order `rows` ``[G, N]``.

    Returns:
        ``[T * G, N, K]`` in `dtype` and ``[G, N]`` float32, N and K padded.
    """
    rows = rows.to(weight.device)
    weight = weight.detach()[:, rows].flatten(0, 1)
    bias = weight.new_zeros(rows.shape) if bias is None else bias.detach()[rows]
    return padded(weight, dtype, PAD_N.value, PAD_K.value), padded(bias, torch.float32, PAD_N.value)


def packed_index(in_index: torch.Tensor | None) -> torch.Tensor | None:
    """Channels of the input as the kernels read them."""
    return None if in_index is None else padded(in_index, torch.int32, PAD_K.value)


def vector(*sizes: int) -> int:
    """8 if it divides all sizes, else 1.

    Sizes and strides are handed to the kernels in this unit: multiplied by it again, the compiler knows that as many
    neighbours can be loaded at once. (What it finds out on its own is whether 16 divides.)
    """
    return 8 if all(size % 8 == 0 for size in sizes) else 1


def offset(tensor: torch.Tensor) -> int:
    """Where the tensor starts, in its elements: a size for `vector`."""
    return tensor.data_ptr() // tensor.element_size()


def source(x: torch.Tensor, channels: int) -> dict[str, int]:
    """The arguments that tell a kernel about the layout of its input: C_IN, strides, and their unit VEC_IN."""
    sizes = {"C_IN": channels, "stride_xn": x.stride(0), "stride_xh": x.stride(2), "stride_xw": x.stride(3)}
    unit = vector(offset(x), *sizes.values())
    return {name: size // unit for name, size in sizes.items()} | {"VEC_IN": unit}


@triton.jit
def narrow(value, DTYPE: tl.constexpr):
    """float32 `value` in DTYPE, rounded to nearest even in the interpreter too."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(DTYPE)


@triton.jit
def multiply(x, weight, acc):
    """acc + x @ weight; float32 factors are not rounded, and their products are added in ascending order."""
    if INTERPRETED:
        x = x.to(tl.float32)
        weight = weight.to(tl.float32)
    return tl.dot(x, weight, acc, input_precision="ieee")


@triton.jit
def position(p, H, W):
    """Image (int64), row and column of pixel p."""
    return (p // W // H).to(tl.int64), p // W % H, p % W
