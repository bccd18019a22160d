"""Training crops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparsecodec.data.images import read_rgb
from sparsecodec.errors import UsageError

logger = logging.getLogger(__name__)


class RandomCrops:
    """Random square crops of pictures that are held in memory.

    A batch depends only on the seed and the step, so a resumed run draws what an uninterrupted one draws. Each crop is
    mirrored at random, and one in two is taken from a picture at half size, where grain and compression are gone.

    Args:
        paths: picture files; unreadable ones and those smaller than the crop are skipped with a warning.
        crop: side of a crop, pixels.
        seed: of all draws.

    Raises:
        UsageError: no picture is left.
    """

    def __init__(self, paths: Sequence[str | Path], crop: int, seed: int = 0) -> None:
        self.crop = crop
        self.seed = seed
        self.pictures: list[tuple[np.ndarray, ...]] = []
        for path in paths:
            try:
                picture = read_rgb(path)
            except UsageError as error:
                logger.warning("skipped: %s", error)
                continue
            height, width = picture.shape[:2]
            if min(height, width) < crop:
                logger.warning("skipped: %s is %d x %d, smaller than the crop of %d", path, width, height, crop)
                continue
            half = np.array(Image.fromarray(picture).resize((width // 2, height // 2), Image.Resampling.LANCZOS))
            self.pictures.append((picture, half) if min(half.shape[:2]) >= crop else (picture,))
        if not self.pictures:
            raise UsageError(f"none of {len(paths)} pictures can be used for crops of {crop} pixels")

    def batch(self, step: int, size: int) -> Tensor:
        """The batch of a step: ``[size, 3, crop, crop]`` float32 in [0, 1]."""
        draw = np.random.default_rng((self.seed, step))
        crops = np.empty((size, self.crop, self.crop, 3), np.uint8)
        for crop in crops:
            scales = self.pictures[draw.integers(len(self.pictures))]
            picture = scales[draw.integers(len(scales))]
            top = draw.integers(picture.shape[0] - self.crop + 1)
            left = draw.integers(picture.shape[1] - self.crop + 1)
            window = picture[top : top + self.crop, left : left + self.crop]
            crop[:] = window[:, ::-1] if draw.integers(2) else window
        return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous().float().div_(255)
