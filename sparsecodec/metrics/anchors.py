"""Classical codecs with the interface of ours, as anchors for rate-distortion curves."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from sparsecodec.data import to_uint8
from sparsecodec.errors import UsageError


@dataclass(frozen=True)
class Anchor:
    """A codec that Pillow brings. Its files count whole, with their headers.

    Attributes:
        name: as `ANCHORS` has it.
        format: Pillow's name of it.
        lowest, highest: whole numbers between which quality is.
        usual: the quality of ``encode`` without one.
        curve: qualities that span about 0.1 to 2 bits per pixel on photos.
        options: for Pillow.
        feature: of Pillow's build that it needs, or None.
    """

    name: str
    format: str
    lowest: int
    highest: int
    usual: int
    curve: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    feature: str | None = None

    def why_not(self) -> str | None:
        """None if this Pillow can write and read the format, else the sentence that says why not."""
        if self.feature is None or features.check(self.feature):
            return None
        return f"this Pillow was built without {self.format}"

    def encode(self, x: Tensor, quality: float | None = None) -> bytes:
        """``[1, 3, H, W]`` float in [0, 1] and a quality -> a whole file.

        Raises:
            UsageError: no such quality, a picture that the format cannot hold, or a Pillow without it.
        """
        reason = self.why_not()
        if reason is not None:
            raise UsageError(reason)
        quality = self.usual if quality is None else quality
        if not self.lowest <= quality <= self.highest or quality != int(quality):
            raise UsageError(f"{self.name} quality {quality:g} (needs a whole number, {self.lowest} to {self.highest})")
        buffer = io.BytesIO()
        try:
            Image.fromarray(to_uint8(x)).save(buffer, self.format, quality=int(quality), **self.options)
        except (OSError, ValueError) as error:
            height, width = x.shape[2:]
            raise UsageError(f"{self.name} cannot hold a picture of {height} x {width}: {error}") from error
        return buffer.getvalue()

    def decode(self, data: bytes) -> Tensor:
        """A file -> ``[1, 3, H, W]`` float32 in [0, 1]."""
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(image.convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div_(255)


# Each at its best as far as it takes less than a second for a Kodak picture: optimised Huffman tables, WebP's slowest
# method, AVIF at its default speed (4 and 2 take 7 and 20 times as long, for 3 and 4 points of BD-rate against JPEG).
# All sample chroma 4:2:0, as they do by default.
ANCHORS: dict[str, Anchor] = {
    anchor.name: anchor
    for anchor in (
        Anchor("jpeg", "JPEG", 1, 95, 75, (5, 10, 20, 35, 50, 70, 85, 95), {"optimize": True}),
        Anchor("webp", "WEBP", 0, 100, 80, (0, 10, 25, 40, 55, 70, 80, 90), {"method": 6}, "webp"),
        Anchor("avif", "AVIF", 0, 100, 75, (5, 15, 25, 35, 45, 55, 65, 75, 85), {"speed": 6, "max_threads": 1}, "avif"),
    )
}
