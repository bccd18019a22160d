"""Launches of `deform_conv2d`."""

from __future__ import annotations

import torch

from sparsecodec._triton import deform_conv2d


def _launch(variant: str, dtype: torch.dtype) -> None:
    channels, groups = {"fvc": (64, 8), "masked": (64, 8), "odd": (65, 5)}[variant]
    x = torch.empty((1, channels, 32, 48), dtype=dtype).to(memory_format=torch.channels_last)
    offset = torch.empty(1, 18 * groups, 32, 48)
    mask = None if variant == "fvc" else torch.empty(1, 9 * groups, 32, 48)
    deform_conv2d.deform_conv2d(x, offset, torch.empty(channels, channels, 3, 3), torch.empty(channels), mask)


def launches(quick):
    for dtype in (torch.bfloat16, torch.float32) if quick else (torch.bfloat16, torch.float16, torch.float32):
        for variant in ("masked",) if quick else ("fvc", "masked", "odd"):
            name = f"{str(dtype).removeprefix('torch.')} {variant}"
            yield deform_conv2d, name, lambda v=variant, d=dtype: _launch(v, d)
