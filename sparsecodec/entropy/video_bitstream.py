"""The video file ``.spv``: a header, a record for each frame, an end. Specified in docs/bitstream.md.

Records delimit themselves, so a file is written and read in one pass through a pipe; what was cut off, or is still
being written, can be read up to there. The parts are packed and parsed here, `video_file` puts them together.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from sparsecodec._clip_format import MAX_RATIO_PART, MAX_SIDE, SITINGS, ClipFormat
from sparsecodec.entropy.bitstream import MAX_PAYLOAD_BYTES, MODEL_HASH_BYTES, crc32c
from sparsecodec.entropy.varint import pack_varint, unpack_varint
from sparsecodec.errors import BitstreamError, UsageError

VIDEO_MAGIC = b"SPV"
VIDEO_VERSIONS = (1, 2)  # those that are read; the last one is written
FOOTER_MAGIC = b"/SPV"
MAX_FRAMES = (1 << 32) - 1
DROP = 128  # beside the qp of a P frame: the memory is dropped before it
CODES = {"bt709": 1, "bt601": 6, "bt2020": 9, None: 2}  # of matrices, as in ITU-T H.273

_EXACT, _FULL_RANGE, _SITING_SHIFT, _TEN_BITS, _FLAGS = 1, 2, 2, 16, 31
_START = struct.Struct("<3sB")  # magic, version
_FIXED = struct.Struct(f"<{MODEL_HASH_BYTES}sHBB")  # model hash, numerics, flags, matrix
_CRC = struct.Struct("<I")
_TAIL = struct.Struct("<IIH")  # of a record's head: fingerprint, checksum, check
_CHECK = struct.Struct("<H")
FOOTER = struct.Struct("<I4s")  # size of the end record, magic


@dataclass(frozen=True)
class VideoHeader:
    """What stands in front of the frames.

    Attributes:
        model_hash: first 8 bytes of a hash of the weights that wrote the frames.
        numerics: tag of the arithmetic of the whole loop from frame to frame; files open only where it is the same.
        form: of the clip that was encoded, which the decoded one has, too.
        exact: True promises the same pictures on every device, False the same where the numerics are.
        stream_id: CRC-32C of the first frame's payload, which tells clips of one model and format apart; None: a file
            of version 1, which has none, and whose frames never drop a memory.
    """

    model_hash: bytes
    numerics: int
    form: ClipFormat
    exact: bool = False
    stream_id: int | None = None

    def __post_init__(self) -> None:
        if len(self.model_hash) != MODEL_HASH_BYTES:
            raise UsageError(f"model_hash of {len(self.model_hash)} bytes (needs {MODEL_HASH_BYTES})")
        if not 0 <= self.numerics <= 0xFFFF:
            raise UsageError(f"numerics = {self.numerics} (needs 0 to 65535)")

    def to_bytes(self) -> bytes:
        """The header; at most 52 bytes, most clips' have 34."""
        form = self.form
        flags = _EXACT * self.exact | _FULL_RANGE * form.full_range | _TEN_BITS * (form.depth == 10)
        flags |= SITINGS.index(form.siting) << _SITING_SHIFT
        data = _START.pack(VIDEO_MAGIC, VIDEO_VERSIONS[self.stream_id is not None])
        data += _FIXED.pack(self.model_hash, self.numerics, flags, CODES[form.matrix])
        data += b"".join(map(pack_varint, (form.height, form.width, *form.rate, *form.aspect)))
        data += b"" if self.stream_id is None else _CRC.pack(self.stream_id)
        return data + _CRC.pack(crc32c(data))

    @classmethod
    def read(cls, take: Callable[[int], bytes]) -> VideoHeader:
        """Parses and verifies a header.

        Args:
            take: gives the next bytes, as many as asked, or raises a BitstreamError.

        Raises:
            BitstreamError: not such a file, an unknown version of it, or the header is damaged.
        """
        data = take(_START.size)
        magic, version = _START.unpack(data)
        if magic != VIDEO_MAGIC:
            raise BitstreamError(f"not an .spv file: it starts with {magic.hex()}")
        if version not in VIDEO_VERSIONS:
            known = " and ".join(map(str, VIDEO_VERSIONS))
            raise BitstreamError(f".spv version {version} (this reader knows versions {known})")
        data += take(_FIXED.size)
        model_hash, numerics, flags, code = _FIXED.unpack(data[_START.size :])

        def byte() -> int:
            nonlocal data
            data += take(1)
            return data[-1]

        try:
            limits = (MAX_SIDE, MAX_SIDE, *(MAX_RATIO_PART,) * 4)
            height, width, *ratios = [unpack_varint(byte, limit) for limit in limits]
        except ValueError as error:
            raise BitstreamError(f"byte {len(data) - 1} of the header is {error}") from None
        data += take(_CRC.size) if version > 1 else b""
        stream_id = _CRC.unpack(data[-_CRC.size :])[0] if version > 1 else None
        if take(_CRC.size) != _CRC.pack(crc32c(data)):
            raise BitstreamError("the header is damaged: its checksum does not match")
        matrices = {value: name for name, value in CODES.items()}
        if flags & ~_FLAGS or code not in matrices:
            raise BitstreamError(f"the header has flags {flags:#04x} and matrix {code} (unknown to this reader)")
        siting = SITINGS[flags >> _SITING_SHIFT & 3]
        depth, full_range = 10 if flags & _TEN_BITS else 8, bool(flags & _FULL_RANGE)
        rate, aspect = tuple(ratios[:2]), tuple(ratios[2:])
        try:
            form = ClipFormat(height, width, rate, aspect, depth, matrices[code], full_range, siting)
        except UsageError as error:
            raise BitstreamError(f"the header describes no clip: {error}") from error
        return cls(model_hash, numerics, form, bool(flags & _EXACT), stream_id)


@dataclass(frozen=True)
class Head:
    """A record without its payload, as `read_head` gives it.

    Attributes:
        kind: b"I", a frame that needs no other, b"P", one that needs the frame before it, or b"E", the end.
        number: of the frame, from 0 on; of the end, how many frames there are.
        qp: 0 to 255, with a meaning of the codec's own.
        size: bytes of the payload.
        fingerprint: of the decoder's state after the frame; of the end, CRC-32C over the checksums of all frames.
        checksum: CRC-32C over kind, number, qp, size, fingerprint and payload, starting from that of the record before,
            for kinds I and E from that of the header.
        fields: the bytes that the checksum covers beside the payload.
    """

    kind: bytes
    number: int
    qp: int
    size: int
    fingerprint: int
    checksum: int
    fields: bytes

    def matches(self, payload: bytes, link: int) -> bool:
        """Whether the checksum is right; `link` is what it starts from."""
        return crc32c(payload, crc32c(self.fields, link)) == self.checksum


def pack_record(kind: bytes, number: int, qp: int, fingerprint: int, payload: bytes, link: int) -> tuple[bytes, int]:
    """A record's bytes, and its checksum.

    Args:
        link: what the checksum starts from; see `Head`.
    """
    fields = kind + pack_varint(number) + bytes([qp]) + pack_varint(len(payload)) + _CRC.pack(fingerprint)
    checksum = crc32c(payload, crc32c(fields, link))
    head = fields + _CRC.pack(checksum)
    return head + _CHECK.pack(crc32c(head) & 0xFFFF) + payload, checksum


def read_head(take: Callable[[int], bytes]) -> Head:
    """Parses and verifies the head of a record.

    Args:
        take: as for `VideoHeader.read`.

    Raises:
        BitstreamError: it is damaged.
    """
    data = take(1)

    def byte() -> int:
        nonlocal data
        data += take(1)
        return data[-1]

    try:
        number = unpack_varint(byte, MAX_FRAMES)
        qp = byte()
        size = unpack_varint(byte, MAX_PAYLOAD_BYTES)
    except ValueError:
        _damaged()
    data += take(_TAIL.size)
    fingerprint, checksum, check = _TAIL.unpack(data[-_TAIL.size :])
    if crc32c(data[: -_CHECK.size]) & 0xFFFF != check or data[:1] not in (b"I", b"P", b"E"):
        _damaged()
    return Head(data[:1], number, qp, size, fingerprint, checksum, data[: -_CRC.size - _CHECK.size])


def _damaged() -> NoReturn:
    raise BitstreamError("its head is damaged")


def pack_index(intra: list[tuple[int, int]]) -> bytes:
    """The payload of the end record: number of I frames, then of each how much its number and offset grew, varints."""
    parts, before = [pack_varint(len(intra))], (0, 0)
    for entry in intra:
        parts += [pack_varint(now - then) for now, then in zip(entry, before, strict=True)]
        before = entry
    return b"".join(parts)


def unpack_index(payload: bytes, frames: int) -> list[tuple[int, int]]:
    """Number and offset of each I frame, both ascending.

    Raises:
        BitstreamError: the index is damaged, or is none of a clip of so many frames.
    """
    bytes_left = iter(payload)
    intra: list[tuple[int, int]] = []
    number = offset = 0
    try:
        for _ in range(unpack_varint(bytes_left.__next__, frames)):
            step = unpack_varint(bytes_left.__next__, MAX_FRAMES)
            number, offset = number + step, offset + unpack_varint(bytes_left.__next__, (1 << 63) - 1)
            if number >= frames or (step == 0) != (not intra) or (intra and offset <= intra[-1][1]):
                raise ValueError("not ascending")
            intra.append((number, offset))
    except (ValueError, StopIteration):
        raise BitstreamError("the index of I frames is damaged") from None
    if next(bytes_left, None) is not None or (frames > 0) != bool(intra):
        raise BitstreamError("the index of I frames is damaged")
    return intra
