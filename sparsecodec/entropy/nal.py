"""Streams of units (NAL) of DCVC-FM, DCVC-RT and DCVC-UF, read and written byte for byte. See docs/bitstream.md.

There is no magic number, checksum or model in these streams. Reading is strict: what no encoder writes is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import BinaryIO

from sparsecodec.entropy.limits import DEFAULT_MAX_PIXELS, check_limit
from sparsecodec.errors import BitstreamError, ResourceLimitError, UsageError

FAMILIES = ("fm", "rt", "uf")
MAX_GROUP = 16  # frames with one payload
_MAX_IDS = 16
_MAX_NUMBER = (1 << 30) - 1
_RATES, _RT_INTER_RATES = 64, 72  # inter frames of DCVC-RT have shifted ones
_MAX_STREAMS = {"fm": 1, "rt": 2, "uf": 8}
_CHUNK_BYTES = 1 << 20  # read at a time: a size that lies must not be believed first


class _Unit(IntEnum):
    PARAMETERS = 0
    INTRA = 1
    INTER = 2
    GROUP = 3


@dataclass(frozen=True)
class NalFrame:
    """A coded frame, or for DCVC-UF's larger models a chunk of them.

    Attributes:
        intra: an I frame; otherwise a P frame.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        qp: rate, 0 to 63; of DCVC-RT's P frames the shifted one, 0 to 71.
        payload: what the entropy coder wrote.
        streams: in the payload. DCVC-RT: 1 or 2, DCVC-UF: 1 to 8; DCVC-FM's payloads say it themselves: 1 here.
        reset: DCVC-RT: the feature is dropped before this frame (``use_ada_i``); DCVC-UF: the memory is after it.
        feature_index: DCVC-FM: 0 to 3 (``fa_idx``).
        group: DCVC-FM: (qp, feature_index) of each of up to 16 P frames that share the payload; () for a single frame.
            `qp` and `feature_index` are then the first one's.
    """

    intra: bool
    height: int
    width: int
    qp: int
    payload: bytes
    streams: int = 1
    reset: bool = False
    feature_index: int = 0
    group: tuple[tuple[int, int], ...] = ()


class NalWriter:
    """Writes frames; sizes and flags go into parameter units, one for each combination that was not yet written.

    Args:
        family: one of `FAMILIES`.

    Raises:
        UsageError: no such family.
    """

    def __init__(self, family: str) -> None:
        self._family = _checked_family(family)
        self._ids: dict[tuple[int, ...], int] = {}

    def write(self, frame: NalFrame) -> bytes:
        """The frame's bytes, with those of the parameter units that it needs in front.

        Raises:
            UsageError: a value that this family's streams cannot hold, or a 17th combination of parameters.
        """
        problem = _problem(self._family, frame)
        if problem is not None:
            raise UsageError(problem)
        parts: list[bytes] = []
        if frame.group:
            members = [replace(frame, qp=qp, feature_index=index) for qp, index in frame.group]
            ids = [self._id(member, parts) for member in members]
            parts.append(bytes([_Unit.GROUP << 4 | len(ids) - 1]))
            ids += [0] * (len(ids) % 2)
            parts.append(bytes(high << 4 | low for high, low in zip(ids[::2], ids[1::2], strict=True)))
        else:
            number = self._id(frame, parts)
            parts.append(bytes([(_Unit.INTRA if frame.intra else _Unit.INTER) << 4 | number]))
        if self._family != "fm":
            parts.append(bytes([frame.qp]))
        if self._family == "uf":
            parts.append(bytes([frame.streams << 1 | frame.reset]))
        parts += [_number(len(frame.payload), self._family), frame.payload]
        return b"".join(parts)

    def _id(self, frame: NalFrame, parts: list[bytes]) -> int:
        """The id of the frame's parameters; their unit is appended to `parts` if they are new."""
        flags = _flags(self._family, frame)
        key = (frame.height, frame.width, *flags)
        if key not in self._ids:
            if len(self._ids) == _MAX_IDS:
                raise UsageError(f"parameters {key}: a stream has {_MAX_IDS} different ones at most")
            self._ids[key] = len(self._ids)
            parts.append(bytes([_Unit.PARAMETERS << 4 | self._ids[key]]))
            parts += [_number(frame.height, self._family), _number(frame.width, self._family), bytes(flags)]
        return self._ids[key]


class NalReader:
    """Iterates over the frames of a stream.

    Args:
        family: one of `FAMILIES`.
        source: binary file, pipe or ``io.BytesIO``; read as far as the last frame that was asked for.
        max_pixels: larger pictures are refused.

    Raises (also while iterating):
        BitstreamError: bytes that no encoder of this family writes; the message says where.
        ResourceLimitError: a picture of more than `max_pixels`.
        UsageError: no such family, or `max_pixels` is no positive, finite number.
    """

    def __init__(self, family: str, source: BinaryIO, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self._family = _checked_family(family)
        check_limit(max_pixels, "max_pixels")
        self._source = source
        self._max_pixels = max_pixels
        self._position = 0
        self._parameters: dict[int, NalFrame] = {}  # frames without a payload

    @property
    def position(self) -> int:
        """Bytes that were read."""
        return self._position

    def __iter__(self) -> Iterator[NalFrame]:
        unit = None
        while start := self._source.read(1):
            self._position += 1
            unit, low = start[0] >> 4, start[0] & 15
            if unit == _Unit.PARAMETERS:
                self._parameters[low] = self._read_parameters()
            elif unit in (_Unit.INTRA, _Unit.INTER):
                yield self._read_frame(unit == _Unit.INTRA, self._known(low))
            elif unit == _Unit.GROUP and self._family == "fm":
                yield self._read_group(low + 1)
            else:
                raise self._error(f"a unit of type {unit}, which this family does not have")
        if unit == _Unit.PARAMETERS:
            raise self._error("the stream ends behind parameters that are missing their frame")

    def _read_parameters(self) -> NalFrame:
        height, width = self._read_number(), self._read_number()
        if not height or not width:
            raise self._error(f"a picture of {width} x {height} pixels")
        if height * width > self._max_pixels:
            raise ResourceLimitError(f"a picture of {width} x {height} pixels (max_pixels={self._max_pixels})")
        frame = NalFrame(False, height, width, 0, b"")
        if self._family == "rt":
            flags = self._byte()
            if flags & ~5:
                raise self._error(f"parameter flags {flags:#04x} (needs 0, 1, 4 or 5)")
            frame = replace(frame, streams=(flags >> 2) + 1, reset=bool(flags & 1))
        elif self._family == "fm":
            flags = self._byte()
            frame = replace(frame, qp=flags >> 2, feature_index=flags & 3)
        return frame

    def _read_frame(self, intra: bool, frame: NalFrame) -> NalFrame:
        frame = replace(frame, intra=intra)
        if self._family != "fm":
            frame = replace(frame, qp=self._byte())
        if self._family == "uf":
            flags = self._byte()
            frame = replace(frame, streams=flags >> 1, reset=bool(flags & 1))
        return replace(self._checked(frame), payload=self._read(self._read_number(), "a payload"))

    def _read_group(self, count: int) -> NalFrame:
        pairs = self._read((count + 1) // 2, "a group")
        ids = [number for pair in pairs for number in (pair >> 4, pair & 15)]
        if any(ids[count:]):
            raise self._error(f"a group of {count} frames names another one")
        members = [self._known(number) for number in ids[:count]]
        first = members[0]
        if any((frame.height, frame.width) != (first.height, first.width) for frame in members):
            raise self._error("a group of frames of different sizes")
        group = tuple((frame.qp, frame.feature_index) for frame in members)
        return replace(first, group=group, payload=self._read(self._read_number(), "a payload"))

    def _known(self, number: int) -> NalFrame:
        if number not in self._parameters:
            raise self._error(f"a frame with the parameters {number}, which have not come")
        return self._parameters[number]

    def _checked(self, frame: NalFrame) -> NalFrame:
        problem = _problem(self._family, frame)
        if problem is not None:
            raise self._error(problem)
        return frame

    def _read_number(self) -> int:
        first = self._byte()
        if self._family == "fm":
            more, mask = (3 if first & 0x80 else 1), 0x7F
        else:
            more = (0, 0, 1, 3)[first >> 6]
            mask = 0x3F if more else 0x7F
        rest = self._read(more, "a number")
        value = (first & mask) << 8 * more | int.from_bytes(rest, "big")
        if value > _MAX_NUMBER or _number(value, self._family) != bytes([first]) + rest:
            raise self._error(f"the number {value} in a form that encoders do not write")
        return value

    def _byte(self) -> int:
        return self._read(1, "a unit")[0]

    def _read(self, size: int, what: str) -> bytes:
        parts, left = [], size
        while left > 0:
            part = self._source.read(min(left, _CHUNK_BYTES))
            if not part:
                raise self._error(f"the stream ends inside {what}: {left} of {size} bytes are missing")
            self._position += len(part)
            left -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _error(self, problem: str) -> BitstreamError:
        return BitstreamError(f"before byte {self._position}: {problem}")


def _checked_family(family: str) -> str:
    if family not in FAMILIES:
        raise UsageError(f"family={family!r} (needs one of {', '.join(FAMILIES)})")
    return family


def _problem(family: str, frame: NalFrame) -> str | None:
    """Why this family has no such frame; None if it has."""
    most = _MAX_STREAMS[family]
    rates = _RT_INTER_RATES if family == "rt" and not frame.intra else _RATES
    group = frame.group or ((frame.qp, frame.feature_index),)
    if not (1 <= frame.height <= _MAX_NUMBER and 1 <= frame.width <= _MAX_NUMBER):
        return f"a picture of {frame.width} x {frame.height} pixels (needs sides of 1 to {_MAX_NUMBER})"
    if not all(0 <= qp < rates for qp, _ in group):
        return f"qp={[qp for qp, _ in group]} (needs 0 to {rates - 1})"
    if not 1 <= frame.streams <= most:
        return f"streams={frame.streams} (needs 1 to {most})"
    if frame.reset and family == "fm":
        return "reset=True (DCVC-FM resets with feature_index=3)"
    if not all(0 <= index <= (3 if family == "fm" else 0) for _, index in group):
        return f"feature_index={[index for _, index in group]} (needs 0 to 3 with DCVC-FM, 0 with others)"
    first = (frame.qp, frame.feature_index)
    if frame.group and (family != "fm" or frame.intra or len(group) > MAX_GROUP or group[0] != first):
        return (
            f"a group of {len(group)} frames (needs DCVC-FM, P frames, {MAX_GROUP} at most, qp and index of the first)"
        )
    if len(frame.payload) > _MAX_NUMBER:
        return f"a payload of {len(frame.payload)} bytes (needs {_MAX_NUMBER} at most)"
    return None


def _flags(family: str, frame: NalFrame) -> bytes:
    """The last byte of a parameter unit."""
    if family == "fm":
        return bytes([frame.qp << 2 | frame.feature_index])
    if family == "rt":
        return bytes([frame.streams - 1 << 2 | frame.reset])
    return b""


def _number(value: int, family: str) -> bytes:
    """An integer below 2^30 in as few bytes as the family has."""
    if family == "fm":
        return value.to_bytes(2, "big") if value < 1 << 15 else (value | 1 << 31).to_bytes(4, "big")
    if value < 1 << 7:
        return bytes([value])
    return (value | 2 << 14).to_bytes(2, "big") if value < 1 << 14 else (value | 3 << 30).to_bytes(4, "big")
