"""Launches of `integer_conv2d`: every shipped tile in several variants."""

from __future__ import annotations

import torch

from sparsecodec._triton import integer_conv2d

WITHOUT_PRODUCTS = ("_integer_conv2d_depthwise_fwd_kernel",)
# odd: sizes that allow no vector loads.
VARIANTS = (
    "plain", "pointwise", "odd", "shuffle", "strided", "bytes", "bytes odd", "depthwise", "depthwise odd",
    "depthwise strided",
)  # fmt: skip


def _nhwc(channels: int, dtype: torch.dtype = torch.int16, h: int = 32, w: int = 48) -> torch.Tensor:
    return torch.zeros((1, channels, h, w), dtype=dtype).to(memory_format=torch.channels_last)


def _launch(variant: str, dtype: torch.dtype, columns: int) -> None:
    residual, options, c_in, kernel = None, {"bits": 16}, 192, 3
    if variant.endswith("odd"):
        columns, c_in, residual = columns - 1, 129, _nhwc(columns - 1)
    elif variant == "pointwise":
        kernel, options["bits"] = 1, 32
    elif variant == "shuffle":
        residual, options = _nhwc(columns // 4, torch.int32, 64, 96), {"shuffle": 2, "residual_shift": -5, "bits": 32}
    if variant.endswith("strided"):
        options["stride"] = 2
    if variant.startswith("bytes"):
        options |= {"input_shift": 8, "input_low": -128}
    if variant.startswith("depthwise"):
        options["groups"] = c_in = columns
    weight = torch.zeros(columns, 1 if "groups" in options else c_in, kernel, kernel, dtype=dtype)
    bias, shift = (torch.ones(columns, dtype=torch.int32) for _ in range(2))
    multiplier = torch.ones(2, columns, dtype=torch.int32)
    integer_conv2d.integer_conv2d(
        _nhwc(c_in), weight, bias, multiplier, shift, residual, padding=kernel // 2, **options
    )


def _launch_all(variant: str, dtype: torch.dtype, quick: bool) -> None:
    for columns in (128, 32)[: 2 - quick]:  # their candidates are all tiles
        _launch(variant, dtype, columns)


def launches(quick):
    for dtype in (torch.int8, torch.int16):
        for variant in ("plain", "bytes", "depthwise") if quick else VARIANTS:
            name = f"{str(dtype).removeprefix('torch.')} {variant}"
            yield integer_conv2d, name, lambda v=variant, d=dtype: _launch_all(v, d, quick)
