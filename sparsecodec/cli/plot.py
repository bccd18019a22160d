"""``sparsecodec plot``."""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
from pathlib import Path

from sparsecodec.cli.bdrate import QUALITY_KEYS, curve, read_result
from sparsecodec.cli.options import write_bytes
from sparsecodec.errors import UsageError

LABELS = {"psnr": "PSNR (dB)", "ms-ssim": "MS-SSIM"}


def add_to(subparsers) -> None:
    parser = subparsers.add_parser("plot", help="rate-distortion curves of several results of eval")
    parser.add_argument("results", nargs="+", metavar="JSON")
    parser.add_argument("-o", "--output", default="rd.png", help="suffix: png, pdf or svg (default: %(default)s)")
    parser.add_argument("--metric", default="psnr-rgb", choices=QUALITY_KEYS, help="default: %(default)s")
    parser.add_argument("--title", default="")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    curves = {}
    for path in arguments.results:
        result = read_result(path)
        curves[str(result.get("name") or Path(path).stem)] = curve(result, arguments.metric, path)
    draw(curves, arguments.output, arguments.metric, arguments.title)
    print(arguments.output, file=sys.stderr)


def why_no_plot() -> str | None:
    """None if `draw` can draw, else the sentence that says why not."""
    return None if importlib.util.find_spec("matplotlib") else "plots need the extra sparsecodec[plot]"


def draw(
    curves: dict[str, tuple[list[float], list[float]]], output: str | Path, metric: str = "psnr-rgb", title: str = ""
) -> None:
    """Draws curves, label -> (rates, qualities), into a file.

    Raises:
        UsageError: the extra ``[plot]`` is not installed, or the suffix is unknown.
    """
    reason = why_no_plot()
    if reason is not None:
        raise UsageError(reason)
    from matplotlib.figure import Figure  # optional

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for label, points in curves.items():
        rates, qualities = zip(*sorted(zip(*points, strict=True)), strict=True)
        axes.plot(rates, qualities, marker="o", markersize=4, label=label)
    axes.set(xlabel="bits per pixel", ylabel=LABELS[metric.removesuffix("-rgb")], title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format=Path(output).suffix.lstrip(".") or "png", dpi=120)
    except ValueError as error:
        raise UsageError(f"{output}: {error}") from error
    write_bytes(output, buffer.getvalue())
