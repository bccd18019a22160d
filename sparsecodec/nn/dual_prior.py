"""EVC's entropy model at work: which latents are coded when, under which parameters (arXiv 2302.05071, section 3.3).

A latent is coded in two passes. In each, one half of the channels is active on the even squares of a checkerboard and
the other half on the odd ones, so a pass is a dense tensor of C/2 channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecodec.entropy import Decoder, Encoder, EntropyTables
from sparsecodec.nn.layers import lower_bound
from sparsecodec.nn.likelihood import BitEstimator, Estimate, Latent, laplace_likelihood, round_ste
from sparsecodec.nn.routine import Coding, Known, Routine, channel_indexes, drive, pulling, pushing
from sparsecodec.ops import evc_scale_thresholds
from sparsecodec.ops._registry import deferred
from sparsecodec.ops.entropy_parameters import ENTROPY_PARAMETERS
from sparsecodec.ops.quantize_latent import QUANTIZE_LATENT
from sparsecodec.ops.restore_latent import RESTORE_LATENT

STEP_MIN = 0.5  # least quantisation step
STREAMS = 2  # that each coding call is split over
SYMBOL_MAX = 30000  # symbols are clipped to +- this when coded
PASSES = ("even", "odd")  # of `sparsecodec.ops.entropy_parameters`
Network = Callable[[Tensor], Tensor]
Likelihood = Callable[[Tensor, Tensor], Tensor]


def first_pass(latent: Tensor) -> Tensor:
    """The positions of the first pass: even squares in the first half of the channels, odd ones in the second.

    Args:
        latent: ``[N, C, H, W]``; only its shape and device are read.

    Returns:
        ``[1, C, H, W]`` bool.
    """
    _, channels, height, width = latent.shape
    rows = torch.arange(height, device=latent.device)[:, None]
    columns = torch.arange(width, device=latent.device)[None, :]
    even = (rows + columns) % 2 == 0
    half = channels // 2
    return torch.cat([even.expand(half, -1, -1), ~even.expand(channels - half, -1, -1)])[None]


class DualPrior:
    """The networks between the hyper-latent and the tables.

    Args:
        hyper_dec: ``[N, C_z, h, w] -> [N, C_h, 4h, 4w]``.
        fusion: what `hyper_dec` gives, or what `join` makes of it, ``-> [N, 3C, H, W]``: step, scales, means.
        spatial: ``[N, 4C, H, W] -> [N, 2C, H, W]``: per half of the channels scales, then means.
        head: what takes the place of `spatial` when coding: the same with the entropy parameters of the second pass in
            its last layer, ``[N, 4C, H, W] ->`` what `sparsecodec.ops.prior_head` returns.
    """

    def __init__(self, hyper_dec: Network, fusion: Network, spatial: Network, head: Network | None = None) -> None:
        self._hyper_dec = hyper_dec
        self._fusion = fusion
        self._spatial = spatial
        self.head = head

    def parameters(self, z_hat: Tensor, join: Network | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Hyper-latent ``[N, C_z, h, w]`` -> (step >= 0.5, scales, means), each ``[N, C, 4h, 4w]``.

        Args:
            z_hat: rounded.
            join: adds to the hyper-decoder's output what else the fusion reads, such as earlier frames' latents.
        """
        hyper = self._hyper_dec(z_hat)
        fused = self._fusion(hyper if join is None else join(hyper))
        step, scales, means = fused.to(z_hat.dtype).chunk(3, 1)
        return lower_bound(step, STEP_MIN), scales, means

    def estimate(
        self,
        y: Tensor,
        z: Tensor,
        z_model: BitEstimator,
        likelihood: Likelihood,
        *,
        noisy: bool,
        join: Network | None = None,
    ) -> Estimate:
        """What coding would cost and lose, with gradients: rounding passes them straight through.

        Args:
            y: ``[N, C, H, W]``. Transform latent divided by the gain.
            z: ``[N, C_z, H/4, W/4]``. Hyper-latent, not yet rounded.
            z_model: distribution of the hyper-latent.
            likelihood: (symbols minus means, scales) -> mass of each.
            noisy: the rate at uniform noise, as in training, and not at the symbols that would be coded.
            join: as for `parameters`.
        """
        z_hat = round_ste(z)
        step, scales, means = self.parameters(z_hat, join)
        y = y / step
        first = first_pass(y)
        y_hat_first = (round_ste(y - means) + means) * first
        scales_second, means_second = self.refine(y_hat_first, step, scales, means)
        scales = torch.where(first, scales, scales_second.flatten(1, 2))
        means = torch.where(first, means, means_second.flatten(1, 2))
        residual = y - means
        y_hat = round_ste(residual) + means
        if noisy:
            coded_y, coded_z = residual + torch.rand_like(residual) - 0.5, z + torch.rand_like(z) - 0.5
        else:
            coded_y, coded_z = residual.round(), z_hat
        likelihoods = likelihood(coded_y, scales)
        return Estimate(
            y_hat * step,
            -likelihoods.log2().sum((1, 2, 3)),
            -z_model.likelihood(coded_z).log2().sum((1, 2, 3)),
            Latent(y, likelihoods, means, scales, likelihood is laplace_likelihood),
        )

    def refine(self, y_hat_first: Tensor, step: Tensor, scales: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """(scales, means) of the second pass, each ``[N, 2, C/2, H, W]``: the halves of the channels apart.

        Args:
            y_hat_first: ``[N, C, H, W]``. Latents of the first pass, not yet times `step`; zero elsewhere.
            step, scales, means: from `parameters`.
        """
        prior = self._spatial(self.context(y_hat_first, step, scales, means)).to(means.dtype)
        by_half = prior.unflatten(1, (2, 2, prior.shape[1] // 4))
        return by_half[:, :, 0], by_half[:, :, 1]

    @staticmethod
    def context(y_hat_first: Tensor, step: Tensor, scales: Tensor, means: Tensor) -> Tensor:
        """What the spatial network reads: arguments of `refine` -> ``[N, 4C, H, W]``."""
        return torch.cat([y_hat_first, means, scales, step], 1)


@dataclass(frozen=True)
class CodingLayout:
    """What differs between the codecs that code alike.

    Attributes:
        streams: that each coding call is split over; one stream has no prefix.
        symbol_max: symbols are clipped to +- this.
        thresholds: gives the scales at which the table's row changes.
    """

    streams: int = STREAMS
    symbol_max: int = SYMBOL_MAX
    thresholds: Callable[[], Tensor] = evc_scale_thresholds


class DualPriorCoder:
    """Latents to payload and back.

    Args:
        prior: the networks; encoder and decoder must compute the same bits.
        y_tables: rows of the scale index (`sparsecodec.entropy.evc_gaussian_tables`).
        z_tables: a row per channel of the hyper-latent.
        device: where the networks run.
        layout: how payloads are made; EVC's by default.
    """

    def __init__(
        self,
        prior: DualPrior,
        y_tables: EntropyTables,
        z_tables: EntropyTables,
        device: torch.device | str = "cpu",
        layout: CodingLayout | None = None,
    ) -> None:
        layout = layout or CodingLayout()
        self._prior = prior
        self._y_tables = y_tables
        self._z_tables = z_tables
        self._streams = layout.streams
        self._quantize_z = deferred(QUANTIZE_LATENT, limit=layout.symbol_max)
        self._quantize = {part: deferred(QUANTIZE_LATENT, part=part, limit=layout.symbol_max) for part in PASSES}
        thresholds = layout.thresholds().to(device)
        self._index = {part: deferred(ENTROPY_PARAMETERS, thresholds=thresholds, part=part) for part in PASSES}
        self._restore = {part: deferred(RESTORE_LATENT, part=part) for part in PASSES}

    def encode(self, y: Tensor, z: Tensor, gain: Tensor) -> tuple[bytes, Tensor]:
        """Codes one picture's latents; arguments as for `encoding`.

        Returns:
            The payload, and the latent as the decoder will have it, ``[1, C, H, W]``.
        """
        encoder = Encoder(self._streams)
        y_hat = drive(self.encoding(y, z, gain), pushing(encoder))
        return encoder.finish(), y_hat

    def decode(self, payload: bytes, z_shape: tuple[int, int, int, int], gain: Tensor) -> Tensor:
        """The inverse of `encode`: the latent ``[1, C, 4h, 4w]`` for a hyper-latent of shape `z_shape`.

        Raises:
            BitstreamError: the payload is damaged or belongs to another size, model or arithmetic.
        """
        decoder = Decoder(payload, self._streams)
        z_symbols = self.decode_z(decoder, z_shape)
        y_hat = drive(self.decoding(z_symbols.to(gain.device), gain), pulling(decoder))
        decoder.finish()
        return y_hat

    def decode_z(self, decoder: Decoder, z_shape: tuple[int, int, int, int]) -> Tensor:
        """The hyper-latent's symbols, the first call of a payload, int32 on the host."""
        return decoder.decode(channel_indexes(z_shape), self._z_tables)

    def encoding(self, y: Tensor, z: Tensor, gain: Tensor, join: Network | None = None) -> Routine:
        """Device work of `encode`.

        Args:
            y: ``[1, C, H, W]`` float32. Transform latent divided by `gain`.
            z: ``[1, C, H/4, W/4]`` float32. Hyper-latent, not yet rounded.
            gain: ``[C]`` float32. Global times channel-wise step.
            join: as for `DualPrior.parameters`.
        """
        z_symbols = self._quantize_z(z)
        yield Coding(self._z_tables, channel_indexes(z.shape, z.device), z_symbols)

        def push(indexes: Tensor, means: Tensor, step: Tensor, part: str) -> Routine:
            symbols = self._quantize[part](y, means, step)
            yield Coding(self._y_tables, indexes, symbols)
            return symbols

        return (yield from self._two_passes(z_symbols, gain, push, join))

    def z_request(self, size: tuple[int, int], device: torch.device | None = None, pictures: int = 1) -> Coding:
        """The coding call of hyper-latents of that size, its indexes on `device` (None: on the host)."""
        return Coding(self._z_tables, channel_indexes((pictures, *self._z_shape(size)[1:]), device))

    def z_decoding(self, size: tuple[int, int], device: torch.device) -> Routine:
        """The hyper-latent's symbols where other calls precede them: ``[1, C_z, *size]`` int32 on `device`."""
        return (yield Known(self._z_shape(size))).to(device)

    def _z_shape(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        return 1, self._z_tables.rows, *size

    def decoding(self, z_symbols: Tensor, gain: Tensor, join: Network | None = None) -> Routine:
        """Device work of `decode`: ``z_symbols [1, C_z, h, w]`` int32 -> latent ``[1, C, 4h, 4w]``."""

        def pull(indexes: Tensor, means: Tensor, step: Tensor, part: str) -> Routine:
            return (yield Coding(self._y_tables, indexes))

        return (yield from self._two_passes(z_symbols, gain, pull, join))

    def _two_passes(
        self, z_symbols: Tensor, gain: Tensor, code: Callable[..., Routine], join: Network | None = None
    ) -> Routine:
        """Both directions: `code` maps a pass' (indexes, means, step, part) to its symbols."""
        step, scales, means = self._prior.parameters(z_symbols.to(torch.float32), join)
        even, odd = PASSES
        symbols = yield from code(self._index[even](scales), means, step, even)
        first = self._restore[even](symbols, means)
        if self._prior.head is None:
            scales, means = self._prior.refine(first, step, scales, means)
            indexes = self._index[odd](scales)
        else:
            indexes, means = self._prior.head(self._prior.context(first, step, scales, means))
            means = means.unsqueeze(1).expand(-1, len(PASSES), -1, -1, -1)
        return self._restore[odd]((yield from code(indexes, means, step, odd)), means, first, step, gain)
