"""Cases of `conv_transpose2d_act`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.pointwise import nhwc


def _case(
    id: str, n: int, c_in: int, c_out: int, h: int, w: int, kernel: int, stride: int, padding: int,
    output_padding: int, *, sliced: bool = False, bias: bool = True, bench: bool = False, **options: Any,
) -> OpCase:  # fmt: skip
    """sliced: x is a slice of a wider tensor."""
    rows, columns = ((size - 1) * stride - 2 * padding + kernel + output_padding for size in (h, w))

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        arguments: dict[str, Any] = dict(options, stride=stride, padding=padding, output_padding=output_padding)
        x = nhwc((n, c_in, h, w), dtype, generator)
        arguments["x"] = channel_slice(x) if sliced else x
        weight = torch.randn(c_in, c_out, kernel, kernel, generator=generator)
        arguments["weight"] = weight / (c_in * (kernel / stride) ** 2) ** 0.5
        if bias:
            arguments["bias"] = torch.randn(c_out, generator=generator)
        return arguments

    return OpCase(
        "conv_transpose2d_act",
        id,
        make,
        terms=c_in * kernel**2,
        bench=bench,
        flops=2 * c_in * kernel**2 * c_out * n * h * w,
        bytes_moved=lambda size: size * n * (c_in * h * w + c_out * rows * columns),
    )


CASES = [
    _case("one-pixel", 1, 3, 5, 1, 1, 5, 2, 2, 1),
    _case("k5s2", 2, 16, 33, 5, 7, 5, 2, 2, 1, activation="leaky_relu"),
    _case("k5s2-to-rgb", 1, 24, 3, 9, 15, 5, 2, 2, 1),
    _case("k5s2-no-output-padding", 1, 8, 16, 4, 6, 5, 2, 2, 0, activation="relu"),
    _case("k4s2", 1, 17, 20, 6, 5, 4, 2, 1, 0, activation="sigmoid_gate"),
    _case("k3s1", 1, 16, 24, 5, 7, 3, 1, 1, 0),
    _case("k3s3", 1, 8, 12, 4, 5, 3, 3, 0, 2),
    _case("k2s3-phases-without-taps", 1, 8, 12, 4, 5, 2, 3, 0, 0),
    _case("k3s2-no-bias", 1, 16, 24, 5, 7, 3, 2, 1, 1, bias=False),
    _case("empty-batch", 0, 8, 8, 4, 4, 5, 2, 2, 1),
    _case("slice", 2, 16, 24, 5, 7, 5, 2, 2, 1, sliced=True),
    _case("192-192-k5s2-32x48", 1, 192, 192, 32, 48, 5, 2, 2, 1, bench=True),
]
