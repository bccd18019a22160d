"""Rate and quality of video codecs on real bytes of whole clips, frame by frame."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np

from sparsecodec._clip_format import ClipFormat
from sparsecodec.data.colour import Planes, Samples, planes_of
from sparsecodec.data.video_io import open_clip
from sparsecodec.errors import SparseCodecError, UsageError

PLANES = ("y", "u", "v")
WEIGHTS = (6, 1, 1)  # of their PSNRs in PSNR-YUV
COLUMNS = ("psnr-yuv", *(f"psnr-{plane}" for plane in PLANES), "bpp_file", "kbit_s", "encode_fps", "decode_fps")


class ClipCodec(Protocol):
    """A clip to the bytes of a file and back."""

    def encode(self, form: ClipFormat, frames: Iterable[Planes], qp: int) -> Iterator[bytes]:
        """The file in pieces, one as each frame is done; headers count to the first, what ends the file to the last."""
        ...

    def decode(self, data: bytes, form: ClipFormat) -> Iterator[Planes]:
        """All frames of the file."""
        ...


def plane_psnr(decoded: np.ndarray, source: np.ndarray, peak: int) -> float:
    """Peak signal-to-noise ratio of one plane of integers, dB; infinite for equal ones."""
    mse = float(np.square(decoded.astype(np.float64) - source).mean())
    return math.inf if mse == 0 else 20 * math.log10(peak) - 10 * math.log10(mse)


def yuv_psnr(decoded: Planes, source: Planes, peak: int) -> tuple[float, ...]:
    """PSNR-YUV of a frame, the mean of those of its planes weighted 6:1:1, then those of Y, U and V; dB."""
    planes = [plane_psnr(mine, theirs, peak) for mine, theirs in zip(decoded, source, strict=True)]
    return sum(w * psnr for w, psnr in zip(WEIGHTS, planes, strict=True)) / sum(WEIGHTS), *planes


def evaluate_clips(
    codec: ClipCodec,
    clips: Sequence[str | Path],
    qps: Sequence[int],
    frames: int | None = None,
    name: str = "",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Encodes and decodes every clip at every qp, one intra frame and then predicted ones.

    Args:
        codec: ours compiled, or one of `CLIP_ANCHORS`.
        clips: files, or folders of pictures, which are measured as 4:2:0.
        qps: what goes to ``codec.encode``.
        frames: of each clip, from its first on; default: all.
        name: into the result.
        progress: wraps the list of (qp, clip) pairs, for example ``tqdm``.

    Returns:
        ``{"name", "description", "qualities", "results", "per_clip"}``. ``results`` holds lists over `qps`, means over
        the clips, of `COLUMNS`: PSNRs are means over the frames of the PSNR of each, in dB; ``bpp_file`` are bits per
        luma sample of the whole file. ``per_clip`` has the same of every clip, and ``bits``, those of each frame.

    Raises:
        UsageError: no clips, or one cannot be read.
        SparseCodecError: another number of frames comes back.
    """
    if not clips or not qps:
        raise UsageError("evaluate_clips needs at least one clip and one qp")
    rows: dict[str, dict[str, list[Any]]] = {Path(path).name: {} for path in clips}
    if len(rows) < len(clips):
        raise UsageError("two clips have the same name")
    for qp, path in progress([(qp, path) for qp in qps for path in clips]):
        for column, value in _measure(codec, path, qp, frames).items():
            rows[Path(path).name].setdefault(column, []).append(value)
    means = {column: [fmean(row[column][i] for row in rows.values()) for i in range(len(qps))] for column in COLUMNS}
    return {
        "name": name,
        "description": f"{len(clips)} clips, real bytes, one intra frame",
        "qualities": list(qps),
        "results": means,
        "per_clip": [{"clip": clip, "results": row} for clip, row in rows.items()],
    }


class _Source:
    """Planes of a clip's first frames, read as they are asked for, and the time that reading takes."""

    def __init__(self, frames: Iterator[Samples], form: ClipFormat, count: int | None) -> None:
        self._frames, self._form = islice(frames, count), form
        self.read, self.seconds = 0, 0.0

    def __iter__(self) -> Iterator[Planes]:
        return self

    def __next__(self) -> Planes:
        start = time.perf_counter()
        planes = planes_of(next(self._frames), self._form)
        self.seconds += time.perf_counter() - start
        self.read += 1
        return planes


def _measure(codec: ClipCodec, path: str | Path, qp: int, count: int | None) -> dict[str, Any]:
    """One row. The clip is read twice, so that no more than a frame of it is held."""
    with open_clip(path) as clip:
        form, source = clip.form, _Source(clip.frames, clip.form, count)
        begun = time.perf_counter()
        pieces = list(codec.encode(form, source, qp))
        encoding, total = time.perf_counter() - begun - source.seconds, source.read
    data, psnrs, digest, seconds = b"".join(pieces), [], hashlib.sha256(), 0.0
    decoder = codec.decode(data, form)
    with open_clip(path) as clip:
        for planes in _Source(clip.frames, form, total):
            start = time.perf_counter()
            decoded = next(decoder, None)
            seconds += time.perf_counter() - start
            if decoded is None:
                raise SparseCodecError(f"{path} at qp {qp}: {len(psnrs)} of {total} frames come back")
            psnrs.append(yuv_psnr(decoded, planes, form.peak))
            for plane in decoded:
                digest.update(np.ascontiguousarray(plane).tobytes())
    if next(decoder, None) is not None:
        raise SparseCodecError(f"{path} at qp {qp}: more than {total} frames come back")
    means = [fmean(values) for values in zip(*psnrs, strict=True)]
    bits, samples = 8 * len(data), total * form.height * form.width
    values = [*means, bits / samples, bits / total * form.fps / 1000]
    values += [total / max(encoding, 1e-9), total / max(seconds, 1e-9)]
    row = dict(zip(COLUMNS, values, strict=True))
    return row | {"frames": total, "bits": [8 * len(piece) for piece in pieces], "sha256": digest.hexdigest()}
