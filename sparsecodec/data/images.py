"""Reading and writing pictures through Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sparsecodec._files import replacing
from sparsecodec.errors import UsageError, reason

# What Pillow 13 raises for damaged files, found by damaging 9000 of them; UnidentifiedImageError is an OSError.
DAMAGED = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".webp", ".tif", ".tiff")

ORIENTATION, QUARTER_TURNS = 0x0112, range(5, 9)  # of EXIF
ROUNDED_AT_ONCE = 1 << 20  # pixels


def list_images(folder: str | Path) -> list[Path]:
    """The pictures directly inside `folder`, sorted by name.

    Raises:
        UsageError: not a folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UsageError(f"no pictures in {folder} (suffixes {', '.join(SUFFIXES)})")
    return paths


def read_image(path: str | Path) -> Tensor:
    """Reads a picture as RGB, upright as its EXIF says; grey is repeated, transparency is dropped.

    Returns:
        ``[1, 3, H, W]`` float32 in [0, 1].

    Raises:
        UsageError: the file is missing, is no picture, or has more than 8 bits a sample.
    """
    return torch.from_numpy(read_rgb(path)).permute(2, 0, 1)[None].float().div_(255)


def read_rgb(path: str | Path) -> np.ndarray:
    """Reads a picture as ``[H, W, 3]`` uint8; see `read_image`."""
    try:
        with Image.open(path) as image:
            mode = _deep_mode(image)
            if mode is None:
                return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist") from error
    except DAMAGED as error:
        raise UsageError(f"{path} cannot be read as a picture: {reason(error)}") from error
    raise UsageError(f"{path} has mode {mode!r} (8 bits a sample are supported)")


def _deep_mode(image: Image.Image) -> str | None:
    """What Pillow calls samples of more than 8 bits, None if there are none.

    Pillow has no mode for 16 bits in colour: it drops the lower ones while it decodes, and only what it hands to its
    decoders tells. ``BGR;16`` of a BMP has 16 bits a pixel.
    """
    if image.mode.startswith(("I", "F")):
        return image.mode
    for decoder, _, _, told in getattr(image, "tile", ()):
        layout, *rest = told if isinstance(told, tuple) else (told,)
        if isinstance(layout, str) and layout.endswith((";16B", ";16L", ";16N")):
            return layout
        if decoder in ("ppm", "ppm_plain") and rest and rest[0] > 255:  # the largest value
            return f"{layout} up to {rest[0]}"
    return None


def has_transparency(path: str | Path) -> bool:
    """Whether `read_image` drops something of a picture that it can read."""
    with Image.open(path) as image:
        return image.has_transparency_data


def size_of(path: str | Path) -> tuple[int, int]:
    """Height and width of a picture as `read_image` gives it, from its header.

    Raises:
        UsageError: it has none.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ORIENTATION, 1) in QUARTER_TURNS
            return (image.width, image.height) if turned else (image.height, image.width)
    except DAMAGED as error:
        raise UsageError(f"{path} cannot be read as a picture: {reason(error)}") from error


def to_uint8(x: Tensor) -> np.ndarray:
    """``[1, 3, H, W]`` float in [0, 1] -> ``[H, W, 3]`` uint8, rounded to nearest, clipped; few rows at a time."""
    height, width = x.shape[2:]
    out = np.empty((height, width, 3), np.uint8)
    rows = max(ROUNDED_AT_ONCE // max(width, 1), 1)
    for top in range(0, height, rows):
        part = x[0, :, top : top + rows].permute(1, 2, 0).float().mul(255).round().clamp(0, 255)
        out[top : top + rows] = part.to(torch.uint8).cpu().numpy()
    return out


def writable_suffixes() -> set[str]:
    """Of the pictures that `write_image` can write."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}


def write_image(x: Tensor, path: str | Path) -> None:
    """Writes ``[1, 3, H, W]`` float in [0, 1]; the suffix chooses the format. The file appears whole or not at all.

    Raises:
        UsageError: Pillow cannot write this suffix, or the folder cannot be written.
    """
    try:
        with replacing(path) as partial:
            Image.fromarray(to_uint8(x)).save(partial)
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} cannot be written: {reason(error)}") from error
