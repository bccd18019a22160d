"""Streams of units of DCVC-FM, DCVC-RT and DCVC-UF: bytes spelled out, round trips, and what is no stream."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecodec.entropy import NalFrame, NalReader, NalWriter
from sparsecodec.entropy.nal import FAMILIES
from sparsecodec.errors import BitstreamError, ResourceLimitError, UsageError

LIMIT = 1 << 60  # pixels


def written(family, *frames) -> bytes:
    writer = NalWriter(family)
    return b"".join(writer.write(frame) for frame in frames)


def read(family, data, max_pixels=LIMIT) -> list[NalFrame]:
    return list(NalReader(family, io.BytesIO(data), max_pixels))


STREAMS = {
    # height 1080 = 0x438 as 0x8000 | 0x438, width 1920 = 0x780; two streams: 4, reset: 1
    "rt": (
        [
            NalFrame(True, 1080, 1920, 32, b"abc", streams=2),
            NalFrame(False, 1080, 1920, 71, b"d" * 128, streams=2),
            NalFrame(False, 1080, 1920, 40, b"", streams=2, reset=True),
            NalFrame(False, 1080, 1920, 36, b"e", streams=2),
        ],
        "00 8438 8780 04" "10 20 03 616263" "20 47 8080" + "64" * 128 + "01 8438 8780 05" "21 28 00" "20 24 01 65",
    ),
    "uf": (
        [
            NalFrame(True, 127, 16384, 0, b"a", streams=3),
            NalFrame(False, 127, 16384, 63, b"b", streams=8, reset=True),
        ],
        "00 7f c0004000" "10 00 06 01 61" "20 3f 11 01 62",
    ),
    "fm": (
        [
            NalFrame(True, 64, 32768, 21, b"a", feature_index=0),
            NalFrame(False, 64, 32768, 21, b"b", feature_index=1),
            NalFrame(False, 64, 32768, 21, b"cc", feature_index=1, group=((21, 1), (21, 0), (21, 2))),
            NalFrame(False, 64, 32768, 21, b"", feature_index=2, group=((21, 2),)),
        ],
        "00 0040 80008000 54" "10 0001 61" "01 0040 80008000 55" "21 0001 62" "02 0040 80008000 56" "32 10 20 0002 6363"
        "30 20 0000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes(family):
    frames, data = STREAMS[family]
    assert written(family, *frames).hex() == data.replace(" ", "")
    assert read(family, bytes.fromhex(data)) == frames


@pytest.mark.parametrize("family", FAMILIES)
def test_every_truncation_is_refused_or_ends_between_frames(family):
    frames, data = STREAMS[family]
    data = bytes.fromhex(data)
    ends = {len(written(family, *frames[:count])): count for count in range(len(frames))}
    for size in range(len(data)):
        if size in ends:
            assert read(family, data[:size]) == frames[: ends[size]]
        else:
            with pytest.raises(BitstreamError, match="missing"):
                read(family, data[:size])


def numbers(limit: int = (1 << 30) - 1):
    edges = [1, 127, 128, (1 << 14) - 1, 1 << 14, (1 << 15) - 1, 1 << 15, (1 << 30) - 1]
    return st.integers(1, limit) | st.sampled_from([edge for edge in edges if edge <= limit])


@st.composite
def frames_of(draw, family: str):
    size = (draw(numbers()), draw(numbers()))
    payload = draw(st.binary(max_size=20)) * draw(st.sampled_from([1, 1, 30, 2000]))
    rate = st.tuples(st.integers(0, 3), st.integers(0, 3))
    if family == "rt":
        intra = draw(st.booleans())
        qp = draw(st.integers(0, 63 if intra else 71))
        return NalFrame(intra, *size, qp, payload, streams=draw(st.integers(1, 2)), reset=draw(st.booleans()))
    if family == "uf":
        streams, reset = draw(st.integers(1, 8)), draw(st.booleans())
        return NalFrame(draw(st.booleans()), *size, draw(st.integers(0, 63)), payload, streams=streams, reset=reset)
    if draw(st.booleans()):
        group = tuple(draw(st.lists(rate, min_size=1, max_size=16)))
        return NalFrame(False, *size, group[0][0], payload, feature_index=group[0][1], group=group)
    qp, index = draw(rate)
    return NalFrame(draw(st.booleans()), *size, qp, payload, feature_index=index)


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trips(family):
    @settings(max_examples=60, deadline=None)
    @given(st.lists(frames_of(family), max_size=1 if family == "fm" else 4))
    def check(frames):
        assert read(family, written(family, *frames)) == frames

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_any_bytes_are_refused_or_are_the_stream_of_what_is_read(family):
    @settings(max_examples=400, deadline=None)
    @given(st.data())
    def check(data):
        raw = bytearray(bytes.fromhex(STREAMS[family][1]))
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        try:
            frames = read(family, bytes(raw))
        except BitstreamError:
            return
        assert sum(len(frame.payload) for frame in frames) < len(raw)
        assert read(family, written(family, *frames)) == frames

    check()


def test_a_size_that_lies_is_not_believed():
    class Short(io.BytesIO):
        largest = 0

        def read(self, size=-1):
            Short.largest = max(Short.largest, size)
            return super().read(size)

    with pytest.raises(BitstreamError, match="1073741820 of 1073741823 bytes are missing"):
        list(NalReader("rt", Short(bytes.fromhex("00 01 01 0010 00 ffffffff 616263"))))
    assert Short.largest <= 1 << 20


def test_frames_come_while_the_stream_is_still_being_written():
    frames, data = STREAMS["rt"]
    source = io.BytesIO(bytes.fromhex(data))
    assert next(iter(NalReader("rt", source))) == frames[0] and source.tell() == 12


@pytest.mark.parametrize(
    "family, data, message",
    [
        ("rt", "10 00 00", "before byte 1: a frame with the parameters 0, which have not come"),
        ("rt", "05 01 01 00" "14 00 00", "a frame with the parameters 4, which have not come"),
        ("rt", "30", "before byte 1: a unit of type 3, which this family does not have"),
        ("fm", "40", "a unit of type 4, which this family does not have"),
        ("rt", "00 00 01 00", "a picture of 1 x 0 pixels"),
        ("rt", "00 01 01 02", "parameter flags 0x02 (needs 0, 1, 4 or 5)"),
        ("rt", "00 8001 01 00", "the number 1 in a form that encoders do not write"),
        ("rt", "00 c0000001 01 00", "the number 1 in a form that encoders do not write"),
        ("fm", "00 80000001 0001 00", "the number 1 in a form that encoders do not write"),
        ("fm", "00 c0000000 0001 00", "the number 1073741824 in a form that encoders do not write"),
        ("rt", "00 01 01 00" "10 40 00", "qp=[64] (needs 0 to 63)"),
        ("rt", "00 01 01 00" "20 48 00", "qp=[72] (needs 0 to 71)"),
        ("uf", "00 01 01" "10 00 00 00", "streams=0 (needs 1 to 8)"),
        ("uf", "00 01 01" "10 00 12 00", "streams=9 (needs 1 to 8)"),
        ("fm", "00 0001 0001 00" "30 01 0000", "a group of 1 frames names another one"),
        ("fm", "00 0001 0001 00" "01 0001 0002 00" "31 01 0000", "a group of frames of different sizes"),
        ("uf", "00 01 01" "10 00 02 02 61", "the stream ends inside a payload: 1 of 2 bytes are missing"),
    ],
)  # fmt: skip
def test_what_no_encoder_writes_is_refused(family, data, message):
    with pytest.raises(BitstreamError) as caught:
        read(family, bytes.fromhex(data))
    assert message in str(caught.value)


def test_pictures_beyond_the_limit_are_refused():
    data = written("uf", NalFrame(True, 100, 200, 0, b""))
    assert len(read("uf", data, 20000)) == 1
    with pytest.raises(ResourceLimitError, match="a picture of 200 x 100 pixels \\(max_pixels=19999\\)"):
        read("uf", data, 19999)


def test_parameters_may_be_replaced():
    frames = read("uf", bytes.fromhex("00 01 0210 00 02 0000 03 0420 00 02 00"))
    assert [(frame.height, frame.width) for frame in frames] == [(1, 2), (3, 4)]


def test_sixteen_parameters_at_most():
    writer = NalWriter("uf")
    for side in range(1, 17):
        writer.write(NalFrame(True, side, 1, 0, b""))
    assert writer.write(NalFrame(True, 3, 1, 0, b"")).hex() == "12000200"
    with pytest.raises(UsageError, match="a stream has 16 different ones at most"):
        writer.write(NalFrame(True, 17, 1, 0, b""))


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("rt", {"height": 0}, "needs sides of 1 to"),
        ("rt", {"width": 1 << 30}, "needs sides of 1 to"),
        ("rt", {"qp": 64}, "qp="),
        ("rt", {"streams": 3}, "streams=3 \\(needs 1 to 2\\)"),
        ("fm", {"streams": 2}, "streams=2 \\(needs 1 to 1\\)"),
        ("fm", {"reset": True}, "reset=True"),
        ("fm", {"feature_index": 4}, "feature_index="),
        ("rt", {"feature_index": 1}, "feature_index="),
        ("fm", {"group": ((0, 0),)}, "a group of 1 frames"),
        ("fm", {"intra": False, "group": ((1, 0),)}, "a group of 1 frames"),
        ("fm", {"intra": False, "group": ((0, 0),) * 17}, "a group of 17 frames"),
        ("uf", {"intra": False, "group": ((0, 0),)}, "a group of 1 frames"),
    ],
)
def test_what_a_family_cannot_hold_is_refused(family, changes, message):
    values = {"intra": True, "height": 1, "width": 1, "qp": 0, "payload": b"", **changes}
    with pytest.raises(UsageError, match=message):
        NalWriter(family).write(NalFrame(**values))


def test_unknown_families_are_refused():
    for attempt in (NalWriter, lambda family: NalReader(family, io.BytesIO())):
        with pytest.raises(UsageError, match="family='hevc' \\(needs one of fm, rt, uf\\)"):
            attempt("hevc")
