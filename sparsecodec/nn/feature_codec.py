"""Feature maps to payload and back: an auto-encoder with a mean-scale hyperprior and no context model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables
from sparsecodec.nn.likelihood import BitEstimator, Estimate, Latent, gaussian_likelihood, round_ste
from sparsecodec.nn.routine import Coding, Known, Routine, channel_indexes
from sparsecodec.ops import entropy_parameters, quantize_latent, restore_latent

SYMBOL_MAX = 30000  # symbols are clipped to +- this


class FeatureBlock(nn.Module):
    """3x3, ReLU, 3x3, plus the input: ``[N, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu(self.conv1(x)))


def down5(c_in: int, c_out: int) -> nn.Conv2d:
    """5x5 of stride 2: half the size."""
    return nn.Conv2d(c_in, c_out, 5, stride=2, padding=2)


def up5(c_in: int, c_out: int) -> nn.ConvTranspose2d:
    """Transposed 5x5 of stride 2: twice the size."""
    return nn.ConvTranspose2d(c_in, c_out, 5, stride=2, padding=2, output_padding=1)


class FeatureCodec(nn.Module):
    """Codes feature maps at 1/8 of their size, with a hyper-latent at 1/32 (arXiv 1809.02736 without context model).

    Args:
        channels: of the map.
        width: of the layers between.
        latent: of the latent and the hyper-latent.
    """

    def __init__(self, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.analysis = nn.Sequential(
            down5(channels, width), FeatureBlock(width), down5(width, width), FeatureBlock(width), down5(width, latent)
        )
        self.synthesis = nn.Sequential(
            up5(latent, width), FeatureBlock(width), up5(width, width), FeatureBlock(width), up5(width, channels)
        )
        self.hyper_analysis = nn.Sequential(
            nn.Conv2d(latent, latent, 3, padding=1),
            nn.LeakyReLU(0.01),
            down5(latent, latent),
            nn.LeakyReLU(0.01),
            down5(latent, latent),
        )
        self.hyper_synthesis = nn.Sequential(
            up5(latent, latent),
            nn.LeakyReLU(0.01),
            up5(latent, latent * 3 // 2),
            nn.LeakyReLU(0.01),
            nn.Conv2d(latent * 3 // 2, 2 * latent, 3, padding=1),
        )
        self.estimator = BitEstimator(latent)
        self.latent_channels = latent

    def forward(self, x: Tensor) -> tuple[Tensor, Estimate]:
        """One pass with an estimated rate; in training the rate is taken at uniform noise around the residual.

        Args:
            x: ``[N, channels, H, W]`` float, H and W multiples of 32.

        Returns:
            The decoded map, same shape, and what it was decoded from.
        """
        y = self.analysis(x)
        z = self.hyper_analysis(y)
        z_hat = round_ste(z)
        means, scales = self._predicted(z_hat)
        residual = y - means
        y_hat = round_ste(residual) + means
        if self.training:
            residual, z_hat = (values + torch.rand_like(values) - 0.5 for values in (residual, z))
        likelihoods = gaussian_likelihood(residual if self.training else residual.round(), scales)
        bits_y = -likelihoods.log2().sum((1, 2, 3))
        bits_z = -self.estimator.likelihood(z_hat).log2().sum((1, 2, 3))
        return self.synthesis(y_hat), Estimate(y_hat, bits_y, bits_z, Latent(y, likelihoods, means, scales))

    def encoding(self, x: Tensor, thresholds: Tensor, y_tables: EntropyTables, z_tables: EntropyTables) -> Routine:
        """The coding calls of a map ``[1, channels, H, W]``: hyper-latent, then latent; returns the decoded map.

        Args:
            x: ``[1, channels, H, W]`` float32.
            thresholds: ``[R - 1]`` float32. Scale -> row of `y_tables`.
            y_tables: R distributions.
            z_tables: a row per channel of the hyper-latent.
        """
        y = self.analysis(x)
        z_symbols = quantize_latent(self.hyper_analysis(y), limit=SYMBOL_MAX)
        yield Coding(z_tables, channel_indexes(z_symbols.shape, x.device), z_symbols)
        means, scales = self._predicted(_dense(z_symbols))
        symbols = quantize_latent(y, means, limit=SYMBOL_MAX)
        yield Coding(y_tables, entropy_parameters(scales, thresholds), symbols)
        return self.synthesis(_dense(restore_latent(symbols, means)))

    def z_request(self, size: tuple[int, int], z_tables: EntropyTables) -> Coding:
        """The coding call behind the `Known` of `decoding`, for whoever answers it."""
        return Coding(z_tables, channel_indexes(self._z_shape(size)))

    def _z_shape(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        return 1, self.latent_channels, size[0] // 32, size[1] // 32

    def decoding(self, size: tuple[int, int], thresholds: Tensor, y_tables: EntropyTables) -> Routine:
        """The inverse of `encoding`, of a map of that height and width; asks for the hyper-latent by a `Known`."""
        z_symbols = (yield Known(self._z_shape(size))).to(self.estimator.f1.h.device)
        means, scales = self._predicted(_dense(z_symbols))
        symbols = yield Coding(y_tables, entropy_parameters(scales, thresholds))
        return self.synthesis(_dense(restore_latent(symbols, means)))

    def _predicted(self, z_hat: Tensor) -> tuple[Tensor, Tensor]:
        """(means, scales) of the latent."""
        return self.hyper_synthesis(z_hat).chunk(2, 1)


def _dense(values: Tensor) -> Tensor:
    """float32 in the one layout of both ends: torch chooses an algorithm, and with it the bits, by the strides."""
    return values.to(torch.float32).clone(memory_format=torch.contiguous_format)
