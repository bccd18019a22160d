"""Cases of `prior_head`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from sparsecodec.ops._spatial_prior import PARTS, groups_of
from sparsecodec.ops.prior_head import ORDERS, split_parameters
from sparsecodec.ops.scale_thresholds import evc_scale_thresholds
from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.pointwise import nhwc

SKIP = 0.5  # a value that scales take


def _eighths(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Multiples of 1/8 up to 1: products of two, times a slope of 1/4 or not, add up exactly in any order."""
    return torch.randint(-8, 9, shape, generator=generator) / 8


def _set_scales(parameters: Tensor, part: str, order: str, generator: Generator) -> Tensor:
    """`parameters` ``[1, 2C, ..., 1]`` with scales, or their weights, that leave no doubt about the index."""
    scales, _ = split_parameters(parameters, part, order)
    scales.copy_(_eighths(scales.shape, generator))
    return parameters


def _case(
    id: str, n: int, k: int, c: int, h: int, w: int, part: str = "even", *, residual: bool = False, bias: bool = True,
    sliced: bool = False, scale: float = 1.0, thresholds=evc_scale_thresholds, bench: bool = False, **options: Any,
) -> OpCase:  # fmt: skip
    """c: channels of the latent. Scales are exact and means are not: `judge` wants the indexes to be equal."""
    order = options.get("order", "scales_means")

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        x = _eighths((n, k, h, w), generator) * scale
        weight = torch.randn((1, 2 * c, 1, k), generator=generator)
        arguments: dict[str, Any] = {
            "x": x.to(dtype).to(memory_format=torch.channels_last),
            "weight": _set_scales(weight, part, order, generator).view(2 * c, k),
            "thresholds": thresholds(),
            "part": part,
            **options,
        }
        if bias:
            offset = torch.randn((1, 2 * c, 1, 1), generator=generator)
            arguments["bias"] = _set_scales(offset, part, order, generator).flatten()
        if residual:
            base = nhwc((n, 2 * c, h, w), dtype, generator)
            arguments["residual"] = _set_scales(base, part, order, generator)
        if sliced:
            for name in {"x", "residual"} & set(arguments):
                arguments[name] = channel_slice(arguments[name])
        return arguments

    coded = c // groups_of(part)
    return OpCase(
        "prior_head",
        id,
        make,
        dtypes=(torch.float32,),
        must_run=frozenset({"cpu"} if bench else {"cpu", "triton"}),
        terms=k,
        bench=bench,
        flops=2 * k * 2 * coded * n * h * w,
        bytes_moved=lambda size: n * h * w * (size * (k + coded * (3 if residual else 1)) + 2 * coded),
    )


CASES = [
    # Positions of one parity class: 32 in a Triton tile, 48 in a task of the CPU, 12 in its register tile. Channels of
    # a group: 32 in both. Sums in steps of 32.
    _case("one-position", 1, 1, 2, 1, 1),
    _case("one-position-odd", 1, 3, 4, 1, 1, "odd"),
    _case("one-row", 1, 8, 4, 1, 15, "quarter2"),
    _case("one-column", 1, 8, 4, 15, 1, "quarter1"),
    _case("all", 2, 33, 5, 5, 7, "all", residual=True),
    _case("all-tile-and-one", 1, 32, 33, 7, 7, "all"),
    _case("tiles-exact", 1, 64, 64, 8, 16, residual=True),
    _case("tiles-and-one", 1, 65, 66, 9, 17, "odd", residual=True, activation="leaky_relu", slope=0.25),
    _case("batch", 3, 40, 24, 5, 6, "even", residual=True),
    _case("empty-batch", 0, 8, 8, 4, 4),
    _case("no-bias", 1, 24, 40, 6, 10, bias=False),
    _case("all-zero", 1, 32, 32, 5, 7, scale=0.0, bias=False),
    _case("large-values", 1, 32, 16, 5, 7, scale=2.0**60),
    _case("deep", 1, 1024, 8, 5, 5, "odd"),
    _case("relu", 1, 24, 16, 5, 7, activation="relu", residual=True),
    *(
        _case(f"{order}-{part}", 1, 12, 24, 5, 9, part, order=order, residual=True, skip=SKIP)
        for order in ORDERS
        for part in PARTS
    ),
    # Multiples of 1/32 before the gate; after it none is nearer than 0.007 to a threshold.
    _case(
        "sigmoid-gate", 1, 24, 16, 5, 7, scale=2.0, bias=False, activation="sigmoid_gate",
        thresholds=lambda: torch.arange(8) + 0.57,
    ),
    _case("slice", 2, 24, 16, 6, 10, residual=True, sliced=True),
    _case("skip-none-coded", 1, 24, 16, 5, 7, skip=1e9),
    _case("skip-negative", 1, 24, 16, 5, 7, skip=-1.0),
    _case("one-table", 1, 24, 16, 5, 7, thresholds=lambda: torch.empty(0), skip=0.0),
    _case("1024-192-32x48", 1, 1024, 192, 32, 48, "odd", order="by_group", residual=True, activation="leaky_relu",
          slope=0.1, bench=True),
]  # fmt: skip
