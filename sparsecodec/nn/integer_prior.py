"""The dual prior on integers: what `sparsecodec.nn.dual_prior` computes in floats, in fixed point (docs/portable.md).

Fixed-point tensors are those of `sparsecodec.ops._fixed_point`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from sparsecodec.entropy import EntropyTables
from sparsecodec.nn.dual_prior import PASSES, DualPriorCoder, Network
from sparsecodec.nn.routine import Routine
from sparsecodec.ops._fixed_point import FRACTION_BITS, ONE, SYMBOL_LIMIT, fixed_point, narrowed
from sparsecodec.ops._registry import deferred
from sparsecodec.ops._spatial_prior import coded_only, split_groups, take_active
from sparsecodec.ops.entropy_parameters import ENTROPY_PARAMETERS
from sparsecodec.ops.integer_conv2d import LIMIT
from sparsecodec.ops.prior_context import PRIOR_CONTEXT
from sparsecodec.ops.quantize_latent import QUANTIZE_LATENT

FLOAT32_INTEGERS = 2**24
STEP_MIN = ONE // 2  # least quantisation step


class IntegerNetworkLike(Protocol):
    """A network on integers.

    Attributes:
        exponent: of its int16 input.
    """

    exponent: int

    def __call__(self, x: Tensor) -> Tensor: ...


class JoinedParameters:
    """The networks between a hyper-latent and the parameters of a latent whose frame has others before it.

    Args:
        hyper: ``[1, C_z, h, w]`` -> int16 of the exponent of `fusion`.
        fusion: what `join` makes of that -> ``[1, 3C, 4h, 4w]`` fixed-point.
    """

    def __init__(self, hyper: IntegerNetworkLike, fusion: IntegerNetworkLike) -> None:
        self._hyper, self._fusion = hyper, fusion
        self.exponent = hyper.exponent

    def __call__(self, z_hat: Tensor, join: Network) -> Tensor:
        return self._fusion(join(self._hyper(z_hat)))


def table_rows(scales: Tensor, thresholds: Tensor, part: str = "all") -> Tensor:
    """Table row of each scale that a pass codes: the number of thresholds below it.

    Args:
        scales: fixed-point, ``[N, C, H, W]`` or ``[N, G, C/G, H, W]``.
        thresholds: ``[R - 1]`` int32, ascending.
        part: of the passes in `sparsecodec.ops.entropy_parameters`.

    Returns:
        ``[N, C/G, H, W]`` int16 contiguous.
    """
    coded = take_active(split_groups(scales, part, "scales"), part)
    return torch.bucketize(coded.contiguous(), thresholds, out_int32=True).to(torch.int16)


def row_finder(thresholds: Tensor, part: str = "all") -> Callable[[Tensor], Tensor]:
    """`table_rows` with these thresholds as a function of the scales, by comparison of floats where that is exact.

    float32 holds every integer up to 2^24 and rounds no larger one below it: with all thresholds below it, the
    comparisons come out the same.
    """
    if len(thresholds) == 0 or int(thresholds.max()) >= FLOAT32_INTEGERS:
        return partial(table_rows, thresholds=thresholds, part=part)
    find = deferred(ENTROPY_PARAMETERS, thresholds=thresholds.to(torch.float32), part=part)
    return lambda scales: find(scales.to(torch.float32))


def as_float(values: Tensor) -> Tensor:
    """Fixed-point -> float32."""
    return values.to(torch.float32) * (1.0 / ONE)


def fixed_gain(basic: Tensor, hundredths: int) -> Tensor:
    """Steps of channels, fixed-point: ``max(basic, 0.5)``, float32, times a global step in 1/100; ``[C]`` int64.

    Args:
        basic: ``[C]`` or ``[1, C, 1, 1]``, the channels' own steps.
    """
    # A product by a power of two and one rounding, so it is the same everywhere.
    units = (basic.detach().double() * ONE).round().long().flatten().clamp(min=STEP_MIN)
    return (units * hundredths + 50) // 100


class IntegerPriorCoder(DualPriorCoder):
    """A `DualPriorCoder` whose path from symbols to tables holds integers only.

    Encoding rounds the latents in float32, and what both directions return is float32: neither is read by the path.

    Args:
        parameters: hyper-latent ``[N, C, h, w]`` -> steps, scales and means, ``[N, 3C, 4h, 4w]`` fixed-point; where
            other frames' latents join the hyper-decoder's output, with a `join` as its second argument.
        spatial: ``[N, 4C, H, W] -> [N, 2C, H, W]`` fixed-point: per half of the channels scales, then means.
        y_tables: rows of the scale index.
        z_tables: a row per channel of the hyper-latent.
        z_medians: ``[C]`` int32, fixed-point.
        thresholds: ``[R - 1]`` int32.
        device: where the networks run.
    """

    def __init__(
        self,
        parameters: IntegerNetworkLike,
        spatial: IntegerNetworkLike,
        y_tables: EntropyTables,
        z_tables: EntropyTables,
        z_medians: Tensor,
        thresholds: Tensor,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(None, y_tables, z_tables, device)
        self._parameters = parameters
        self._spatial = spatial
        self._context = deferred(PRIOR_CONTEXT, exponent=spatial.exponent, part=PASSES[0])
        self._medians = z_medians.to(device).view(-1, 1, 1)
        self._index = {part: row_finder(thresholds.to(device), part) for part in PASSES}
        self._quantize_z = deferred(QUANTIZE_LATENT, limit=SYMBOL_LIMIT - 1)
        self._quantize = {part: self._quantizer(part) for part in PASSES}

    @staticmethod
    def _quantizer(part: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        quantize = deferred(QUANTIZE_LATENT, part=part, limit=SYMBOL_LIMIT - 1)
        return lambda y, means, step: quantize(y, as_float(means), as_float(step))

    def _two_passes(
        self, z_symbols: Tensor, gain: Tensor, code: Callable[..., Routine], join: Network | None = None
    ) -> Routine:
        z_hat = narrowed(fixed_point(z_symbols, self._medians), self._parameters.exponent)
        prior = self._parameters(z_hat) if join is None else self._parameters(z_hat, join)
        step, scales, means = prior.chunk(3, 1)
        step = step.clamp(min=STEP_MIN)
        even, odd = PASSES
        symbols = yield from code(self._index[even](scales), means, step, even)
        context, first = self._context(symbols, means, scales, step)
        prior = self._spatial(context)
        by_half = prior.unflatten(1, (2, 2, prior.shape[1] // 4))
        scales, means = by_half[:, :, 0], by_half[:, :, 1]
        symbols = yield from code(self._index[odd](scales), means, step, odd)
        return self._restored(symbols, means, first, step, gain)

    def _restored(self, symbols: Tensor, means: Tensor, first: Tensor, step: Tensor, gain: Tensor) -> Tensor:
        """The latent from the symbols and means of the second pass and the values of the first."""
        return self._restore[PASSES[1]](symbols, as_float(means), as_float(first), as_float(step), gain)


class ExactPriorCoder(IntegerPriorCoder):
    """An `IntegerPriorCoder` whose latents are fixed-point, as `gain` is: ``[C]`` int64, at least 0, below 2^32."""

    def _restored(self, symbols: Tensor, means: Tensor, first: Tensor, step: Tensor, gain: Tensor) -> Tensor:
        second = coded_only(fixed_point(symbols.unsqueeze(1), means), PASSES[1])
        return scaled(scaled(first + second, step), gain.view(-1, 1, 1))


def scaled(values: Tensor, factors: Tensor) -> Tensor:
    """Products of fixed-point numbers: to the nearest, halves upwards, saturating; `factors` below 2^32."""
    products = (values.long() * factors.long() + ONE // 2) >> FRACTION_BITS
    return products.clamp_(-LIMIT, LIMIT - 1).to(torch.int32)
