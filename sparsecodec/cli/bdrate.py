"""``sparsecodec bdrate``."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from sparsecodec.cli.options import add_command, add_json, print_json
from sparsecodec.errors import UsageError, reason
from sparsecodec.metrics import bd_psnr, bd_rate

QUALITY_KEYS = ("psnr-rgb", "psnr", "ms-ssim-rgb", "ms-ssim", "psnr-yuv", "psnr-y")


def add_to(subparsers) -> None:
    parser = add_command(subparsers, "bdrate", "what TEST saves against ANCHOR, two results of eval")
    parser.add_argument("anchor", help="JSON")
    parser.add_argument("test", help="JSON")
    parser.add_argument("--metric", choices=QUALITY_KEYS, help="default: psnr-rgb, of clips psnr-yuv")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    anchor, test = (read_result(path) for path in (arguments.anchor, arguments.test))
    of_clips = _of_clips((anchor, test))
    usual = usual_metric((anchor, test))
    metric = arguments.metric or usual
    # One name for the usual one, whatever was coded; both are a PSNR.
    measure = "bd_psnr" if metric == usual else f"bd_{metric.removesuffix('-rgb').replace('-', '_')}"
    paths = (arguments.anchor, arguments.test)
    values: dict[str, Any] = {"metric": metric}
    if of_clips:
        theirs, ours = ({row["clip"]: row for row in result["per_clip"]} for result in (anchor, test))
        common = [clip for clip in theirs if clip in ours]
        if not common:
            raise UsageError(f"{arguments.anchor} and {arguments.test} have no clip in common")
        values["per_clip"] = {clip: _deltas(theirs[clip], ours[clip], metric, measure, paths) for clip in common}
        values |= {key: fmean(row[key] for row in values["per_clip"].values()) for key in ("bd_rate", measure)}
    else:
        values |= _deltas(anchor, test, metric, measure, paths)
    if arguments.json:
        print_json(values)
        return
    for clip, row in values.get("per_clip", {}).items():
        print(f"BD-rate {row['bd_rate']:+.2f} %, BD {row[measure]:+.3f} dB  {clip}")
    print(f"BD-rate {values['bd_rate']:+.2f} %, BD {values[measure]:+.3f} dB ({metric})")


def usual_metric(results: Iterable[dict[str, Any]]) -> str:
    """What is compared unless told otherwise."""
    return "psnr-yuv" if _of_clips(results) else "psnr-rgb"


def _of_clips(results: Iterable[dict[str, Any]]) -> bool:
    return all("per_clip" in result for result in results)


def _deltas(
    anchor: dict[str, Any], test: dict[str, Any], metric: str, measure: str, paths: tuple[str, str]
) -> dict[str, float]:
    curves = [curve(result, metric, path) for result, path in zip((anchor, test), paths, strict=True)]
    return {"bd_rate": bd_rate(*curves), measure: bd_psnr(*curves)}


def read_result(path: str) -> dict[str, Any]:
    """A file in CompressAI's shape: ``{"name", "results": {"bpp": [...], "psnr-rgb": [...], ...}}``.

    Raises:
        UsageError: it is none, or its ``per_clip`` is not what eval writes.
    """
    try:
        result = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:  # the last: brackets nested too deep
        raise UsageError(f"{path} cannot be read as JSON: {reason(error)}") from error
    if not isinstance(result, dict) or not isinstance(result.get("results"), dict):
        raise UsageError(f"{path} has no 'results' (needs what eval or CompressAI's eval_model wrote)")
    rows = result.get("per_clip", [])
    if not isinstance(rows, list):
        raise UsageError(f"{path}: 'per_clip' is {json.dumps(rows):.40} (needs a list)")
    for place, row in enumerate(rows, 1):
        named = isinstance(row, dict) and isinstance(row.get("clip"), str)
        if not (named and isinstance(row.get("results"), dict)):
            raise UsageError(
                f"{path}: entry {place} of 'per_clip' is {json.dumps(row):.40} (needs 'clip' and 'results')"
            )
    return result


def curve(result: dict[str, Any], metric: str, path: str) -> tuple[list[float], list[float]]:
    """(rates, qualities in dB) of a result; rates with the file's header where they are recorded.

    MS-SSIM becomes -10 log10(1 - MS-SSIM), as it is compared everywhere: the scale itself is squeezed towards 1.

    Raises:
        UsageError: the metric is not in it, or a value is missing or not finite.
    """
    results = result["results"]
    rates = _numbers(results, ("bpp_file", "bpp"), path)
    names = (metric, metric.removesuffix("-rgb"))
    if not metric.startswith("ms-ssim"):
        return rates, _numbers(results, names, path)
    in_decibels = tuple(name.replace("ms-ssim", "ms-ssim-db") for name in names)
    if not any(name in results for name in names) and any(name in results for name in in_decibels):
        return rates, _numbers(results, in_decibels, path)
    return rates, [math.inf if value >= 1 else -10 * math.log10(1 - value) for value in _numbers(results, names, path)]


def _numbers(results: dict[str, Any], names: tuple[str, ...], path: str) -> list[float]:
    """The list under the first of `names` that there is."""
    values = next((results[name] for name in names if name in results), None)
    if not isinstance(values, list):
        raise UsageError(f"{path} has no list {names[0]!r} (it has {', '.join(results)})")
    for place, value in enumerate(values, 1):
        if isinstance(value, bool) or not isinstance(value, int | float):
            why = "; null is what eval writes for an infinite PSNR: leave that quality out" if value is None else ""
            raise UsageError(f"{path}: value {place} of {names[0]!r} is {json.dumps(value)} (needs a number{why})")
        if not _is_finite(value):
            raise UsageError(
                f"{path}: value {place} of {names[0]!r} is {json.dumps(value):.40} (needs a finite number)"
            )
    return values


def _is_finite(value: float) -> bool:
    """False for integers beyond float64, too: JSON's have no end."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
