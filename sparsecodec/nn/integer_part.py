"""Priors in two or four passes on integers: what `sparsecodec.nn.part_coder` codes in floats (docs/portable.md).

Fixed-point tensors are int32 in units of 2^-16, as in `sparsecodec.nn.integer_prior`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sparsecodec.entropy import EntropyTables
from sparsecodec.nn.integer_functions import sigmoid_table
from sparsecodec.nn.integer_prior import (
    FRACTION_BITS,
    ONE,
    STEP_MIN,
    IntegerNetworkLike,
    as_float,
    coded_only,
    fixed_point,
    narrowed,
    row_finder,
)
from sparsecodec.nn.part_coder import PartCoder
from sparsecodec.nn.part_prior import FOUR_PASSES, SYMBOL_RANGE, TWO_PASSES
from sparsecodec.nn.routine import Coding, Routine
from sparsecodec.ops import integer_gate
from sparsecodec.ops._spatial_prior import split_groups
from sparsecodec.ops.integer_conv2d import LIMIT

QUALITY_EXPONENT = -11  # of what the sigmoid of a quality plane reads: +- 16
SKIP_ROW = 0


def with_skip_row(tables: EntropyTables) -> EntropyTables:
    """`tables` behind a row 0 that holds the symbol 0 and nothing else, but for an escape of the least frequency.

    So a symbol that is not worth coding costs 2^-15 bits, and how many symbols a payload has follows from the size.
    """
    width = tables.cdf.shape[1]
    certain = np.zeros((1, width), np.int32)
    certain[0, :3] = 0, 2**16 - 1, 2**16
    return EntropyTables(
        np.concatenate([certain, tables.cdf]),
        np.concatenate([np.int32([3]), tables.lengths]),
        np.concatenate([np.int32([0]), tables.offsets]),
    )


def product(a: Tensor, b: Tensor) -> Tensor:
    """Fixed-point times fixed-point: to the nearest, halves upwards, saturating."""
    exact = a.long() * b.long()
    return ((exact + (ONE >> 1)) >> FRACTION_BITS).clamp_(-LIMIT, LIMIT - 1).to(torch.int32)


@dataclass(frozen=True)
class IntegerParameters:
    """What the hyper-latent (and the frames before) say of a latent.

    Attributes:
        scales, means: ``[1, C, H, W]`` fixed-point, of the first pass.
        gain: ``[1, 1 or C, H, W]`` float32. Multiplies the latent before it is quantised; only encoders read it.
        step: as `gain`, but fixed-point. Multiplies what was decoded.
        context: ``[1, K, H, W]`` int16. What the later passes read beside the latent so far.
    """

    scales: Tensor
    means: Tensor
    gain: Tensor
    step: Tensor
    context: Tensor


class IntegerPartPrior(Protocol):
    """As `sparsecodec.nn.part_prior.PartPrior`, on integers."""

    parts: tuple[str, ...]

    def parameters(self, z_symbols: Tensor, size: tuple[int, int], temporal: Tensor | None) -> IntegerParameters: ...

    def refine(self, index: int, y_hat: Tensor, context: Tensor) -> tuple[Tensor, Tensor]: ...


class IntegerIntraPrior:
    """Prior of a frame that stands alone.

    Args:
        parameters: ``[1, Cz, h, w] -> [1, 2C + 2, 4h, 4w]`` fixed-point: two quality planes, scales, means.
        reduction: ``[1, 2C + 2, H, W] -> [1, C, H, W]`` int16 of the adaptors' exponent.
        adaptors: one per pass but the first, all of one exponent, ``[1, 2C, H, W]`` -> what `spatial` reads, int16.
        spatial: ``-> [1, 2C, H, W]`` fixed-point: scales, means.
    """

    parts = FOUR_PASSES

    def __init__(
        self,
        parameters: IntegerNetworkLike,
        reduction: IntegerNetworkLike,
        adaptors: tuple[IntegerNetworkLike, ...],
        spatial: IntegerNetworkLike,
    ) -> None:
        self._parameters, self._reduction, self._adaptors, self._spatial = parameters, reduction, adaptors, spatial

    def parameters(self, z_symbols: Tensor, size: tuple[int, int], temporal: Tensor | None) -> IntegerParameters:
        network = self._parameters
        prior = network(narrowed(fixed_point(z_symbols), network.exponent))[:, :, : size[0], : size[1]]
        planes = narrowed(prior[:, :2], QUALITY_EXPONENT).contiguous(memory_format=torch.channels_last)
        sigmoid = integer_gate(planes, sigmoid_table(QUALITY_EXPONENT).to(planes.device)).int()  # units of 2^-15
        quality = 3 * sigmoid + STEP_MIN
        scales, means = prior[:, 2:].chunk(2, 1)
        context = self._reduction(narrowed(prior, self._reduction.exponent))
        return IntegerParameters(scales, means, as_float(quality[:, :1]), quality[:, 1:], context)

    def refine(self, index: int, y_hat: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        adaptor = self._adaptors[index - 1]
        adapted = adaptor(torch.cat((narrowed(y_hat, adaptor.exponent), context), 1))
        scales, means = self._spatial(adapted).chunk(2, 1)
        return scales, means


class IntegerInterPrior:
    """Prior of a predicted frame.

    Args:
        hyper: ``[1, Cz, h, w] -> [1, C, 4h, 4w]`` int16 of the exponent of `fusion`.
        fusion: ``[1, 3C, H, W] -> [1, 3C, H, W]`` fixed-point: steps, scales, means; reads `hyper` and `temporal`.
        spatial: ``[1, 4C, H, W] -> [1, 2C, H, W]`` fixed-point: scales, means.
    """

    parts = TWO_PASSES

    def __init__(self, hyper: IntegerNetworkLike, fusion: IntegerNetworkLike, spatial: IntegerNetworkLike) -> None:
        self._hyper, self._fusion, self._spatial = hyper, fusion, spatial

    def parameters(self, z_symbols: Tensor, size: tuple[int, int], temporal: Tensor | None) -> IntegerParameters:
        hyper = self._hyper(narrowed(fixed_point(z_symbols), self._hyper.exponent))[:, :, : size[0], : size[1]]
        prior = self._fusion(torch.cat((hyper, temporal), 1))
        step, scales, means = prior.chunk(3, 1)
        step = step.clamp(min=STEP_MIN)
        return IntegerParameters(
            scales, means, as_float(step).reciprocal(), step, narrowed(prior, self._spatial.exponent)
        )

    def refine(self, index: int, y_hat: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        read = torch.cat((narrowed(y_hat, self._spatial.exponent), context), 1)
        scales, means = self._spatial(read).chunk(2, 1)
        return scales, means


class IntegerPartCoder(PartCoder):
    """A `PartCoder` whose path from symbols to tables, and to the latent, holds integers only.

    Only the rounding of the encoder's latents is in float32: the path does not read them.

    Args:
        prior: the networks.
        y_tables: rows of the scale index, behind a row of skipped symbols (`with_skip_row`).
        z_tables: row = rate * channels of the hyper-latent + channel.
        thresholds: ``[rows of y_tables - 1]`` int32, fixed-point; the first is the scale up to which nothing is coded.
        device: where the networks run.
    """

    def __init__(
        self,
        prior: IntegerPartPrior,
        y_tables: EntropyTables,
        z_tables: EntropyTables,
        thresholds: Tensor,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(prior, y_tables, z_tables, thresholds.float(), None, device)
        self._index = [row_finder(thresholds.to(device), part) for part in prior.parts]

    def encoding(self, y: Tensor, z: Tensor, rate: int, temporal: Tensor | None = None) -> Routine:
        """As `PartCoder.encoding`; `temporal` int16, and the latent is fixed-point."""
        z_symbols = self._quantize_z(z).clamp(max=SYMBOL_RANGE[1])
        yield Coding(self._z_tables, self.z_indexes(z.shape, rate, z.device), z_symbols)
        parameters = self._prior.parameters(z_symbols, (y.shape[2], y.shape[3]), temporal)
        y = (y * parameters.gain).contiguous(memory_format=torch.channels_last)

        def push(index: int, rows: Tensor, means: Tensor) -> Routine:
            means = as_float(means).contiguous(memory_format=torch.channels_last)
            symbols = self._quantize[index](y, means).clamp(max=SYMBOL_RANGE[1])
            symbols = torch.where(rows == SKIP_ROW, 0, symbols)
            yield Coding(self._y_tables, rows, symbols)
            return symbols

        return (yield from self._passes(parameters, push))

    def decoding(self, z_symbols: Tensor, size: tuple[int, int], temporal: Tensor | None = None) -> Routine:
        """As `PartCoder.decoding`; `temporal` int16, and the latent is fixed-point."""
        parameters = self._prior.parameters(z_symbols, size, temporal)

        def pull(index: int, rows: Tensor, means: Tensor) -> Routine:
            return (yield Coding(self._y_tables, rows))

        return (yield from self._passes(parameters, pull))

    def _passes(self, parameters: IntegerParameters, code: Callable[..., Routine]) -> Routine:
        scales, means, y_hat = parameters.scales, parameters.means, None
        for index, part in enumerate(self._prior.parts):
            if index:
                scales, means = self._prior.refine(index, y_hat, parameters.context)
            symbols = yield from code(index, self._index[index](scales), means)
            coded = coded_only(fixed_point(symbols.unsqueeze(1), split_groups(means, part, "means")), part)
            y_hat = coded if y_hat is None else y_hat + coded  # of one position only one pass is not zero
        return product(y_hat, parameters.step)
