"""Cases of `integer_gate`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.integer_conv2d import integers, nhwc


def _case(
    id: str, n: int, c: int, h: int, w: int, chunks: int = 1, *, sliced: bool = False, large: bool = False,
    bench: bool = False,
) -> OpCase:  # fmt: skip
    """c: channels of the result; large: a table of values that sums of two clip."""

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        x = integers((n, c * chunks, h, w), -(2**15), 2**15 - 1, dtype, generator)
        x.view(-1)[:1], x.view(-1)[-1:] = -(2**15), 2**15 - 1  # both ends of the table
        x = nhwc(x)
        table = integers((2**16,), -(2**15), 2**15 - 1, dtype, generator)
        if large:
            table = torch.where(table < 0, -(2**15), 2**15 - 1).to(dtype)
        return {"x": channel_slice(x) if sliced else x, "table": table, "chunks": chunks}

    return OpCase(
        "integer_gate",
        id,
        make,
        dtypes=(torch.int16,),
        must_run=frozenset({"cpu"} if bench else {"cpu", "triton"}),
        bench=bench,
        bytes_moved=lambda size: size * n * c * h * w * (chunks + 1),
    )


CASES = [
    # A program of Triton takes 64 positions and 32 channels.
    _case("one-value", 1, 1, 1, 1),
    _case("one-pixel", 1, 5, 1, 1, 2),
    _case("tiles-exact", 1, 64, 8, 8),
    _case("tiles-and-one", 1, 33, 5, 13, 2),
    _case("batch", 3, 7, 4, 5),
    _case("empty-batch", 0, 8, 4, 4, 2),
    _case("two-chunks", 1, 40, 6, 7, 2),
    _case("three-chunks", 2, 12, 4, 5, 3),
    _case("four-chunks-clipped", 1, 24, 4, 5, 4, large=True),
    _case("clipped", 1, 24, 4, 5, 2, large=True),
    _case("slice", 2, 17, 6, 5, sliced=True),
    _case("slice-chunks", 2, 17, 6, 5, 2, sliced=True),
    # DCVC-RT's feed-forward layers and 1x1 at 1/8 of 512x256.
    _case("512-chunks-32x64", 1, 512, 32, 64, 2, bench=True),
    _case("256-32x64", 1, 256, 32, 64, bench=True),
]
