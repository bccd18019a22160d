"""Differentiable rate: what a symbol costs under the entropy model. Real coding is in `sparsecodec.entropy`."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables, evc_factorized_tables

SCALE_MIN = 0.11
PROBABILITY_FLOOR = 1e-5


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


class _Bijector(nn.Module):
    """One monotone layer of `BitEstimator`, per channel."""

    def __init__(self, channels: int, *, final: bool) -> None:
        super().__init__()
        self.h = nn.Parameter(torch.empty(1, channels, 1, 1).normal_(0, 0.01))
        self.b = nn.Parameter(torch.empty(1, channels, 1, 1).normal_(0, 0.01))
        self.a = None if final else nn.Parameter(torch.empty(1, channels, 1, 1).normal_(0, 0.01))

    def forward(self, x: Tensor) -> Tensor:
        x = x * F.softplus(self.h) + self.b
        return torch.sigmoid(x) if self.a is None else x + torch.tanh(x) * torch.tanh(self.a)


class BitEstimator(nn.Module):
    """Factorised prior of the hyper-latent: a learnt cumulative distribution per channel (four monotone layers).

    Keys: ``f1.{h,b,a} f2.* f3.* f4.{h,b}``, each ``[1, C, 1, 1]``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f1 = _Bijector(channels, final=False)
        self.f2 = _Bijector(channels, final=False)
        self.f3 = _Bijector(channels, final=False)
        self.f4 = _Bijector(channels, final=True)

    def cdf(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` positions -> cumulative probability in (0, 1), same shape."""
        return self.f4(self.f3(self.f2(self.f1(x))))

    def likelihood(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` symbols -> mass of the unit interval around each, plus 1e-5."""
        return (self.cdf(x + 0.5) - self.cdf(x - 0.5)).clamp(min=0) + PROBABILITY_FLOOR


def factorized_tables(estimator: nn.Module, channels: int) -> EntropyTables:
    """Coding tables of a `BitEstimator`, a row per channel; on the CPU wherever its weights are, so that one model has
    the same tables everywhere."""
    return evc_factorized_tables(copy.deepcopy(estimator).to("cpu", torch.float32).cdf, channels)
