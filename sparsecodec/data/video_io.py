"""Clips as streams: one frame after another, from files and pipes and to them, in constant memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sparsecodec._clip_format import SITINGS, ClipFormat
from sparsecodec.data.clip_headers import LINE_BYTES, Y4M_MAGIC, Y4M_SPACES, raw_format, y4m_format
from sparsecodec.data.coded_video import Turn, decoded_frames, opened_video, planes_of, shown_frames, turn_of
from sparsecodec.data.colour import Planes, Samples
from sparsecodec.data.picture_folders import RATE, folder_format, list_frames, read_frames
from sparsecodec.data.video import RAW_SUFFIX, Y4M_SUFFIX
from sparsecodec.errors import UsageError

MATRIX_OF_CODE = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020"}  # FFmpeg's numbers are those of ITU-T H.273
SITING_OF_CODE = {1: "left", 2: "center", 3: "top-left"}
FULL_RANGE = 2


@dataclass(frozen=True)
class ClipStream:
    """A clip that is being read.

    Attributes:
        form: its format.
        frames: planes, or the picture, of one frame after another, as `to_frame` takes them; raises a `UsageError` that
            names the frame if the clip is cut off.
        count: how many there will be, if that is known beforehand.
    """

    form: ClipFormat
    frames: Iterator[Samples]
    count: int | None


@contextmanager
def open_clip(
    path: str | Path, raw: ClipFormat | None = None, rate: tuple[int, int] | None = None
) -> Iterator[ClipStream]:
    """Opens a clip: y4m, raw, what PyAV decodes (other depths and samplings become 4:2:0 of 8 or 10 bits), pictures.

    Args:
        path: of a file; ``.yuv`` is raw, and its name has the size unless `raw` has it. Or of a folder of pictures.
        raw: format of a raw file; the file is then raw whatever its name is.
        rate: frames per second of pictures, as a fraction.

    Raises:
        UsageError: missing, or no clip of a kind that can be read; the message says why.
    """
    path = Path(path)
    if path.is_dir():
        yield _open_folder(path, rate or RATE)
        return
    if not path.is_file():
        raise UsageError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    suffix = path.suffix.lower()
    if raw is None and suffix not in (RAW_SUFFIX, Y4M_SUFFIX):
        with _decoded(path) as stream:
            yield stream
        return
    with open(path, "rb") as file:
        if raw is not None or suffix == RAW_SUFFIX:
            raw, count, doubt = (raw, None, "another size?") if raw else (*raw_format(path), "wrongly named?")
            size = path.stat().st_size
            if size != (count or size // raw.frame_bytes) * raw.frame_bytes:
                raise UsageError(f"{path}: {size} bytes (frames have {raw.frame_bytes}: {doubt})")
        yield read_stream(file, path, raw)


def _open_folder(path: Path, rate: tuple[int, int]) -> ClipStream:
    paths = list_frames(path)
    frames = read_frames(paths)
    first = next(frames)
    return ClipStream(folder_format(first, rate), chain([first], frames), len(paths))


def read_stream(file: BinaryIO, name: str | Path, raw: ClipFormat | None = None) -> ClipStream:
    """A clip from a binary file or pipe.

    Args:
        file: open for reading.
        name: for messages.
        raw: format of raw frames; None: it is y4m.

    Raises:
        UsageError: empty, or no y4m.
    """
    if raw is not None:
        return ClipStream(raw, _frames(file, name, raw, marked=False), _count(file, raw.frame_bytes))
    header = file.readline(LINE_BYTES)
    if not header:
        raise UsageError(f"{name} is empty")
    if not header.startswith(Y4M_MAGIC):
        raise UsageError(
            f"{name} is no y4m (ffmpeg -f yuv4mpegpipe makes it); raw frames need their size, --size 416x240"
        )
    form = y4m_format(header, name)
    return ClipStream(form, _frames(file, name, form, marked=True), _count(file, form.frame_bytes + len(b"FRAME\n")))


class ClipWriter:
    """Writes frames as y4m or raw.

    Args:
        file: open for writing; what is written is flushed frame by frame, for whoever watches.
        form: of the clip.
        raw: without headers.
    """

    def __init__(self, file: BinaryIO, form: ClipFormat, raw: bool = False) -> None:
        self._file, self._mark = file, b"" if raw else b"FRAME\n"
        if not raw:
            file.write(_y4m_header(form))

    def write(self, planes: Planes) -> None:
        """Writes one frame of uint8 or, for 10 bits, uint16 planes."""
        parts = [np.ascontiguousarray(plane, plane.dtype.newbyteorder("<")).data for plane in planes]
        self._file.write(b"".join([self._mark, *parts]))  # at once: Ctrl-C between two planes would leave half a frame
        self._file.flush()


def _y4m_header(form: ClipFormat) -> bytes:
    spaces = {entry: space for space, entry in Y4M_SPACES.items()}
    space = "420p10 XYSCSS=420P10" if form.depth == 10 else spaces[8, form.siting]
    size, rate, aspect = (
        f"W{form.width} H{form.height}",
        f"F{form.rate[0]}:{form.rate[1]}",
        "A{}:{}".format(*form.aspect),
    )
    scale = "FULL" if form.full_range else "LIMITED"
    return f"{Y4M_MAGIC.decode()} {size} {rate} Ip {aspect} C{space} XCOLORRANGE={scale}\n".encode()


def _count(file: BinaryIO, frame_bytes: int) -> int | None:
    """Frames in the rest of a file; None of a pipe. FRAME marks may have parameters, so it is an estimate for y4m."""
    if not file.seekable():
        return None
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return (end - here) // frame_bytes


def _frames(file: BinaryIO, name: str | Path, form: ClipFormat, marked: bool) -> Iterator[Planes]:
    number = 0
    while True:
        if marked:
            mark = file.readline(LINE_BYTES)
            if not mark:
                break
            if not (mark.startswith(b"FRAME") and mark.endswith(b"\n")):
                raise UsageError(f"{name}: frame {number} begins with {mark[:20]!r} (needs FRAME: cut off, or damaged)")
        try:
            data = file.read(form.frame_bytes)
        except (MemoryError, OverflowError) as error:
            size = f"{form.width}x{form.height}, {form.frame_bytes} bytes"
            raise UsageError(f"{name}: a frame of {size} does not fit into memory (is the header damaged?)") from error
        if not data and not marked:
            break
        if len(data) < form.frame_bytes:
            raise UsageError(f"{name}: frame {number} is cut off, {len(data)} of {form.frame_bytes} bytes")
        planes = _split(data, form)
        if form.depth > 8 and (largest := max(plane.max() for plane in planes)) > form.peak:
            raise UsageError(
                f"{name}: frame {number} holds {largest} (needs at most {form.peak}: {form.depth} bits, the lower ones "
                "of 16; ffmpeg -pix_fmt yuv420p10le makes them)"
            )
        yield planes
        number += 1
    if not number:
        raise UsageError(f"{name} has no frames")


def _split(data: bytes, form: ClipFormat) -> Planes:
    samples = np.frombuffer(data, np.uint8 if form.depth == 8 else "<u2")
    pixels, half = form.height * form.width, form.chroma
    u, v = samples[pixels:].reshape(2, *half)
    return samples[:pixels].reshape(form.height, form.width), u, v


@contextmanager
def _decoded(path: Path) -> Iterator[ClipStream]:
    """The first video stream of a file through PyAV."""
    with opened_video(path) as (container, stream):
        frames = decoded_frames(path, container, stream)
        first = next(frames, None)
        if first is None:
            raise UsageError(f"{path} has no frames")
        form = _format_of(first, stream, turn_of(path, first))
        yield ClipStream(form, _converted(path, form, chain([first], frames)), shown_frames(container, stream))


def _format_of(frame: Any, stream: Any, turn: Turn) -> ClipFormat:
    rate = stream.average_rate or stream.guessed_rate or 25
    aspect = stream.sample_aspect_ratio or 0
    ratio = (aspect.numerator, aspect.denominator) if aspect else (0, 0)
    siting = SITING_OF_CODE.get(int(getattr(stream.codec_context, "chroma_location", 0) or 0), SITINGS[0])
    form = ClipFormat(
        *turn.size(frame),
        (rate.numerator, rate.denominator),
        ratio[::-1] if turn.transposed else ratio,
        depth=10 if frame.format.components[0].bits > 8 else 8,
        siting=siting if turn.is_none or siting == "center" else SITINGS[0],  # what was left is at another side
    )
    if frame.format.is_rgb:  # converted by `planes_of`
        return replace(form, matrix="bt601")
    full = int(frame.color_range) == FULL_RANGE or frame.format.name.startswith("yuvj")
    return replace(form, matrix=MATRIX_OF_CODE.get(int(frame.colorspace)), full_range=full)


def _converted(path: Path, form: ClipFormat, frames: Iterator[Any]) -> Iterator[Planes]:
    for number, frame in enumerate(frames):
        turn = turn_of(path, frame)
        height, width = turn.size(frame)
        if (height, width) != (form.height, form.width):
            raise UsageError(
                f"{path}: frame {number} is {width}x{height} after {form.width}x{form.height} (needs one size)"
            )
        yield planes_of(frame, turn, form.depth, form.full_range)
