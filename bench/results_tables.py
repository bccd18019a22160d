"""The tables of docs/results.md, computed from what ``sparsecodec eval`` wrote into bench/results/{kodak,clips}.

``python bench/results_tables.py`` rewrites them in place; ``--check`` fails if they are not what the results say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sparsecodec.errors import UsageError
from sparsecodec.metrics import bd_psnr, bd_rate

ROOT = Path(__file__).parents[1]
KODAK = ROOT / "bench" / "results" / "kodak"
CLIPS = ROOT / "bench" / "results" / "clips"
TIMES = ROOT / "bench" / "results" / "decode_ms.json"
PAGE = ROOT / "docs" / "results.md"
ZOO = ROOT / "sparsecodec" / "zoo"
PARENTS = {
    "evc-tiny": None,
    "evc-tiny-m": "evc-tiny",
    "evc-tiny-s": "evc-tiny",
    "evc-tiny-sparse": "evc-tiny",
    "evc-tiny-sparse-feds": "evc-tiny-sparse",
    "evc-tiny-sparse-feds-portable": "evc-tiny-sparse-feds",
    "evc-tiny-sparse-portable": "evc-tiny-sparse",
    "evc-tiny-sparse-exact": "evc-tiny-sparse",
    "evc-tiny-sparse-int8": "evc-tiny-sparse",
}
STUDENTS = {  # of mask decay, and the same widths from scratch
    "evc-tiny-s": "evc-tiny-s-scratch",
    "evc-tiny-m": "evc-tiny-m-scratch",
}
FEDS = ("feds-teacher", "evc-tiny-sparse", "evc-tiny-sparse-feds")  # teacher, what the student began as, student
OTHERS = ("nm-2-4", "scalable-0", "scalable-1", "scalable-2", "scalable-3", "scalable-rd")
TIMED = {f"scalable-{prefix}": "scalable-rd" for prefix in range(4)}  # one decoder
SEEDS = range(3)
SEARCH_MS = tuple(f"search-ms-{seed}" for seed in SEEDS)
MS_PLANS = {  # the runs of each plan, and those of the searched one that were trained as they were
    "search-ms": (SEARCH_MS, ()),
    "uniform": (tuple(f"ablation/uniform-{seed}" for seed in SEEDS), SEARCH_MS),
    "search-ms-before": (("search-ms-before",), ()),
    "uniform-ms-before": (("uniform-ms-before",), ("search-ms-before",)),
}
PIXELS = 768 * 512
COST = ("GMAC", "decode ms", "Mparams")
ONE_RATE = ("fvc-tiny", "fvc-tiny-sparse", "dcvc-tiny", "dcvc-tiny-sparse")
CLIP_ANCHOR = "x265"
CLIP_PARENTS = {
    "dcvc-rt-tiny-sparse": "dcvc-rt-tiny",
    "dcvc-rt-tiny-portable": "dcvc-rt-tiny-sparse",
    "dcvc-hem-tiny-sparse": "dcvc-hem-tiny",
}
PHOTOS, BOTH = "photos in motion", "these and two real clips"
REAL = (  # video codecs that were tested on clips of neither kind, and what their inter models were last trained on
    ("dcvc-rt-tiny", PHOTOS),
    ("dcvc-rt-tiny-sparse", PHOTOS),
    ("real/dcvc-rt-tiny-sparse", BOTH),
    ("dcvc-hem-tiny", PHOTOS),
    ("dcvc-hem-tiny-sparse", PHOTOS),
    ("real/dcvc-hem-tiny-sparse", BOTH),
    *((f"real/{name}", BOTH) for name in ONE_RATE),
)
REAL_TESTS, REAL_QUALITY = ("BasketballPass", "RaceHorses"), 32

Row = Sequence[str]


def result(name: str) -> dict[str, Any]:
    """What eval wrote of `name`, a path below the folder of results without its suffix."""
    return json.loads((KODAK / f"{name}.json").read_text())


def curve(name: str) -> tuple[list[float], list[float]]:
    """(bits per pixel of whole files, PSNR)."""
    values = result(name)["results"]
    return values["bpp_file"], values["psnr-rgb"]


def rate(test: str, anchor: str) -> float:
    """BD-rate of `test` against `anchor`, per cent."""
    return bd_rate(curve(anchor), curve(test))


def psnr(test: str, anchor: str) -> float:
    """BD-PSNR of `test` against `anchor`, dB."""
    return bd_psnr(curve(anchor), curve(test))


def cost(name: str) -> tuple[str, str, str]:
    """What `COST` heads: GMAC of decoding 768x512, milliseconds of it, million parameters."""
    found = result(name)
    return f"{found['mac_per_pixel'] * PIXELS / 1e9:.2f}", decode_ms(name), f"{found['parameters'] / 1e6:.2f}"


def decode_ms(name: str) -> str:
    """Of a whole decode, by `bench/decode_ms.py`, in the first run that has it; empty for what it was not run on."""
    runs, name = json.loads(TIMES.read_text())["runs"], TIMED.get(name, name)
    return next((f"{run['ms'][name]:.1f}" for run in runs if name in run["ms"]), "")


def table(head: Row, rows: Sequence[Row]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def zoo() -> str:
    """The zoo beside the classical codecs, and each member beside the one that it was made from."""
    head = (
        "codec",
        *COST,
        "weights",
        "BD-rate vs JPEG",
        "vs WebP",
        "made from",
        "BD-rate vs that",
        "BD-PSNR",
    )
    rows = []
    for name, parent in PARENTS.items():
        size = (ZOO / f"{name}.safetensors").stat().st_size / 1e6
        against = [f"{rate(name, anchor):+.1f} %" for anchor in ("jpeg", "webp")]
        own = ("", "", "")
        if parent is not None:
            own = (parent, f"{rate(name, parent):+.1f} %", f"{psnr(name, parent):+.2f} dB")
        rows.append((name, *cost(name), f"{size:.1f} MB", *against, *own))
    return table(head, rows)


def methods() -> str:
    """Ways to the same number of MACs at equal steps; mean and deviation over the seeds that were run."""
    head = ("method", "seeds", *COST[:2], "BD-rate vs evc-tiny", "BD-PSNR vs evc-tiny")
    names = sorted({path.stem.rpartition("-")[0] for path in (KODAK / "ablation").glob("*.json")})
    rows = []
    for name in names:
        runs = [f"ablation/{path.stem}" for path in sorted((KODAK / "ablation").glob(f"{name}-[0-9].json"))]
        rates = [rate(run, "evc-tiny") for run in runs]
        gains = [psnr(run, "evc-tiny") for run in runs]
        cells = (name, str(len(runs)), *cost(runs[0])[:2], f"{_spread(rates, 1)} %", f"{_spread(gains, 2)} dB")
        rows.append((fmean(gains), cells))
    return table(head, [cells for _, cells in sorted(rows, reverse=True)])


def mask_decay() -> str:
    """Narrow codecs that mask decay made of a wide one, beside those trained from scratch."""
    head = ("student", *COST, "from scratch, BD-rate vs evc-tiny", "by mask decay", "gap closed")
    rows = []
    for name, scratch in STUDENTS.items():
        gap, left = rate(scratch, "evc-tiny"), rate(name, "evc-tiny")
        rows.append((name, *cost(name), f"{gap:+.1f} %", f"{left:+.1f} %", f"{1 - left / gap:.0%}"))
    return table(head, rows)


def others() -> str:
    """What was made of evc-tiny by the methods that have no rival on the page."""
    rows = []
    for name in OTHERS:
        rows.append((name, *cost(name)[:2], f"{rate(name, 'evc-tiny'):+.1f} %", f"{psnr(name, 'evc-tiny'):+.2f} dB"))
    return table(("codec", *COST[:2], "BD-rate vs evc-tiny", "BD-PSNR"), rows)


def feds() -> str:
    """The student of feature and entropy distillation, beside its teacher and what it began as."""
    head = ("codec", *COST, "BD-rate vs evc-tiny", "BD-rate vs the teacher", "BD-PSNR")
    rows = []
    for name in FEDS:
        against = ("", "") if name == FEDS[0] else (f"{rate(name, FEDS[0]):+.1f} %", f"{psnr(name, FEDS[0]):+.2f} dB")
        label = "the teacher" if name == FEDS[0] else name
        rows.append((label, *cost(name), f"{rate(name, 'evc-tiny'):+.1f} %", *against))
    return table(head, rows)


def milliseconds() -> str:
    """The searched plan beside one ratio for all groups; mean and deviation over the seeds that were run."""
    head = ("plan", "seeds", *COST, "BD-rate vs evc-tiny", "BD-PSNR", "BD-rate of the search vs it")
    rows = []
    for name, (runs, searched) in MS_PLANS.items():
        rates, gains = ([measure(run, "evc-tiny") for run in runs] for measure in (rate, psnr))
        ahead = f"{_spread([rate(*pair) for pair in zip(searched, runs, strict=True)], 1)} %" if searched else ""
        cells = f"{_spread(rates, 1)} %", f"{_spread(gains, 2)} dB", ahead
        rows.append((name, str(len(runs)), *cost(runs[0]), *cells))
    return table(head, rows)


def clips() -> str:
    """Video codecs on clips, each beside x265 and, if it was made from another one, beside that."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(CLIPS.glob("*.json"))}
    curves = {
        name: {row["clip"]: (row["results"]["bpp_file"], row["results"]["psnr-yuv"]) for row in found["per_clip"]}
        for name, found in results.items()
    }
    names = list(curves[CLIP_ANCHOR])
    head = (
        "codec",
        "GMAC per 512x256 P frame",
        *COST[1:],
        *map(_short, names),
        "BD-PSNR, mean",
        "made from",
        "BD-rate vs that",
    )
    rows = []
    for name, found in results.items():
        if name == CLIP_ANCHOR:
            continue
        macs = f"{found['mac_per_pixel'] * 512 * 256 / 1e9:.2f}" if "mac_per_pixel" in found else ""
        size = f"{found['parameters'] / 1e6:.2f}" if "parameters" in found else ""
        rates = [_delta(bd_rate, curves[CLIP_ANCHOR][clip], curves[name][clip]) for clip in names]
        gains = [_delta(bd_psnr, curves[CLIP_ANCHOR][clip], curves[name][clip]) for clip in names]
        cells = ["no overlap" if value is None else f"{value:+.0f} %" for value in rates]
        gain = "" if None in gains else f"{fmean(gains):+.2f} dB"
        source = curves.get(CLIP_PARENTS.get(name), {})
        lost = [_delta(bd_rate, source[clip], curves[name][clip]) for clip in source]
        against = f"{fmean(lost):+.1f} %" if lost and None not in lost else ""
        rows.append((name, macs, decode_ms(name), size, *cells, gain, CLIP_PARENTS.get(name, ""), against))
    return table(head, rows)


def clips_feds() -> str:
    """Fine-tuning with a teacher beside plain fine-tuning of the same codec, above the rate at which both run away."""
    found = [json.loads((CLIPS / "feds" / f"{name}.json").read_text()) for name in ("plain", "feds")]
    start = found[0]["qualities"].index(16)
    rows = []
    for clip in zip(*(result["per_clip"] for result in found), strict=True):
        plain, feds = ([row["results"][key][start:] for key in ("bpp_file", "psnr-yuv")] for row in clip)
        rows.append((_short(clip[0]["clip"]), f"{bd_rate(plain, feds):+.1f} %", f"{bd_psnr(plain, feds):+.2f} dB"))
    return table(("clip", "BD-rate of FEDS vs plain", "BD-PSNR"), rows)


def clips_portable() -> str:
    """What integers cost a video codec that does not ship as such: means over the qualities, each beside its own."""
    rows = []
    for path in sorted((CLIPS / "portable").glob("*.json")):
        found = [json.loads(each.read_text())["per_clip"] for each in (CLIPS / path.name, path)]
        for clip in zip(*found, strict=True):
            (rates, before), (others, after) = (
                [row["results"][key] for key in ("bpp_file", "psnr-yuv")] for row in clip
            )
            rate = 100 * (fmean(b / a for a, b in zip(rates, others, strict=True)) - 1)
            cells = f"{rate:+.1f} %", f"{fmean(after) - fmean(before):+.3f} dB"
            rows.append((path.stem, _short(clip[0]["clip"]), *cells))
    return table(("codec", "clip", "rate on integers", "PSNR"), rows)


def one_rate() -> str:
    """Video codecs whose inter model has one rate: no curves, so points."""
    results = {name: json.loads((CLIPS / "one-rate" / f"{name}.json").read_text()) for name in ONE_RATE}
    names = [row["clip"] for row in results[ONE_RATE[0]]["per_clip"]]
    rows = []
    for name, found in results.items():
        macs = f"{found['mac_per_pixel'] * 512 * 256 / 1e9:.2f}"
        points = [(row["results"]["bpp_file"][0], row["results"]["psnr-yuv"][0]) for row in found["per_clip"]]
        cells = [f"{bpp:.3f} bpp, {psnr:.2f} dB" for bpp, psnr in points]
        rows.append((name, macs, decode_ms(name), f"{found['parameters'] / 1e6:.2f}", *cells))
    return table(("codec", "GMAC per 512x256 P frame", *COST[1:], *map(_short, names)), rows)


def clips_real() -> str:
    """What pruning on real clips gives: points at one quality, and curves beside the codec that the zoo has."""
    rows = []
    for path, frames in REAL:
        name = path.rpartition("/")[2]
        cells, source = [], CLIPS / f"{name.removesuffix('-sparse')}.json"
        found = json.loads((CLIPS / f"{path}.json").read_text())
        anchors = _curves(json.loads(source.read_text())) if source.exists() else {}
        for clip, (rates, psnrs) in _curves(found).items():
            if clip not in REAL_TESTS:
                continue
            place = found["qualities"].index(REAL_QUALITY)
            cells.append(f"{rates[place]:.3f} bpp, {psnrs[place]:.2f} dB")
            delta = _delta(bd_rate, anchors[clip], (rates, psnrs)) if clip in anchors and path != source.stem else None
            cells.append("" if delta is None else f"{delta:+.1f} %")
        rows.append((name, frames, f"{found['mac_per_pixel'] * 512 * 256 / 1e9:.2f}", *cells))
    heads = [head for clip in REAL_TESTS for head in (clip, "BD-rate vs the zoo's dense codec")]
    return table(("codec", "trained on", "GMAC per 512x256 P frame", *heads), rows)


def _curves(found: dict[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """(bits per pixel of whole files, PSNR of YUV 6:1:1) of each clip, by its short name."""
    return {_short(row["clip"]): (row["results"]["bpp_file"], row["results"]["psnr-yuv"]) for row in found["per_clip"]}


def _short(clip: str) -> str:
    return clip.partition("_")[0]


def _delta(measure: Any, anchor: Any, test: Any) -> float | None:
    """None where the curves do not overlap, or one does not rise."""
    try:
        return measure(anchor, test)
    except UsageError:
        return None


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{fmean(values):+.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {stdev(values):.{digits}f}"


TABLES = {
    "zoo": zoo,
    "methods": methods,
    "mask-decay": mask_decay,
    "feds": feds,
    "others": others,
    "ms": milliseconds,
    "clips": clips,
    "clips-feds": clips_feds,
    "clips-portable": clips_portable,
    "one-rate": one_rate,
    "clips-real": clips_real,
}


def page(text: str) -> str:
    """`text` with every table between its marks computed anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"{PAGE.name} has no place for the table {name!r}")
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a table is stale")
    check = parser.parse_args().check
    text = PAGE.read_text()
    fresh = page(text)
    if not check:
        PAGE.write_text(fresh)
    elif fresh != text:
        print(f"{PAGE.name} is stale: run python bench/results_tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
