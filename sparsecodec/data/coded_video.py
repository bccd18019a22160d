"""What PyAV decodes: frames of the first video stream, as they are to be shown."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsecodec.errors import UsageError


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
        with av.open(str(path)) as container:
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
