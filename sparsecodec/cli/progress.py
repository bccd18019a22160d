"""How far the coding of a clip has come."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from sparsecodec._clip_format import ClipFormat

# tqdm's own, but frames per second below one of them, too, where tqdm turns to seconds per frame
ENDLESS = "{desc}: {n_fmt} frames [{elapsed}, {rate_noinv_fmt}{postfix}]"
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


class Progress:
    """A line on stderr with frames, frames per second and bitrate, and the sums at the end.

    Args:
        done: what happens to frames: "encoded".
        form: of the clip.
        total: frames that will come, if that is known.
        begun: when coding the first of them began, by `time.perf_counter`: an output is opened only after that.
    """

    def __init__(self, done: str, form: ClipFormat, total: int | None, begun: float) -> None:
        self.frames = self.bytes = 0
        self._form, self._begun = form, begun
        line = ENDLESS if total is None else BAR
        self._bar = tqdm(total=total, desc=done, unit=" frames", file=sys.stderr, mininterval=0.5, bar_format=line)
        self._bar.start_t -= time.perf_counter() - begun  # of tqdm's own clock

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def add(self, size: int, frames: int = 1) -> None:
        """Counts frames that took `size` bytes together."""
        self.frames += frames
        self.bytes += size
        self._bar.set_postfix_str(f"{self._kbit_s():.1f} kbit/s", refresh=False)
        self._bar.update(frames)

    def result(self) -> dict[str, Any]:
        """Sums, for JSON; ``fps`` is the clip's, ``coding_fps`` ours."""
        form, seconds = self._form, time.perf_counter() - self._begun
        return {
            "frames": self.frames,
            "height": form.height,
            "width": form.width,
            "fps": form.fps,
            "bytes": self.bytes,
            "bpp": 8 * self.bytes / (self.frames * form.height * form.width),
            "kbit_s": self._kbit_s(),
            "seconds": seconds,
            "coding_fps": self.frames / seconds,
        }

    def _kbit_s(self) -> float:
        return 8e-3 * self.bytes * self._form.fps / max(self.frames, 1)
