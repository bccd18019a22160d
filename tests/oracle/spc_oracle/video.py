"""Section 4b of docs/bitstream.md: the video file."""

from __future__ import annotations

from dataclasses import dataclass

from spc_oracle import Damaged
from spc_oracle.checksum import crc32c
from spc_oracle.container import MAX_SIDE, _Reader

RATIO = (1 << 31) - 1


@dataclass
class Clip:
    """What a file holds. `frames`: (type, qp, fingerprint, payload) of each."""

    model_hash: bytes
    numerics: int
    flags: int
    matrix: int
    height: int
    width: int
    rate: tuple[int, int]
    aspect: tuple[int, int]
    frames: list[tuple[bytes, int, int, bytes]]


def parse(data: bytes) -> Clip:
    """All of section 4b but what belongs to a model."""
    reader = _Reader(data)
    version = {b"SPV\x01": 1, b"SPV\x02": 2}.get(reader.take(4))
    if version is None:
        raise Damaged("magic or version")
    model_hash, numerics, flags, matrix = reader.take(8), reader.number(2), reader.number(1), reader.number(1)
    height, width = reader.varint(1, MAX_SIDE), reader.varint(1, MAX_SIDE)
    rate = reader.varint(1, RATIO), reader.varint(1, RATIO)
    aspect = reader.varint(0, RATIO), reader.varint(0, RATIO)
    if version == 2:
        reader.number(4)  # the stream's id
    start = crc32c(data[: reader.position])
    if flags >= 32 or matrix not in (1, 2, 6, 9) or reader.number(4) != start:
        raise Damaged("header")
    clip = Clip(model_hash, numerics, flags, matrix, height, width, rate, aspect, [])
    link, checksums, intra = start, b"", []
    while True:
        begin = reader.position
        kind = reader.take(1)
        number, qp, size = reader.varint(0, (1 << 32) - 1), reader.number(1), reader.varint(0, (1 << 32) - 1)
        fingerprint = reader.number(4)
        fields = data[begin : reader.position]
        checksum = reader.number(4)
        if crc32c(data[begin : reader.position]) & 0xFFFF != reader.number(2):
            raise Damaged("head")
        if number != len(clip.frames) or kind not in (b"I", b"P", b"E") or (kind == b"P" and not clip.frames):
            raise Damaged("order")
        if kind != b"E" and size > (1 << 16) + 64 * height * width:
            raise Damaged("size")
        payload = reader.take(size)
        if crc32c(fields + payload, link if kind == b"P" else start) != checksum:
            raise Damaged("payload")
        link = checksum
        if kind == b"E":
            break
        checksums += checksum.to_bytes(4, "little")
        if kind == b"I":
            intra.append((number, begin))
        clip.frames.append((kind, qp, fingerprint, payload))
    index = _Reader(payload)
    there, before = [], (0, 0)
    for _ in range(index.varint(1, len(clip.frames)) if clip.frames else 0):
        before = before[0] + index.varint(0, (1 << 32) - 1), before[1] + index.varint(0, (1 << 63) - 1)
        there.append(before)
    if there != intra or not intra or index.position != len(payload) or fingerprint != crc32c(checksums):
        raise Damaged("end")
    if data[reader.position :] != (reader.position - begin).to_bytes(4, "little") + b"/SPV":
        raise Damaged("footer")
    return clip
