"""Cases of `entropy_parameters`, `quantize_latent` and `restore_latent`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from sparsecodec.ops._spatial_prior import PARTS, groups_of
from sparsecodec.ops.scale_thresholds import evc_scale_thresholds
from sparsecodec.testing.compare import OpCase, channel_slice

FLOAT32 = (torch.float32,)
SHAPES = [
    # Pixels are transposed in runs of 16 of one row; odd sizes cut the 2 x 2 cell of a pass.
    (1, 4, 1, 1),
    (1, 8, 3, 15),
    (2, 4, 5, 16),
    (1, 20, 2, 17),
    (1, 132, 7, 9),
    (0, 4, 2, 2),
]


def _latent(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=generator) * scale).to(dtype).to(memory_format=torch.channels_last)


def _scales(shape: tuple[int, ...], dtype: torch.dtype, generator: Generator) -> Tensor:
    """Log-uniform over more than the tables' range, with negative, huge, zero and NaN ones among them."""
    scales = torch.exp(torch.rand(shape, generator=generator) * 12 - 6)
    odd = torch.rand(shape, generator=generator)
    for at, value in enumerate((-1.0, 0.0, float("inf"), float("nan"), 1e30)):
        scales[(odd > 0.02 * at) & (odd < 0.02 * at + 0.01)] = value
    return scales.to(dtype).to(memory_format=torch.channels_last)


def _halves_of_wider(x: Tensor, part: str) -> Tensor:
    """`x` as ``[N, G, C/G, H, W]`` whose groups lie among NaN channels, as the outputs of EVC's spatial prior do."""
    groups = groups_of(part)
    n, c, h, w = x.shape
    wide = torch.full((n, 2 * c, h, w), float("nan"), dtype=x.dtype).to(memory_format=torch.channels_last)
    view = wide.view(n, groups, 2, c // groups, h, w)[:, :, 1]
    view.copy_(x.unflatten(1, (groups, c // groups)))
    return view


def _place(x: Tensor, layout: str, part: str) -> Tensor:
    return {"dense": lambda: x, "slice": lambda: channel_slice(x), "apart": lambda: _halves_of_wider(x, part)}[layout]()


def _entropy_case(shape, part, *, layout="dense", thresholds=evc_scale_thresholds, id="", bench=False) -> OpCase:
    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        scales = _place(_scales(shape, dtype, generator), layout, part)
        return {"scales": scales, "thresholds": thresholds(), "part": part}

    name = id or f"{'x'.join(map(str, shape))}-{part}-{layout}"
    count = shape[0] * shape[1] * shape[2] * shape[3] // groups_of(part)
    return OpCase(
        "entropy_parameters",
        name,
        make,
        dtypes=FLOAT32,
        must_run=frozenset({"cpu", "cuda"} if bench else {"cpu", "triton", "cuda"}),
        bench=bench,
        bytes_moved=lambda size: count * (size + 2),
    )


def _quantize_case(shape, part, *, layout="dense", means=True, step=False, scale=8.0, limit=30000, id="") -> OpCase:
    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        y = _latent(shape, dtype, generator, scale)
        y[torch.rand(shape, generator=generator) < 0.02] = float("nan")
        arguments = {"y": _place(y, layout, part), "part": part, "limit": limit}
        if means:
            # Halves, so that ties occur: NaN aside, half of these residuals lie exactly between two integers.
            arguments["y"].copy_((arguments["y"] * 2).round() / 2)
            arguments["means"] = _place(_latent(shape, dtype, generator).round(), layout, part)
        if step:
            arguments["step"] = _place(_latent(shape, dtype, generator).abs() + 0.5, layout, part)
        return arguments

    name = id or f"{'x'.join(map(str, shape))}-{part}-{layout}"
    return OpCase("quantize_latent", name, make, dtypes=FLOAT32, must_run=frozenset({"cpu", "triton"}))


def _restore_case(
    shape, part, *, layout="dense", means=True, base=False, step=False, gain=False, id="", bench=False
) -> OpCase:
    n, c, h, w = shape
    count = n * c * h * w

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        symbols = torch.randn((n, c // groups_of(part), h, w), generator=generator) * 20
        arguments: dict[str, Any] = {"symbols": symbols.round().int(), "part": part}
        for name, given in (("means", means), ("base", base), ("step", step)):
            if given:
                arguments[name] = _place(_latent(shape, dtype, generator), layout, part)
        if gain:
            arguments["gain"] = torch.randn(1, c, 1, 1, generator=generator).to(dtype)
        return arguments

    return OpCase(
        "restore_latent",
        id or f"{'x'.join(map(str, shape))}-{part}-{layout}",
        make,
        dtypes=FLOAT32,
        must_run=frozenset({"cpu"} if bench else {"cpu", "triton"}),
        bench=bench,
        bytes_moved=lambda size: size * count * (1 + means + base + step) + 4 * count // groups_of(part),
    )


CASES = [
    *(_entropy_case(shape, part) for shape in SHAPES for part in ("all", "even", "odd")),
    *(_entropy_case((1, 24, 5, 17), part, layout=layout) for part in PARTS for layout in ("slice", "apart")),
    _entropy_case((1, 8, 4, 5), "all", thresholds=lambda: torch.empty(0), id="one-table"),
    _entropy_case((1, 8, 4, 5), "all", thresholds=lambda: torch.tensor([0.5]), id="two-tables"),
    _entropy_case(
        (1, 64, 4, 5), "all", thresholds=lambda: torch.tensor([-1.0, 0.0, 0.5, 0.5, 2.0]), id="from-negative"
    ),
    _entropy_case((1, 64, 4, 5), "all", thresholds=lambda: torch.tensor([0.5, 0.5, 0.5, 2.0]), id="repeated"),
    _entropy_case((1, 64, 4, 5), "all", thresholds=lambda: torch.tensor([1e-30, 1.0, 1.0000001, 1e30]), id="uneven"),
    # Triton: 64 positions, 32 channels of a group.
    _entropy_case((1, 64, 8, 8), "even", id="tiles-exact"),
    _entropy_case((1, 66, 5, 13), "odd", id="tiles-and-one"),
    _entropy_case((1, 192, 32, 48), "even", id="evc-768x512", bench=True),
    *(_quantize_case(shape, part) for shape in SHAPES for part in ("all", "even")),
    *(
        _quantize_case((1, 24, 5, 17), part, layout=layout, step=True)
        for part in PARTS
        for layout in ("slice", "apart")
    ),
    _quantize_case((1, 8, 4, 5), "all", means=False, id="no-means"),
    _quantize_case((1, 8, 4, 5), "all", scale=1e9, id="clipped"),
    _quantize_case((1, 8, 4, 5), "odd", scale=1e9, limit=2**24, step=True, id="largest-limit"),
    _quantize_case((1, 8, 4, 5), "all", scale=3e6, limit=2**24, id="ties-below-2^23"),
    _quantize_case((1, 8, 4, 5), "all", scale=0.0, id="all-zero"),
    # Triton: 64 positions, 32 channels of a group.
    _quantize_case((1, 64, 8, 8), "odd", step=True, id="tiles-exact"),
    _quantize_case((1, 66, 5, 13), "odd", step=True, id="tiles-and-one"),
    *(_restore_case(shape, part) for shape in SHAPES for part in ("all", "even")),
    *(
        _restore_case((1, 24, 5, 17), part, layout=layout, base=True, step=True, gain=True)
        for part in PARTS
        for layout in ("slice", "apart")
    ),
    _restore_case((1, 8, 4, 5), "even", means=False, id="no-means"),
    _restore_case((1, 8, 4, 5), "even", means=False, gain=True, id="gain-only"),
    _restore_case((2, 8, 4, 5), "odd", base=True, id="second-pass"),
    # Triton: 64 positions, 32 channels of the latent.
    _restore_case((1, 64, 8, 8), "odd", base=True, step=True, id="tiles-exact"),
    _restore_case((1, 66, 5, 13), "odd", base=True, step=True, id="tiles-and-one"),
    _restore_case((1, 192, 32, 48), "odd", base=True, step=True, gain=True, id="evc-768x512", bench=True),
]
