"""The passes of spatial priors, and the arithmetic whose bits a stream depends on."""

from __future__ import annotations

import triton
import triton.language as tl

# Pass -> which of its groups of channels is coded, by cell 2 * (row % 2) + column % 2.
CELLS = {
    "all": (0, 0, 0, 0),
    "even": (0, 1, 1, 0),
    "odd": (1, 0, 0, 1),
    "quarter0": (0, 1, 2, 3),
    "quarter1": (3, 2, 1, 0),
    "quarter2": (2, 3, 0, 1),
    "quarter3": (1, 0, 3, 2),
}


def groups_of(part):
    """How many runs the channels are cut into: 1, 2 or 4."""
    return max(CELLS[part]) + 1


def cells_of(part):
    """The kernels' arguments for a pass."""
    return {f"CELL{at}": group for at, group in enumerate(CELLS[part])}


def grouped(x, groups):
    """``[N, C, H, W]`` as ``[N, G, C/G, H, W]``; the latter, and None, as they are."""
    if x is None or x.dim() == 5:
        return x
    return x.unflatten(1, (groups, x.shape[1] // groups))


def strides_of(x):
    """The five strides of a grouped tensor; zeros for None."""
    return (0,) * 5 if x is None else x.stride()


def pad_thresholds(thresholds, dtype):
    """A copy with infinities behind, so that there are 2^k - 1 of them, as `table_index` needs."""
    count = thresholds.shape[0]
    padded = thresholds.new_full((2 ** count.bit_length() - 1,), float("inf"), dtype=dtype)
    padded[:count] = thresholds
    return padded


@triton.jit
def active_group(h, w, CELL0: tl.constexpr, CELL1: tl.constexpr, CELL2: tl.constexpr, CELL3: tl.constexpr):
    """The coded group at (row h, column w)."""
    upper = tl.where(w % 2 == 0, CELL0, CELL1)
    lower = tl.where(w % 2 == 0, CELL2, CELL3)
    return tl.where(h % 2 == 0, upper, lower)


@triton.jit
def table_index(scale, thresholds_ptr, THRESHOLDS, STEPS: tl.constexpr):
    """How many of the first THRESHOLDS of 2^STEPS - 1 thresholds lie below `scale`; the others are infinite.

    A bisection with one comparison a step and the same steps for every element.
    """
    index = tl.zeros(scale.shape, tl.int32)
    for step in tl.static_range(STEPS):
        next_index = index + (1 << (STEPS - 1 - step))
        threshold = tl.load(thresholds_ptr + next_index - 1)
        index = tl.where(threshold >= scale, index, next_index)  # a NaN scale lies above all thresholds,
    return tl.minimum(index, THRESHOLDS)  # the appended ones included


@triton.jit
def round_half_even(x):
    """float32 `x` to the nearest integer, ties to even; infinities and NaN stay.

    2^23 + |x| keeps no fraction. Needs arithmetic as written, no contraction: `enable_fp_fusion=False`.
    """
    size = tl.abs(x)
    rounded = tl.where(size < 8388608.0, (size + 8388608.0) - 8388608.0, size)
    return tl.where(x < 0, -rounded, rounded)
