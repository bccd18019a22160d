"""``sparsecodec plot``."""

from __future__ import annotations

import argparse
import importlib.util
import io
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsecodec.cli.bdrate import QUALITY_KEYS, curve, read_result, usual_metric
from sparsecodec.cli.options import add_command, write_bytes
from sparsecodec.errors import UsageError
from sparsecodec.sparsity.macs import MacReport, count
from sparsecodec.training.families import PARTS, family_of
from sparsecodec.training.logs import read_log
from sparsecodec.zoo import load

QUALITY_LABELS = {
    "psnr": "PSNR (dB)",
    "ms-ssim": "MS-SSIM (dB)",
    "psnr-yuv": "PSNR, YUV 6:1:1 (dB)",
    "psnr-y": "PSNR of luma (dB)",
}
RECORD_LABELS = {
    "mac_reduction": "MACs removed (share)",
    "beta": "gradient of masked\nfilters (share)",
    "loss": "loss",
    "bpp": "rate (bit/pixel)",
    "psnr": "PSNR (dB)",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
}
SIDE = 256  # pixels of the square picture that MACs are counted on

Points = tuple[Sequence[float], Sequence[float]]


def add_to(subparsers) -> None:
    parser = add_command(
        subparsers, "plot", "rate-distortion curves of several results of eval; MACs of two codecs; the log of a run"
    )
    parser.add_argument("results", nargs="*", metavar="JSON", help="of eval: their rate-distortion curves")
    parser.add_argument("--macs", nargs=2, metavar=("DENSE", "SPARSE"), help="shipped names or paths: MACs per layer")
    parser.add_argument("--part", default="decoder", choices=PARTS, help="whose MACs (default: %(default)s)")
    parser.add_argument("--log", nargs="+", metavar="JSONL", help="log.jsonl of runs: what changes over the steps")
    parser.add_argument(
        "--key", help="of the log, comma-separated (default: the first of all logs of mac_reduction, loss)"
    )
    parser.add_argument("-o", "--output", help="suffix: png, pdf or svg (default: rd.png, macs.png or log.png)")
    parser.add_argument("--metric", choices=QUALITY_KEYS, help="default: psnr-rgb, of clips psnr-yuv")
    parser.add_argument("--title", default="")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    kinds = {"rd": bool(arguments.results), "macs": bool(arguments.macs), "log": bool(arguments.log)}
    if sum(kinds.values()) != 1:
        raise UsageError("plot needs one of: results of eval (JSON ...), --macs DENSE SPARSE, --log JSONL ...")
    kind = next(name for name, asked in kinds.items() if asked)
    output = arguments.output or f"{kind}.png"
    if kind == "rd":
        results = {path: read_result(path) for path in arguments.results}
        names = _labels({path: str(result.get("name") or Path(path).stem) for path, result in results.items()})
        metric = arguments.metric or usual_metric(results.values())
        curves = {names[path]: _drawable(curve(result, metric, path), path) for path, result in results.items()}
        draw(curves, output, metric, arguments.title)
    elif kind == "macs":
        before, after = (_counted(name, arguments.part) for name in arguments.macs)
        draw_macs(before, after, output, arguments.title or f"{arguments.part} of {' and '.join(arguments.macs)}")
    else:
        names = _labels({path: Path(path).resolve().parent.name for path in arguments.log})
        logs = {names[path]: read_log(path) for path in arguments.log}
        keys = [_usual_key(logs)] if arguments.key is None else arguments.key.split(",")
        draw_log(logs, keys, output, arguments.title)
    print(output, file=sys.stderr)


def _drawable(points: Points, path: str) -> Points:
    """`points`, none of which a figure would drop silently.

    Raises:
        UsageError: there is none, or one is not finite, as the decibels of an MS-SSIM of 1.
    """
    if not any(points):
        raise UsageError(f"{path} has no points to draw")
    for rate, quality in zip(*points, strict=False):  # `draw` compares the lengths
        if not math.isfinite(quality):
            raise UsageError(f"{path} has a point of {rate:g} bpp and quality {quality:g} (needs finite numbers)")
    return points


def why_no_plot() -> str | None:
    """None if figures can be drawn, else the sentence that says why not."""
    return None if importlib.util.find_spec("matplotlib") else "plots need the extra sparsecodec[plot]"


def draw(curves: Mapping[str, Points], output: str | Path, metric: str = "psnr-rgb", title: str = "") -> None:
    """Draws rate-distortion curves, label -> (rates, qualities), into a file.

    Raises:
        UsageError: a curve's lists differ in length, the extra ``[plot]`` is not installed, or the suffix is unknown.
    """
    figure = _figure(7, 5)
    axes = figure.add_subplot()
    for label, (rates, qualities) in curves.items():
        if len(rates) != len(qualities):
            raise UsageError(f"{label} has {len(rates)} rates and {len(qualities)} qualities")
        points = sorted(zip(rates, qualities, strict=True))
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    axes.set(xlabel="rate (bit/pixel)", ylabel=QUALITY_LABELS[metric.removesuffix("-rgb")], title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    _save(figure, output)


def draw_macs(before: MacReport, after: MacReport, output: str | Path, title: str = "") -> None:
    """Draws each layer's multiply-accumulates per pixel: what was there, and in front of it what is left.

    Raises:
        UsageError: the layers differ, or as `draw`.
    """
    left = {layer.name: layer.macs / SIDE**2 for layer in after.layers}
    names = [layer.name for layer in before.layers]
    foreign = sorted(set(left) - set(names))
    if foreign:
        raise UsageError(f"the first codec has no layer {foreign[0]} (needs a dense codec and what was made of it)")
    figure = _figure(8, 1.4 + 0.15 * len(names))
    axes = figure.add_subplot()
    rows = range(len(names))
    axes.barh(rows, [layer.macs / SIDE**2 for layer in before.layers], 0.85, color="#c9d3de", label="before")
    axes.barh(rows, [left.get(name, 0) for name in names], 0.5, color="#1f5f99", label="after")
    axes.set_yticks(rows, names, fontsize=6)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first layer on top
    axes.tick_params(axis="y", length=0)
    for row in rows[1:]:
        if names[row].split(".")[0] != names[row - 1].split(".")[0]:
            axes.axhline(row - 0.5, color="black", linewidth=0.4)
    total, rest = before.macs / SIDE**2, after.macs / SIDE**2
    axes.set(xlabel="multiply-accumulates per picture pixel", ylabel="layer, in order of execution")
    axes.set_title(f"{title}\n{total:,.0f} to {rest:,.0f} MAC/pixel ({rest / total - 1:+.1%})", fontsize=10)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="lower right")
    _save(figure, output)


def draw_log(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], keys: Sequence[str], output: str | Path, title: str = ""
) -> None:
    """Draws figures of runs over their steps, one panel for each key; label -> records as `read_log` gives them.

    Raises:
        UsageError: a log has no numbers under a key, or as `draw`.
    """
    figure = _figure(7, 1.2 + 2.2 * len(keys))
    panels = figure.subplots(len(keys), sharex=True, squeeze=False)[:, 0]
    for key, axes in zip(keys, panels, strict=True):
        for label, records in logs.items():
            points = [(record["step"], record[key]) for record in records if _is_number(record.get(key))]
            if not points:
                known = sorted({name for record in records for name, value in record.items() if _is_number(value)})
                raise UsageError(f"the log of {label} has no numbers {key!r} (it has {', '.join(known) or 'none'})")
            axes.plot(*zip(*points, strict=True), label=label)
        axes.set_ylabel(RECORD_LABELS.get(key, key))
        axes.grid(alpha=0.3)
    panels[0].set_title(title)
    panels[0].legend()
    panels[-1].set_xlabel("step")
    _save(figure, output)


def _usual_key(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What most methods are run for where all logs have it, else what every phase logs."""
    pruning = all(any(_is_number(record.get("mac_reduction")) for record in records) for records in logs.values())
    return "mac_reduction" if pruning else "loss"


def _counted(name: str, part: str) -> MacReport:
    model = load(name)
    return count(model, family_of(model).transforms(model, part, SIDE))


def _labels(names: Mapping[str, str]) -> dict[str, str]:
    """Path -> a label of its own: the name, with the path where two share it."""
    shared = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {path: f"{name} ({path})" if name in shared else name for path, name in names.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _figure(width: float, height: float) -> Any:
    """An empty figure of that size in inches."""
    reason = why_no_plot()
    if reason is not None:
        raise UsageError(reason)
    from matplotlib.figure import Figure  # optional

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, output: str | Path) -> None:
    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format=Path(output).suffix.lstrip(".") or "png", dpi=120)
    except ValueError as error:
        raise UsageError(f"{output}: {error}") from error
    write_bytes(output, buffer.getvalue())
