"""What tiles cost: seams and bytes on a folder of photos, and the memory of large pictures against its estimate.

``python bench/tiles.py FOLDER`` writes ``bench/results/tiles.json``; without the folder only its figures of memory.
Each peak is measured in a process of its own: the most that it held (VmHWM) less what it held before the call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec import compile_codec, load
from sparsecodec.data import list_images, read_image
from sparsecodec.entropy import Header
from sparsecodec.info import environment
from sparsecodec.metrics.quality import psnr
from sparsecodec.runtime.memory import PIXEL_BYTES, working_bytes
from sparsecodec.runtime.tiles import region_of, tiling_of, touched, windows

RESULTS = Path(__file__).parent / "results" / "tiles.json"
MODEL, QUALITY = "evc-tiny-sparse", 50.0
SIDES, OVERLAPS, NEAR = (256, 512), (0, 16, 32, 64), 8  # NEAR: pixels to either side of where a tile begins or ends
PICTURES = ((1024, 1024, None), (2048, 2048, 512), (4096, 4096, 1024))
DTYPES = ("float32", "bfloat16")


def seams(folder: str) -> list[dict[str, Any]]:
    """A row per tiling: means over the pictures, and the worst, against one tile of the same quality."""
    codec = compile_codec(load(MODEL), dtype=torch.float32)
    rows: dict[tuple[int, int], list[dict[str, float]]] = {(s, v): [] for s in SIDES for v in OVERLAPS}
    for path in list_images(folder):
        x = read_image(path)
        one = codec.encode(x, QUALITY)
        untiled = codec.decode(one)
        for (side, overlap), values in rows.items():
            blob = codec.encode(x, QUALITY, side, overlap)
            tiled, near = codec.decode(blob), _near(Header.read(blob))
            values.append(
                {
                    "psnr_change_db": psnr(tiled, x) - psnr(untiled, x),
                    "psnr_change_near_seams_db": _db(tiled, x, near) - _db(untiled, x, near),
                    "bytes_change": len(blob) / len(one) - 1,
                }
            )
    table = []
    for (side, overlap), values in rows.items():
        means = {key: round(fmean(value[key] for value in values), 4) for key in values[0]}
        worst = {
            f"worst_{key}": round(min(value[key] for value in values), 4) for key in values[0] if key.endswith("db")
        }
        table.append({"side": side, "overlap": overlap, "pictures": len(values), **means, **worst})
    return table


def _near(header: Header) -> Tensor:
    """Where a pixel lies close to the end of a tile inside the picture."""
    near = torch.zeros(header.height, header.width, dtype=torch.bool)
    for window in windows(header.tiling, header.height, header.width):
        for edge in {window.top, window.bottom} - {0, header.height}:
            near[edge - NEAR : edge + NEAR] = True
        for edge in {window.left, window.right} - {0, header.width}:
            near[:, edge - NEAR : edge + NEAR] = True
    return near


def _db(picture: Tensor, x: Tensor, where: Tensor) -> float:
    return float(-10 * torch.log10((picture - x).square()[..., where].mean()))


def peaks() -> list[dict[str, Any]]:
    """A row per picture, precision and direction: estimated and measured bytes."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for height, width, tile in PICTURES:
            for dtype in DTYPES:
                for direction in ("encode", "decode"):
                    options = [dtype, str(height), str(width), str(tile or 0), f"{folder}/x.spc"]
                    command = [sys.executable, __file__, "--measure", direction, *options]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    rows.append(json.loads(done.stdout))
                    print(rows[-1], file=sys.stderr)
    return rows


def measure(direction: str, dtype: str, height: int, width: int, tile: int | None, path: str) -> dict[str, Any]:
    """Codes once in this process, which has coded nothing of that size before."""
    torch.set_num_threads(1)
    codec = compile_codec(load(MODEL), dtype=getattr(torch, dtype))
    if direction == "encode":
        coarse = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
        x = F.interpolate(coarse, (height, width), mode="bilinear").clamp_(0, 1)
        parts = windows(tiling_of(height, width, tile, None), height, width)
        estimate = working_bytes(codec, codec.ANALYSIS + codec.ENTROPY, parts)
        before = _held("VmRSS", reset=True)
        Path(path).write_bytes(codec.encode(x, QUALITY, tile))
    else:
        blob = Path(path).read_bytes()
        header = Header.read(blob)
        parts = touched(header, region_of(header, None)).values()
        estimate = working_bytes(codec, codec.ENTROPY + codec.SYNTHESIS, parts) + PIXEL_BYTES * height * width
        before = _held("VmRSS", reset=True)
        codec.decode(blob)
    measured = _held("VmHWM") - before
    size = {"height": height, "width": width, "tile": tile}
    return {"direction": direction, "dtype": dtype, **size, "estimated_bytes": estimate, "measured_bytes": measured}


def _held(key: str, reset: bool = False) -> int:
    """Bytes from the process's status; `reset` also makes its peak what it holds now (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {key} in /proc/self/status")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="of photos")
    parser.add_argument("--measure", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        direction, dtype, height, width, tile, path = arguments.measure
        print(json.dumps(measure(direction, dtype, int(height), int(width), int(tile) or None, path)))
        return
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results |= {"model": MODEL, "quality": QUALITY, "environment": environment()}
    if arguments.folder:
        results["seams"] = seams(arguments.folder)
    results["memory"] = peaks()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
