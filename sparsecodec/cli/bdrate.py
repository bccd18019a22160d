"""``sparsecodec bdrate``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sparsecodec.cli.options import add_json, print_json
from sparsecodec.errors import UsageError
from sparsecodec.metrics import bd_psnr, bd_rate

QUALITY_KEYS = ("psnr-rgb", "psnr", "ms-ssim-rgb", "ms-ssim")


def add_to(subparsers) -> None:
    parser = subparsers.add_parser("bdrate", help="what TEST saves against ANCHOR, two results of eval")
    parser.add_argument("anchor", help="JSON")
    parser.add_argument("test", help="JSON")
    parser.add_argument("--metric", default="psnr-rgb", choices=QUALITY_KEYS, help="default: %(default)s")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    anchor, test = (curve(read_result(path), arguments.metric, path) for path in (arguments.anchor, arguments.test))
    values = {"bd_rate": bd_rate(anchor, test), "bd_psnr": bd_psnr(anchor, test), "metric": arguments.metric}
    if arguments.json:
        print_json(values)
    else:
        print(f"BD-rate {values['bd_rate']:+.2f} %, BD-quality {values['bd_psnr']:+.4f} ({arguments.metric})")


def read_result(path: str) -> dict[str, Any]:
    """A file in CompressAI's shape: ``{"name", "results": {"bpp": [...], "psnr-rgb": [...], ...}}``.

    Raises:
        UsageError: it is none.
    """
    try:
        result = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(result, dict) or not isinstance(result.get("results"), dict):
        raise UsageError(f"{path} has no 'results' (needs what eval or CompressAI's eval_model wrote)")
    return result


def curve(result: dict[str, Any], metric: str, path: str) -> tuple[list[float], list[float]]:
    """(rates, qualities) of a result; rates with the file's header where they are recorded.

    Raises:
        UsageError: the metric is not in it.
    """
    results = result["results"]
    rates = results.get("bpp_file", results.get("bpp"))
    qualities = results.get(metric, results.get(metric.removesuffix("-rgb")))
    for key, values in (("bpp", rates), (metric, qualities)):
        if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
            raise UsageError(f"{path} has no numbers for {key!r} (it has {', '.join(results)})")
    return rates, qualities
