"""The integer arithmetic behind a product, as csrc/common/requantize.h has it for the CPU."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clip(value, BITS: tl.constexpr):
    """`value` as int32, clipped to the range of BITS bits."""
    top: tl.constexpr = (1 << (BITS - 1)) - 1
    return tl.minimum(tl.maximum(value, -top - 1), top).to(tl.int32)


@triton.jit
def requantized(value, above, below, shift):
    """int32 `value` times its factor, `below` where it is negative, / 2^shift, halves upwards; int32 below 2^30."""
    one = tl.full((1, 1), 1, tl.int64)
    shift = shift.to(tl.int64)
    value = value.to(tl.int64) * tl.where(value < 0, below, above)
    return clip((value + ((one << shift) >> 1)) >> shift, 31)


@triton.jit
def shifted(value, LEFT, RIGHT):
    """Integers times 2^LEFT / 2^RIGHT, one of them 1, halves upwards; int32 below 2^30."""
    one = tl.full((1, 1), 1, tl.int64)
    return clip(((value.to(tl.int64) << LEFT) + ((one << RIGHT) >> 1)) >> RIGHT, 31)
