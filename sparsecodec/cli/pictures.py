"""Pictures for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sparsecodec.data import to_uint8

STRIP = 28  # pixels for a caption
GAP = 8


def side_by_side(pictures: Sequence[Tensor], captions: Sequence[str]) -> Tensor:
    """Pictures of one size in a row, each under its caption.

    Args:
        pictures: each ``[1, 3, H, W]`` float in [0, 1].
        captions: as many.

    Returns:
        ``[1, 3, H + strip, n * W + gaps]`` float32 in [0, 1].
    """
    height, width = pictures[0].shape[2:]
    sheet = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height + STRIP), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = column * (width + GAP)
        pen.text((left + 4, 4), caption, fill="black", font=ImageFont.load_default(size=16))
        sheet.paste(Image.fromarray(to_uint8(picture)), (left, STRIP))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)[None].float().div_(255)
