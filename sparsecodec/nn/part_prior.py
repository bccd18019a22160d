"""Spatial priors in two or four passes, as DCVC-DC, -FM, -RT and -UF code their latents.

In each pass one group of the channels is active at each position, so that a pass is a dense tensor of C/2 or C/4
channels; every pass but the first is predicted from what the passes before it coded. Parameters may be skipped: where
the predicted scale is at most a threshold the symbol is zero and does not enter the stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecodec.nn.likelihood import BitEstimator, Estimate, Latent, gaussian_likelihood, round_ste
from sparsecodec.ops._spatial_prior import active_group, groups_of

TWO_PASSES = ("even", "odd")
FOUR_PASSES = ("quarter0", "quarter1", "quarter2", "quarter3")
SYMBOL_RANGE = (-128, 127)  # of latents and hyper-latents: they travel as bytes
SCALE_MAX = 16.0  # of the tables
STEP_MIN = 0.5  # least quantisation step


@dataclass(frozen=True)
class PartParameters:
    """What the hyper-latent (and the frames before) say of a latent.

    Attributes:
        scales, means: ``[N, C, H, W]``, of the first pass; all channels, of which the pass reads the active ones.
        gain: ``[N, 1 or C, H, W]``. Multiplies the latent before it is quantised.
        step: as `gain`. Multiplies what was decoded.
        context: ``[N, K, H, W]``. What the later passes read beside the latent so far.
    """

    scales: Tensor
    means: Tensor
    gain: Tensor
    step: Tensor
    context: Tensor


class PartPrior(ABC):
    """The networks between the hyper-latent and the tables.

    Attributes:
        parts: names of the passes, of `sparsecodec.ops.entropy_parameters`.
    """

    parts: tuple[str, ...]

    @abstractmethod
    def parameters(self, z_hat: Tensor, size: tuple[int, int], temporal: Tensor | None = None) -> PartParameters:
        """Parameters of a latent of `size` ``(H, W)``.

        Args:
            z_hat: ``[N, Cz, ceil(H/4), ceil(W/4)]`` float. Quantised hyper-latent.
            size: of the latent.
            temporal: ``[N, K, H, W]``. What the frames before say; None for a frame that stands alone.
        """

    @abstractmethod
    def refine(self, index: int, y_hat: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """(scales, means), each ``[N, C, H, W]``, of pass `index` >= 1.

        Args:
            y_hat: ``[N, C, H, W]``. Latents of the passes before; zero elsewhere.
            context: of `PartParameters`.
        """


def active_channels(part: str, shape: torch.Size, device: torch.device) -> Tensor:
    """What a pass codes of a latent of `shape` ``[N, C, H, W]``: ``[1, C, H, W]`` bool."""
    _, channels, height, width = shape
    groups = groups_of(part)
    group = torch.arange(channels, device=device) // (channels // groups)
    return (active_group(part, height, width, device) == group[:, None, None])[None]


def bounded(z: Tensor) -> Tensor:
    """Hyper-latent -> nearest integers that a stream carries, with the gradient of the identity inside that range."""
    return round_ste(z).clamp(*SYMBOL_RANGE)


def estimate(
    prior: PartPrior,
    y: Tensor,
    z: Tensor,
    estimator: BitEstimator,
    rate: Tensor | int,
    *,
    training: bool,
    skip: float | None = None,
    temporal: Tensor | None = None,
) -> Estimate:
    """A latent as the decoder will have it, and what it costs; differentiable.

    Args:
        prior: the networks.
        y: ``[N, C, H, W]`` float. Latent.
        z: ``[N, Cz, ceil(H/4), ceil(W/4)]`` float. Hyper-latent, not rounded.
        estimator: distributions of the hyper-latent.
        rate: its row, int or ``[N]`` int.
        training: take the rate at uniform noise around the residual instead of at the symbols.
        skip: scales up to here are not coded.
        temporal: as for `PartPrior.parameters`.

    """
    z_hat = bounded(z)
    parameters = prior.parameters(z_hat, (y.shape[2], y.shape[3]), temporal)
    y = y * parameters.gain
    scales, means, y_hat = parameters.scales, parameters.means, torch.zeros_like(y)
    for index, part in enumerate(prior.parts):
        here = active_channels(part, y.shape, y.device)
        if index:
            refined = prior.refine(index, y_hat, parameters.context)
            scales, means = torch.where(here, refined[0], scales), torch.where(here, refined[1], means)
        symbols = round_ste(y - means)
        if skip is not None:
            symbols = torch.where(scales > skip, symbols, 0)
        y_hat = torch.where(here, symbols.clamp(*SYMBOL_RANGE) + means, y_hat)

    residual = y - means
    if training:
        coded_y, coded_z = residual + torch.rand_like(residual) - 0.5, z + torch.rand_like(z) - 0.5
    else:
        coded_y, coded_z = residual.round(), z_hat
    likelihoods = gaussian_likelihood(coded_y, scales.clamp(max=SCALE_MAX))
    if skip is not None:
        likelihoods = torch.where(scales > skip, likelihoods, 1)
    bits_y = -likelihoods.log2().sum((1, 2, 3))
    bits_z = -estimator.likelihood(coded_z, rate).log2().sum((1, 2, 3))
    return Estimate(y_hat * parameters.step, bits_y, bits_z, Latent(y, likelihoods, means, scales))
