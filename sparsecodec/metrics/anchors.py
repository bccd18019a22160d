"""Classical codecs with the interface of ours, as anchors for rate-distortion curves."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparsecodec.data import to_uint8


class JPEG:
    """Pillow's JPEG, 4:2:0 as by default, with optimised Huffman tables."""

    name = "JPEG"

    def encode(self, x: Tensor, quality: float | None = None) -> bytes:
        """``[1, 3, H, W]`` float in [0, 1] and a quality of 1 to 95 (75 if None) -> a whole file."""
        buffer = io.BytesIO()
        Image.fromarray(to_uint8(x)).save(
            buffer, "JPEG", quality=75 if quality is None else int(quality), optimize=True
        )
        return buffer.getvalue()

    def decode(self, data: bytes) -> Tensor:
        """A file -> ``[1, 3, H, W]`` float32 in [0, 1]."""
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(image.convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div_(255)
