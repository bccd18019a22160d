"""Clips that are folders of numbered pictures, one file a frame."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from sparsecodec._clip_format import ClipFormat
from sparsecodec.data.colour import to_rgb
from sparsecodec.data.images import SUFFIXES, list_images, read_rgb, write_image
from sparsecodec.errors import UsageError, reason

RATE = (25, 1)  # where nobody says it
NAME = "im{:05d}.png"  # what the test scripts of DCVC read and write


def is_picture_folder(path: str | Path) -> bool:
    """Whether it is a folder with pictures in it."""
    path = Path(path)
    return path.is_dir() and any(map(_is_picture, path.iterdir()))


def list_frames(folder: str | Path) -> list[Path]:
    """The pictures directly inside `folder`, numbers in their names by value: im2.png before im10.png.

    Hidden files are left out.

    Raises:
        UsageError: not a folder, no picture in it, or pictures of several suffixes.
    """
    paths = [path for path in list_images(folder) if _is_picture(path)]
    suffixes = sorted({path.suffix.lower() for path in paths})
    if len(suffixes) != 1:
        found = f"pictures {', '.join(suffixes)}" if suffixes else "no pictures"
        raise UsageError(f"{folder} holds {found} (frames of a clip need one suffix)")
    return sorted(paths, key=_natural)


def folder_format(first: np.ndarray, rate: tuple[int, int] = RATE) -> ClipFormat:
    """Of a clip of pictures like `first`, ``[H, W, 3]``: BT.709 in full range, as DCVC's scripts convert them."""
    return ClipFormat(*first.shape[:2], rate, matrix="bt709", full_range=True)


def read_frames(paths: list[Path]) -> Iterator[np.ndarray]:
    """One picture after another, ``[H, W, 3]`` uint8.

    Raises:
        UsageError: one cannot be read, or has another size than the first; the message names frame and file.
    """
    size = None
    for number, path in enumerate(paths):
        picture = read_rgb(path)
        size = size or picture.shape
        if picture.shape != size:
            found = f"{picture.shape[1]} x {picture.shape[0]}"
            raise UsageError(f"frame {number}, {path}, is {found} (needs {size[1]} x {size[0]}, as the first one)")
        yield picture


class PictureWriter:
    """Writes frames as ``im00001.png`` and so on; each appears whole or not at all.

    Args:
        folder: created with the first frame; must not hold pictures, which would mix with those of the clip.
        form: of the clip.
        colour: of the frames.

    Raises:
        UsageError: it holds pictures, or is a file.
    """

    def __init__(self, folder: str | Path, form: ClipFormat, colour: str) -> None:
        check_empty(folder)
        self._folder, self._form, self._colour = Path(folder), form, colour
        self._frames = 0

    def write(self, frame: Tensor) -> None:
        """Writes one frame, ``[1, 3, H, W]`` float32 in [0, 1]."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self._folder} cannot be made: {reason(error)}") from error
        self._frames += 1
        write_image(to_rgb(frame, self._form, self._colour), self._folder / NAME.format(self._frames))


def check_empty(folder: str | Path) -> None:
    """Raises a UsageError for a folder that holds pictures, or for a file."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file (needs a folder for the pictures)")
    if is_picture_folder(folder):
        raise UsageError(f"{folder} holds pictures already (needs an empty folder, or one that is not there yet)")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _natural(path: Path) -> tuple[list[tuple[str, int]], str]:
    parts = re.findall(r"(\D*)(\d*)", path.name)
    return [(text, int(number or -1)) for text, number in parts], path.name
