"""Launches of `pointwise`: every shipped tile in several variants."""

from __future__ import annotations

import torch

from sparsecodec._triton import pointwise

# odd: sizes that allow no vector loads; like scatter, hungry for registers. rgb: few columns stored one by one.
VARIANTS = ("plain", "odd", "scatter", "shuffle", "fours", "rgb")


def _nhwc(channels: int, dtype: torch.dtype, h: int = 32, w: int = 48) -> torch.Tensor:
    return torch.empty((1, channels, h, w), dtype=dtype).to(memory_format=torch.channels_last)


def _launch(variant: str, dtype: torch.dtype, columns: int) -> None:
    weight, bias = torch.empty(columns, 192), torch.empty(columns)
    if variant == "plain":
        pointwise.pointwise(_nhwc(192, dtype), weight, bias, activation="leaky_relu")
    elif variant == "odd":
        pointwise.pointwise(_nhwc(129, dtype), weight[1:, :129], bias[1:], activation="sigmoid_gate")
    elif variant == "scatter":
        kept = torch.arange(0, columns - columns // 4, dtype=torch.int32)
        arguments = {"in_index": torch.arange(192), "out_index": kept, "residual": _nhwc(columns, dtype)}
        pointwise.pointwise(_nhwc(256, dtype), weight[kept], bias[kept], activation="sigmoid_gate", **arguments)
    elif variant == "shuffle":
        residual = _nhwc(columns // 4, dtype, 64, 96)
        pointwise.pointwise(_nhwc(192, dtype), weight, bias, residual=residual, activation="relu", shuffle=2)
    elif variant == "rgb":
        pointwise.pointwise(_nhwc(192, dtype), weight[:1].repeat(12, 1), bias[:12], shuffle=2)
    else:
        arguments = {"activation": "sigmoid_gate", "chunks": 4, "interleaved": True, "scale": bias}
        residual = _nhwc(columns, dtype)
        pointwise.pointwise(_nhwc(192, dtype), weight.repeat(4, 1), bias.repeat(4), residual=residual, **arguments)


def _launch_all(variant: str, dtype: torch.dtype, quick: bool) -> None:
    for columns in ((128, 32) if dtype.itemsize == 2 else (64, 16))[: 2 - quick]:  # their candidates are all tiles
        _launch(variant, dtype, columns)


def launches(quick):
    for dtype in (torch.bfloat16, torch.float32) if quick else (torch.bfloat16, torch.float16, torch.float32):
        for variant in ("scatter",) if quick else ("plain", "fours") if dtype == torch.float16 else VARIANTS:
            name = f"{str(dtype).removeprefix('torch.')} {variant}"
            yield pointwise, name, lambda v=variant, d=dtype: _launch_all(v, d, quick)
