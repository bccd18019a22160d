"""Cases of `conv_transpose2d_act`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.pointwise import nhwc


def _case(
    id: str, n: int, c_in: int, c_out: int, h: int, w: int, kernel: int, stride: int, padding: int,
    output_padding: int, *, sliced: bool = False, bias: bool = True, bench: bool = False, half: bool = False,
    **options: Any,
) -> OpCase:  # fmt: skip
    """sliced: x is a slice of a wider tensor; half: in float16, which the CPU kernels refuse."""
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
        dtypes=(torch.float16,) if half else (torch.float32, torch.bfloat16),
        must_run=frozenset({"triton"} if half else {"cpu"} if bench else {"cpu", "triton"}),
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
    _case("k5s3-padding-3", 1, 24, 12, 5, 4, 5, 3, 3, 1),
    _case("k5s1", 1, 8, 12, 5, 4, 5, 1, 0, 0),
    # Triton: 32 to 128 positions of a phase, 16 to 128 columns, sums in steps of 16 to 64 over each tap.
    _case("tiles-exact", 1, 64, 64, 8, 16, 3, 2, 1, 1),
    _case("tiles-and-one", 1, 33, 65, 3, 22, 2, 2, 0, 0),
    # Few columns: all phases of a 16-bit one at once, if its size is a multiple of the input's.
    _case("k3s3-to-four", 1, 24, 4, 4, 5, 3, 3, 0, 0, bias=False),
    _case("k4s2-to-rgb-tiles", 1, 33, 3, 3, 22, 4, 2, 1, 0),
    # Winograd's tiles of 2 x 2 positions, 48 of them in a task, four phases each, from 32 channels on.
    _case("winograd-odd", 2, 40, 48, 5, 7, 5, 2, 2, 1, activation="leaky_relu", slope=0.2, pinned=False),
    _case("winograd-one-pixel", 1, 32, 32, 1, 1, 5, 2, 2, 1, bias=False, pinned=False),
    _case("winograd-no-output-padding", 1, 32, 33, 4, 5, 5, 2, 2, 0, activation="relu", pinned=False),
    _case("winograd-task-and-remainder", 1, 33, 32, 9, 23, 5, 2, 2, 1, activation="sigmoid_gate", pinned=False),
    _case("winograd-slice", 2, 48, 33, 6, 8, 5, 2, 2, 1, sliced=True, pinned=False),
    # Few channels: all phases in one product, with zeros for the taps that a phase lacks.
    _case("together-batch", 2, 20, 3, 5, 6, 5, 2, 2, 1, activation="leaky_relu", slope=0.1),
    _case("together-even-kernel", 1, 16, 2, 7, 3, 4, 2, 1, 0),
    _case("half", 2, 33, 40, 5, 7, 5, 2, 2, 1, half=True, activation="leaky_relu"),
    _case("half-to-rgb", 1, 24, 3, 9, 15, 5, 2, 2, 1, half=True),
    _case("192-192-k5s2-32x48", 1, 192, 192, 32, 48, 5, 2, 2, 1, bench=True),
]
