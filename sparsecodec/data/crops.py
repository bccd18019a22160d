"""Training crops of pictures and of clips."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparsecodec.data.images import SUFFIXES, read_rgb, size_of
from sparsecodec.data.motion import moving_clip, number_of_pieces
from sparsecodec.data.picture_folders import list_frames
from sparsecodec.data.video import read_clip, why_not_decodable
from sparsecodec.errors import UsageError

logger = logging.getLogger(__name__)

HELD_BYTES = 4 << 30  # of decoded pictures in memory; the rest is read again for every crop


class _Source(Protocol):
    """One file that crops come from. `len` is its number of frames."""

    height: int
    width: int

    def __len__(self) -> int: ...

    def rgb(self, index: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """A window of a frame: ``[height, width, 3]`` uint8."""
        ...


@dataclass(frozen=True, eq=False)
class _Picture:
    """A source of one frame: ``pixels`` ``[H, W, 3]`` uint8, or None to read the file each time."""

    path: Path
    height: int
    width: int
    pixels: np.ndarray | None

    def __len__(self) -> int:
        return 1

    def rgb(self, index: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        pixels = read_rgb(self.path) if self.pixels is None else self.pixels
        return pixels[top : top + height, left : left + width]


@dataclass(frozen=True, eq=False)
class _Frames:
    """A folder of frames, one picture each, which are read again for every crop."""

    paths: Sequence[Path]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.paths)

    def rgb(self, index: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        return read_rgb(self.paths[index])[top : top + height, left : left + width]


def _open_frames(folder: Path) -> _Frames:
    """Looks at the first frame and at the sizes of all others, which their headers say."""
    paths = list_frames(folder)
    height, width = read_rgb(paths[0]).shape[:2]
    for path in paths[1:]:
        found = size_of(path)
        if found != (height, width):
            raise UsageError(f"{path} is {found[1]} x {found[0]} (needs {width} x {height}, as the first frame)")
    return _Frames(paths, height, width)


class _Opener:
    """Opens one file after another; the first `held_bytes` of decoded pictures stay in memory."""

    def __init__(self, held_bytes: int) -> None:
        self.left = held_bytes

    def __call__(self, path: Path) -> _Source:
        if path.is_dir():
            return _open_frames(path)
        if _is_file_of_clip(path):
            return read_clip(path)
        pixels = read_rgb(path)
        height, width = pixels.shape[:2]
        self.left -= pixels.nbytes
        return _Picture(path, height, width, pixels if self.left >= 0 else None)


class _Ahead(ABC):
    """Draws the crops of a step, and those of the next one in a thread while the caller works on these.

    Only NumPy and Pillow run in the thread: torch would start a second set of threads there.
    """

    def __init__(self, sources: Sequence[_Source], crop: int, length: int, seed: int) -> None:
        self.sources = sources
        self.crop = crop
        self.length = length
        self.seed = seed
        self._thread = ThreadPoolExecutor(1)
        self._expected: tuple[int, int, int] | None = None
        self._drawn: Future[np.ndarray] | None = None

    @abstractmethod
    def _crop(self, key: tuple[int, int, int]) -> np.ndarray:
        """The crop of a key (seed, step, place): ``[length, crop, crop, 3]`` uint8."""

    def _draw(self, step: int, size: int, start: int) -> np.ndarray:
        """``[size, length, crop, crop, 3]`` uint8."""
        return np.stack([self._crop((self.seed, step, place)) for place in range(start, start + size)])

    def _batch(self, step: int, size: int, start: int) -> Tensor:
        """``[size, length, 3, crop, crop]`` float32 in [0, 1], contiguous."""
        crops = self._drawn.result() if self._expected == (step, size, start) else self._draw(step, size, start)
        self._expected = (step + 1, size, start)
        self._drawn = self._thread.submit(self._draw, *self._expected)
        return torch.from_numpy(crops).permute(0, 1, 4, 2, 3).contiguous().float().div_(255)


class RandomCrops(_Ahead):
    """Random square crops of pictures and of frames of clips, mixed as they come; every file is as likely as any other.

    A crop depends only on the seed, the step and its place in the batch: a resumed run draws what an uninterrupted one
    draws, and several processes can share a batch. Each crop is mirrored at random; one in two is taken at twice the
    size and halved, where the file is large enough: there grain, compression and repeated chroma are gone.

    Pictures are decoded once and held, up to `held_bytes`; the rest is read again for every crop. Clips are held as
    `read_clip` has them, in mapped files: the memory they take is the system's to give and to take back. The
    frames of a folder are read for every crop.

    Args:
        paths: pictures by their suffixes, folders of frames, and everything else clips; unreadable ones, cut off ones
            and those smaller than the crop are skipped with a warning.
        crop: side of a crop, pixels.
        seed: of all draws, at least 0.
        held_bytes: of decoded pictures.

    Raises:
        UsageError: no file is left, or there are clips that need the extra ``[video]``.
    """

    def __init__(self, paths: Sequence[str | Path], crop: int, seed: int = 0, held_bytes: int = HELD_BYTES) -> None:
        super().__init__(_usable(paths, crop, 1, _Opener(held_bytes)), crop, 1, seed)

    def _crop(self, key: tuple[int, int, int]) -> np.ndarray:
        draw = np.random.default_rng(key)
        return _run(draw, self.sources[draw.integers(len(self.sources))], self.crop, 1)

    def batch(self, step: int, size: int, start: int = 0) -> Tensor:
        """Crops `start` to ``start + size`` of step `step`: ``[size, 3, crop, crop]`` float32 in [0, 1].

        Raises:
            UsageError: a picture that is read again is gone.
        """
        return self._batch(step, size, start)[:, 0]


class RandomClips(_Ahead):
    """Random runs of frames, cropped alike; as `RandomCrops`, for video codecs.

    Clips give the frames they have; photos are set in motion (`sparsecodec.data.motion`), each with pieces of others.

    Args:
        paths: clips, folders of frames and photos; unreadable, cut off, shorter and smaller ones are skipped with a
            warning.
        crop: side of a crop, pixels.
        length: consecutive frames of a crop.
        seed: of all draws, at least 0.
        held_bytes: of decoded photos.

    Raises:
        UsageError: no file is left, or there are clips that need the extra ``[video]``.
    """

    def __init__(
        self, paths: Sequence[str | Path], crop: int, length: int, seed: int = 0, held_bytes: int = HELD_BYTES
    ) -> None:
        super().__init__(_usable(paths, crop, length, _Opener(held_bytes)), crop, length, seed)

    def _crop(self, key: tuple[int, int, int]) -> np.ndarray:
        draw = np.random.default_rng(key)
        source = self.sources[draw.integers(len(self.sources))]
        if not isinstance(source, _Picture):
            return _run(draw, source, self.crop, self.length)
        photos = [source for source in self.sources if isinstance(source, _Picture)]
        others = [photos[draw.integers(len(photos))] for _ in range(number_of_pieces(draw))]
        windows = [(partial(photo.rgb, 0), photo.height, photo.width) for photo in (source, *others)]
        return moving_clip(draw, windows, self.crop, self.length)

    def batch(self, step: int, size: int, start: int = 0) -> Tensor:
        """Crops `start` to ``start + size`` of step `step`: ``[size, length, 3, crop, crop]`` float32 in [0, 1]."""
        return self._batch(step, size, start)


def _usable(paths: Sequence[str | Path], crop: int, length: int, opened: Callable[[Path], _Source]) -> list[_Source]:
    """Opens what can be used, and names the rest; what a missing package cannot read is no reason to go on."""
    for path in map(Path, paths):
        reason = why_not_decodable(path) if _is_file_of_clip(path) else None
        if reason is not None:
            raise UsageError(reason)
    sources = []
    for path in map(Path, paths):
        try:
            source = opened(path)
        except UsageError as error:
            logger.warning("skipped: %s", error)
            continue
        if min(source.height, source.width) < crop:
            logger.warning(
                "skipped: %s is %d x %d, smaller than the crop of %d", path, source.width, source.height, crop
            )
        elif len(source) < length and not isinstance(source, _Picture):
            logger.warning("skipped: %s has %d frames, fewer than the %d of a crop", path, len(source), length)
        else:
            sources.append(source)
    if not sources:
        raise UsageError(f"none of {len(paths)} files can be used for crops of {length} x {crop} x {crop}")
    return sources


def _is_file_of_clip(path: Path) -> bool:
    return path.suffix.lower() not in SUFFIXES and not path.is_dir()


def _run(draw: np.random.Generator, source: _Source, crop: int, length: int) -> np.ndarray:
    """Consecutive frames of a source, cropped alike: ``[length, crop, crop, 3]`` uint8."""
    first = draw.integers(len(source) - length + 1)
    halved = draw.integers(2) and min(source.height, source.width) >= 2 * crop
    side = 2 * crop if halved else crop
    top = draw.integers(source.height - side + 1)
    left = draw.integers(source.width - side + 1)
    mirrored = draw.integers(2)
    frames = []
    for index in range(first, first + length):
        window = source.rgb(index, top, left, side, side)
        if halved:
            window = np.asarray(
                Image.fromarray(np.ascontiguousarray(window)).resize((crop, crop), Image.Resampling.LANCZOS)
            )
        frames.append(window[:, ::-1] if mirrored else window)
    return np.stack(frames)
