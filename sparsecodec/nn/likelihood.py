"""Differentiable rate: what a symbol costs under the entropy model. Real coding is in `sparsecodec.entropy`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables, evc_factorized_tables, rt_factorized_tables

SCALE_MIN = 0.11
LAPLACE_SCALE_MIN = 1e-5
PROBABILITY_FLOOR = 1e-5


@dataclass(frozen=True)
class Latent:
    """What an entropy model was given, and what it made of it, in quantisation steps.

    Attributes:
        y: ``[N, C, h, w]`` float, before it is quantised.
        likelihoods: ``[N, C, h, w]`` float; the rate is taken from them.
        means, scales: ``[N, C, h, w]`` float; None for an entropy model that predicts no distributions.
        laplace: they are those of Laplace distributions, not of Gaussians.
    """

    y: Tensor
    likelihoods: Tensor
    means: Tensor | None = None
    scales: Tensor | None = None
    laplace: bool = False

    def map(self, function: Callable[[Tensor], Tensor]) -> Latent:
        """`function` of each tensor."""
        values = (self.y, self.likelihoods, self.means, self.scales)
        return Latent(*(None if value is None else function(value) for value in values), self.laplace)

    @staticmethod
    def cat(latents: Sequence[Latent]) -> Latent:
        """Those of several pictures as one, along the first dimension."""
        parts = zip(*((latent.y, latent.likelihoods, latent.means, latent.scales) for latent in latents), strict=True)
        return Latent(*(None if part[0] is None else torch.cat(part) for part in parts), latents[0].laplace)


@dataclass(frozen=True)
class Estimate:
    """One differentiable pass through the entropy model.

    Attributes:
        y_hat: ``[N, C, H, W]``. Quantised latent, times the step.
        bits_y, bits_z: ``[N]``.
        latent: what the model saw; `bits_y` is taken from its likelihoods.
    """

    y_hat: Tensor
    bits_y: Tensor
    bits_z: Tensor
    latent: Latent


def round_ste(x: Tensor) -> Tensor:
    """round(x), half to even, with the gradient of the identity."""
    return x + (x.round() - x).detach()


def gaussian_likelihood(residual: Tensor, scales: Tensor) -> Tensor:
    """Mass of N(0, scales) in a unit interval around `residual`, plus 1e-5.

    Args:
        residual: any shape, float. Symbol minus mean.
        scales: same shape, float. Standard deviations; values below 0.11 count as 0.11.

    Returns:
        Same shape, in [1e-5, 1 + 1e-5].
    """
    inverse = (0.5**0.5) / scales.clamp(min=SCALE_MIN)
    # The difference of two lower tails keeps its precision where both arguments are negative.
    distance = residual.abs()
    upper, lower = (0.5 - distance) * inverse, (-0.5 - distance) * inverse
    return 0.5 * (torch.erfc(-upper) - torch.erfc(-lower)) + PROBABILITY_FLOOR


def laplace_likelihood(residual: Tensor, scales: Tensor) -> Tensor:
    """Mass of a Laplace distribution around zero in a unit interval around `residual`, plus 1e-5.

    Args:
        residual: any shape, float. Symbol minus mean.
        scales: same shape, float; values below 1e-5 count as 1e-5.

    Returns:
        Same shape, in [1e-5, 1 + 1e-5].
    """
    scales = scales.clamp(min=LAPLACE_SCALE_MIN)

    def below(x: Tensor) -> Tensor:
        return 0.5 - 0.5 * x.sign() * torch.expm1(-x.abs() / scales)

    distance = residual.abs()  # the lower tails keep their precision
    return below(0.5 - distance) - below(-0.5 - distance) + PROBABILITY_FLOOR


def rate_rows(bank: Tensor, rate: Tensor | int) -> Tensor:
    """The rows of a bank of one per rate: ``[R, ...] -> [1 or N, ...]`` for an int, or for an ``[N]`` tensor."""
    return bank[rate : rate + 1] if isinstance(rate, int) else bank[rate]


class _Bijector(nn.Module):
    """One monotone layer of `BitEstimator`, per channel."""

    def __init__(self, channels: int, rates: int, *, final: bool) -> None:
        super().__init__()
        self.h = nn.Parameter(torch.empty(rates, channels, 1, 1).normal_(0, 0.01))
        self.b = nn.Parameter(torch.empty(rates, channels, 1, 1).normal_(0, 0.01))
        self.a = None if final else nn.Parameter(torch.empty(rates, channels, 1, 1).normal_(0, 0.01))

    def forward(self, x: Tensor, rate: Tensor | int) -> Tensor:
        x = x * F.softplus(rate_rows(self.h, rate)) + rate_rows(self.b, rate)
        return torch.sigmoid(x) if self.a is None else x + torch.tanh(x) * torch.tanh(rate_rows(self.a, rate))


class BitEstimator(nn.Module):
    """Factorised prior of the hyper-latent: a learnt cumulative distribution per channel (four monotone layers).

    Keys: ``f1.{h,b,a} f2.* f3.* f4.{h,b}``, each ``[rates, C, 1, 1]``.

    Args:
        channels: C.
        rates: sets of distributions, one per quality (DCVC-FM intra, DCVC-RT); 1: the same for all.
    """

    def __init__(self, channels: int, rates: int = 1) -> None:
        super().__init__()
        self.f1 = _Bijector(channels, rates, final=False)
        self.f2 = _Bijector(channels, rates, final=False)
        self.f3 = _Bijector(channels, rates, final=False)
        self.f4 = _Bijector(channels, rates, final=True)

    def cdf(self, x: Tensor, rate: Tensor | int = 0) -> Tensor:
        """``[N, C, H, W]`` positions -> cumulative probability in (0, 1), same shape; `rate`: int, or ``[N]`` int."""
        for layer in (self.f1, self.f2, self.f3, self.f4):
            x = layer(x, rate)
        return x

    def likelihood(self, x: Tensor, rate: Tensor | int = 0) -> Tensor:
        """``[N, C, H, W]`` symbols -> mass of the unit interval around each, plus 1e-5; `rate` as for `cdf`."""
        return (self.cdf(x + 0.5, rate) - self.cdf(x - 0.5, rate)).clamp(min=0) + PROBABILITY_FLOOR


def factorized_tables(estimator: nn.Module, channels: int) -> EntropyTables:
    """Coding tables of a `BitEstimator`, a row per channel; on the CPU wherever its weights are, so that one model has
    the same tables everywhere."""
    return evc_factorized_tables(copy.deepcopy(estimator).to("cpu", torch.float32).cdf, channels)


def rate_factorized_tables(estimator: nn.Module) -> EntropyTables:
    """Coding tables of a `BitEstimator` of several rates as DCVC-RT computes them, row = rate * C + channel; on the
    CPU wherever its weights are."""
    estimator = copy.deepcopy(estimator).to("cpu", torch.float32)
    rates, channels = estimator.f1.h.shape[:2]

    def cumulative(x: Tensor) -> Tensor:
        by_rate = x.unflatten(1, (rates, channels))[0]
        return estimator.cdf(by_rate, torch.arange(rates)).flatten(0, 1)[None]

    return rt_factorized_tables(cumulative, rates * channels)
