"""EVC's entropy model at work: which latents are coded when, under which parameters (arXiv 2302.05071, section 3.3).

A latent is coded in two passes. In each, one half of the channels is active on the even squares of a checkerboard and
the other half on the odd ones, so a pass is a dense tensor of C/2 channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsecodec.entropy import Decoder, Encoder, EntropyTables
from sparsecodec.nn.layers import lower_bound
from sparsecodec.nn.routine import Coding, Routine, drive, pulling, pushing
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
        hyper_dec: ``[N, C, h, w] -> [N, C, 4h, 4w]``.
        fusion: ``[N, C, H, W] -> [N, 3C, H, W]``: step, scales, means.
        spatial: ``[N, 4C, H, W] -> [N, 2C, H, W]``: per half of the channels scales, then means.
        head: what takes the place of `spatial` when coding: the same with the entropy parameters of the second pass in
            its last layer, ``[N, 4C, H, W] ->`` what `sparsecodec.ops.prior_head` returns.
    """

    def __init__(self, hyper_dec: Network, fusion: Network, spatial: Network, head: Network | None = None) -> None:
        self._hyper_dec = hyper_dec
        self._fusion = fusion
        self._spatial = spatial
        self.head = head

    def parameters(self, z_hat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hyper-latent ``[N, C, h, w]`` -> (step >= 0.5, scales, means), each ``[N, C, 4h, 4w]``."""
        step, scales, means = self._fusion(self._hyper_dec(z_hat)).to(z_hat.dtype).chunk(3, 1)
        return lower_bound(step, STEP_MIN), scales, means

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


def _z_indexes(z_shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Table row = channel, ``[N, C, h, w]`` int16."""
    rows = torch.arange(z_shape[1], dtype=torch.int16, device=device)
    return rows[None, :, None, None].expand(z_shape).contiguous()


class DualPriorCoder:
    """Latents to payload and back.

    Args:
        prior: the networks; encoder and decoder must compute the same bits.
        y_tables: rows of the scale index (`sparsecodec.entropy.evc_gaussian_tables`).
        z_tables: a row per channel of the hyper-latent.
        device: where the networks run.
    """

    def __init__(
        self,
        prior: DualPrior,
        y_tables: EntropyTables,
        z_tables: EntropyTables,
        device: torch.device | str = "cpu",
    ) -> None:
        self._prior = prior
        self._y_tables = y_tables
        self._z_tables = z_tables
        self._quantize_z = deferred(QUANTIZE_LATENT, limit=SYMBOL_MAX)
        self._quantize = {part: deferred(QUANTIZE_LATENT, part=part, limit=SYMBOL_MAX) for part in PASSES}
        thresholds = evc_scale_thresholds().to(device)
        self._index = {part: deferred(ENTROPY_PARAMETERS, thresholds=thresholds, part=part) for part in PASSES}
        self._restore = {part: deferred(RESTORE_LATENT, part=part) for part in PASSES}

    def encode(self, y: Tensor, z: Tensor, gain: Tensor) -> tuple[bytes, Tensor]:
        """Codes one picture's latents; arguments as for `encoding`.

        Returns:
            The payload, and the latent as the decoder will have it, ``[1, C, H, W]``.
        """
        encoder = Encoder(STREAMS)
        y_hat = drive(self.encoding(y, z, gain), pushing(encoder))
        return encoder.finish(), y_hat

    def decode(self, payload: bytes, z_shape: tuple[int, int, int, int], gain: Tensor) -> Tensor:
        """The inverse of `encode`: the latent ``[1, C, 4h, 4w]`` for a hyper-latent of shape `z_shape`.

        Raises:
            BitstreamError: the payload is damaged or belongs to another size, model or arithmetic.
        """
        decoder = Decoder(payload, STREAMS)
        z_symbols = self.decode_z(decoder, z_shape)
        y_hat = drive(self.decoding(z_symbols.to(gain.device), gain), pulling(decoder))
        decoder.finish()
        return y_hat

    def decode_z(self, decoder: Decoder, z_shape: tuple[int, int, int, int]) -> Tensor:
        """The hyper-latent's symbols, the first call of a payload, int32 on the host."""
        return decoder.decode(_z_indexes(z_shape), self._z_tables)

    def encoding(self, y: Tensor, z: Tensor, gain: Tensor) -> Routine:
        """Device work of `encode`.

        Args:
            y: ``[1, C, H, W]`` float32. Transform latent divided by `gain`.
            z: ``[1, C, H/4, W/4]`` float32. Hyper-latent, not yet rounded.
            gain: ``[C]`` float32. Global times channel-wise step.
        """
        z_symbols = self._quantize_z(z)
        yield Coding(self._z_tables, _z_indexes(z.shape, z.device), z_symbols)

        def push(indexes: Tensor, means: Tensor, step: Tensor, part: str) -> Routine:
            symbols = self._quantize[part](y, means, step)
            yield Coding(self._y_tables, indexes, symbols)
            return symbols

        return (yield from self._two_passes(z_symbols, gain, push))

    def decoding(self, z_symbols: Tensor, gain: Tensor) -> Routine:
        """Device work of `decode`: ``z_symbols [1, C, h, w]`` int32 -> latent ``[1, C, 4h, 4w]``."""

        def pull(indexes: Tensor, means: Tensor, step: Tensor, part: str) -> Routine:
            return (yield Coding(self._y_tables, indexes))

        return (yield from self._two_passes(z_symbols, gain, pull))

    def _two_passes(self, z_symbols: Tensor, gain: Tensor, code: Callable[..., Routine]) -> Routine:
        """Both directions: `code` maps a pass' (indexes, means, step, part) to its symbols."""
        step, scales, means = self._prior.parameters(z_symbols.to(torch.float32))
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
