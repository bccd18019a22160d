"""The image file ``.spc``: a checked header in front of the payloads of a codec. Specified in docs/bitstream.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate

from sparsecodec.entropy.limits import DEFAULT_MAX_PIXELS, check_limit
from sparsecodec.entropy.native import native
from sparsecodec.entropy.tiling import MAX_TILE_SIDE, OVERLAP_UNIT, SIDE_UNIT, Tiling
from sparsecodec.entropy.varint import pack_varint, unpack_varint
from sparsecodec.errors import BitstreamError, ResourceLimitError, UsageError

MAGIC = b"SPC"
VERSION = 2  # what is written; all from 1 on are read
MODEL_HASH_BYTES = 8
MAX_PAYLOADS = 16  # of a tile
MAX_SIDE = (1 << 24) - 1
MAX_PAYLOAD_BYTES = (1 << 32) - 1

_EXACT, _TILED, _RESERVED, _COUNT_SHIFT = 1, 2, 0b1100, 4  # the flags of version 2
_ENTRY_BYTES = 5  # of the least that the chunk table holds per payload
_START = struct.Struct("<3sB")  # magic, version
_FIXED = struct.Struct(f"<{MODEL_HASH_BYTES}sHH")  # model hash, numerics, quality
_BYTE = struct.Struct("<B")
_CRC = struct.Struct("<I")


def crc32c(data: bytes, start: int = 0) -> int:
    """CRC-32C of bytes-like data (the polynomial of iSCSI and ext4, not that of ``zlib.crc32``).

    With the CRC of what stands in front as `start`, it is that of both together.
    """
    return native().crc32c(data, start)


@dataclass(frozen=True)
class Header:
    """What stands in front of the payloads of an ``.spc`` file; made by `Header.read`, which has verified it.

    Attributes:
        version: of the layout, 1 or 2.
        model_hash, numerics, quality, height, width, exact, tiling: as for `Container`.
        payloads_per_tile: 1 to 16; a picture without `tiling` is one tile.
        sizes, checksums: bytes and CRC-32C of each payload, tile by tile, row by row.
        header_bytes: where the first payload begins.
    """

    version: int
    model_hash: bytes
    numerics: int
    quality: int
    height: int
    width: int
    exact: bool
    tiling: Tiling | None
    payloads_per_tile: int
    sizes: tuple[int, ...]
    checksums: tuple[int, ...]
    header_bytes: int

    @classmethod
    def read(cls, data: bytes) -> Header:
        """Parses and verifies a file's header, and that the file has the length that it promises.

        Nothing is allocated but the table of the payloads, which takes at least five bytes of the file for each.

        Raises:
            BitstreamError: not such a file, an unknown version of it, or the header is damaged.
            UsageError: not bytes.
        """
        try:
            view = memoryview(data).cast("B")
        except TypeError as error:
            raise UsageError(f"a {type(data).__name__} (needs bytes)") from error
        return _parse(view)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return (1, 1) if self.tiling is None else self.tiling.grid(self.height, self.width)

    def payloads(self, data: bytes, row: int = 0, column: int = 0) -> list[bytes]:
        """The payloads of one tile of the file that this header stands in.

        Raises:
            BitstreamError: one of them is damaged; the message names it, and the tile.
        """
        first = (row * self.grid[1] + column) * self.payloads_per_tile
        position = self._starts[first]
        view, payloads = memoryview(data).cast("B"), []
        for index in range(first, first + self.payloads_per_tile):
            payload = bytes(view[position : position + self.sizes[index]])
            if crc32c(payload) != self.checksums[index]:
                where = "" if self.tiling is None else f" of the tile in row {row}, column {column}"
                raise BitstreamError(
                    f"payload {index - first}{where} ({len(payload)} bytes) is damaged: its checksum does not match"
                )
            payloads.append(payload)
            position += len(payload)
        return payloads

    def __post_init__(self) -> None:
        object.__setattr__(self, "_starts", tuple(accumulate(self.sizes, initial=self.header_bytes)))


@dataclass(frozen=True)
class Container:
    """What an ``.spc`` file holds.

    Args:
        model_hash: first 8 bytes of a hash of the weights that wrote the payloads.
        numerics: tag of the arithmetic that fed the entropy coder; streams open only where it is the same.
        height: of the picture, in pixels, 1 to 2^24 - 1.
        width: of the picture, in pixels, 1 to 2^24 - 1.
        quality: 0 to 65535; its meaning is the codec's (EVC: 100 times the quantisation step).
        payloads: byte strings, in the codec's order, 1 to 16 for each tile, tile by tile and row by row.
        exact: reconstruction class: True promises the same picture on every device, False the same within rounding.
        tiling: how the picture is cut, into at least two tiles; None: it is one.

    Raises:
        UsageError: a value that the format cannot hold.
    """

    model_hash: bytes
    numerics: int
    height: int
    width: int
    quality: int
    payloads: tuple[bytes, ...]
    exact: bool = False
    tiling: Tiling | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "payloads", tuple(self.payloads))
        if len(self.model_hash) != MODEL_HASH_BYTES:
            raise UsageError(f"model_hash of {len(self.model_hash)} bytes (needs {MODEL_HASH_BYTES})")
        for name, value, low, high in (
            ("numerics", self.numerics, 0, 0xFFFF),
            ("quality", self.quality, 0, 0xFFFF),
            ("height", self.height, 1, MAX_SIDE),
            ("width", self.width, 1, MAX_SIDE),
            ("number of tiles", self._tiles, 1 if self.tiling is None else 2, MAX_SIDE**2),
            ("number of payloads", len(self.payloads), self._tiles, MAX_PAYLOADS * self._tiles),
            *((f"size of payload {i}", len(p), 0, MAX_PAYLOAD_BYTES) for i, p in enumerate(self.payloads)),
        ):
            if not low <= value <= high:
                raise UsageError(f"{name} = {value} (needs {low} to {high})")
        if len(self.payloads) % self._tiles:
            raise UsageError(
                f"number of payloads = {len(self.payloads)} (needs as many for each of {self._tiles} tiles)"
            )

    @property
    def _tiles(self) -> int:
        if self.tiling is None:
            return 1
        rows, columns = self.tiling.grid(self.height, self.width)
        return rows * columns

    def to_bytes(self) -> bytes:
        """The file. Untiled, with one payload under 2 MiB and sides under 16384, the header takes at most 32 bytes."""
        per_tile = len(self.payloads) // self._tiles
        flags = _EXACT * self.exact | _TILED * (self.tiling is not None) | (per_tile - 1) << _COUNT_SHIFT
        header = bytearray(_START.pack(MAGIC, VERSION) + _FIXED.pack(self.model_hash, self.numerics, self.quality))
        header += _BYTE.pack(flags) + pack_varint(self.height) + pack_varint(self.width)
        if self.tiling is not None:
            header += pack_varint(self.tiling.side // SIDE_UNIT) + pack_varint(self.tiling.overlap // OVERLAP_UNIT)
        for payload in self.payloads:
            header += pack_varint(len(payload)) + _CRC.pack(crc32c(payload))
        header += _CRC.pack(crc32c(header))
        return bytes(header) + b"".join(self.payloads)

    @classmethod
    def from_bytes(cls, data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> Container:
        """Reads a file and verifies all of it.

        Raises:
            BitstreamError: not such a file, an unknown version of it, or a byte is damaged, missing or too many.
            ResourceLimitError: the picture has more than `max_pixels` pixels. Nothing was allocated for it.
            UsageError: `max_pixels` is no positive, finite number.
        """
        check_limit(max_pixels, "max_pixels")
        header = Header.read(data)
        if header.height * header.width > max_pixels:
            raise ResourceLimitError(f"picture of {header.width} x {header.height} pixels (limit: {max_pixels} pixels)")
        rows, columns = header.grid
        payloads = [p for row in range(rows) for column in range(columns) for p in header.payloads(data, row, column)]
        fields = (header.model_hash, header.numerics, header.height, header.width, header.quality)
        return cls(*fields, tuple(payloads), header.exact, header.tiling)


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
        """An integer of at most `limit`."""
        try:
            return unpack_varint(lambda: self.take(_BYTE)[0], limit)
        except ValueError as error:
            raise BitstreamError(f"byte {self.position - 1} of the header is {error}") from None

    def table(self, tiles: int, per_tile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Size and checksum of every payload, once it is known that the file can hold so many."""
        count, left = tiles * per_tile, len(self.view) - self.position
        if count * _ENTRY_BYTES > left:
            raise BitstreamError(
                f"file of {len(self.view)} bytes ends inside its header: {count} payloads of {tiles} tiles need more"
            )
        entries = [(self.varint(MAX_PAYLOAD_BYTES), *self.take(_CRC)) for _ in range(count)]
        return tuple(size for size, _ in entries), tuple(checksum for _, checksum in entries)


def _parse(view: memoryview) -> Header:
    if bytes(view[:3]) != MAGIC:
        raise BitstreamError(f"not an .spc file: it starts with {bytes(view[:3]).hex() or 'nothing'}")
    cursor = _Cursor(view)
    _, version = cursor.take(_START)
    if not 1 <= version <= VERSION:
        raise BitstreamError(f".spc version {version} (this reader knows versions 1 to {VERSION})")
    model_hash, numerics, quality = cursor.take(_FIXED)
    flags = cursor.take(_BYTE)[0] if version > 1 else 0
    if flags & _RESERVED:
        raise BitstreamError(f"flags {flags:#04x}: bits 2 and 3 are not in use")
    height, width = cursor.varint(MAX_SIDE), cursor.varint(MAX_SIDE)
    if 0 in (height, width):
        raise BitstreamError(f"the header describes a {width} x {height} picture")
    per_tile = (flags >> _COUNT_SHIFT) + 1 if version > 1 else cursor.varint(MAX_PAYLOADS)
    if per_tile == 0:
        raise BitstreamError(f"the header describes 0 payloads of a {width} x {height} picture")
    tiling, rows, columns = None, 1, 1
    if flags & _TILED:
        tiling = _read_tiling(cursor)
        rows, columns = tiling.grid(height, width)
        if rows * columns == 1:
            raise BitstreamError(f"a {width} x {height} picture in tiles of {tiling.side} pixels is not tiled")
    sizes, checksums = cursor.table(rows * columns, per_tile)
    checksum = crc32c(view[: cursor.position])
    if cursor.take(_CRC) != (checksum,):
        raise BitstreamError("the header is damaged: its checksum does not match")
    if len(view) - cursor.position != sum(sizes):
        raise BitstreamError(f"the payloads have {len(view) - cursor.position} bytes, the header promises {sum(sizes)}")
    fields = (version, model_hash, numerics, quality, height, width, bool(flags & _EXACT))
    return Header(*fields, tiling, per_tile, sizes, checksums, cursor.position)


def _read_tiling(cursor: _Cursor) -> Tiling:
    side = cursor.varint(MAX_TILE_SIDE // SIDE_UNIT) * SIDE_UNIT
    overlap = cursor.varint(MAX_TILE_SIDE // 2 // OVERLAP_UNIT) * OVERLAP_UNIT
    try:
        return Tiling(side, overlap)
    except UsageError as error:
        raise BitstreamError(f"the header describes no tiles: {error}") from error
