"""Video clips as frames in any order: raw YUV and y4m are mapped into memory, everything else is decoded by PyAV.

Every clip is 8-bit YUV 4:2:0 in limited range. On the way to RGB, chroma is repeated, not interpolated, so that a
window of a frame is the same whether it is cut before or after the conversion.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsecodec._clip_format import HD_HEIGHT, LUMA_WEIGHTS, ClipFormat
from sparsecodec.data.clip_headers import LINE_BYTES, raw_format, y4m_format
from sparsecodec.data.coded_video import (
    AS_LOCAL_FILE,
    decoded_frames,
    opened_video,
    planes_of,
    turn_of,
    why_no_pyav,
)
from sparsecodec.errors import SparseCodecError, UsageError, reason

RAW_SUFFIX, Y4M_SUFFIX = ".yuv", ".y4m"
CODED_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mkv",
    ".webm",
    ".mov",
    ".avi",
    ".ts",
    ".mpg",
    ".mpeg",
    ".264",
    ".h264",
    ".265",
    ".hevc",
)
CLIP_SUFFIXES = (RAW_SUFFIX, Y4M_SUFFIX, *CODED_SUFFIXES)
MATRICES = ("bt601", "bt709")


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of one size.

    Attributes:
        frames: ``[T, H * W + 2 * ceil(H / 2) * ceil(W / 2)]`` uint8: planes Y, U, V of each frame, one after another.
            Usually a map of a file, from which only what is looked at is read.
        height, width: of the luma, pixels.
        matrix: "bt601" or "bt709".
    """

    frames: np.ndarray
    height: int
    width: int
    matrix: str

    def __post_init__(self) -> None:
        if self.matrix not in MATRICES:
            raise UsageError(f"matrix={self.matrix!r} (needs one of {', '.join(MATRICES)})")

    def __len__(self) -> int:
        return len(self.frames)

    def yuv(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Planes of a frame: Y ``[H, W]``, U and V ``[ceil(H / 2), ceil(W / 2)]``, uint8."""
        frame, pixels = self.frames[index], self.height * self.width
        half = (self.height + 1) // 2, (self.width + 1) // 2
        u, v = frame[pixels:].reshape(2, *half)
        return frame[:pixels].reshape(self.height, self.width), u, v

    def rgb(
        self, index: int, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """A window of a frame, by default all of it: ``[height, width, 3]`` uint8."""
        bottom = self.height if height is None else top + height
        right = self.width if width is None else left + width
        y, u, v = self.yuv(index)
        rows, columns = np.arange(top, bottom) // 2, np.arange(left, right) // 2
        chroma = slice(top // 2, (bottom + 1) // 2), slice(left // 2, (right + 1) // 2)
        near = np.ix_(rows - top // 2, columns - left // 2)
        return yuv_to_rgb(y[top:bottom, left:right], u[chroma][near], v[chroma][near], self.matrix)


def yuv_to_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray, matrix: str) -> np.ndarray:
    """Limited-range Y'CbCr of ITU-R BT.601 or BT.709 -> R'G'B', rounded and clipped.

    R = Y + 2 (1 - Kr) Cr, B = Y + 2 (1 - Kb) Cb, G = (Y - Kr R - Kb B) / (1 - Kr - Kb), where Y = (y - 16) / 219 and
    Cb, Cr = (u, v - 128) / 224.

    Args:
        y, u, v: ``[H, W]`` uint8, 16 is black, 235 white, 128 no colour.
        matrix: "bt601" or "bt709".

    Returns:
        ``[H, W, 3]`` uint8.
    """
    of_red, of_blue = LUMA_WEIGHTS[matrix]
    luma = (y.astype(np.float32) - 16) * np.float32(255 / 219)
    red = luma + (v.astype(np.float32) - 128) * np.float32(2 * (1 - of_red) * 255 / 224)
    blue = luma + (u.astype(np.float32) - 128) * np.float32(2 * (1 - of_blue) * 255 / 224)
    green = (luma - of_red * red - of_blue * blue) / (1 - of_red - of_blue)
    return np.stack([red, green, blue], axis=-1).round().clip(0, 255).astype(np.uint8)


def list_clips(folder: str | Path) -> list[Path]:
    """The clips directly inside `folder`, sorted by name.

    Raises:
        UsageError: not a folder, or no clip in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    paths = sorted(path for path in folder.iterdir() if is_clip(path))
    if not paths:
        raise UsageError(f"no clips in {folder} (suffixes {', '.join(CLIP_SUFFIXES)})")
    return paths


def is_clip(path: str | Path) -> bool:
    """Whether the suffix is that of a clip."""
    return Path(path).suffix.lower() in CLIP_SUFFIXES


def why_not_decodable(path: str | Path) -> str | None:
    """None if the packages that read files like `path` are installed, else the sentence that says what is missing."""
    return None if Path(path).suffix.lower() in (RAW_SUFFIX, Y4M_SUFFIX) else why_no_pyav(path)


def has_video(path: str | Path) -> bool:
    """Whether PyAV, which must be installed, finds video in a file; nothing is decoded, no link is followed."""
    import av

    try:
        with av.open(str(path), **AS_LOCAL_FILE) as container:
            return bool(container.streams.video)
    except (av.FFmpegError, OSError, ValueError):
        return False


def read_clip(path: str | Path, matrix: str | None = None) -> Clip:
    """Opens a clip; frames are read when they are looked at.

    Raw files say their size in their name, as ``pass_416x240_50fps_8bit_420_100f.yuv`` does; a number of frames there
    is checked. Clips that PyAV decodes go, as raw frames, to an unnamed file in the folder for temporary files, and
    leave with the `Clip`; depths and samplings other than 8-bit 4:2:0 are converted, and frames are turned
    as the file says they are shown.

    Args:
        path: ``.yuv``, ``.y4m``, or anything PyAV reads.
        matrix: "bt601" or "bt709"; by default what the file says, else BT.709 from 720 lines on and BT.601 below.

    Raises:
        UsageError: missing, empty, cut off, not 8-bit 4:2:0 (raw and y4m), or the extra ``[video]`` is not installed.
        SparseCodecError: no room for the decoded frames.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise UsageError(f"{path} is empty")
    reader = {RAW_SUFFIX: _read_raw, Y4M_SUFFIX: _read_y4m}.get(path.suffix.lower(), _decode)
    try:
        frames, height, width, told = reader(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from error
    return Clip(frames, height, width, matrix or told or ("bt709" if height >= HD_HEIGHT else "bt601"))


def _read_raw(path: Path) -> tuple[np.ndarray, int, int, None]:
    form, named = raw_format(path, depths=(8,))
    size, frame = path.stat().st_size, form.frame_bytes
    if size % frame:
        raise UsageError(
            f"{path}: {size // frame} frames of {form.width}x{form.height} and {size % frame} bytes "
            "(cut off, or wrongly named)"
        )
    if named not in (None, size // frame):
        raise UsageError(f"{path}: {size // frame} frames, {named} in the name (cut off, or wrongly named)")
    return np.memmap(path, np.uint8, "r").reshape(-1, frame), form.height, form.width, None


def _read_y4m(path: Path) -> tuple[np.ndarray, int, int, None]:
    with open(path, "rb") as file:
        header = file.readline(LINE_BYTES)
        mark = file.readline(LINE_BYTES)
    form = y4m_format(header, path, depths=(8,))
    if form.full_range:
        raise UsageError(f"{path} is in full range (needs limited range, 16 to 235)")
    stride = len(mark) + form.frame_bytes
    body = path.stat().st_size - len(header)
    if body < stride or body % stride:
        raise UsageError(
            f"{path}: {body // stride} frames of {form.width}x{form.height} and {body % stride} bytes (cut off)"
        )
    frames = np.memmap(path, np.uint8, "r", offset=len(header)).reshape(-1, stride)
    marks = np.frombuffer(mark, np.uint8)
    if not mark.startswith(b"FRAME") or (frames[:, : len(mark)] != marks).any():
        raise UsageError(f"{path}: not every frame begins with {mark[:20]!r} (cut off, or damaged)")
    return frames[:, len(mark) :], form.height, form.width, None


def _decode(path: Path) -> tuple[np.ndarray, int, int, str | None]:
    """Frames of the first video stream through PyAV."""
    with tempfile.TemporaryFile() as store:
        with opened_video(path) as (container, stream):
            size, told, count = None, None, 0
            for frame in decoded_frames(path, container, stream):
                turn = turn_of(path, frame)
                height, width = turn.size(frame)
                if size is None:
                    size, told = (height, width), _matrix_of(frame)
                if (height, width) != size:
                    found = f"{width}x{height} after {size[1]}x{size[0]}"
                    raise UsageError(f"{path}: frame {count} is {found} (needs one size)")
                _store(store, path, b"".join(plane.tobytes() for plane in planes_of(frame, turn)))
                count += 1
        if size is None:
            raise UsageError(f"{path} has no frames")
        store.flush()
        frames = np.memmap(store, np.uint8, "r").reshape(count, ClipFormat(*size).frame_bytes)
    return frames, *size, told


def _store(store: Any, path: Path, planes: bytes) -> None:
    try:
        store.write(planes)
    except OSError as error:
        where = tempfile.gettempdir()
        raise SparseCodecError(f"no room in {where} for the decoded frames of {path}: {reason(error)}") from error


def _matrix_of(frame: Any) -> str | None:
    """What the stream says of its matrix, in FFmpeg's numbers: 1 is BT.709, 5 and 6 are BT.601's two regions.

    Frames that are RGB leave `planes_of` as BT.601.
    """
    return "bt601" if frame.format.is_rgb else {1: "bt709", 5: "bt601", 6: "bt601"}.get(int(frame.colorspace))
