"""Cases of `integer_scale`."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Generator, Tensor

from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.integer_conv2d import FACTOR, integers, nhwc

DTYPES = (torch.int16, torch.int32)


def activations(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> Tensor:
    """Of all magnitudes, both ends of the type but -2^15 and -2^31 among them: those are poison."""
    limits = torch.iinfo(dtype)
    size = 2 ** (torch.rand(shape, generator=generator, dtype=torch.float64) * 1.2 * (limits.bits - 1))
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return nhwc((size.clamp(max=limits.max) * sign).to(dtype))


def _case(
    id: str, n: int, c: int, h: int, w: int, *, shifts: tuple[int, int] = (1, 62), residual: torch.dtype | None = None,
    linear: bool = False, small: bool = False, wide: bool = False, sliced: tuple[str, ...] = (),
    dtypes: tuple[torch.dtype, ...] = DTYPES, bench: bool = False, **options: Any,
) -> OpCase:  # fmt: skip
    """shifts: the least and the largest; linear: equal factors; small: factors of 15 bits; sliced: which are slices.

    wide: only the rows are apart, as those of a slice of a wider picture.
    """

    def placed(name: str, values: Tensor) -> Tensor:
        if not wide:
            return channel_slice(values) if name in sliced else values
        larger = torch.full((n, c, h, w + 3), torch.iinfo(values.dtype).min, dtype=values.dtype)
        return nhwc(larger)[..., 2:-1].copy_(values)

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        top = 2**15 - 1 if small else FACTOR
        multiplier = integers((2, c), -top, top, torch.int32, generator)
        if linear:
            multiplier[1] = multiplier[0]
        arguments = options | {
            "x": placed("x", activations((n, c, h, w), dtype, generator)),
            "multiplier": multiplier,
            "shift": integers((c,), *shifts, torch.int32, generator),
        }
        if residual is not None:
            arguments["residual"] = placed("residual", activations((n, c, h, w), residual, generator))
        return arguments

    to_move = n * c * h * w
    others = options.get("bits", 16) // 8 + (0 if residual is None else residual.itemsize)
    return OpCase(
        "integer_scale",
        id,
        make,
        dtypes=dtypes,
        must_run=frozenset({"cpu"} if bench else {"cpu", "triton"}),
        bench=bench,
        bytes_moved=lambda size: to_move * (size + others),
    )


def _extreme_case(id: str, shifts: tuple[int, ...], bits: int, residual: torch.dtype | None = None) -> OpCase:
    """Both ends of x and the least values, of the residual too; every pair of extreme factors with each shift."""

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        factors = ((0, 0), (FACTOR, FACTOR), (-FACTOR, -FACTOR), (FACTOR, -FACTOR), (-FACTOR, FACTOR), (1, 2**29))
        channels = list(product(factors, shifts))
        limits = torch.iinfo(dtype)
        values = torch.tensor([limits.min, limits.min + 1, limits.max, -1, 0, 1, 3, -5])
        arguments = {
            "x": nhwc(values.to(dtype).view(1, 1, 2, 4).repeat(1, len(channels), 1, 1)),
            "multiplier": torch.tensor([f for f, _ in channels], dtype=torch.int32).T.contiguous(),
            "shift": torch.tensor([s for _, s in channels], dtype=torch.int32),
            "bits": bits,
        }
        if residual is not None:
            limits = torch.iinfo(residual)
            added = torch.tensor([limits.min, limits.max, limits.min, limits.max, limits.max, 1, -1, 0])
            arguments["residual"] = nhwc(added.to(residual).view(1, 1, 2, 4).repeat(1, len(channels), 1, 1))
        return arguments

    return OpCase("integer_scale", id, make, dtypes=DTYPES, must_run=frozenset({"cpu", "triton"}))


INT32 = (torch.int32,)
CASES = [
    # The CPU takes 16 values at a time (AVX2: 8), pixels that touch in spans of 256 values or a few more, and 16384 in
    # a task; a program of Triton takes 64 positions and 32 channels.
    _case("one-value", 1, 1, 1, 1),
    _case("one-pixel", 1, 5, 1, 1),
    _case("tiles-exact", 1, 64, 8, 8),
    _case("tiles-and-one", 1, 33, 5, 13),
    _case("past-a-span", 1, 3, 2, 173),
    _case("two-spans-and-one", 1, 37, 1, 15),
    _case("more-channels-than-a-span", 1, 259, 2, 5),
    _case("tasks", 1, 20, 21, 41, residual=torch.int32, residual_shift=-3),
    _case("batch", 3, 7, 4, 5, residual=torch.int16),
    _case("empty-batch", 0, 8, 4, 4, residual=torch.int16),
    _case("slice", 2, 17, 6, 5, sliced=("x",)),
    _case("slice-of-residual", 2, 17, 6, 5, sliced=("residual",), residual=torch.int32),
    _case("slices", 2, 17, 6, 5, sliced=("x", "residual"), residual=torch.int32, bits=32),
    _case("slice-of-rows", 2, 17, 6, 37, wide=True, residual=torch.int16),
    # Which arithmetic a CPU takes depends on these.
    _case("high", 1, 37, 4, 5, shifts=(33, 45)),
    _case("high-linear", 1, 37, 4, 5, shifts=(33, 45), linear=True, bits=32),
    _case("low", 1, 37, 4, 5, shifts=(17, 32), bits=32),
    _case("lowest", 1, 37, 4, 5, shifts=(1, 16), bits=32),
    _case("linear", 1, 37, 4, 5, shifts=(14, 34), linear=True),
    _case("small", 1, 37, 4, 5, shifts=(18, 32), small=True, bits=32),
    _case("small-and-low", 1, 37, 4, 5, shifts=(1, 18), small=True),
    *(
        _case(
            f"residual-{dtype.itemsize * 8}-shift{left:+d}-{bits}", 1, 9, 3, 5, shifts=(30, 44), residual=dtype,
            residual_shift=left, bits=bits, dtypes=INT32,
        )
        for dtype, bits in product(DTYPES, (16, 32))
        for left in (-30, -29, -1, 0, 1, 29, 30)
    ),
    *(
        _extreme_case(f"extreme-{name}-{bits}", shifts, bits)
        for name, shifts in (("low", (1, 2, 17, 29, 32)), ("high", (33, 46, 47, 61, 62)), ("mixed", (1, 33, 62)))
        for bits in (16, 32)
    ),
    *(
        _extreme_case(f"saturation-{bits}-{dtype.itemsize * 8}", (1, 16, 32, 47), bits, dtype)
        for bits in (16, 32)
        for dtype in DTYPES
    ),
    # A LeakyReLU, the sum of two tensors, squeeze-and-excitation at 512x256.
    _case("64-256x512", 1, 64, 256, 512, shifts=(40, 44), dtypes=INT32, bench=True),
    _case("64-256x512-sum", 1, 64, 256, 512, shifts=(29, 29), residual=torch.int32, dtypes=INT32, bench=True),
    _case(
        "64-256x512-small", 1, 64, 256, 512, shifts=(18, 20), small=True, linear=True, residual=torch.int32,
        dtypes=INT32, bench=True,
    ),
]  # fmt: skip
