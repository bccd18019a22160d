"""Section 4 of docs/bitstream.md: the file."""

from __future__ import annotations

from dataclasses import dataclass, field

from spc_oracle import Damaged
from spc_oracle.checksum import crc32c

MAX_SIDE = (1 << 24) - 1


@dataclass
class File:
    """What a file holds, and how it is tiled: `tiles` is (rows, columns) of them."""

    version: int
    model_hash: bytes
    numerics: int
    quality: int
    exact: bool
    height: int
    width: int
    side: int | None = None
    overlap: int = 0
    per_tile: int = 1
    payloads: list[bytes] = field(default_factory=list)

    @property
    def tiles(self) -> tuple[int, int]:
        if self.side is None:
            return 1, 1
        step = self.side - self.overlap

        def count(n: int) -> int:
            return 1 if n <= self.side else -(-(n - self.overlap) // step)

        return count(self.height), count(self.width)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        if self.position + size > len(self.data):
            raise Damaged("ends too early")
        self.position += size
        return self.data[self.position - size : self.position]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def varint(self, low: int, high: int) -> int:
        value = place = 0
        while True:
            byte = self.number(1)
            value += (byte & 0x7F) << place
            place += 7
            if byte < 0x80:
                break
            if place > max(35, high.bit_length() + 6):
                raise Damaged("a number without end")
        if (byte == 0 and place > 7) or not low <= value <= high:
            raise Damaged(f"number {value}")
        return value


def parse(data: bytes) -> File:
    """All of section 4 but what belongs to a model: hash, numerics and class are the caller's to compare."""
    reader = _Reader(data)
    if reader.take(3) != b"SPC":
        raise Damaged("magic")
    version = reader.number(1)
    if version not in (1, 2):
        raise Damaged("version")
    model_hash, numerics, quality = reader.take(8), reader.number(2), reader.number(2)
    flags = reader.number(1) if version == 2 else 0
    if flags & 0b1100:
        raise Damaged("flags")
    height, width = reader.varint(1, MAX_SIDE), reader.varint(1, MAX_SIDE)
    file = File(version, model_hash, numerics, quality, bool(flags & 1), height, width)
    if flags & 2:
        file.side = 64 * reader.varint(1, (1 << 18) - 1)
        file.overlap = 16 * reader.varint(0, (1 << 21) - 1)
        if 2 * file.overlap > file.side or file.tiles == (1, 1):
            raise Damaged("tiles")
    file.per_tile = (flags >> 4) + 1 if version == 2 else reader.varint(1, 16)
    count = file.per_tile * file.tiles[0] * file.tiles[1]
    if reader.position + 5 * count > len(data):
        raise Damaged("no room for the sizes")
    sizes, checksums = [], []
    for _ in range(count):
        sizes.append(reader.varint(0, (1 << 32) - 1))
        checksums.append(reader.number(4))
    crc = crc32c(data[: reader.position])
    if reader.number(4) != crc or len(data) - reader.position != sum(sizes):
        raise Damaged("header")
    for size, checksum in zip(sizes, checksums, strict=True):
        file.payloads.append(reader.take(size))
        if crc32c(file.payloads[-1]) != checksum:
            raise Damaged("payload")
    return file
