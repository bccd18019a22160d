"""Bjontegaard deltas. The curve fitting is the package `bjontegaard`'s, called here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsecodec.errors import UsageError

Curve = tuple[Sequence[float], Sequence[float]]  # (bits per pixel, quality), one entry per operating point
MIN_OVERLAP = 0.25  # of the quality ranges; below, the figure says little and the caller is warned


def bd_rate(anchor: Curve, test: Curve) -> float:
    """Change of the rate at equal quality, per cent; negative means that `test` needs fewer bits.

    Raises:
        UsageError: a curve has fewer than four points or does not rise, they do not overlap, or the extra ``[metrics]``
            is missing.
    """
    return _delta("bd_rate", anchor, test)


def bd_psnr(anchor: Curve, test: Curve) -> float:
    """Change of the quality at equal rate, in units of the quality (dB for PSNR); raises as `bd_rate` does."""
    return _delta("bd_psnr", anchor, test)


def _delta(name: str, anchor: Curve, test: Curve) -> float:
    try:
        import bjontegaard
    except ImportError as error:
        raise UsageError(f"Bjontegaard deltas need the extra sparsecodec[metrics]: {error}") from error
    (rate_a, quality_a), (rate_t, quality_t) = _checked("anchor", anchor), _checked("test", test)
    on = (quality_a, quality_t) if name == "bd_rate" else (rate_a, rate_t)
    if max(on[0][0], on[1][0]) >= min(on[0][-1], on[1][-1]):
        what = "quality" if name == "bd_rate" else "rate"
        raise UsageError(
            f"the curves do not overlap in {what}: anchor {on[0][0]:.4g} to {on[0][-1]:.4g}, "
            f"test {on[1][0]:.4g} to {on[1][-1]:.4g}"
        )
    options: dict[str, Any] = {"method": "akima", "require_matching_points": False, "min_overlap": MIN_OVERLAP}
    return float(getattr(bjontegaard, name)(rate_a, quality_a, rate_t, quality_t, **options))


def _checked(label: str, curve: Curve) -> tuple[list[float], list[float]]:
    """The points in order of rate."""
    rates, qualities = curve
    if len(rates) != len(qualities) or len(rates) < 4:
        raise UsageError(f"{label} has {len(rates)} rates and {len(qualities)} qualities (needs four points or more)")
    points = sorted(zip(map(float, rates), map(float, qualities), strict=True))
    for (rate, quality), (next_rate, next_quality) in zip(points, points[1:], strict=False):
        if not (0 < rate < next_rate and quality < next_quality):
            steps = f"({rate:.4g} bpp, {quality:.4g}) to ({next_rate:.4g} bpp, {next_quality:.4g})"
            raise UsageError(f"{label} does not rise from {steps}")
    return [rate for rate, _ in points], [quality for _, quality in points]
