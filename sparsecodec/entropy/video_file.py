"""Writes and reads ``.spv`` record by record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import BinaryIO

from sparsecodec.entropy.bitstream import crc32c
from sparsecodec.entropy.limits import DEFAULT_MAX_PIXELS, check_limit
from sparsecodec.entropy.video_bitstream import (
    FOOTER,
    FOOTER_MAGIC,
    MAX_FRAMES,
    Head,
    VideoHeader,
    pack_index,
    pack_record,
    read_head,
    unpack_index,
)
from sparsecodec.errors import BitstreamError, ResourceLimitError, UsageError

CUT_OFF = "cut off, or still being written"
READ_AT_ONCE = 1 << 20  # bytes: memory is taken as they arrive, not as a head promises


@dataclass(frozen=True)
class CodedFrame:
    """One frame of a file.

    Attributes:
        number: from 0 on.
        intra: needs no other frame.
        qp: 0 to 127, with a meaning of the codec's own, plus `DROP` where the memory is dropped before the frame.
        fingerprint: of the decoder's state after the frame, 32 bits.
        payload: the codec's bytes.
    """

    number: int
    intra: bool
    qp: int
    fingerprint: int
    payload: bytes


def _link(header: bytes) -> int:
    return int.from_bytes(header[-4:], "little")


class VideoWriter:
    """The bytes of a file, piece by piece: a `frame` for each, `end`.

    Args:
        header: of the file; its `stream_id` follows from the first frame.

    Attributes:
        frames: written so far.
        ended: whether `end` was called.
    """

    def __init__(self, header: VideoHeader) -> None:
        self._header = header
        self._header_link = self._link = self._chain = self._position = 0
        self._intra: list[tuple[int, int]] = []
        self.frames = 0
        self.ended = False

    def frame(self, intra: bool, qp: int, fingerprint: int, payload: bytes) -> bytes:
        """The record of the next frame, behind the header if it is the first.

        Raises:
            UsageError: the first frame is none that stands alone, the file is full, or it has its end.
        """
        if self.ended:
            raise UsageError(f"frame {self.frames}: the clip has ended")
        if self.frames == MAX_FRAMES or not (intra or self._intra):
            raise UsageError(f"frame {self.frames}: needs an I frame first, and at most {MAX_FRAMES} frames")
        head = b""
        if not self.frames:
            head = replace(self._header, stream_id=crc32c(payload)).to_bytes()
            self._position, self._header_link = len(head), _link(head)
        if intra:
            self._intra.append((self.frames, self._position))
        link = self._header_link if intra else self._link
        record, self._link = pack_record(b"I" if intra else b"P", self.frames, qp, fingerprint, payload, link)
        self._chain = crc32c(self._link.to_bytes(4, "little"), self._chain)
        self._position += len(record)
        self.frames += 1
        return head + record

    def end(self) -> bytes:
        """What stands behind the last frame.

        Raises:
            UsageError: there was none, or the file has its end.
        """
        if not self.frames or self.ended:
            raise UsageError("the clip has ended" if self.ended else "a clip without frames (needs at least 1)")
        self.ended = True
        record, _ = pack_record(b"E", self.frames, 0, self._chain, pack_index(self._intra), self._header_link)
        return record + FOOTER.pack(len(record), FOOTER_MAGIC)


class VideoReader:
    """The frames of a file, one after another.

    Args:
        source: binary file, open for reading; a pipe, too.
        max_pixels: refuse larger frames.

    Attributes:
        header: of the file.
        next: number of the frame that `read` gives next.
        seekable: whether `seek` works; it does not in a pipe.
        position: bytes read so far.

    Raises:
        BitstreamError: not such a file, an unknown version of it, or the header is damaged.
        ResourceLimitError: a frame has more than `max_pixels` pixels. Nothing was allocated for it.
    """

    def __init__(self, source: BinaryIO, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        check_limit(max_pixels, "max_pixels")
        self._source = source
        self.seekable = source.seekable()
        self._origin = source.tell() if self.seekable else 0  # in the source, of the file's first byte
        self.position = 0
        self._inside = "its header"
        self.header = VideoHeader.read(self._take)
        form = self.header.form
        if form.height * form.width > max_pixels:
            raise ResourceLimitError(f"frames of {form.width} x {form.height} pixels (limit: {max_pixels} pixels)")
        self._largest = (1 << 16) + 64 * form.height * form.width  # bytes of a payload: no codec comes near
        self._begin = self.position
        self._link = self._header_link = _link(self.header.to_bytes())
        self._chain: int | None = 0
        self._intra: list[tuple[int, int]] = []
        self.next = 0

    def read(self) -> CodedFrame | None:
        """The next frame, or None behind the last one, once everything up to the end of the file is verified.

        Raises:
            BitstreamError: the frame is damaged, missing, repeated or out of order, or the file ends too early; the
                message says which frame it is. There is no going on from here.
        """
        where = f"frame {self.next}"
        self._inside = where
        position = self.position
        first = self._source.read(1)
        if not first:
            after = f"after frame {self.next - 1}" if self.next else "before its first frame"
            raise BitstreamError(f"the stream ends {after} without its end record ({CUT_OFF})")
        self.position += 1
        head = self._head(first, where)
        if head.kind == b"E":
            self._read_end(head)
            return None
        if head.number != self.next:
            raise BitstreamError(f"{where}: {_misplaced(head.number, self.next)}")
        intra = head.kind == b"I"
        if not intra and not self._intra:
            raise BitstreamError(f"{where} needs another one that is not in the stream")
        if head.size > self._largest:
            raise BitstreamError(
                f"{where}: its head promises {head.size} bytes (at most {self._largest} for a frame of this size)"
            )
        payload = self._take(head.size)
        if not head.matches(payload, self._header_link if intra else self._link):
            raise BitstreamError(f"{where} is damaged or of another stream: its checksum does not match")
        if intra:
            self._intra.append((head.number, position))
        self._link = head.checksum
        if self._chain is not None:
            self._chain = crc32c(head.checksum.to_bytes(4, "little"), self._chain)
        self.next += 1
        return CodedFrame(head.number, intra, head.qp, head.fingerprint, payload)

    def count(self) -> int | None:
        """Frames of the file by the index at its end; None of a pipe, and where the index is missing or damaged."""
        if not self.seekable:
            return None
        here, position, inside = self._source.tell(), self.position, self._inside
        try:
            return self._index()[1]
        except BitstreamError:
            return None
        finally:
            self._source.seek(here)
            self.position, self._inside = position, inside

    def seek(self, frame: int) -> None:
        """Makes the last I frame that is not behind `frame` the next one to read.

        It is found through the index, or, where that is missing or damaged, by walking from head to head.

        Raises:
            UsageError: the file is a pipe, or has no such frame.
            BitstreamError: the file is cut off or damaged before that frame.
        """
        if not self.seekable:
            raise UsageError("a pipe can only be read from its beginning")
        try:
            intra, frames, reason = *self._index(), None
        except BitstreamError:
            intra, frames, reason = self._walk(frame)
        if not 0 <= frame < frames:
            if reason is not None:
                raise BitstreamError(f"frame {frame} is not there: {reason}")
            raise UsageError(f"frame {frame} of a clip that has frames 0 to {frames - 1}")
        found = max(entry for entry in intra if entry[0] <= frame)
        if reason is None and not self._holds(*found):  # pieces were put in or taken out before the index
            found = max((entry for entry in self._walk(frame)[0] if entry[0] <= frame), default=found)
        self.next, self.position = found
        self._go_to(self.position)
        self._intra, self._chain = [], None

    def _go_to(self, position: int) -> None:
        self._source.seek(self._origin + position)

    def _end(self) -> int:
        return self._source.seek(0, 2) - self._origin

    def _head(self, first: bytes, where: str) -> Head:
        pending = [first]
        try:
            return read_head(lambda count: pending.pop() if pending else self._take(count))
        except _Ended:
            raise
        except BitstreamError as error:
            raise BitstreamError(f"{where}: {error}") from None

    def _read_end(self, head: Head) -> None:
        """Verifies the end record and what follows it."""
        self._inside = "its end record"
        if not head.number:
            raise BitstreamError("the stream holds no frames")
        if head.number != self.next:
            missing = (
                f"{head.number - self.next} frames are missing" if head.number > self.next else "some are repeated"
            )
            raise BitstreamError(f"the stream ends after {self.next} of {head.number} frames: {missing}")
        payload = self._take(min(head.size, 20 * head.number + 5))
        if not head.matches(payload, self._header_link):
            raise BitstreamError(f"the end record behind frame {self.next - 1} is damaged: its checksum does not match")
        index = unpack_index(payload, head.number)
        if self._chain is not None and (head.fingerprint, index) != (self._chain, self._intra):
            raise BitstreamError(f"the end record behind frame {self.next - 1} is not that of these frames")
        size = len(head.fields) + 6 + len(payload)
        if self._take(FOOTER.size) != FOOTER.pack(size, FOOTER_MAGIC):
            raise BitstreamError("the footer behind the end record is damaged")
        if self._source.read(1):
            raise BitstreamError(f"there are bytes behind the end of the stream ({self.next} frames)")

    def _index(self) -> tuple[list[tuple[int, int]], int]:
        """I frames, and how many frames there are, from the end record."""
        self._inside = "its end record"
        end = self._end()
        self._go_to(max(end - FOOTER.size, self._begin))
        size, magic = FOOTER.unpack(self._take(FOOTER.size))
        if magic != FOOTER_MAGIC or size > end - FOOTER.size - self._begin:
            raise BitstreamError("no footer")
        self._go_to(end - FOOTER.size - size)
        head = read_head(self._take)
        payload = self._take(min(head.size, size))
        if head.kind != b"E" or not head.number or not head.matches(payload, self._header_link):
            raise BitstreamError("no end record")
        intra = unpack_index(payload, head.number)
        if intra[0] != (0, self._begin) or intra[-1][1] >= end:
            raise BitstreamError("the index is not that of this file")
        return intra, head.number

    def _holds(self, number: int, position: int) -> bool:
        """Whether the record of the I frame of that number stands there."""
        self._go_to(position)
        try:
            head = read_head(self._take)
        except BitstreamError:
            return False
        return head.kind == b"I" and head.number == number

    def _walk(self, frame: int) -> tuple[list[tuple[int, int]], int, str]:
        """I frames up to `frame`, how many frames there are at least, and what stands behind them."""
        intra: list[tuple[int, int]] = []
        end = self._end()
        position, number = self._begin, 0
        try:
            while number <= frame:
                self._go_to(position)
                head = read_head(self._take)
                if head.kind == b"E" or head.number != number:
                    break
                after = position + len(head.fields) + 6 + head.size
                if after > end:
                    break
                if head.kind == b"I":
                    intra.append((number, position))
                position, number = after, number + 1
        except BitstreamError:
            pass
        return intra, number, f"the stream is {CUT_OFF}, or damaged, after {number} frames"

    def _take(self, count: int) -> bytes:
        pieces = []
        while count:
            piece = self._source.read(min(count, READ_AT_ONCE))
            if not piece:
                raise _Ended(f"the stream ends inside {self._inside} ({CUT_OFF})")
            pieces.append(piece)
            count -= len(piece)
            self.position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Ended(BitstreamError):
    """The source has no more bytes; the message is complete."""


def _misplaced(found: int, expected: int) -> str:
    if found > expected:
        return f"frame {found} stands in its place: {found - expected} missing, or out of order"
    return f"frame {found} stands in its place: repeated, or out of order"
