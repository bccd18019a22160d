"""A mean-scale hyperprior on integers: what `sparsecodec.nn.feature_codec` codes by in floats (docs/portable.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecodec.entropy import EntropyTables
from sparsecodec.nn.integer_prior import IntegerNetworkLike, as_float, row_finder
from sparsecodec.nn.routine import Coding, Routine, channel_indexes
from sparsecodec.ops import quantize_latent
from sparsecodec.ops._fixed_point import SYMBOL_LIMIT, fixed_point, narrowed


class IntegerMeanScaleCoder:
    """Codes a latent in two calls, hyper-latent and latent; nothing between symbols and tables is a float.

    Args:
        parameters: hyper-latent ``[1, C_z, h, w]`` -> means, then scales, ``[1, 2C, 4h, 4w]`` fixed-point.
        y_tables: rows of the scale index.
        z_tables: a row per channel of the hyper-latent.
        thresholds: ``[R - 1]`` int32.
        device: where the networks run.
    """

    def __init__(
        self,
        parameters: IntegerNetworkLike,
        y_tables: EntropyTables,
        z_tables: EntropyTables,
        thresholds: Tensor,
        device: torch.device | str,
    ) -> None:
        self._parameters = parameters
        self._y_tables, self._z_tables = y_tables, z_tables
        self._rows = row_finder(thresholds.to(device))

    def encoding(self, y: Tensor, z: Tensor) -> Routine:
        """Rounds and codes them, float32 both; returns the latent, fixed-point."""
        z_symbols = quantize_latent(z, limit=SYMBOL_LIMIT - 1)
        yield Coding(self._z_tables, channel_indexes(z_symbols.shape, y.device), z_symbols)
        means, scales = self._predicted(z_symbols)
        symbols = quantize_latent(y, as_float(means), limit=SYMBOL_LIMIT - 1)
        yield Coding(self._y_tables, self._rows(scales), symbols)
        return fixed_point(symbols, means)

    def decoding(self, z_symbols: Tensor) -> Routine:
        """``[1, C_z, h, w]`` int32 -> what `encoding` returns."""
        means, scales = self._predicted(z_symbols)
        symbols = yield Coding(self._y_tables, self._rows(scales))
        return fixed_point(symbols, means)

    def z_request(self, size: tuple[int, int], device: torch.device | None = None) -> Coding:
        """The coding call of a hyper-latent of that size, its indexes on `device` (None: on the host)."""
        return Coding(self._z_tables, channel_indexes((1, self._z_tables.rows, *size), device))

    def _predicted(self, z_symbols: Tensor) -> tuple[Tensor, Tensor]:
        """(means, scales) of the latent."""
        return self._parameters(narrowed(fixed_point(z_symbols), self._parameters.exponent)).chunk(2, 1)
