"""Cases of `warp`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.pointwise import nhwc


def _case(
    id: str, n: int, c: int, h: int, w: int, *, reach: float = 3.0, whole: bool = False, endless: bool = False,
    sliced: bool = False, scale: float = 1.0, half: bool = False, bench: bool = False,
) -> OpCase:  # fmt: skip
    """reach: standard deviation of the flow in pixels; whole: no fractions; endless: with infinities; half: float16."""

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        x = nhwc((n, c, h, w), dtype, generator, scale)
        flow = torch.randn((n, 2, h, w), generator=generator) * reach
        if whole:
            flow = flow.round()
        if endless:
            flow[torch.rand(flow.shape, generator=generator) < 0.2] = float("inf")
            flow[torch.rand(flow.shape, generator=generator) < 0.2] = float("-inf")
        if sliced:
            x, flow = channel_slice(x), channel_slice(flow)
        return {"x": x, "flow": flow}

    return OpCase(
        "warp",
        id,
        make,
        dtypes=(torch.float16,) if half else (torch.float32, torch.bfloat16),
        must_run=frozenset({"triton"} if half else {"cpu"} if bench else {"cpu", "triton"}),
        bench=bench,
        bytes_moved=lambda size: n * h * w * (2 * c * size + 8),
    )


CASES = [
    # A tile of Triton holds 64 positions and 32 channels, or 256 and 4; a vector of the CPU 16 channels.
    _case("one-pixel", 1, 1, 1, 1),
    _case("one-row", 1, 5, 1, 17),
    _case("one-column", 1, 5, 17, 1),
    _case("picture", 1, 3, 16, 16),
    _case("picture-and-one", 2, 4, 1, 257),
    _case("tiles-exact", 1, 64, 8, 8),
    _case("tiles-and-one", 1, 33, 5, 13),
    _case("odd", 2, 19, 7, 9),
    _case("empty-batch", 0, 8, 4, 4),
    _case("still", 1, 16, 6, 10, reach=0.0),
    _case("whole-pixels", 1, 16, 6, 10, whole=True),
    _case("far-outside", 1, 16, 6, 10, reach=1e6),
    _case("endless", 1, 16, 6, 10, endless=True),
    _case("all-zero", 1, 16, 5, 7, scale=0.0),
    _case("large-values", 1, 16, 5, 7, scale=1e30),
    _case("slice", 2, 16, 6, 10, sliced=True),
    _case("half", 1, 33, 5, 13, half=True),
    _case("half-picture", 1, 3, 9, 15, half=True),
    _case("64-128x192", 1, 64, 128, 192, reach=1.0, bench=True),
    _case("3-256x384", 1, 3, 256, 384, reach=1.0, bench=True),
]
