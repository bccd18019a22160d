"""Which of a kernel's tiles runs a shape: timed once on the GPU, remembered in a file.

A tile decides how fast a result comes. It does not decide a float32 result, whose sums run in one order whatever the
tile; 16-bit results may differ in the last place, because tensor cores add in blocks.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
import triton
from triton.runtime.errors import OutOfResources

from sparsecodec._triton import _tile

Tile = dict[str, int]
Run = Callable[[Tile], None]

INTERPRETED = _tile.INTERPRETED.value
FORMAT = 1  # of the file
ROUNDS = 5
FLUSHED_BYTES = 2**27  # overwritten before each run: more than the L2 cache of any GPU
MOST_FLUSHES = 256  # before one run: some 10 ms, longer than a host launches a kernel unless each launch blocks it


def time_on_device(run: Run, tiles: Sequence[Tile]) -> list[float]:
    """Milliseconds that the device needs for one launch of each tile, with cold L2; infinite where a tile does not fit.

    Medians of rounds that take the tiles in turn, so that a change of clocks meets all of them. To launch takes the
    host longer than many a kernel runs: the device is still flushing when all of a run is queued, or the run does not
    count.
    """
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device="cuda")
    times: dict[int, list[float]] = {}
    for number, tile in enumerate(tiles):
        try:
            run(tile)  # compiles
        except OutOfResources:
            continue
        times[number] = []
    flushes = 4
    for _ in range(ROUNDS):
        for number, found in times.items():
            elapsed, ahead = _timed(run, tiles[number], flushed, flushes)
            while not ahead and flushes < MOST_FLUSHES:
                flushes *= 2
                elapsed, ahead = _timed(run, tiles[number], flushed, flushes)
            found.append(elapsed)
    return [median(times[number]) if number in times else float("inf") for number in range(len(tiles))]


def _timed(run: Run, tile: Tile, flushed: torch.Tensor, flushes: int) -> tuple[float, bool]:
    """Milliseconds between the events around a run, and whether the host had queued both before the first was met."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(flushes):
        flushed.zero_()
    start.record()
    run(tile)
    end.record()
    ahead = not start.query()
    end.synchronize()
    return start.elapsed_time(end), ahead


def cache_folder() -> Path:
    """$SPARSECODEC_CACHE, else the user's cache folder by the XDG rules."""
    named = os.environ.get("SPARSECODEC_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsecodec"


class Tuner:
    """The choices for one kind of GPU: in memory, and in ``<folder>/<device>.json``.

    A file that cannot be read, written or believed costs one warning and the timings, nothing else. Threads take turns:
    what one times, the others find.
    """

    def __init__(
        self,
        folder: Path,
        device: str,
        time: Callable[[Run, Sequence[Tile]], list[float]] = time_on_device,
        version: str = triton.__version__,
    ) -> None:
        self.path = folder / f"{re.sub('[^A-Za-z0-9]+', '-', device).strip('-').lower()}.json"
        self.device = device
        self.version = version
        self._time = time
        self._read: dict[str, Tile] | None = None  # None before the file was looked at
        self._warned = False
        self._lock = threading.Lock()

    def choose(self, name: str, key: tuple, tiles: Sequence[Tile], trial: Callable[[], Run]) -> Tile:
        """The remembered tile if it is still among `tiles`, else the fastest of them, which is remembered."""
        entry = " ".join(map(str, ["triton", self.version, name, *key]))
        with self._lock:
            if self._read is None:
                self._read = self._load()
            if self._read.get(entry) in tiles:
                return self._read[entry]
            times = self._time(trial(), tiles)
            best = tiles[times.index(min(times))]
            self._read[entry] = dict(best)
            self._save()
            return best

    def _warn(self, problem: str) -> None:
        if not self._warned:
            warnings.warn(f"tile choices are not kept: {problem}", stacklevel=2)
        self._warned = True

    def _load(self) -> dict[str, Tile]:
        try:
            content = json.loads(self.path.read_text())
            if (content["format"], content["device"]) != (FORMAT, self.device):
                raise ValueError(f"written for {content['device']!r} in format {content['format']!r}")
            choices = content["choices"]
            if not all(isinstance(tile, dict) for tile in choices.values()):
                raise ValueError("its choices are no tiles")
            return choices
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._warn(f"{self.path} is replaced ({type(error).__name__}: {error})")
            return {}

    def _save(self) -> None:
        """Replaces the file at one stroke; what other processes added meanwhile stays."""
        self._read = self._load() | self._read
        content = {"format": FORMAT, "device": self.device, "choices": self._read}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, suffix=".tmp", delete=False) as file:
                json.dump(content, file, indent=0, sort_keys=True)
            try:
                os.replace(file.name, self.path)
            except OSError:
                os.unlink(file.name)
                raise
        except OSError as error:
            self._warn(f"{self.path} cannot be written ({error})")


_chosen: dict[tuple, Tile] = {}
_tuners: dict[str, Tuner] = {}


def choose(name: str, key: tuple, tiles: Sequence[Tile], device: torch.device, trial: Callable[[], Run]) -> Tile:
    """One of `tiles` for launching kernel `name` on `device`.

    The first one in the interpreter, while a CUDA graph is captured (nothing may be timed there) and with
    SPARSECODEC_AUTOTUNE=0.

    Args:
        name: of the op.
        key: int, str and bool; what the speed depends on: sizes, dtype, options that specialise the kernel.
        tiles: launch options, the likely best first.
        device: of the tensors.
        trial: called once if tiles are to be timed; allocates an output of its own and returns a function that launches
            the kernel into it with a given tile.
    """
    if INTERPRETED or device.type != "cuda" or len(tiles) == 1:
        return tiles[0]
    known = (device.index, name, key)
    remembered = _chosen.get(known)
    if remembered in tiles:
        return remembered
    if os.environ.get("SPARSECODEC_AUTOTUNE") == "0" or torch.cuda.is_current_stream_capturing():
        return tiles[0]
    kind = torch.cuda.get_device_name(device)
    tuner = _tuners.setdefault(kind, Tuner(cache_folder(), kind))
    with torch.cuda.device(device):
        _chosen[known] = tuner.choose(name, key, tiles, trial)
    return _chosen[known]
