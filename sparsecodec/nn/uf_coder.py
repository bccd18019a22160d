"""Latents of DCVC-UF to coding calls and back: channels innermost, and all passes in one call where their scales are
known before the first one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables, uf_factorized_tables
from sparsecodec.nn.part_prior import SYMBOL_RANGE, PartPrior, active_channels
from sparsecodec.nn.routine import Coding, Routine
from sparsecodec.ops import uf_scale_thresholds
from sparsecodec.ops._registry import deferred
from sparsecodec.ops._spatial_prior import groups_of, split_groups, take_active
from sparsecodec.ops.entropy_parameters import ENTROPY_PARAMETERS

HYPER_RANGE = (-64, 63)  # of hyper-latents
MAX_STREAMS, SYMBOLS_PER_STREAM = 8, 32768
SKIPPED = -1  # index of a symbol that is zero and not in the stream


class UFCoder:
    """The device work of coding one frame's latents, or those of one group of frames.

    Coding calls: the hyper-latent, then one per pass, or one for all of them. An index of -1 marks a symbol that is not
    in the stream.

    Args:
        prior: the networks; encoder and decoder must compute the same bits.
        y_tables: rows of the scale index, in zigzag order.
        z_tables: row = rate * channels of the hyper-latent + channel, in zigzag order.
        skip: scales up to here are not coded.
        joint: one call for all passes, whose scales are those of the first pass.
    """

    def __init__(
        self, prior: PartPrior, y_tables: EntropyTables, z_tables: EntropyTables, skip: float, joint: bool
    ) -> None:
        self._prior = prior
        self._y_tables = y_tables
        self._z_tables = z_tables
        self._skip = skip
        self._joint = joint
        self._index = deferred(ENTROPY_PARAMETERS, thresholds=uf_scale_thresholds(), part="all")

    def z_request(self, shape: tuple[int, int, int, int], rate: int, symbols: Tensor | None = None) -> Coding:
        """The first coding call of a payload.

        Args:
            shape: of the hyper-latent, ``[1, Cz, h, w]``.
            rate: quality.
            symbols: ``[1, Cz, h, w]`` int32 to encode, or None to decode ``[1, h, w, Cz]``.
        """
        _, channels, height, width = shape
        rows = (torch.arange(channels, dtype=torch.int16, device="cpu") + rate * channels).expand(
            1, height, width, channels
        )
        return Coding(self._z_tables, rows.contiguous(), None if symbols is None else innermost(symbols))

    def encoding(self, y: Tensor, z: Tensor, rate: int, temporal: Tensor | None = None) -> Routine:
        """Latents to coding calls.

        Args:
            y: ``[1, C, H, W]`` float32. Latent.
            z: ``[1, Cz, ceil(H/4), ceil(W/4)]`` float32. Hyper-latent, not yet rounded.
            rate: row of the tables of the hyper-latent.
            temporal: as for `PartPrior.parameters`.

        Returns:
            The latent as the decoder will have it, times its step, ``[1, C, H, W]``.
        """
        z_symbols = _integers(z, HYPER_RANGE)
        yield self.z_request(tuple(z.shape), rate, z_symbols)
        parameters = self._prior.parameters(_laid_out(z_symbols.float()), (y.shape[2], y.shape[3]), temporal)
        scales, means, y_hat = parameters.scales, parameters.means, None
        y = y * parameters.gain
        rows = self._rows(scales)
        together = torch.zeros_like(y, dtype=torch.int32)
        for index, part in enumerate(self._prior.parts):
            if index:
                scales, means = self._prior.refine(index, y_hat, parameters.context)
                rows = rows if self._joint else self._rows(scales)
            here = active_channels(part, y.shape, y.device)
            symbols = torch.where(here & (rows != SKIPPED), _integers(y - means, SYMBOL_RANGE), 0)
            together = together + symbols
            if not self._joint:
                yield Coding(self._y_tables, innermost(_active(rows, part)), innermost(_active(symbols, part)))
            y_hat = _extended(y_hat, here, symbols, means)
        if self._joint:
            yield Coding(self._y_tables, innermost(rows), innermost(together))
        return _laid_out(y_hat * parameters.step)

    def decoding(self, z_symbols: Tensor, size: tuple[int, int], temporal: Tensor | None = None) -> Routine:
        """The inverse of `encoding`, behind the hyper-latent.

        Args:
            z_symbols: ``[1, h, w, Cz]`` int32, what `z_request` gave.
            size: of the latent.
            temporal: as for `encoding`.
        """
        parameters = self._prior.parameters(_laid_out(z_symbols.permute(0, 3, 1, 2).float()), size, temporal)
        scales, means, y_hat, symbols = parameters.scales, parameters.means, None, None
        if self._joint:
            symbols = (yield Coding(self._y_tables, innermost(self._rows(scales)))).permute(0, 3, 1, 2)
        for index, part in enumerate(self._prior.parts):
            if index:
                scales, means = self._prior.refine(index, y_hat, parameters.context)
            if not self._joint:
                read = yield Coding(self._y_tables, innermost(_active(self._rows(scales), part)))
                symbols = read.permute(0, 3, 1, 2).repeat(1, groups_of(part), 1, 1)
            y_hat = _extended(y_hat, active_channels(part, means.shape, means.device), symbols, means)
        return _laid_out(y_hat * parameters.step)

    def _rows(self, scales: Tensor) -> Tensor:
        """``[1, C, H, W]`` int16: table row of each symbol, or `SKIPPED`."""
        rows = self._index(scales.contiguous(memory_format=torch.channels_last))
        return torch.where(scales > self._skip, rows, SKIPPED)


def _integers(x: Tensor, limits: tuple[int, int]) -> Tensor:
    return x.round().clamp(*limits).nan_to_num(0.0).to(torch.int32)


def _active(x: Tensor, part: str) -> Tensor:
    """What a pass codes: ``[1, C, H, W] -> [1, C/G, H, W]``."""
    return take_active(split_groups(x, part, "latent"), part)


def _extended(y_hat: Tensor | None, here: Tensor, symbols: Tensor, means: Tensor) -> Tensor:
    """The latent after a pass: symbols + means where it codes, as before elsewhere; zero before the first one."""
    before = torch.zeros_like(means) if y_hat is None else y_hat
    return _laid_out(torch.where(here, symbols + means, before))


def _laid_out(x: Tensor) -> Tensor:
    """New memory of one layout, at both ends: how a network rounds depends on that of what it is given.

    `contiguous` would do nothing to a single position, whose strides may still be those of channels_last.
    """
    return x.clone(memory_format=torch.contiguous_format)


def innermost(x: Tensor) -> Tensor:
    """``[1, C, H, W] -> [1, H, W, C]`` contiguous, the order of the stream."""
    return x.permute(0, 2, 3, 1).contiguous()


def streams_for(symbols: int) -> int:
    """How many streams a payload of so many coded symbols of the latent has; the frame's header carries it."""
    return max(1, min(MAX_STREAMS, symbols // SYMBOLS_PER_STREAM))


def uf_hyper_tables(estimator: nn.Module) -> EntropyTables:
    """Coding tables of the hyper-latent as DCVC-UF computes them, row = rate * C + channel; on the CPU, in float32.

    Args:
        estimator: its ``h`` and ``b`` ``[rates, C, 4]``, ``a`` ``[rates, C, 3]`` are four monotone layers per row.
    """
    h, b, a = (getattr(estimator, name).detach().float().cpu().flatten(0, 1) for name in "hba")

    def cumulative(x: Tensor) -> Tensor:
        for layer in range(h.shape[1]):
            scale, shift = (table[:, layer].view(1, -1, 1, 1) for table in (h, b))
            x = x * F.softplus(scale) + shift
            if layer < a.shape[1]:
                x = x + torch.tanh(x) * torch.tanh(a[:, layer].view(1, -1, 1, 1))
        return torch.sigmoid(x)

    return uf_factorized_tables(cumulative, len(h))
