"""Fair comparison of things that take milliseconds on a machine that is never quite idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Milliseconds: the median, and what 20 % and 80 % of the runs stayed under."""

    p20_ms: float
    p50_ms: float
    p80_ms: float


def interleaved(
    functions: dict[str, Callable[[], Any]],
    repeats: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Spread]:
    """Times functions in turn, round after round, so that a busy moment hits all of them alike.

    Each runs twice untimed first.

    Args:
        functions: label -> what to call; it has to be done when it returns.
        repeats: timed rounds, at least 1.
        progress: wraps the rounds, for example ``tqdm``.
    """
    for function in functions.values():
        function()
        function()
    times: dict[str, list[float]] = {label: [] for label in functions}
    for _ in progress(range(repeats)):
        for label, function in functions.items():
            start = time.perf_counter()
            function()
            times[label].append(1000 * (time.perf_counter() - start))
    return {label: _spread(values) for label, values in times.items()}


def _spread(values: list[float]) -> Spread:
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    fifths = quantiles(values, n=5, method="inclusive")
    return Spread(fifths[0], median(values), fifths[3])
