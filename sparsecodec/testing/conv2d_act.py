"""Cases of `conv2d_act`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.pointwise import kept, nhwc


def _case(
    id: str, n: int, c_in: int, c_out: int, h: int, w: int, kernel: int = 3, *, gather: int = 0, scatter: int = 0,
    residual: bool = False, sliced: bool = False, bias: bool = True, bench: bool = False, half: bool = False,
    **options: Any,
) -> OpCase:  # fmt: skip
    """gather, scatter: channels of x and of residual when indexed; sliced: activations are slices of wider tensors.

    half: in float16, which the CPU kernels refuse.
    """

    stride, padding, r = options.get("stride", 1), options.get("padding", 0), options.get("shuffle", 1)
    rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in (h, w))

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        arguments: dict[str, Any] = dict(options)
        arguments["x"] = nhwc((n, gather or c_in, h, w), dtype, generator)
        weight = torch.randn(c_out, c_in, kernel, kernel, generator=generator)
        arguments["weight"] = weight / (c_in * kernel * kernel) ** 0.5
        if bias:
            arguments["bias"] = torch.randn(c_out, generator=generator)
        if gather:
            arguments["in_index"] = kept(gather, c_in, generator)
        if scatter:
            arguments["out_index"] = kept(scatter, c_out, generator)
        if scatter or residual:
            arguments["residual"] = nhwc((n, scatter or c_out // (r * r), rows * r, columns * r), dtype, generator)
        if sliced:
            arguments["x"] = channel_slice(arguments["x"])
        return arguments

    return OpCase(
        "conv2d_act",
        id,
        make,
        dtypes=(torch.float16,) if half else (torch.float32, torch.bfloat16),
        must_run=frozenset({"triton"} if half else {"cpu"} if bench else {"cpu", "triton"}),
        terms=c_in * kernel**2,
        bench=bench,
        flops=2 * c_in * kernel**2 * c_out * n * rows * columns,
        bytes_moved=lambda size: size * n * (c_in * h * w + c_out * rows * columns * (2 if residual else 1)),
    )


CASES = [
    # Pixels: a register tile holds 12, a task at most 240. Channels: a block holds 32, half a block 16.
    _case("one-pixel", 1, 3, 5, 1, 1, padding=1),
    _case("kernel-exact", 1, 3, 5, 3, 3),
    _case("one-column", 1, 8, 8, 9, 1, padding=1),
    _case("rgb-in", 2, 3, 33, 9, 15, padding=1, activation="relu"),
    _case("odd", 1, 17, 65, 7, 13, padding=1, activation="leaky_relu", slope=0.2),
    _case("task-and-remainder", 1, 20, 40, 17, 31, padding=1),
    _case("no-padding", 2, 16, 16, 6, 8),
    _case("wide-padding", 1, 8, 16, 4, 5, padding=4),
    _case("k1", 1, 24, 40, 6, 10, 1),
    _case("k1-stride-2", 1, 24, 40, 7, 10, 1, stride=2),
    _case("k2-stride-2", 1, 12, 20, 8, 10, 2, stride=2),
    _case("k3-stride-2", 1, 16, 32, 9, 12, stride=2, padding=1),
    _case("k5-stride-2", 2, 16, 24, 9, 14, 5, stride=2, padding=2, activation="sigmoid_gate"),
    _case("k4-stride-4", 1, 8, 16, 13, 12, 4, stride=4, padding=1),
    _case("no-bias", 1, 16, 16, 6, 8, padding=1, bias=False),
    _case("empty-batch", 0, 8, 8, 4, 4, padding=1),
    _case("residual", 1, 16, 33, 6, 8, padding=1, residual=True, activation="leaky_relu"),
    _case("gather", 2, 16, 33, 6, 8, padding=1, gather=40),
    _case("scatter", 1, 16, 33, 6, 8, padding=1, scatter=70, activation="relu"),
    _case("scatter-stride-2", 1, 16, 33, 6, 8, padding=1, scatter=70, stride=2),
    _case("shuffle", 1, 16, 72, 5, 6, padding=1, shuffle=2, activation="leaky_relu"),
    _case("shuffle-residual", 2, 16, 12, 5, 6, padding=1, shuffle=2, residual=True),
    _case("slice", 2, 16, 33, 6, 8, padding=1, sliced=True),
    _case("slice-gather", 2, 16, 33, 6, 8, padding=1, sliced=True, gather=20),
    # Triton: 32 to 128 pixels, 16 to 128 columns, sums in steps of 16 to 64 over each tap; below 16 channels over all.
    _case("tiles-exact", 1, 64, 64, 8, 16, padding=1),
    _case("tiles-and-one", 1, 33, 65, 3, 22, padding=1, activation="leaky_relu"),
    _case("merged-gather", 1, 15, 24, 5, 9, 5, padding=2, stride=2, gather=20),
    _case("merged-scatter", 1, 3, 24, 9, 15, 5, padding=2, scatter=60),
    # Winograd's tiles of 2 x 2 pixels, 48 of them in a task, from 32 channels on.
    _case("winograd-odd", 2, 40, 48, 5, 7, padding=1, activation="leaky_relu", slope=0.2, pinned=False),
    _case("winograd-one-pixel", 1, 32, 32, 1, 1, padding=1, bias=False, pinned=False),
    _case(
        "winograd-task-and-remainder",
        1,
        33,
        32,
        9,
        23,
        padding=1,
        residual=True,
        activation="sigmoid_gate",
        pinned=False,
    ),
    _case("winograd-wide-padding", 1, 32, 40, 4, 5, padding=4, activation="relu", pinned=False),
    _case("winograd-slice", 2, 48, 33, 6, 8, sliced=True, pinned=False),
    _case("winograd-scatter", 1, 32, 33, 5, 9, padding=1, scatter=70, activation="relu", pinned=False),
    _case("winograd-shuffle-residual", 1, 33, 132, 3, 5, padding=1, shuffle=2, residual=True, pinned=False),
    _case("half", 2, 33, 40, 6, 8, padding=1, half=True, residual=True, activation="sigmoid_gate"),
    _case("half-rgb", 1, 3, 65, 12, 9, 5, stride=2, padding=2, half=True, activation="leaky_relu"),
    _case("half-gather-scatter", 1, 30, 33, 6, 8, padding=1, half=True, gather=40, scatter=70, activation="relu"),
    _case("64-64-k3-64x96", 1, 64, 64, 64, 96, padding=1, activation="leaky_relu", bench=True),
    _case("192-192-k3-64x96", 1, 192, 192, 64, 96, padding=1, activation="leaky_relu", bench=True),
    _case("192-192-k5s2-64x96", 1, 192, 192, 64, 96, 5, stride=2, padding=2, activation="leaky_relu", bench=True),
]
