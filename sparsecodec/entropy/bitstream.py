"""The image file ``.spc``: a checked header in front of the payloads of a codec. Specified in docs/bitstream.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sparsecodec.entropy.native import native
from sparsecodec.errors import BitstreamError, ResourceLimitError, UsageError

MAGIC = b"SPC"
VERSION = 1
MODEL_HASH_BYTES = 8
MAX_PAYLOADS = 16
MAX_SIDE = (1 << 24) - 1
MAX_PAYLOAD_BYTES = (1 << 32) - 1
DEFAULT_MAX_PIXELS = 1 << 28  # 16384 x 16384

_FIXED = struct.Struct(f"<3sB{MODEL_HASH_BYTES}sHH")  # magic, version, model hash, numerics, quality
_BYTE = struct.Struct("<B")
_CRC = struct.Struct("<I")


def crc32c(data: bytes) -> int:
    """CRC-32C of bytes-like data (the polynomial of iSCSI and ext4, not that of ``zlib.crc32``)."""
    return native().crc32c(data)


@dataclass(frozen=True)
class Container:
    """What an ``.spc`` file holds.

    Args:
        model_hash: first 8 bytes of a hash of the weights that wrote the payloads.
        numerics: tag of the arithmetic that fed the entropy coder; streams open only where it is the same.
        height: of the picture, in pixels, 1 to 2^24 - 1.
        width: of the picture, in pixels, 1 to 2^24 - 1.
        quality: 0 to 65535; its meaning is the codec's (EVC: 100 times the quantisation step).
        payloads: 1 to 16 byte strings, in the codec's order.

    Raises:
        UsageError: a value that the format cannot hold.
    """

    model_hash: bytes
    numerics: int
    height: int
    width: int
    quality: int
    payloads: tuple[bytes, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "payloads", tuple(self.payloads))
        if len(self.model_hash) != MODEL_HASH_BYTES:
            raise UsageError(f"model_hash of {len(self.model_hash)} bytes (needs {MODEL_HASH_BYTES})")
        for name, value, low, high in (
            ("numerics", self.numerics, 0, 0xFFFF),
            ("quality", self.quality, 0, 0xFFFF),
            ("height", self.height, 1, MAX_SIDE),
            ("width", self.width, 1, MAX_SIDE),
            ("number of payloads", len(self.payloads), 1, MAX_PAYLOADS),
            *((f"size of payload {i}", len(p), 0, MAX_PAYLOAD_BYTES) for i, p in enumerate(self.payloads)),
        ):
            if not low <= value <= high:
                raise UsageError(f"{name} = {value} (needs {low} to {high})")

    def to_bytes(self) -> bytes:
        """The file. For one payload under 2 MiB and sides under 16384 the header takes at most 32 bytes."""
        header = bytearray(_FIXED.pack(MAGIC, VERSION, self.model_hash, self.numerics, self.quality))
        for value in (self.height, self.width, len(self.payloads)):
            header += _varint(value)
        for payload in self.payloads:
            header += _varint(len(payload)) + _CRC.pack(crc32c(payload))
        header += _CRC.pack(crc32c(header))
        return bytes(header) + b"".join(self.payloads)

    @classmethod
    def from_bytes(cls, data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> Container:
        """Reads a file and verifies all of it.

        Raises:
            BitstreamError: not such a file, another version of it, or a byte is damaged, missing or too many.
            ResourceLimitError: the picture has more than `max_pixels` pixels. Nothing was allocated for it.
        """
        header, body = _parse(memoryview(data).cast("B"))
        if header.height * header.width > max_pixels:
            raise ResourceLimitError(f"picture of {header.width} x {header.height} pixels (limit: {max_pixels} pixels)")
        payloads = []
        for i, (size, checksum) in enumerate(header.chunks):
            payload, body = body[:size], body[size:]
            if crc32c(payload) != checksum:
                raise BitstreamError(f"payload {i} ({size} bytes) is damaged: its checksum does not match")
            payloads.append(bytes(payload))
        return cls(header.model_hash, header.numerics, header.height, header.width, header.quality, tuple(payloads))


@dataclass(frozen=True)
class _Header:
    model_hash: bytes
    numerics: int
    quality: int
    height: int
    width: int
    chunks: list[tuple[int, int]]  # size and checksum of each payload


class _Cursor:
    """Reads a header piece by piece; running out of bytes is a BitstreamError."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.position = 0

    def take(self, layout: struct.Struct) -> tuple:
        if self.position + layout.size > len(self.view):
            raise BitstreamError(f"file of {len(self.view)} bytes ends inside its header")
        values = layout.unpack_from(self.view, self.position)
        self.position += layout.size
        return values

    def varint(self, limit: int) -> int:
        """An integer in groups of 7 bits, least significant first, in the fewest bytes; at most `limit`."""
        value = shift = 0
        while True:
            (byte,) = self.take(_BYTE)
            value |= (byte & 0x7F) << shift
            shift += 7
            if value > limit or shift > 35 or (byte == 0 and shift > 7):
                raise BitstreamError(
                    f"byte {self.position - 1} of the header is no valid part of a number up to {limit}"
                )
            if byte < 0x80:
                return value


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _parse(view: memoryview) -> tuple[_Header, memoryview]:
    """Header and remaining bytes of a file; the header's checksum and the file's length are verified."""
    if bytes(view[:3]) != MAGIC:
        raise BitstreamError(f"not an .spc file: it starts with {bytes(view[:3]).hex() or 'nothing'}")
    cursor = _Cursor(view)
    _, version, model_hash, numerics, quality = cursor.take(_FIXED)
    if version != VERSION:
        raise BitstreamError(f".spc version {version} (this reader knows version {VERSION})")
    height, width = cursor.varint(MAX_SIDE), cursor.varint(MAX_SIDE)
    count = cursor.varint(MAX_PAYLOADS)
    chunks = [(cursor.varint(MAX_PAYLOAD_BYTES), *cursor.take(_CRC)) for _ in range(count)]
    checksum = crc32c(view[: cursor.position])
    if cursor.take(_CRC) != (checksum,):
        raise BitstreamError("the header is damaged: its checksum does not match")
    if 0 in (height, width, count):
        raise BitstreamError(f"the header describes {count} payloads of a {width} x {height} picture")
    body = view[cursor.position :]
    promised = sum(size for size, _ in chunks)
    if len(body) != promised:
        raise BitstreamError(f"the payloads have {len(body)} bytes, the header promises {promised}")
    return _Header(model_hash, numerics, quality, height, width, chunks), body
