"""Section 3b of docs/bitstream.md: the payload of portable streams."""

from __future__ import annotations

from collections.abc import Sequence

from spc_oracle import Damaged
from spc_oracle.rans import escaped, shares
from spc_oracle.tables import Row


def layout(total: int) -> tuple[int, int]:
    """Lanes of a group, and groups."""
    n = 1
    while 2 * n <= max(1, total // 16384):
        n *= 2
    lanes = min(n, 32)
    return lanes, n // lanes


class Group:
    """Lanes that share a sequence of words."""

    def __init__(self, data: bytes, lanes: int) -> None:
        if len(data) < 4 * lanes or len(data) % 2:
            raise Damaged(f"group of {len(data)} bytes")
        self.x = [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(lanes)]
        if min(self.x) < 1 << 16:
            raise Damaged("first state")
        self.words = [int.from_bytes(data[i : i + 2], "little") for i in range(4 * lanes, len(data), 2)]
        self.position = 0

    def _refill(self, lane: int) -> None:
        if self.x[lane] < 1 << 16:
            if self.position == len(self.words):
                raise Damaged("ends too early")
            self.x[lane] = (self.x[lane] << 16) + self.words[self.position]
            self.position += 1

    def _digit(self, lane: int) -> int:
        digit = self.x[lane] % 16
        self.x[lane] //= 16
        self._refill(lane)
        return digit

    def call(self, rows: Sequence[Row]) -> list[int]:
        symbols = []
        for j, row in enumerate(rows):
            lane = j % len(self.x)
            s = self.x[lane] % 65536
            k = row.interval(s)
            c, f = row.c[k], row.c[k + 1] - row.c[k]
            self.x[lane] = f * (self.x[lane] // 65536) + s - c
            self._refill(lane)
            if k == row.escape:
                k = escaped(row, lambda lane=lane: self._digit(lane))
            symbols.append(row.offset + k)
        return symbols

    def finish(self) -> None:
        if set(self.x) != {1 << 16} or self.position != len(self.words):
            raise Damaged("last state")


class Decoder:
    """The calls of a payload of `total` symbols."""

    def __init__(self, payload: bytes, total: int) -> None:
        lanes, count = layout(total)
        position, sizes = 0, []
        for _ in range(count - 1):
            value = place = 0
            while True:
                if position == len(payload) or place > 28:
                    raise Damaged("size of a group")
                byte = payload[position]
                position += 1
                value += (byte & 0x7F) << place
                place += 7
                if byte < 0x80:
                    break
            if (byte == 0 and place > 7) or value >= 1 << 32:
                raise Damaged("size of a group")
            sizes.append(2 * value)
        self.groups = []
        for size in sizes:
            if position + size > len(payload):
                raise Damaged("size of a group")
            self.groups.append(Group(payload[position : position + size], lanes))
            position += size
        self.groups.append(Group(payload[position:], lanes))

    def call(self, rows: Sequence[Row]) -> list[int]:
        symbols: list[int] = []
        for group, size in zip(self.groups, shares(len(rows), len(self.groups)), strict=True):
            start = len(symbols)
            symbols += group.call(rows[start : start + size])
        return symbols

    def finish(self) -> None:
        for group in self.groups:
            group.finish()
