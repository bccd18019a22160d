"""Launches of `conv_transpose2d_act`: every shipped tile."""

from __future__ import annotations

import torch

from sparsecodec._triton import conv_transpose2d_act


def _launch(channels: int, dtype: torch.dtype, quick: bool) -> None:
    x = torch.empty((1, channels, 32, 48), dtype=dtype).to(memory_format=torch.channels_last)
    for columns in ((128, 32) if dtype.itemsize == 2 else (64, 16))[: 2 - quick]:  # their candidates are all tiles
        weight, bias = torch.empty(channels, columns, 5, 5), torch.empty(columns)
        conv_transpose2d_act.conv_transpose2d_act(x, weight, bias, 2, 2, 1, "sigmoid_gate")


def launches(quick):
    for dtype in (torch.bfloat16, torch.float32) if quick else (torch.bfloat16, torch.float16, torch.float32):
        for channels in (192,) if quick or dtype == torch.float16 else (192, 129):  # 129 allows no vector loads
            name = f"{str(dtype).removeprefix('torch.')} {channels} channels"
            yield conv_transpose2d_act, name, lambda k=channels, d=dtype: _launch(k, d, quick)
