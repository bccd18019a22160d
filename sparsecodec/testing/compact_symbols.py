"""Cases of `compact_symbols` and `expand_symbols`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from sparsecodec.testing.compare import OpCase

INTEGERS = (torch.float32,)  # the ops take no floats; a case runs once
MUST_RUN = frozenset({"cpu", "cuda"})
# CUDA: tiles of 2048 positions, 8 of a thread, 32 tiles a look-back window. One below, at and past each; 70 001 crosses
# the window twice.
SIZES = (0, 1, 7, 8, 9, 255, 256, 257, 2047, 2048, 2049, 6151, 65537, 70001)


def _indexes(shape: tuple[int, ...], kept: float, generator: Generator) -> Tensor:
    indexes = torch.randint(0, 256, shape, generator=generator, dtype=torch.int16)
    return torch.where(torch.rand(shape, generator=generator) < kept, indexes, -1).to(torch.int16)


def _symbols(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, generator=generator).int()


def _compact_case(
    shape: tuple[int, ...],
    kept: float = 0.4,
    *,
    symbols: bool = True,
    change: Callable[[Tensor], Tensor] | None = None,
    id: str = "",
    bench: bool = False,
) -> OpCase:
    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        indexes = _indexes(shape, kept, generator)
        arguments = {"indexes": indexes if change is None else change(indexes)}
        return arguments | ({"symbols": _symbols(shape, generator)} if symbols else {})

    count = torch.Size(shape).numel()
    name = id or f"{'x'.join(map(str, shape))}-{kept:g}{'-symbols' if symbols else ''}"
    moved = count * (4 + 8 * symbols)
    return OpCase("compact_symbols", name, make, INTEGERS, MUST_RUN, bench=bench, bytes_moved=lambda size: moved)


def _expand_case(
    shape: tuple[int, ...], kept: float = 0.4, *, surplus: int = 0, id: str = "", bench: bool = False
) -> OpCase:
    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        indexes = _indexes(shape, kept, generator)
        available = max(0, int((indexes >= 0).sum()) + surplus)
        return {"symbols": _symbols((available,), generator), "indexes": indexes}

    count = torch.Size(shape).numel()
    name = id or f"{'x'.join(map(str, shape))}-{kept:g}"
    moved = round(count * (6 + 4 * kept))
    return OpCase("expand_symbols", name, make, INTEGERS, MUST_RUN, bench=bench, bytes_moved=lambda size: moved)


def _extremes(indexes: Tensor) -> Tensor:
    """The largest and the smallest index among the others: any negative one is skipped."""
    indexes[1::5] = 32767
    indexes[2::5] = -32768
    return indexes


CASES = [
    *(_compact_case((size,), symbols=symbols) for size in SIZES for symbols in (False, True)),
    *(_compact_case((6151,), kept) for kept in (0.0, 0.001, 0.999, 1.0)),
    _compact_case((2, 3, 5, 7), id="latent"),
    _compact_case((4111,), change=_extremes, id="extremes"),
    _compact_case((1, 96, 32, 48), symbols=False, id="evc-768x512-pass", bench=True),
    _compact_case((1, 96, 68, 120), id="evc-1080p-pass", bench=True),
    *(_expand_case((size,)) for size in SIZES),
    *(_expand_case((6151,), kept) for kept in (0.0, 0.001, 0.999, 1.0)),
    _expand_case((2, 3, 5, 7), id="latent"),
    _expand_case((6151,), surplus=100, id="too-many-symbols"),
    _expand_case((6151,), surplus=-500, id="too-few-symbols"),
    _expand_case((6151,), surplus=-10000, id="no-symbols"),
    _expand_case((1, 96, 32, 48), id="evc-768x512-pass", bench=True),
]
