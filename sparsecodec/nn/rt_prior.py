"""The priors of DCVC-RT: four passes for a frame alone, two for a predicted one (arXiv 2502.20762)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsecodec.nn.layers import lower_bound
from sparsecodec.nn.part_prior import FOUR_PASSES, STEP_MIN, TWO_PASSES, PartParameters, PartPrior

Network = Callable[[Tensor], Tensor]


class IntraPrior(PartPrior):
    """Prior of a frame that stands alone.

    Args:
        hyper_dec: ``[N, Cz, h, w] -> [N, C, 4h, 4w]``.
        fusion: ``[N, C, 4h, 4w] -> [N, 2C + 2, 4h, 4w]``: two quality planes, scales, means.
        reduction: ``[N, 2C + 2, H, W] -> [N, C, H, W]``.
        adaptors: one per pass but the first, ``[N, 2C, H, W] -> [N, K, H, W]``.
        spatial: ``[N, K, H, W] -> [N, 2C, H, W]``: scales, means.
    """

    parts = FOUR_PASSES

    def __init__(
        self, hyper_dec: Network, fusion: Network, reduction: Network, adaptors: Sequence[Network], spatial: Network
    ) -> None:
        self._hyper_dec = hyper_dec
        self._fusion = fusion
        self._reduction = reduction
        self._adaptors = tuple(adaptors)
        self._spatial = spatial

    def parameters(self, z_hat: Tensor, size: tuple[int, int], temporal: Tensor | None = None) -> PartParameters:
        prior = self._fusion(self._hyper_dec(z_hat)).to(z_hat.dtype)[:, :, : size[0], : size[1]].contiguous()
        quality = torch.sigmoid(prior[:, :2]) * 1.5 + 0.5
        scales, means = prior[:, 2:].chunk(2, 1)
        return PartParameters(scales, means, quality[:, :1], quality[:, 1:], self._reduction(prior))

    def refine(self, index: int, y_hat: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        adapted = self._adaptors[index - 1](torch.cat((y_hat, context), 1))
        scales, means = self._spatial(adapted).to(y_hat.dtype).chunk(2, 1)
        return scales, means


class InterPrior(PartPrior):
    """Prior of a predicted frame.

    Args:
        hyper_dec: ``[N, Cz, h, w] -> [N, C, 4h, 4w]``.
        fusion: ``[N, 3C, H, W] -> [N, 3C, H, W]``: steps, scales, means; reads the hyper-decoder and `temporal` (2C).
        spatial: ``[N, 4C, H, W] -> [N, 2C, H, W]``: scales, means.
    """

    parts = TWO_PASSES

    def __init__(self, hyper_dec: Network, fusion: Network, spatial: Network) -> None:
        self._hyper_dec = hyper_dec
        self._fusion = fusion
        self._spatial = spatial

    def parameters(self, z_hat: Tensor, size: tuple[int, int], temporal: Tensor | None = None) -> PartParameters:
        hyper = self._hyper_dec(z_hat)[:, :, : size[0], : size[1]]
        prior = self._fusion(torch.cat((hyper, temporal), 1)).to(z_hat.dtype)
        step, scales, means = prior.chunk(3, 1)
        step = lower_bound(step, STEP_MIN)
        # The published coder multiplies by the reciprocal; a division would give other bits.
        return PartParameters(scales, means, torch.reciprocal(step), step, prior)

    def refine(self, index: int, y_hat: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        scales, means = self._spatial(torch.cat((y_hat, context), 1)).to(y_hat.dtype).chunk(2, 1)
        return scales, means
