"""Coders of several pictures that are coded at once: a payload each, coding calls in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from sparsecodec.entropy.tables import EntropyTables


class _Encoder(Protocol):
    def push(self, symbols: Tensor, indexes: Tensor, tables: EntropyTables) -> None: ...
    def finish(self) -> bytes: ...


class _Decoder(Protocol):
    def decode(self, indexes: Tensor, tables: EntropyTables, out: Tensor | None = None) -> Tensor: ...
    def finish(self) -> None: ...


class EncoderGroup:
    """An encoder per picture.

    Args:
        encoders: of `Encoder`'s interface, one for each picture of a batch.
    """

    def __init__(self, encoders: Iterable[_Encoder]) -> None:
        self._encoders = tuple(encoders)

    def push(self, symbols: Tensor, indexes: Tensor, tables: EntropyTables) -> None:
        """A coding call of all pictures: ``[N, ...]`` int32, and int16 of the same shape; item i goes to encoder i."""
        for encoder, values, rows in zip(self._encoders, symbols, indexes, strict=True):
            encoder.push(values, rows, tables)

    def finish(self) -> list[bytes]:
        """The payload of each picture."""
        return [encoder.finish() for encoder in self._encoders]


class DecoderGroup:
    """A decoder per picture.

    Args:
        decoders: of `Decoder`'s interface, one for each picture of a batch.
    """

    def __init__(self, decoders: Iterable[_Decoder]) -> None:
        self._decoders = tuple(decoders)

    def decode(self, indexes: Tensor, tables: EntropyTables, out: Tensor | None = None) -> Tensor:
        """The next coding call of all pictures.

        Args:
            indexes: ``[N, ...]`` int16; item i belongs to decoder i.
            tables: the distributions.
            out: int32 of that shape, contiguous, or None.

        Returns:
            Symbols, int32, shape of `indexes`.

        Raises:
            BitstreamError: one payload is damaged; no decoder of the group is usable then.
        """
        symbols = torch.empty(indexes.shape, dtype=torch.int32, device="cpu") if out is None else out
        for decoder, rows, values in zip(self._decoders, indexes, symbols, strict=True):
            decoder.decode(rows, tables, values)
        return symbols

    def finish(self) -> None:
        """Requires that all payloads end here, as `Decoder.finish`."""
        for decoder in self._decoders:
            decoder.finish()
