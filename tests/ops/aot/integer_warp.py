"""Launches of `integer_warp`."""

from __future__ import annotations

import torch

from sparsecodec._triton import integer_warp

WITHOUT_PRODUCTS = {"_integer_warp_fwd_kernel"}


def _launch(channels: int) -> None:
    x = torch.empty((1, channels, 32, 48), dtype=torch.int16).to(memory_format=torch.channels_last)
    integer_warp.integer_warp(x, torch.empty((1, 2, 32, 48), dtype=torch.int32))


def launches(quick):
    for channels in (64,) if quick else (3, 48, 64):
        yield integer_warp, f"int16 {channels} channels", lambda c=channels: _launch(c)
