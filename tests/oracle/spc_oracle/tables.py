"""Section 1 of docs/bitstream.md: distributions."""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

ONE = 65536


@dataclass(frozen=True)
class Row:
    """0 = c_0 < ... < c_{n-1} = 65536; interval k belongs to symbol offset + k, the last one is the escape."""

    c: tuple[int, ...]
    offset: int

    def __post_init__(self) -> None:
        assert self.c[0] == 0 and self.c[-1] == ONE and all(a < b for a, b in zip(self.c, self.c[1:], strict=False))

    @property
    def escape(self) -> int:
        return len(self.c) - 2

    def interval(self, slot: int) -> int:
        """k with c_k <= slot < c_{k+1}."""
        return bisect_right(self.c, slot) - 1


def _float32(x: float) -> float:
    return struct.unpack("<f", struct.pack("<f", x))[0]


def _nearest(x: float) -> int:
    """Halves upwards; x is float32, so that x + 1/2 is exact as a float64."""
    return math.floor(x + 0.5)


def from_probabilities(p: Sequence[float]) -> list[int]:
    """p in float32, the last one that of the escape."""
    f = [_nearest(_float32(x) * ONE) for x in p]
    total = sum(f)
    f = [ONE * x // total for x in f]
    c = [sum(f[:i]) for i in range(len(f) + 1)]
    c[-1] = ONE
    for i in range(len(f)):
        if c[i] == c[i + 1]:
            frequencies = [b - a for a, b in zip(c, c[1:], strict=False)]
            least = min(x for x in frequencies if x > 1)
            j = frequencies.index(least)
            if j < i:
                for k in range(j + 1, i + 1):
                    c[k] -= 1
            else:
                for k in range(i + 1, j + 1):
                    c[k] += 1
    return c


def rows(cdf: Sequence[Sequence[int]], lengths: Sequence[int], offsets: Sequence[int]) -> list[Row]:
    """Tables as they are stored: padded rows, their lengths, their offsets."""
    return [Row(tuple(row[:n]), o) for row, n, o in zip(cdf, lengths, offsets, strict=True)]
