"""Bjontegaard deltas. The curve fitting is the package `bjontegaard`'s, called here and nowhere else."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from sparsecodec.errors import UsageError

logger = logging.getLogger(__name__)

Curve = tuple[Sequence[float], Sequence[float]]  # (bits per pixel, quality), one entry per operating point
MIN_OVERLAP = 0.25  # of the ranges; below, the figure says little and the caller is warned


def bd_rate(anchor: Curve, test: Curve) -> float:
    """Change of the rate at equal quality, per cent; negative means that `test` needs fewer bits.

    Curves that share little of their ranges are warned of in the log.

    Raises:
        UsageError: a curve has fewer than four points, is not finite or does not rise, they do not overlap, or the
            extra ``[metrics]`` is missing.
    """
    return _delta("bd_rate", "quality", anchor, test)


def bd_psnr(anchor: Curve, test: Curve) -> float:
    """Change of the quality at equal rate, in its units (dB for PSNR); warns and raises as `bd_rate` does."""
    return _delta("bd_psnr", "rate", anchor, test)


def _delta(name: str, axis: str, anchor: Curve, test: Curve) -> float:
    try:
        import bjontegaard
    except ImportError as error:
        raise UsageError(f"Bjontegaard deltas need the extra sparsecodec[metrics]: {error}") from error
    (rate_a, quality_a), (rate_t, quality_t) = _checked("anchor", anchor), _checked("test", test)
    a, t = (quality_a, quality_t) if axis == "quality" else ([*map(math.log, rate_a)], [*map(math.log, rate_t)])
    shared, whole = min(a[-1], t[-1]) - max(a[0], t[0]), max(a[-1], t[-1]) - min(a[0], t[0])
    ranges = "anchor {:.4g} to {:.4g}, test {:.4g} to {:.4g}".format(
        *((a[0], a[-1], t[0], t[-1]) if axis == "quality" else (rate_a[0], rate_a[-1], rate_t[0], rate_t[-1]))
    )
    if shared <= 0:
        raise UsageError(f"the curves do not overlap in {axis}: {ranges}")
    if shared < MIN_OVERLAP * whole:
        logger.warning("the curves share only %.0f %% of their %s: %s", 100 * shared / whole, axis, ranges)
    delta = getattr(bjontegaard, name)
    # min_overlap=0: the warning above says the same, in one line and in our words
    return float(
        delta(rate_a, quality_a, rate_t, quality_t, method="akima", require_matching_points=False, min_overlap=0)
    )


def _checked(label: str, curve: Curve) -> tuple[list[float], list[float]]:
    """The points in order of rate."""
    rates, qualities = curve
    if len(rates) != len(qualities) or len(rates) < 4:
        raise UsageError(f"{label} has {len(rates)} rates and {len(qualities)} qualities (needs four points or more)")
    points = sorted(zip(map(float, rates), map(float, qualities), strict=True))
    for rate, quality in points:
        if not (math.isfinite(rate) and math.isfinite(quality)):
            raise UsageError(f"{label} has a point of {rate:g} bpp and quality {quality:g} (needs finite numbers)")
        if rate <= 0:
            raise UsageError(f"{label} has a point of {rate:g} bpp (needs more than 0)")
    for (rate, quality), (next_rate, next_quality) in zip(points, points[1:], strict=False):
        if not (rate < next_rate and quality < next_quality):
            steps = f"({rate:.4g} bpp, {quality:.4g}) to ({next_rate:.4g} bpp, {next_quality:.4g})"
            raise UsageError(f"{label} does not rise from {steps}: leave one of these points out")
    return [rate for rate, _ in points], [quality for _, quality in points]
