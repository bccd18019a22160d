"""Cases of `gdn`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.pointwise import nhwc


def _case(
    id: str, n: int, c: int, h: int, w: int, *,
    inverse: bool = False, sliced: bool = False, scale: float = 1.0, bench: bool = False,
    half: bool = False,
) -> OpCase:  # fmt: skip
    """scale: of the values in x; half: in float16, which the CPU kernels refuse."""

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        x = nhwc((n, c, h, w), dtype, generator, scale)
        return {
            "x": channel_slice(x) if sliced else x,
            "beta": torch.rand(c, generator=generator) + 0.1,
            "gamma": torch.rand(c, c, generator=generator) / c + 0.1 * torch.eye(c),
            "inverse": inverse,
        }

    return OpCase(
        "gdn",
        id,
        make,
        dtypes=(torch.float16,) if half else (torch.float32, torch.bfloat16),
        must_run=frozenset({"triton"} if half else {"cpu"} if bench else {"cpu", "triton"}),
        terms=c,
        bench=bench,
        flops=2 * n * h * w * c * c,
        bytes_moved=lambda size: 2 * size * n * c * h * w,
    )


CASES = [
    # Pixels: a register tile holds 12, a task 96. Channels: a block holds 32.
    _case("one-value", 1, 1, 1, 1),
    _case("one-pixel", 1, 33, 1, 1),
    _case("task-exact", 1, 16, 8, 12),
    _case("task-and-one", 1, 16, 1, 97, inverse=True),
    _case("tasks", 2, 24, 17, 31),
    _case("odd-channels", 2, 129, 5, 7, inverse=True),
    _case("slice", 2, 24, 6, 10, sliced=True),
    _case("slice-inverse", 1, 24, 6, 10, sliced=True, inverse=True),
    _case("all-zero", 1, 32, 5, 7, scale=0.0),
    _case("small-values", 1, 32, 5, 7, scale=1e-20),
    _case("large-values", 1, 32, 5, 7, scale=1e15),
    _case("large-values-inverse", 1, 32, 5, 7, scale=1e12, inverse=True),
    _case("empty-batch", 0, 8, 4, 4),
    # Triton: 32 to 128 pixels, 16 to 128 channels, sums in steps of 16 to 64.
    _case("tiles-exact", 1, 64, 8, 16, inverse=True),
    _case("tiles-and-one", 1, 65, 3, 43),
    _case("half", 2, 65, 5, 7, half=True),
    _case("half-inverse", 1, 129, 3, 43, half=True, inverse=True, scale=40.0),
    _case("192-64x96", 1, 192, 64, 96, inverse=True, bench=True),
    _case("128-128x192", 1, 128, 128, 192, bench=True),
]
