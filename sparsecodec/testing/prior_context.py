"""Cases of `prior_context`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from sparsecodec.ops._spatial_prior import PARTS, groups_of
from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.integer_conv2d import integers, nhwc

TOP = 2**30  # fixed-point values lie in [-TOP, TOP)
HOSTILE = (-(2**31), 2**31 - 1, -(2**14) - 1, -(2**14), 2**14 - 1, 2**14, 2**16, -(2**16))


def fixed_points(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform over magnitudes, the extreme values among them."""
    size = 2 ** (torch.rand(shape, generator=generator, dtype=torch.float64) * 32)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return nhwc((size * sign).clamp(-TOP, TOP - 1).to(torch.int32))


def hostile(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Symbols at the ends of int32 and of the range that counts."""
    return torch.tensor(HOSTILE).to(torch.int32)[torch.randint(0, len(HOSTILE), shape, generator=generator)]


def _case(
    id: str, n: int, c: int, h: int, w: int, part: str = "even", exponent: int = -10, *, sliced: bool = False,
    damaged: bool = False, bench: bool = False,
) -> OpCase:  # fmt: skip
    """c: channels of the latent; damaged: symbols are `hostile`."""
    coded = c // groups_of(part)

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        shape = (n, coded, h, w)
        symbols = hostile(shape, generator) if damaged else integers(shape, -40, 40, dtype, generator)
        arguments: dict[str, Any] = {"symbols": symbols, "exponent": exponent, "part": part}
        for name in ("means", "scales", "step"):
            values = fixed_points((n, c, h, w), generator)
            arguments[name] = channel_slice(values) if sliced else values
        return arguments

    return OpCase(
        "prior_context",
        id,
        make,
        dtypes=(torch.int32,),
        must_run=frozenset({"cpu"} if bench else {"cpu", "triton"}),
        bench=bench,
        bytes_moved=lambda size: n * h * w * (size * (coded + 4 * c) + 2 * 4 * c),
    )


CASES = [
    # A program of Triton takes 64 positions and 32 channels; the CPU transposes 16 pixels of a row.
    _case("one-value", 1, 1, 1, 1, "all"),
    _case("one-pixel", 1, 4, 1, 1),
    _case("one-pixel-odd", 1, 6, 1, 1, "odd"),
    _case("one-row", 1, 8, 1, 15),
    _case("one-column", 1, 8, 15, 1, "odd"),
    _case("run-exact", 2, 4, 5, 16),
    _case("run-and-one", 1, 20, 2, 17, "odd"),
    _case("two-runs-and-15", 1, 6, 3, 47),
    _case("tiles-exact", 1, 64, 8, 8),
    _case("tiles-and-one", 1, 66, 5, 13, "odd"),
    _case("batch", 3, 24, 4, 5),
    _case("empty-batch", 0, 4, 2, 2),
    *(_case(f"{part}-slice", 1, 24, 5, 17, part, sliced=True) for part in PARTS),
    *(_case(f"{part}-damaged", 2, 12, 5, 7, part, damaged=True) for part in PARTS),
    *(
        _case(f"unit{exponent:+d}", 1, 40, 5, 7, exponent=exponent, damaged=exponent % 2 == 0)
        for exponent in (-45, -32, -31, -24, -17, -16, -15, -9, -2, -1, 0, 1, 7, 13, 14)
    ),
    _case("192-32x48", 1, 192, 32, 48, bench=True),
]
