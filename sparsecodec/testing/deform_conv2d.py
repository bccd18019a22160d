"""Cases of `deform_conv2d`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.pointwise import nhwc


def _case(
    id: str, n: int, c_in: int, c_out: int, h: int, w: int, *, groups: int = 1, kernel: tuple[int, int] = (3, 3),
    reach: float = 2.0, whole: bool = False, endless: bool = False, masked: bool = False, bias: bool = True,
    border: bool = False, sliced: bool = False, scale: float = 1.0, half: bool = False, bench: bool = False,
) -> OpCase:  # fmt: skip
    """reach: standard deviation of the offsets in pixels; whole: no fractions; endless: with infinities; half: float16.

    scale: of the values in x; sliced: activations are slices of wider tensors.
    """
    taps = kernel[0] * kernel[1]

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        arguments: dict[str, Any] = {"x": nhwc((n, c_in, h, w), dtype, generator, scale)}
        offset = torch.randn((n, 2 * groups * taps, h, w), generator=generator) * reach
        if whole:
            offset = offset.round()
        if endless:
            offset[torch.rand(offset.shape, generator=generator) < 0.1] = float("inf")
            offset[torch.rand(offset.shape, generator=generator) < 0.1] = float("-inf")
        arguments["offset"] = offset
        arguments["weight"] = torch.randn(c_out, c_in, *kernel, generator=generator) / (c_in * taps) ** 0.5
        if bias:
            arguments["bias"] = torch.randn(c_out, generator=generator)
        if border:
            arguments["border"] = True
        if masked:
            arguments["mask"] = torch.rand((n, groups * taps, h, w), generator=generator)
        if sliced:
            arguments |= {name: channel_slice(arguments[name]) for name in ("x", "offset", "mask") if name in arguments}
        return arguments

    return OpCase(
        "deform_conv2d",
        id,
        make,
        dtypes=(torch.float16,) if half else (torch.float32, torch.bfloat16),
        must_run=frozenset({"triton"} if half else {"cpu"} if bench else {"cpu", "triton"}),
        terms=c_in * taps,
        bench=bench,
        flops=2 * n * h * w * c_in * (c_out + 4) * taps,
        bytes_moved=lambda size: n * h * w * (size * (c_in + c_out) + 4 * groups * taps * (2 + masked)),
    )


CASES = [
    # Pixels: a task of the CPU holds 48, a tile of Triton 32 or 64. Channels: blocks of 32, sums in steps of 16 to 64.
    _case("one-pixel", 1, 4, 5, 1, 1, groups=2),
    _case("one-row", 1, 8, 16, 1, 9),
    _case("task-exact", 1, 16, 32, 4, 12, groups=2),
    _case("task-and-one", 1, 16, 33, 7, 7, groups=2, masked=True),
    _case("fvc", 1, 64, 64, 5, 7, groups=8),
    _case("tiles-exact", 1, 32, 32, 8, 8, groups=4, masked=True),
    _case("odd-channels", 2, 21, 19, 5, 6, groups=3),
    _case("group-of-one", 1, 6, 17, 5, 6, groups=6, masked=True),
    _case("border", 1, 12, 16, 5, 6, groups=4, reach=4.0, masked=True, border=True),
    _case("border-k1", 2, 12, 17, 5, 6, kernel=(1, 1), groups=4, reach=1e6, masked=True, border=True),
    _case("border-endless", 1, 16, 16, 5, 6, endless=True, border=True),
    _case("border-one-pixel", 1, 4, 5, 1, 1, groups=2, border=True),
    _case("k1", 1, 16, 16, 5, 6, kernel=(1, 1), groups=2),
    _case("k3x5", 1, 8, 16, 5, 6, kernel=(3, 5), masked=True),
    _case("no-bias", 1, 16, 16, 5, 6, bias=False),
    _case("empty-batch", 0, 8, 8, 4, 4),
    _case("still", 1, 16, 16, 5, 6, reach=0.0),
    _case("whole-pixels", 1, 16, 16, 5, 6, whole=True),
    _case("far-outside", 1, 16, 16, 5, 6, reach=1e6, masked=True),
    _case("endless", 1, 16, 16, 5, 6, endless=True),
    _case("all-zero", 1, 16, 16, 5, 6, scale=0.0),
    _case("large-values", 1, 16, 16, 5, 6, scale=1e15),
    _case("slice", 2, 16, 24, 5, 6, groups=2, masked=True, sliced=True),
    _case("half", 1, 33, 40, 5, 7, groups=3, masked=True, half=True),
    _case("64-64-64x96", 1, 64, 64, 64, 96, groups=8, reach=1.0, bench=True),
]
