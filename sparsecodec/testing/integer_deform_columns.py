"""Cases of `integer_deform_columns`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator

from sparsecodec.ops._registry import bind, specs
from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.integer_conv2d import integers, nhwc
from sparsecodec.testing.integer_warp import EXTREMES, FRACTIONS, PIXEL

TAPS = 9


def _float32(arguments: dict[str, Any]) -> tuple[str, Callable[[], object]]:
    """`deform_conv2d` of the same numbers in float32: samples and product in one, where integers have two ops."""
    x, offset = arguments["x"].float(), arguments["offset"].float() / PIXEL
    weight = torch.ones(x.shape[1], x.shape[1], 3, 3)
    mask = None if arguments["mask"] is None else arguments["mask"].float() / 2**14
    run = bind(specs()["deform_conv2d"], x, offset, weight, None, mask).run
    out = run(x=x, offset=offset, mask=mask)
    return "deform_conv2d_float32", lambda: run(x=x, offset=offset, mask=mask, out=out)


def _case(
    id: str, n: int, c: int, h: int, w: int, *, groups: int = 1, reach: float = 2.0,
    among: tuple[int, ...] | None = None, whole: bool = False, masked: bool = False, sliced: bool = False,
    planes: bool = False, ends: bool = False, bench: bool = False,
) -> OpCase:  # fmt: skip
    """reach: standard deviation of the offsets in pixels; among: fractions are of these, `whole`: the offsets are.

    planes: offsets and mask are contiguous instead of channels_last; ends: x and mask are -2^15 or 2^15 - 1 everywhere.
    """

    def ends_of(values: torch.Tensor) -> torch.Tensor:
        return torch.where(values < 0, -(2**15), 2**15 - 1).to(values.dtype) if ends else values

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        x = ends_of(nhwc(integers((n, c, h, w), -(2**15), 2**15 - 1, dtype, generator)))
        offset = torch.randn((n, 2 * groups * TAPS, h, w), generator=generator, dtype=torch.float64) * reach * PIXEL
        offset = offset.clamp(-(2**31), 2**31 - 1).to(torch.int32)
        if among is not None:
            chosen = torch.tensor(among, dtype=torch.int32)
            chosen = chosen[torch.randint(len(among), offset.shape, generator=generator)]
            offset = chosen if whole else offset // PIXEL * PIXEL + chosen
        arguments = {"x": x, "offset": offset}
        if masked:
            arguments["mask"] = ends_of(integers((n, groups * TAPS, h, w), -(2**15), 2**15 - 1, dtype, generator))
        if not planes:
            arguments = {name: nhwc(value) for name, value in arguments.items()}
        return {name: channel_slice(value) for name, value in arguments.items()} if sliced else arguments

    return OpCase(
        "integer_deform_columns",
        id,
        make,
        dtypes=(torch.int16,),
        must_run=frozenset({"cpu"} if bench else {"cpu", "triton"}),
        bench=bench,
        bytes_moved=lambda size: n * h * w * (size * c * (1 + TAPS) + groups * TAPS * (8 + 2 * masked)),
        rival=_float32 if bench else None,
    )


CASES = [
    # A chunk of the CPU holds 8 channels of a group, a vector 2 or 4 chunks; a tile of Triton 64 positions, 8 channels.
    _case("one-pixel", 1, 1, 1, 1),
    _case("one-row", 1, 6, 1, 17, groups=2),
    _case("one-column", 1, 6, 17, 1, groups=3),
    _case("fvc", 1, 64, 5, 7, groups=8),
    _case("fvc-tiny", 1, 24, 5, 7, groups=4),
    _case("fvc-tiny-masked", 2, 24, 5, 7, groups=4, masked=True),
    _case("chunk-less-one", 1, 21, 5, 6, groups=3, masked=True),
    _case("chunk-and-one", 1, 27, 5, 6, groups=3),
    _case("chunks", 1, 48, 5, 6, groups=2, masked=True),
    _case("group-of-one", 1, 6, 5, 6, groups=6, masked=True),
    _case("one-group", 2, 19, 7, 9),
    _case("tiles-exact", 1, 32, 8, 8, groups=4),
    _case("planes", 2, 12, 7, 9, groups=2, masked=True, planes=True),
    _case("empty-batch", 0, 8, 4, 4),
    _case("no-rows", 2, 8, 0, 4, masked=True),
    _case("no-columns", 2, 8, 4, 0),
    _case("still", 1, 16, 6, 10, reach=0.0),
    _case("fractions", 2, 12, 9, 12, groups=2, among=FRACTIONS),
    _case("fractions-only", 2, 12, 9, 12, groups=2, among=FRACTIONS, whole=True),
    _case("far-outside", 1, 16, 6, 10, groups=2, reach=1e4, masked=True),
    _case("extremes", 2, 12, 6, 10, groups=2, among=EXTREMES, whole=True),
    _case("largest-values", 1, 16, 9, 8, groups=2, masked=True, ends=True),
    _case("largest-values-fractions", 1, 16, 9, 8, groups=2, masked=True, ends=True, among=FRACTIONS),
    _case("slice", 2, 12, 6, 10, groups=2, masked=True, sliced=True),
    # Features of 512x256 pixels in the widths of FVC and of its tiny preset.
    _case("64-128x256", 1, 64, 128, 256, groups=8, reach=1.0, bench=True),
    _case("24-128x256", 1, 24, 128, 256, groups=4, reach=1.0, bench=True),
    _case("24-128x256-masked", 1, 24, 128, 256, groups=4, reach=1.0, masked=True, bench=True),
]
