"""Cases of `integer_warp`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator

from sparsecodec.ops._registry import bind, specs
from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.integer_conv2d import integers, nhwc

PIXEL = 2**16
# Where the weight of a fraction changes last, and where it has become that of a whole pixel.
FRACTIONS = (0, 1, 2, 5, 6, PIXEL // 2, PIXEL - 7, PIXEL - 6, PIXEL - 3, PIXEL - 2, PIXEL - 1)
EXTREMES = (-(2**31), 2**31 - 1, -(2**31) + 1, 0, 2**30)


def _float32(arguments: dict[str, Any]) -> tuple[str, Callable[[], object]]:
    """`warp` of the same numbers in float32."""
    x, flow = arguments["x"].float(), arguments["flow"].float() / PIXEL
    run = bind(specs()["warp"], x, flow).run
    out = run(x, flow)
    return "warp_float32", lambda: run(x, flow, out=out)


def _case(
    id: str, n: int, c: int, h: int, w: int, *, reach: float = 3.0, among: tuple[int, ...] | None = None,
    whole: bool = False, sliced: bool = False, planes: bool = False, ends: bool = False, bench: bool = False,
) -> OpCase:  # fmt: skip
    """reach: standard deviation of the flow in pixels; among: fractions are of these, `whole`: the flow is.

    planes: the flow is contiguous instead of channels_last; ends: x is -2^15 or 2^15 - 1 everywhere.
    """

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        x = nhwc(integers((n, c, h, w), -(2**15), 2**15 - 1, dtype, generator))
        if ends:
            x = torch.where(x < 0, -(2**15), 2**15 - 1).to(dtype)
        flow = torch.randn((n, 2, h, w), generator=generator, dtype=torch.float64) * reach * PIXEL
        flow = flow.clamp(-(2**31), 2**31 - 1).to(torch.int32)
        if among is not None:
            chosen = torch.tensor(among, dtype=torch.int32)[torch.randint(len(among), flow.shape, generator=generator)]
            flow = chosen if whole else flow // PIXEL * PIXEL + chosen
        if not planes:
            flow = nhwc(flow)
        if sliced:
            x, flow = channel_slice(x), channel_slice(flow)
        return {"x": x, "flow": flow}

    return OpCase(
        "integer_warp",
        id,
        make,
        dtypes=(torch.int16,),
        must_run=frozenset({"cpu"} if bench else {"cpu", "triton"}),
        bench=bench,
        bytes_moved=lambda size: n * h * w * (2 * c * size + 8),
        rival=_float32 if bench else None,
    )


CASES = [
    # A tile of Triton holds 64 positions and 32 channels, or 256 and 4; a vector of the CPU 16 or 32 channels.
    _case("one-pixel", 1, 1, 1, 1),
    _case("one-row", 1, 5, 1, 17),
    _case("one-column", 1, 5, 17, 1),
    _case("picture", 1, 3, 16, 16),
    _case("picture-and-one", 2, 4, 1, 257),
    _case("vector-less-one", 1, 15, 5, 6),
    _case("vector-and-one", 1, 17, 5, 6),
    _case("tiles-exact", 1, 64, 8, 8),
    _case("tiles-and-one", 1, 33, 5, 13),
    _case("planes", 2, 19, 7, 9, planes=True),
    _case("odd", 3, 45, 7, 9),
    _case("empty-batch", 0, 8, 4, 4),
    _case("no-rows", 2, 8, 0, 4),
    _case("no-columns", 2, 8, 4, 0),
    _case("still", 1, 16, 6, 10, reach=0.0),
    _case("fractions", 2, 33, 9, 12, among=FRACTIONS),
    _case("fractions-only", 2, 33, 9, 12, among=FRACTIONS, whole=True),
    _case("far-outside", 1, 16, 6, 10, reach=1e4),
    _case("extremes", 2, 33, 6, 10, among=EXTREMES, whole=True),
    _case("extremes-planes", 1, 3, 1, 300, among=EXTREMES, whole=True, planes=True),
    _case("largest-values", 1, 37, 9, 8, ends=True),
    _case("largest-values-fractions", 1, 37, 9, 8, ends=True, among=FRACTIONS),
    _case("slice", 2, 37, 6, 10, sliced=True),
    # Features of 512x256 pixels, and of a half and a quarter of that.
    _case("64-256x512", 1, 64, 256, 512, reach=1.0, bench=True),
    _case("64-128x256", 1, 64, 128, 256, reach=1.0, bench=True),
    _case("64-64x128", 1, 64, 64, 128, reach=1.0, bench=True),
]
