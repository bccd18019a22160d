"""Launches of `gdn`: every shipped tile."""

from __future__ import annotations

import torch

from sparsecodec._triton import gdn


def _launch(variant: str, dtype: torch.dtype, quick: bool) -> None:
    widths = ((128, 32) if dtype.itemsize == 2 else (64, 16))[: 2 - quick]  # their candidates are all tiles
    for channels in (129,) if variant == "odd" else widths:  # 129 allows no vector loads
        x = torch.empty((1, channels, 32, 48), dtype=dtype).to(memory_format=torch.channels_last)
        gdn.gdn(x, torch.empty(channels), torch.empty(channels, channels), variant == "inverse")


def launches(quick):
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for variant in ("forward",) if quick else ("forward", "inverse", "odd"):
            name = f"{str(dtype).removeprefix('torch.')} {variant}"
            yield gdn, name, lambda v=variant, d=dtype: _launch(v, d, quick)
