"""Sections 2 and 3 of docs/bitstream.md: native streams."""

from __future__ import annotations

from collections.abc import Sequence

from spc_oracle import Damaged
from spc_oracle.tables import Row

L = 1 << 31


class Stream:
    """One stream; decodes symbol by symbol."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 8 or len(data) % 4:
            raise Damaged(f"{len(data)} bytes")
        words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        self.x = words[0] + (words[1] << 32)
        self.words = words[2:]
        self.position = 0
        if not L <= self.x < 1 << 63:
            raise Damaged("first state")

    def _refill(self) -> None:
        if self.x < L:
            if self.position == len(self.words):
                raise Damaged("ends too early")
            self.x = (self.x << 32) + self.words[self.position]
            self.position += 1

    def _digit(self) -> int:
        digit = self.x % 16
        self.x //= 16
        self._refill()
        return digit

    def symbol(self, row: Row) -> int:
        s = self.x % 65536
        k = row.interval(s)
        c, f = row.c[k], row.c[k + 1] - row.c[k]
        self.x = f * (self.x // 65536) + s - c
        self._refill()
        return row.offset + (k if k < row.escape else escaped(row, self._digit))

    def finish(self) -> None:
        if self.x != L or self.position != len(self.words):
            raise Damaged("last state")


def escaped(row: Row, digit) -> int:
    """The k of an escape: the number of digits, then the digits, least significant first."""
    count = digit()
    if count > 8:
        raise Damaged(f"{count} digits")
    raw = sum(digit() << 4 * i for i in range(count))
    k = -(raw + 1) // 2 if raw % 2 else raw // 2 + row.escape
    if not -(1 << 31) <= row.offset + k < 1 << 31:
        raise Damaged("beyond 32 bits")
    return k


def shares(count: int, n: int) -> list[int]:
    """How many symbols of a call each of n streams takes."""
    return [count // n] * (n - 1) + [count - count // n * (n - 1)]


def split(payload: bytes) -> list[bytes]:
    """The streams behind a prefix."""
    if not payload or payload[0] & 0b1110:
        raise Damaged("prefix")
    n, width = payload[0] // 16 + 1, 2 if payload[0] & 1 else 4
    position = 1 + width * (n - 1)
    if position > len(payload):
        raise Damaged("prefix")
    streams = []
    for k in range(n - 1):
        size = int.from_bytes(payload[1 + width * k : 1 + width * (k + 1)], "little")
        if position + size > len(payload):
            raise Damaged("size of a stream")
        streams.append(payload[position : position + size])
        position += size
    return [*streams, payload[position:]]


class Decoder:
    """Coding calls that share streams."""

    def __init__(self, streams: Sequence[bytes]) -> None:
        self.streams = [Stream(data) for data in streams]

    def call(self, rows: Sequence[Row]) -> list[int]:
        """One symbol for each row."""
        symbols: list[int] = []
        for stream, size in zip(self.streams, shares(len(rows), len(self.streams)), strict=True):
            start = len(symbols)
            symbols += [stream.symbol(row) for row in rows[start : start + size]]
        return symbols

    def finish(self) -> None:
        for stream in self.streams:
            stream.finish()
