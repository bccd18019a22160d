"""Files with their checksums put right, so that damage gets behind them: what an attacker would do."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from mutations import mutate

from sparsecodec.entropy import Container, crc32c
from sparsecodec.entropy.bitstream import Header


def damaged_header(data: bytes, pool: Sequence[bytes], rng: random.Random) -> bytes:
    """A file whose header was changed behind magic and version, with the header's checksum right."""
    size = Header.read(data).header_bytes
    kept = 4 if rng.random() < 0.9 else 0
    header = data[:kept] + mutate(data[kept : size - 4], [other[4:40] for other in pool], rng)
    body = data[size:] if rng.random() < 0.8 else mutate(data[size:], pool, rng)
    return header + struct.pack("<I", crc32c(header)) + body


def _varint(value: int, rng: random.Random) -> bytes:
    """Now and then in more bytes than it needs."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    groups += [0] * (rng.random() < 0.02)
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def invented(rng: random.Random) -> bytes:
    """A file from fields, most of them possible, with all checksums and, nearly always, all sizes right."""
    version, flags = rng.choice((1, 2, 2)), rng.choice((0, 1, 2, 3, 0x10, 0x22, rng.randrange(256)))
    height, width = (rng.choice((0, 1, 64, 65, 128, 200, (1 << 24) - 1, 1 << 24)) for _ in range(2))
    per_tile, tiles = rng.choice((1, 1, 2, 16, 0, 17)), 1
    data = b"SPC" + bytes([version]) + rng.randbytes(12)
    if version == 2:
        data += bytes([flags])
        per_tile = (flags >> 4) + 1
    data += _varint(height, rng) + _varint(width, rng)
    if version == 1:
        data += _varint(per_tile, rng)
    elif flags & 2:
        side, overlap = rng.choice((0, 1, 1, 2, 3, 1 << 18)), rng.choice((0, 1, 2, 3, 4))
        data += _varint(side, rng) + _varint(overlap, rng)
        step = max(64 * side - 16 * overlap, 1)
        rows, columns = (1 if n <= 64 * side else -(-(n - 16 * overlap) // step) for n in (height, width))
        tiles = min(rows * columns, 300)
    body = b""
    for _ in range(per_tile * tiles + rng.choice((0,) * 15 + (1, -1))):
        payload = rng.randbytes(rng.choice((0, 1, 2, 130)) if tiles < 9 else 1)
        data += _varint(len(payload), rng) + struct.pack("<I", crc32c(payload))
        body += payload
    return data + struct.pack("<I", crc32c(data)) + body


def damaged_payload(data: bytes, pool: Sequence[bytes], rng: random.Random) -> bytes:
    """A file whose payloads were changed, whose picture or quality may be another, with all checksums right."""
    there = Container.from_bytes(data)
    others = [payload for other in pool for payload in Container.from_bytes(other).payloads]
    payloads = list(there.payloads)
    for _ in range(rng.choice((1, 1, 1, 2))):
        i = rng.randrange(len(payloads))
        payloads[i] = mutate(payloads[i], others, rng)
    height, width, quality = there.height, there.width, there.quality
    if there.tiling is None and rng.random() < 0.2:
        height, width = rng.randrange(1, 200), rng.randrange(1, 200)
    if rng.random() < 0.1:
        quality = rng.choice((0, 1, 0xFFFF, rng.randrange(1 << 16)))
    fields = (there.model_hash, there.numerics, height, width, quality, tuple(payloads))
    return Container(*fields, there.exact, there.tiling).to_bytes()
