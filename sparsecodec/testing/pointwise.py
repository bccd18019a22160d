"""Cases of `pointwise`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from sparsecodec.testing.compare import OpCase, channel_slice


def nhwc(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator, scale: float = 1.0) -> Tensor:
    """Normal values ``[N, C, H, W]``, channels_last."""
    values = torch.randn(shape, generator=generator) * scale
    return values.to(dtype).to(memory_format=torch.channels_last)


def kept(full: int, n: int, generator: Generator, ascending: bool = True) -> Tensor:
    """`n` distinct channels of `full`, int32."""
    chosen = torch.randperm(full, generator=generator)[:n]
    return (chosen.sort().values if ascending else chosen).int()


def _case(
    id: str, n: int, c_in: int, c_out: int, h: int, w: int, *, gather: int = 0, scatter: int = 0,
    residual: bool = False, ascending: bool = True, sliced: bool = False, bias: bool = True, scale: float = 1.0,
    steps: bool = False, bench: bool = False, half: bool = False, **options: Any,
) -> OpCase:  # fmt: skip
    """gather, scatter: channels of x and of residual when indexed; sliced: activations are slices of wider tensors.

    scale: of the values in x; steps: the result is multiplied by a quantisation step of each channel.
    half: in float16, which the CPU kernels refuse.
    """
    r, chunks = options.get("shuffle", 1), options.get("chunks", 1)
    to = scatter or c_out // (r * r * chunks)

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        arguments: dict[str, Any] = dict(options)
        arguments["x"] = nhwc((n, gather or c_in, h, w), dtype, generator, scale)
        arguments["weight"] = torch.randn(c_out, c_in, generator=generator) / max(c_in, 1) ** 0.5
        if bias:
            arguments["bias"] = torch.randn(c_out, generator=generator)
        if gather:
            arguments["in_index"] = kept(gather, c_in, generator, ascending)
        if scatter:
            arguments["out_index"] = kept(scatter, c_out, generator, ascending)
        if scatter or residual:
            arguments["residual"] = nhwc((n, to, h * r, w * r), dtype, generator)
        if steps:
            arguments["scale"] = torch.rand(to, generator=generator) + 0.5
        if sliced:
            arguments["x"] = channel_slice(arguments["x"])
            if "residual" in arguments:
                arguments["residual"] = channel_slice(arguments["residual"])
        return arguments

    return OpCase(
        "pointwise",
        id,
        make,
        dtypes=(torch.float16,) if half else (torch.float32, torch.bfloat16),
        must_run=frozenset({"triton"} if half else {"cpu"} if bench else {"cpu", "triton"}),
        terms=c_in * chunks,
        bench=bench,
        flops=2 * c_in * c_out * n * h * w,
        bytes_moved=lambda size: size * n * h * w * (c_in + c_out // chunks * (2 if residual else 1)),
    )


CASES = [
    # Pixels: a register tile holds 12, a task at most 240. Channels: a block holds 32, half a block 16.
    _case("one-pixel", 1, 1, 1, 1, 1),
    _case("below-tile", 1, 8, 5, 1, 11),
    _case("tile-exact", 1, 16, 32, 3, 4),
    _case("tile-and-one", 1, 16, 33, 1, 13),
    _case("half-block", 1, 7, 16, 5, 5),
    _case("half-block-and-one", 1, 7, 17, 5, 5),
    _case("odd-channels", 2, 129, 65, 7, 9, activation="relu"),
    _case("task-and-remainder", 1, 40, 48, 17, 31, activation="leaky_relu", slope=0.1),
    _case("batch", 3, 24, 40, 6, 10, activation="sigmoid_gate"),
    _case("no-bias", 1, 24, 40, 6, 10, bias=False),
    _case("empty-batch", 0, 8, 8, 4, 4),
    _case("all-zero", 1, 32, 32, 5, 7, scale=0.0),
    _case("large-values", 1, 64, 64, 5, 7, scale=1e18),
    _case("deep", 1, 1536, 24, 5, 5),
    _case("residual", 2, 48, 33, 5, 7, residual=True, activation="leaky_relu"),
    _case("residual-gate", 1, 48, 50, 5, 7, residual=True, activation="sigmoid_gate"),
    _case("gather", 1, 21, 40, 7, 9, gather=64),
    _case("gather-unsorted", 1, 21, 40, 7, 9, gather=64, ascending=False),
    _case("scatter", 2, 32, 50, 7, 9, scatter=129, activation="relu"),
    _case("scatter-unsorted", 1, 32, 50, 7, 9, scatter=129, ascending=False),
    _case("scatter-all", 1, 32, 40, 5, 5, scatter=40),
    _case("scatter-few", 1, 32, 3, 5, 5, scatter=200),
    _case("gather-scatter", 2, 30, 70, 9, 15, gather=96, scatter=96, activation="leaky_relu"),
    _case("shuffle", 1, 32, 64, 5, 7, shuffle=2),
    _case("shuffle-to-rgb", 2, 24, 12, 6, 5, shuffle=2, activation="leaky_relu"),
    _case("shuffle-8", 1, 24, 192, 3, 5, shuffle=8),
    _case("shuffle-residual", 1, 24, 68, 3, 5, shuffle=2, residual=True, activation="relu"),
    _case("slice", 2, 24, 40, 6, 10, sliced=True),
    _case("slice-residual", 1, 24, 40, 6, 10, sliced=True, residual=True),
    _case("slice-scatter", 1, 24, 40, 6, 10, sliced=True, scatter=77, gather=30),
    # Triton: 32 to 128 pixels, 16 to 128 columns of the output, sums in steps of 16 to 64.
    _case("tiles-exact", 1, 64, 128, 8, 16),
    _case("tiles-and-one", 1, 65, 129, 3, 43, activation="leaky_relu"),
    _case("tiles-scatter", 1, 64, 64, 8, 16, scatter=192, ascending=False),
    _case("half", 1, 65, 129, 3, 43, half=True, activation="leaky_relu"),
    _case("half-gather-scatter", 2, 30, 70, 9, 15, half=True, gather=96, scatter=96, activation="sigmoid_gate"),
    _case("half-shuffle", 1, 24, 68, 3, 5, half=True, shuffle=2, residual=True, activation="relu"),
    # Halves added as in DCVC-RT, fours as in DCVC-UF; quantisation steps.
    _case("halves", 1, 40, 96, 7, 9, chunks=2, activation="sigmoid_gate"),
    _case("halves-residual", 2, 24, 70, 5, 7, chunks=2, residual=True, steps=True),
    _case("fours", 1, 40, 132, 7, 19, chunks=4, interleaved=True, activation="sigmoid_gate"),
    _case("fours-gather", 1, 21, 68, 5, 7, chunks=4, interleaved=True, gather=64, activation="relu", sliced=True),
    _case("neighbours", 1, 24, 34, 5, 7, chunks=2, interleaved=True, bias=False),
    _case("steps", 1, 40, 48, 7, 9, steps=True),
    _case("steps-scatter", 1, 32, 50, 7, 9, steps=True, scatter=129, activation="leaky_relu"),
    _case("steps-shuffle", 1, 24, 68, 3, 5, steps=True, shuffle=2, residual=True),
    _case("half-fours", 1, 40, 132, 7, 19, half=True, chunks=4, interleaved=True, activation="sigmoid_gate"),
    _case("half-steps", 2, 24, 70, 5, 7, half=True, chunks=2, residual=True, steps=True, activation="sigmoid_gate"),
    _case("192-192-64x96", 1, 192, 192, 64, 96, activation="leaky_relu", bench=True),
    _case("192-768-64x96", 1, 192, 768, 64, 96, activation="leaky_relu", bench=True),
    _case("64-64-64x96", 1, 64, 64, 64, 96, activation="leaky_relu", bench=True),
    _case("64-64-256x384", 1, 64, 64, 256, 384, activation="leaky_relu", bench=True),
]
