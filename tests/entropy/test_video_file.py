"""The video file: its bytes are those that the specification says, and nothing else passes."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutate
from spc_oracle import Damaged
from spc_oracle.video import parse

from sparsecodec._clip_format import ClipFormat
from sparsecodec.entropy import VideoHeader, VideoReader, VideoWriter, crc32c
from sparsecodec.entropy.video_bitstream import FOOTER, FOOTER_MAGIC, pack_index, pack_record, unpack_index
from sparsecodec.errors import BitstreamError, ResourceLimitError, UsageError

HASH = bytes(range(8))
FORM = ClipFormat(240, 416, (50, 1), (1, 1), 10, "bt709", True, "left")
GOLDEN = (
    "535056" "02" "0001020304050607" "0201" "16" "01"  # magic, version, model hash, numerics, flags, matrix
    "f001" "a003" "32" "01" "01" "01" "7069e3f4" "f1a2b279"  # 240, 416, 50 fps, square pixels; stream; checksum
    "49" "00" "20" "07" "04030201" "0494ec89" "d6f8"  # I, number, qp, size, fingerprint, checksum, check
    "7061796c6f6164"
    "50" "01" "28" "00" "ffffffff" "39312013" "e029"
)  # fmt: skip
GOLDEN_END = (
    "45" "05" "00" "06" "086a0729" "4a9ca5b3" "766b"  # E, frames, 0, size, checksum of checksums, checksum, check
    "02" "00" "20" "03" "fa01"  # two I frames: 0 at byte 32, 3 at byte 32 + 250
    "14000000" "2f535056"
)  # fmt: skip
FRAMES = [
    (True, 32, 0x01020304, b"payload"),
    (False, 40, 0xFFFFFFFF, b""),
    (False, 63, 0, bytes(200)),
    (True, 0, 5, b"I"),
    (False, 255, 6, b"P"),
]


def written(frames=FRAMES, form: ClipFormat = FORM, exact: bool = False) -> bytes:
    writer = VideoWriter(VideoHeader(HASH, 0x0102, form, exact))
    return b"".join([*(writer.frame(*frame) for frame in frames), writer.end()])


def read(data: bytes) -> list[tuple[bool, int, int, bytes]]:
    reader, frames = VideoReader(io.BytesIO(data)), []
    while (frame := reader.read()) is not None:
        assert frame.number == len(frames)
        frames.append((frame.intra, frame.qp, frame.fingerprint, frame.payload))
    assert reader.position == len(data) or not frames
    return frames


def test_what_goes_in_comes_out():
    assert read(written()) == FRAMES
    header = VideoReader(io.BytesIO(written(exact=True))).header
    assert header == VideoHeader(HASH, 0x0102, FORM, True, stream_id=crc32c(FRAMES[0][3]))


def test_a_file_of_version_1_is_read():
    header = VideoHeader(HASH, 0x0102, FORM)
    data, link, chain, intra = header.to_bytes(), crc32c(header.to_bytes()[:-4]), 0, []
    start = link
    for number, (alone, *frame) in enumerate(FRAMES):
        intra += [(number, len(data))] if alone else []
        record, link = pack_record(b"I" if alone else b"P", number, *frame, start if alone else link)
        data, chain = data + record, crc32c(link.to_bytes(4, "little"), chain)
    record, _ = pack_record(b"E", len(FRAMES), 0, chain, pack_index(intra), start)
    data += record + FOOTER.pack(len(record), FOOTER_MAGIC)
    assert data[3] == 1 and read(data) == FRAMES
    assert [(kind == b"I", *rest) for kind, *rest in parse(data).frames] == FRAMES


def test_nothing_is_written_behind_the_end():
    writer = VideoWriter(VideoHeader(HASH, 1, FORM))
    writer.frame(*FRAMES[0]), writer.end()
    for call in (lambda: writer.frame(*FRAMES[0]), writer.end):
        with pytest.raises(UsageError, match="the clip has ended"):
            call()


def test_the_bytes_are_those_of_the_specification():
    data = written()
    clip = parse(data)
    assert [(kind == b"I", *rest) for kind, *rest in clip.frames] == FRAMES
    assert (clip.model_hash, clip.numerics, clip.flags, clip.matrix) == (HASH, 0x0102, 0b10110, 1)
    assert (clip.height, clip.width, clip.rate, clip.aspect) == (240, 416, (50, 1), (1, 1))
    assert data.hex().startswith(GOLDEN) and data.hex().endswith(GOLDEN_END)


@pytest.mark.parametrize("matrix", [None, "bt601", "bt709", "bt2020"])
@pytest.mark.parametrize("siting", ["unknown", "left", "center", "top-left"])
def test_every_format_survives(matrix, siting):
    form = ClipFormat(1, (1 << 24) - 1, ((1 << 31) - 1, 1001), (0, 0), 8, matrix, False, siting)
    header = VideoHeader(HASH, 0xFFFF, form)
    assert VideoReader(io.BytesIO(header.to_bytes()), max_pixels=1 << 62).header == header


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 1 << 30))
def test_damage_is_refused_by_us_and_by_the_oracle(seed):
    rng, pool = random.Random(seed), [written(), written(FRAMES[:1], ClipFormat(1, 1)), written([FRAMES[0]] * 3)]
    data = mutate(rng.choice(pool), pool, rng)
    try:
        ours = read(data)
    except BitstreamError:
        ours = None
    try:
        theirs = [(kind == b"I", *rest) for kind, *rest in parse(data).frames]
    except Damaged:
        theirs = None
    assert ours == theirs and (ours is None or data in pool)


def test_every_byte_counts():
    data = written()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        with pytest.raises((BitstreamError, ResourceLimitError)):
            read(bytes(changed))
    for cut in range(len(data)):
        with pytest.raises(BitstreamError, match="cut off|footer"):
            read(data[:cut])
    with pytest.raises(BitstreamError, match="bytes behind the end"):
        read(data + b"\0")


def test_a_promise_of_a_large_payload_takes_no_memory():
    """A head, its check right, that promises 2 GB for a frame of a pixel, and one that promises what could be."""
    header = VideoHeader(HASH, 1, ClipFormat(1, 1)).to_bytes()
    for size, message in ((b"\x80\x80\x80\x80\x08", "promises 2147483648 bytes"), (b"\x80\x80\x04", "inside frame 0")):
        head = b"I\x00\x20" + size + bytes(8)
        head += (crc32c(head) & 0xFFFF).to_bytes(2, "little")
        with pytest.raises(BitstreamError, match=message):
            read(header + head)


def test_too_many_pixels_are_refused_before_anything_else():
    data = written()
    with pytest.raises(ResourceLimitError, match="416 x 240"):
        VideoReader(io.BytesIO(data), max_pixels=416 * 240 - 1)
    VideoReader(io.BytesIO(data), max_pixels=416 * 240)


def test_seeking_goes_to_the_i_frame_before():
    reader = VideoReader(io.BytesIO(written()))
    for frame, first in ((4, 3), (2, 0), (3, 3), (0, 0), (4, 3)):
        reader.seek(frame)
        assert reader.read().number == first
    with pytest.raises(UsageError, match="frames 0 to 4"):
        reader.seek(5)


@pytest.mark.parametrize("end", [b"", b"x"], ids=["index", "heads"])
def test_a_file_may_begin_anywhere_in_its_source(end):
    source = io.BytesIO(bytes(100) + written() + end)
    source.seek(100)
    reader = VideoReader(source)
    assert reader.count() == (None if end else 5)
    for frame, first in ((4, 3), (2, 0)):
        reader.seek(frame)
        assert reader.read().number == first


def test_the_frames_of_a_file_are_counted_without_moving_in_it():
    data = written()
    reader = VideoReader(io.BytesIO(data))
    reader.read()
    position = reader.position
    assert (reader.count(), reader.position, reader.read().number) == (5, position, 1)
    assert VideoReader(io.BytesIO(data[:-1])).count() is None
    pipe = io.BytesIO(data)
    pipe.seekable = lambda: False
    assert VideoReader(pipe).count() is None


def test_an_index_of_another_file_is_not_believed():
    """Both checksums of the end record are right, the offsets are not."""
    a, b = written(), written([(*frame[:3], frame[3] + b"xy") for frame in FRAMES])
    end_a, end_b = (data.rindex(b"E\x05") for data in (a, b))
    reader = VideoReader(io.BytesIO(a[:end_a] + b[end_b:]))
    reader.seek(4)
    assert [reader.read().number, reader.read().number] == [3, 4]  # found from head to head
    with pytest.raises(BitstreamError, match="end record behind frame 4 is damaged"):
        reader.read()


@pytest.mark.parametrize("index", [[(0, 31)], [(0, 31), (3, 500), (4, 501)], []])
def test_the_index_survives(index):
    assert unpack_index(pack_index(index), 5 if index else 0) == index


@pytest.mark.parametrize(
    "payload",
    [b"", b"\2\0\x1f", b"\1\1\x1f", b"\2\0\x1f\0\5", b"\2\0\x1f\1\0", b"\2\0\x1f\5\5", b"\1\0\x1f\0"],
)
def test_a_wrong_index_is_refused(payload):
    with pytest.raises(BitstreamError, match="index"):
        unpack_index(payload, 5)


def test_what_the_format_cannot_hold_is_refused():
    for wrong in (dict(height=0), dict(width=1 << 24), dict(rate=(0, 1)), dict(depth=9), dict(matrix="rgb")):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            ClipFormat(**{"height": 1, "width": 1, **wrong})
    with pytest.raises(UsageError, match="model_hash"):
        VideoHeader(b"short", 1, FORM)
    writer = VideoWriter(VideoHeader(HASH, 1, FORM))
    with pytest.raises(UsageError, match="needs an I frame first"):
        writer.frame(False, 1, 1, b"")
    with pytest.raises(UsageError, match="without frames"):
        writer.end()


def test_a_file_without_frames_is_refused():
    header = VideoHeader(HASH, 1, FORM).to_bytes()
    end, _ = pack_record(b"E", 0, 0, 0, pack_index([]), int.from_bytes(header[-4:], "little"))
    with pytest.raises(BitstreamError, match="no frames"):
        read(header + end + FOOTER.pack(len(end), FOOTER_MAGIC))
