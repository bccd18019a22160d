"""Latents of a prior in parts to payload and back: the same routines for models, compiled and portable codecs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsecodec.entropy import EntropyTables
from sparsecodec.errors import UsageError
from sparsecodec.nn.part_prior import SYMBOL_RANGE, PartParameters, PartPrior
from sparsecodec.nn.routine import Coding, Routine
from sparsecodec.ops._registry import deferred
from sparsecodec.ops.entropy_parameters import ENTROPY_PARAMETERS
from sparsecodec.ops.quantize_latent import QUANTIZE_LATENT
from sparsecodec.ops.restore_latent import RESTORE_LATENT

SKIPPED = -1  # index of a symbol that is zero and not in the stream


class PartCoder:
    """The device work of coding one frame's latents.

    Coding calls: the hyper-latent, then one per pass. An index of -1 marks a symbol that is not in the stream.

    Args:
        prior: the networks; encoder and decoder must compute the same bits.
        y_tables: rows of the scale index.
        z_tables: row = rate * channels of the hyper-latent + channel.
        thresholds: ``[L - 1]`` float32, between the rows of `y_tables`.
        skip: scales up to here are not coded; None: all are.
        device: where the networks run.
        layout: of what the networks are given: it may decide how they round. The published software has contiguous
            tensors, compiled networks want channels_last.

    Raises:
        UsageError: `skip` is not positive.
    """

    def __init__(
        self,
        prior: PartPrior,
        y_tables: EntropyTables,
        z_tables: EntropyTables,
        thresholds: Tensor,
        skip: float | None = None,
        device: torch.device | str = "cpu",
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        if skip is not None and not skip > 0:
            raise UsageError(f"skip={skip} (needs a positive scale, or None)")
        self._prior = prior
        self._y_tables = y_tables
        self._z_tables = z_tables
        self._skip = skip
        self._layout = layout
        if skip is not None:
            # Counting from `skip` on gives 0 where nothing is coded, and one more than the row elsewhere.
            least = torch.tensor([skip], dtype=thresholds.dtype)
            thresholds = torch.cat([least, thresholds.clamp(min=least)])
        thresholds = thresholds.to(device)
        limit = -SYMBOL_RANGE[0]
        self._quantize_z = deferred(QUANTIZE_LATENT, limit=limit)
        self._quantize = [deferred(QUANTIZE_LATENT, part=part, limit=limit) for part in prior.parts]
        self._index = [deferred(ENTROPY_PARAMETERS, thresholds=thresholds, part=part) for part in prior.parts]
        self._restore = [deferred(RESTORE_LATENT, part=part) for part in prior.parts]

    def z_indexes(self, shape: tuple[int, ...], rate: Tensor | int, device: torch.device | str = "cpu") -> Tensor:
        """Table rows of a hyper-latent ``[N, Cz, h, w]`` at `rate` (an int or ``[1]`` int64), int16 of that shape."""
        first = rate * shape[1]
        first = first.to(torch.int16) if isinstance(first, Tensor) else first
        rows = torch.arange(shape[1], dtype=torch.int16, device=device) + first
        return rows[None, :, None, None].expand(shape).contiguous()

    def z_request(self, shape: tuple[int, ...], rate: int) -> Coding:
        """The first coding call of a payload, for decoding it."""
        return Coding(self._z_tables, self.z_indexes(shape, rate))

    def encoding(self, y: Tensor, z: Tensor, rate: Tensor | int, temporal: Tensor | None = None) -> Routine:
        """A frame's latents to coding calls.

        Args:
            y: ``[1, C, H, W]`` float. Latent.
            z: ``[1, Cz, ceil(H/4), ceil(W/4)]`` float. Hyper-latent, not yet rounded.
            rate: row of the tables of the hyper-latent; an int, or ``[1]`` int64 on the device.
            temporal: as for `PartPrior.parameters`.

        Returns:
            The latent as the decoder will have it, times its step, ``[1, C, H, W]``.
        """
        z_symbols = self._quantize_z(z).clamp(max=SYMBOL_RANGE[1])
        yield Coding(self._z_tables, self.z_indexes(z.shape, rate, z.device), z_symbols)
        parameters = self._prior.parameters(z_symbols.to(z.dtype), (y.shape[2], y.shape[3]), temporal)
        y = y * parameters.gain

        def push(index: int, rows: Tensor, means: Tensor) -> Routine:
            symbols = self._quantize[index](y, means).clamp(max=SYMBOL_RANGE[1])
            if self._skip is not None:
                symbols = torch.where(rows == SKIPPED, 0, symbols)
            yield Coding(self._y_tables, rows, symbols)
            return symbols

        return (yield from self._passes(parameters, push))

    def decoding(
        self, z_symbols: Tensor, size: tuple[int, int], temporal: Tensor | None = None, *, dtype: torch.dtype
    ) -> Routine:
        """The inverse of `encoding`, behind the hyper-latent.

        Args:
            z_symbols: ``[1, Cz, h, w]`` int32, what `z_request` gave.
            size: of the latent.
            temporal: as for `encoding`.
            dtype: of the networks' arithmetic.
        """
        parameters = self._prior.parameters(z_symbols.to(dtype), size, temporal)

        def pull(index: int, rows: Tensor, means: Tensor) -> Routine:
            return (yield Coding(self._y_tables, rows))

        return (yield from self._passes(parameters, pull))

    def _passes(self, parameters: PartParameters, code: Callable[..., Routine]) -> Routine:
        """Both directions: `code` maps a pass' (number, rows, means) to its symbols."""
        scales, means, y_hat = parameters.scales, parameters.means, None
        for index in range(len(self._prior.parts)):
            if index:
                scales, means = self._prior.refine(index, y_hat, parameters.context)
            rows = self._index[index](scales)
            if self._skip is not None:
                rows = rows - 1
            symbols = yield from code(index, rows, means)
            y_hat = self._restore[index](symbols, means, y_hat).contiguous(memory_format=self._layout)
        return y_hat * parameters.step
