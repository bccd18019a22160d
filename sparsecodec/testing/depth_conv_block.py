"""Cases of `depth_conv_block`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.pointwise import kept, nhwc

TRANSFORM = (0.01, 0.01, 0.01, 0.0, 0.0)  # slopes of EVC's encoder and decoder
PRIOR = (0.01, 1.0, 1.0, 0.1, 0.1)  # of its entropy networks
GATED = (1.0,) * 5  # of DCVC-RT and DCVC-UF, whose two activations are gates


def _matrix(n: int, k: int, generator: Generator) -> Tensor:
    return torch.randn(n, k, generator=generator) / max(k, 1) ** 0.5


def _case(
    id: str, n: int, c: int, h: int, w: int, *,
    co: int = 0, c1: int = 0, hidden: int = 0, k1: int = 0, k3: int = 0, c2: int | None = None, c4: int | None = None,
    slopes: tuple[float, ...] = TRANSFORM, bias: bool = True, ascending: bool = True, sliced: bool = False,
    scale: float = 1.0, chunks: int = 1, scaled: bool = False, bench: bool = False,
    triton: bool = False, half: bool = False, **options: Any,
) -> OpCase:  # fmt: skip
    """co: with an adaptor; c1, hidden: inner widths, c and 4 c if 0; k1, k3, c2, c4: kept channels of w1, w3 (inputs)
    and w2, w4 (outputs); sliced: x is a slice of a wider tensor; scaled: with a quantisation step; triton: must run on
    Triton, its interpreter too; half: in float16, which the CPU kernels refuse."""
    out = co or c
    c1, hidden = c1 or c, hidden or 4 * out
    rows = {1: c1, 2: out if c2 is None else c2, 3: hidden, 4: out if c4 is None else c4}
    columns = {1: k1 or c, 2: c1, 3: k3 or out, 4: hidden // chunks}

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        arguments: dict[str, Any] = {"x": nhwc((n, c, h, w), dtype, generator, scale), "slopes": slopes}
        arguments |= {"chunks": chunks, **options}
        if sliced:
            arguments["x"] = channel_slice(arguments["x"])
        for i in rows:
            arguments[f"w{i}"] = _matrix(rows[i], columns[i], generator)
            arguments[f"b{i}"] = torch.randn(rows[i], generator=generator) if bias else None
        arguments["dw"] = torch.randn(c1, 1, 3, 3, generator=generator) / 3
        arguments["db"] = torch.randn(c1, generator=generator) if bias else None
        if co:
            arguments["adaptor"] = _matrix(co, c, generator)
            arguments["adaptor_bias"] = torch.randn(co, generator=generator) if bias else None
        if k1:
            arguments["in1_index"] = kept(c, k1, generator, ascending)
        if k3:
            arguments["in3_index"] = kept(out, k3, generator, ascending)
        if c2 is not None:
            arguments["out2_index"] = kept(out, c2, generator, ascending)
        if c4 is not None:
            arguments["out4_index"] = kept(out, c4, generator, ascending)
        if scaled:
            arguments["scale"] = torch.rand(out, generator=generator) + 0.5
        return arguments

    products = sum(rows[i] * columns[i] for i in rows) + 9 * c1 + (co * c if co else 0)
    return OpCase(
        "depth_conv_block",
        id,
        make,
        dtypes=(torch.float16,) if half else (torch.float32, torch.bfloat16),
        must_run=frozenset((["triton"] if triton else []) + ([] if half else ["cpu"])),
        interpreted=triton,
        terms=sum(columns.values()) + 9,
        bench=bench,
        flops=2 * n * h * w * products,
        bytes_moved=lambda size: size * n * h * w * (c + out),
    )


CASES = [
    # Pixels: a picture is cut into columns of at most 96, whose rows move in groups of 96 / width; the hidden layer
    # exists for 48 pixels, the depthwise kernel takes 4. Channels: vectors of 16, blocks of 32.
    _case("one-pixel", 1, 4, 1, 1),
    _case("one-row", 1, 8, 1, 50),
    _case("one-column", 2, 8, 50, 1),
    _case("group-and-row", 1, 16, 7, 16),
    _case("group-exact", 1, 16, 12, 16),
    _case("column-below", 1, 8, 3, 95),
    _case("column-exact", 1, 8, 3, 96),
    _case("column-and-one", 1, 8, 3, 97),
    _case("three-columns", 1, 8, 5, 200),
    _case("strips", 2, 8, 70, 33),
    _case("odd-channels", 2, 33, 9, 11),
    _case("vector-and-one", 1, 17, 5, 6),
    _case("inner-widths", 1, 40, 9, 13, c1=23, hidden=50),
    _case("prior", 2, 24, 6, 9, slopes=PRIOR),
    _case("adaptor", 1, 24, 6, 9, co=40, slopes=PRIOR),
    _case("adaptor-narrower", 2, 40, 6, 9, co=24, slopes=PRIOR),
    _case("no-bias", 1, 24, 6, 9, co=40, bias=False),
    _case("identity", 1, 16, 5, 7, slopes=(1.0,) * 5),
    _case("relu", 1, 16, 5, 7, slopes=(0.0,) * 5),
    _case("mixed-slopes", 1, 16, 5, 7, slopes=(0.2, 0.0, 1.0, -0.5, 0.3)),
    _case("all-zero", 1, 16, 5, 7, scale=0.0),
    _case("empty-batch", 0, 8, 4, 4),
    _case("free", 2, 48, 9, 13, c1=20, c2=30, hidden=70, c4=17),
    _case("free-unsorted", 1, 48, 9, 13, c2=30, c4=17, ascending=False),
    _case("free-adaptor", 1, 24, 9, 13, co=48, c2=30, c4=17, slopes=PRIOR),
    _case("gather", 1, 48, 9, 13, k1=21, k3=33),
    _case("gather-unsorted", 1, 48, 9, 13, k1=21, k3=33, ascending=False),
    _case("gather-free", 2, 48, 9, 13, k1=21, c2=30, k3=33, c4=17),
    _case("gather-adaptor", 1, 24, 9, 13, co=40, k1=7, c2=30, k3=33, c4=17, slopes=PRIOR),
    _case("second-gone", 1, 24, 9, 13, c2=0),
    _case("last-gone", 1, 24, 9, 13, c4=0),
    _case("both-gone", 1, 24, 9, 13, co=40, c2=0, c4=0),
    _case("slice", 2, 24, 9, 13, sliced=True),
    _case("slice-free", 1, 24, 9, 100, sliced=True, k1=9, c2=11, c4=13),
    # The blocks of DCVC-RT (sums of halves) and DCVC-UF (of four neighbours). Sums: 48 pixels, 32 channels at a time.
    _case("gated", 1, 24, 6, 9, slopes=GATED, gated=True),
    _case("gated-half-way", 1, 24, 6, 9, slopes=(0.0, 0.1, 0.2, 0.0, 0.5), gated=True),
    _case("halves", 1, 16, 5, 7, slopes=GATED, gated=True, chunks=2),
    _case("halves-odd", 2, 33, 9, 11, hidden=130, chunks=2),
    _case("halves-two-slopes", 1, 48, 9, 11, hidden=192, slopes=(0.01, 1.0, 1.0, 0.1, 1.0, 0.01), chunks=2),
    _case("fours-two-slopes", 1, 21, 5, 7, hidden=68, slopes=(0.2, 1, 1, 0, 1, 0.3), chunks=4, interleaved=True),
    _case("fours", 1, 32, 7, 16, c1=16, hidden=64, slopes=GATED, gated=True, chunks=4, interleaved=True),
    _case("fours-odd", 1, 21, 9, 11, hidden=68, chunks=4, interleaved=True),
    _case("chunks-gather", 1, 48, 9, 13, hidden=66, k3=33, c4=17, chunks=2),
    _case("shortcut", 1, 24, 6, 9, shortcut=True),
    _case("shortcut-adaptor", 1, 24, 9, 13, co=40, slopes=GATED, gated=True, chunks=2, shortcut=True),
    _case("shortcut-free", 1, 48, 9, 13, c2=30, c4=17, shortcut=True),
    _case("shortcut-second-gone", 1, 24, 9, 13, co=40, c2=0, shortcut=True),
    _case("scale", 2, 24, 6, 9, scaled=True),
    _case("scale-free", 1, 48, 9, 13, co=70, c2=30, c4=17, scaled=True, shortcut=True),
    _case("scale-last-gone", 1, 24, 9, 13, c4=0, scaled=True, shortcut=True),
    _case("scale-slice", 1, 17, 9, 100, sliced=True, slopes=GATED, gated=True, chunks=2, scaled=True),
    # Triton: tiles of 8 x 16 or 8 x 8 pixels (float32: 4 x 8), a ring of one around them; channels in steps of 32 or
    # 64; the feed-forward half holds 32, 64, 128, 192, 256 or 384.
    _case("tile-exact", 1, 8, 8, 16, triton=True),
    _case("tile-and-one", 1, 24, 9, 17, triton=True),
    _case("tile-batch", 3, 7, 4, 5, triton=True, slopes=PRIOR),
    _case("tile-free", 1, 24, 9, 17, triton=True, c1=20, hidden=70, k1=13, c2=11, k3=14, c4=9, ascending=False),
    _case("tile-adaptor", 1, 24, 5, 9, triton=True, co=40, c2=11, slopes=PRIOR),
    _case("tile-adaptor-odd", 1, 9, 5, 7, triton=True, co=13, bias=False),
    _case("tile-gone", 1, 24, 3, 5, triton=True, c2=0, c4=0, scaled=True),
    _case("tile-slice", 1, 16, 4, 9, triton=True, sliced=True),
    _case("tile-halves", 1, 40, 3, 9, triton=True, slopes=GATED, gated=True, chunks=2, scaled=True),
    _case("tile-up", 1, 24, 9, 9, triton=True, slopes=GATED, gated=True, chunks=2, shortcut=True, scaled=True),
    _case("tile-fours", 1, 48, 3, 5, triton=True, c1=24, hidden=96, gated=True, chunks=4, interleaved=True),
    _case("tile-up-free", 1, 24, 5, 9, triton=True, co=72, c2=11, c4=9, shortcut=True, scaled=True),
    _case("held-64-past-one", 1, 65, 2, 3, triton=True, c1=70, hidden=33),
    _case("held-192", 1, 160, 3, 3, triton=True, c1=40, hidden=40),
    _case("held-256", 1, 200, 2, 3, triton=True, c1=40, hidden=40, slopes=GATED, gated=True, chunks=2),
    _case("held-384", 1, 264, 2, 3, triton=True, c1=40, hidden=40, c4=257, slopes=PRIOR),
    _case("held-too-many", 1, 392, 1, 3, triton=True, c1=40, hidden=40),
    _case("half", 1, 24, 9, 17, half=True, triton=True, k1=13, c2=11, k3=14, c4=9),
    _case("s-768x512-stride2", 1, 64, 256, 384, bench=True),
    _case("l-768x512-stride8", 1, 192, 64, 96, bench=True),
    _case("l-768x512-stride16", 1, 192, 32, 48, bench=True),
    _case("prior-768x512", 1, 384, 32, 48, co=576, c1=384, hidden=1152, slopes=PRIOR, bench=True),
    _case("rt-720p-stride8", 1, 256, 90, 160, slopes=GATED, gated=True, chunks=2, bench=True),
    _case("rt-1080p-stride8", 1, 256, 135, 240, slopes=GATED, gated=True, chunks=2, hidden=1024, bench=True),
    _case("rt-half-1080p-stride8", 1, 128, 135, 240, slopes=GATED, gated=True, chunks=2, hidden=512, bench=True),
    _case(
        "uf-720p-stride8", 1, 256, 90, 160, c1=128, hidden=512, slopes=GATED, gated=True, chunks=4, interleaved=True,
        bench=True,
    ),
]  # fmt: skip
