"""Launches of `warp`."""

from __future__ import annotations

import torch

from sparsecodec._triton import warp

WITHOUT_PRODUCTS = {"_warp_fwd_kernel"}


def _launch(dtype: torch.dtype, channels: int) -> None:
    x = torch.empty((1, channels, 32, 48), dtype=dtype).to(memory_format=torch.channels_last)
    warp.warp(x, torch.empty(1, 2, 32, 48))


def launches(quick):
    for dtype in (torch.float16,) if quick else (torch.bfloat16, torch.float16, torch.float32):
        for channels in (64,) if quick else (3, 48, 64):
            name = f"{str(dtype).removeprefix('torch.')} {channels} channels"
            yield warp, name, lambda d=dtype, c=channels: _launch(d, c)
