"""What PyAV decodes: frames of the first video stream, as they are to be shown."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsecodec.data.colour import Planes
from sparsecodec.errors import UsageError

# Playlists are files, too: what they link to elsewhere is not fetched. Titles, which nobody reads, need not be UTF-8.
AS_LOCAL_FILE = {"options": {"protocol_whitelist": "file"}, "metadata_errors": "ignore"}


def why_no_pyav(path: str | Path) -> str | None:
    """None if PyAV is installed, else the sentence that says what `path` needs."""
    if importlib.util.find_spec("av") is None:
        return f"clips such as {Path(path).name} need the extra sparsecodec[video]"
    return None


@contextmanager
def opened_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its first video stream.

    Raises:
        UsageError: the extra ``[video]`` is not installed, no video, or whatever FFmpeg complains of meanwhile.
    """
    reason = why_no_pyav(path)
    if reason is not None:
        raise UsageError(reason)
    import av

    try:
        with av.open(str(path), **AS_LOCAL_FILE) as container:
            if not container.streams.video:
                raise UsageError(f"{path} has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except av.FFmpegError as error:
        raise UsageError(f"{path} cannot be decoded: {error.strerror}") from error


def shown_frames(container: Any, stream: Any) -> int | None:
    """Frames that the file promises to show, None if it promises nothing."""
    index = _edited_index(container, stream)
    if index is None:
        return stream.frames or None
    return min(stream.frames, sum(not entry.is_discard for entry in index)) or None


def decoded_frames(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """Every frame that is to be shown, as PyAV has it.

    Raises:
        UsageError: a frame cannot be decoded, or there are fewer than the file promises.
    """
    import av

    index = _edited_index(container, stream)
    promised = stream.frames if index is None else min(stream.frames, len(index))
    number = 0
    try:
        for packet in container.demux(stream):
            promised -= packet.is_discard  # decoded for the frames after it, but not shown
            for frame in packet.decode():
                yield frame
                number += 1
    except av.FFmpegError as error:
        raise UsageError(f"{path}: frame {number} cannot be decoded: {error.strerror}") from error
    if number < promised:
        raise UsageError(f"{path}: {number} of {promised} frames can be decoded (cut off, or damaged)")


def _edited_index(container: Any, stream: Any) -> Any | None:
    """The frames that the edit list of an MP4 leaves, hidden ones included; None of other formats.

    ``stream.frames`` counts what lies in the file, and ``ffmpeg -ss 10 -c copy`` leaves frames before the cut there.
    Only MP4 has its whole index in its header: that of other formats grows while they are read, or lies behind the cut
    of a file that is cut off. PyAV before 16 does not show it.
    """
    index = getattr(stream, "index_entries", None)
    return index if index and "mp4" in container.format.name.split(",") else None


@dataclass(frozen=True)
class Turn:
    """What a display matrix does to a picture, in this order; each of the eight is exact on samples."""

    transposed: bool = False
    rows_flipped: bool = False
    columns_flipped: bool = False

    @property
    def is_none(self) -> bool:
        """Whether the picture stays as it is."""
        return self == Turn()

    def size(self, frame: Any) -> tuple[int, int]:
        """Height and width of a frame of PyAV after it."""
        return (frame.width, frame.height) if self.transposed else (frame.height, frame.width)

    def __call__(self, plane: np.ndarray) -> np.ndarray:
        """A view of ``[H, W]`` samples."""
        plane = plane.T if self.transposed else plane
        return plane[:: -1 if self.rows_flipped else 1, :: -1 if self.columns_flipped else 1]


def turn_of(path: Path, frame: Any) -> Turn:
    """What a player does to a frame before it shows it: phones store turned pictures, and say so beside them.

    Raises:
        UsageError: by other angles than multiples of 90 degrees, or scaled.
    """
    matrices = [np.frombuffer(data, "=i4") for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    if not matrices:
        return Turn()
    # dx = a x + c y, dy = b x + d y for a sample at (x, y), in 16.16 fixed point
    a, b, c, d = (int(matrices[0][i]) for i in (0, 1, 3, 4))
    if b == c == 0 and abs(a) == abs(d) > 0:
        return Turn(False, d < 0, a < 0)
    if a == d == 0 and abs(b) == abs(c) > 0:
        return Turn(True, b < 0, c < 0)
    raise UsageError(
        f"{path} is to be shown turned by {frame.rotation} degrees, matrix {a / 65536:g} {b / 65536:g} {c / 65536:g} "
        f"{d / 65536:g} (needs a multiple of 90; ffmpeg -display_rotation 0 -i {path.name} -c copy drops it)"
    )


def planes_of(frame: Any, turn: Turn, depth: int = 8, full_range: bool = False) -> Planes:
    """Planes Y, U, V of 4:2:0 as they are shown, without the padding of their lines; RGB becomes BT.601.

    Args:
        frame: of PyAV.
        turn: by `turn_of`.
        depth: of the samples, 8 (uint8) or 10 (uint16) bits.
        full_range: of the samples; else limited.
    """
    frame = frame.reformat(
        format="yuv420p" if depth == 8 else "yuv420p10le",
        dst_colorspace="ITU601" if frame.format.is_rgb else None,
        dst_color_range="JPEG" if full_range else "MPEG",
    )
    planes = []
    for plane in frame.planes:
        samples = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size]
        lines = samples.view(np.uint8 if depth == 8 else "<u2").reshape(plane.height, -1)
        lines = turn(lines[:, : plane.width])
        planes.append(lines if turn.is_none else np.ascontiguousarray(lines))  # torch takes no negative strides
    y, u, v = planes
    return y, u, v
