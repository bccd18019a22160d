"""Launches of `conv2d_act`: every shipped tile in several variants."""

from __future__ import annotations

import torch

from sparsecodec._triton import conv2d_act

# merged: few input channels, one sum over taps and channels; odd: sizes that allow no vector loads; rgb: few columns
# stored one by one.
VARIANTS = ("plain", "merged", "odd", "scatter", "shuffle", "rgb")


def _nhwc(channels: int, dtype: torch.dtype, h: int = 32, w: int = 48) -> torch.Tensor:
    return torch.empty((1, channels, h, w), dtype=dtype).to(memory_format=torch.channels_last)


def _launch(variant: str, dtype: torch.dtype, columns: int) -> None:
    bias = torch.empty(columns)
    if variant == "plain":
        weight = torch.empty(columns, 192, 3, 3)
        conv2d_act.conv2d_act(_nhwc(192, dtype), weight, bias, padding=1, activation="leaky_relu")
    elif variant == "merged":
        weight = torch.empty(columns, 3, 5, 5)
        conv2d_act.conv2d_act(_nhwc(3, dtype), weight, bias, 2, 2, activation="leaky_relu")
    elif variant == "odd":
        weight = torch.empty(columns - 1, 129, 3, 3)
        conv2d_act.conv2d_act(_nhwc(129, dtype), weight, bias[1:], padding=1, activation="sigmoid_gate")
    elif variant == "scatter":
        kept = torch.arange(0, columns - columns // 4, dtype=torch.int32)
        arguments = {"in_index": torch.arange(192), "out_index": kept, "residual": _nhwc(columns, dtype)}
        weight = torch.empty(len(kept), 192, 3, 3)
        conv2d_act.conv2d_act(_nhwc(256, dtype), weight, bias[kept], padding=1, activation="relu", **arguments)
    elif variant == "rgb":
        conv2d_act.conv2d_act(_nhwc(192, dtype), torch.empty(12, 192, 3, 3), bias[:12], padding=1, shuffle=2)
    else:
        residual = _nhwc(columns // 4, dtype, 64, 96)
        weight = torch.empty(columns, 192, 3, 3)
        conv2d_act.conv2d_act(_nhwc(192, dtype), weight, bias, padding=1, residual=residual, shuffle=2)


def _launch_all(variant: str, dtype: torch.dtype, quick: bool) -> None:
    for columns in ((128, 32) if dtype.itemsize == 2 else (64, 16))[: 2 - quick]:  # their candidates are all tiles
        _launch(variant, dtype, columns)


def launches(quick):
    for dtype in (torch.bfloat16, torch.float32) if quick else (torch.bfloat16, torch.float16, torch.float32):
        for variant in ("plain",) if quick or dtype == torch.float16 else VARIANTS:
            name = f"{str(dtype).removeprefix('torch.')} {variant}"
            yield conv2d_act, name, lambda v=variant, d=dtype: _launch_all(v, d, quick)
