"""The container: it gives back what went in, and nothing else passes."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecodec import _C
from sparsecodec.entropy import Container, Header, Tiling, crc32c
from sparsecodec.errors import BitstreamError, ResourceLimitError, UsageError

HASH = bytes(range(8))


def container(*payloads: bytes, **changes) -> Container:
    fields = dict(model_hash=HASH, numerics=0x0102, height=512, width=768, quality=150, payloads=payloads)
    return Container(**{**fields, **changes})


def sealed(header: bytes, body: bytes = b"") -> bytes:
    """A header that someone wrote by hand, with a correct checksum."""
    return header + struct.pack("<I", crc32c(header)) + body


GOLDEN = (
    "535043" "02" "0001020304050607" "0201" "9600"  # magic, version, model hash, numerics, quality
    "00" "8004" "8006"  # flags: one payload, float, untiled; 512, 768
    "07" "7069e3f4"  # its size and checksum
    "70030bec" "7061796c6f6164"  # the header's checksum, the payload
)  # fmt: skip
GOLDEN_TILED = (
    "535043" "02" "0001020304050607" "0201" "9600"
    "13" "41" "28" "01" "02"  # two payloads a tile, exact, tiled; 65, 40; tiles of 64, overlap of 32
    "013043d0c1" "0000000000" "01c4b080d2" "0000000000"  # the two payloads of each of two tiles, one empty
    "2e72fb81" "6162"
)  # fmt: skip
GOLDEN_VERSION_1 = (
    "535043" "01" "0001020304050607" "0201" "9600"  # magic, version, model hash, numerics, quality
    "8004" "8006" "01"  # 512, 768, one payload
    "07" "7069e3f4"  # its size and checksum
    "d5c51a63" "7061796c6f6164"
)  # fmt: skip
TILED = dict(height=65, width=40, tiling=Tiling(64, 32), exact=True)


def version_1(*payloads: bytes) -> bytes:
    """A file as releases before tiles wrote it, 512 x 768."""
    chunks = b"".join(bytes([len(payload)]) + struct.pack("<I", crc32c(payload)) for payload in payloads)
    fixed = b"SPC\x01" + HASH + b"\x02\x01\x96\x00" + b"\x80\x04\x80\x06"
    return sealed(fixed + bytes([len(payloads)]) + chunks, b"".join(payloads))


def version_2(*payloads: bytes) -> bytes:
    return container(*payloads).to_bytes()


def tiled(*payloads: bytes) -> bytes:
    return container(*payloads, **TILED).to_bytes()


def test_golden_file():
    data = container(b"payload").to_bytes()
    assert data.hex() == GOLDEN
    assert Container.from_bytes(data) == container(b"payload")


def test_golden_tiled_file():
    there = container(b"a", b"", b"b", b"", **TILED)
    assert there.to_bytes().hex() == GOLDEN_TILED
    assert Container.from_bytes(bytes.fromhex(GOLDEN_TILED)) == there


def test_version_1_is_still_read():
    data = bytes.fromhex(GOLDEN_VERSION_1)
    assert Container.from_bytes(data) == container(b"payload")
    assert Header.read(data).version == 1 and Header.read(bytes.fromhex(GOLDEN)).version == 2


def test_overhead_of_one_payload():
    assert len(container(bytes(20_000)).to_bytes()) - 20_000 == 32
    assert len(container(bytes((1 << 21) - 1), height=16383, width=16383).to_bytes()) - (1 << 21) + 1 == 32


sides = st.integers(1, (1 << 24) - 1)


@st.composite
def containers(draw) -> Container:
    """Any that the format holds, of a few payloads."""
    count = draw(st.integers(1, 16))
    tiling, height, width = None, draw(sides), draw(sides)
    if draw(st.booleans()):
        side = 64 * draw(st.integers(1, 1 << 17))
        tiling = Tiling(side, 16 * draw(st.integers(0, side // 32)))
        step = side - tiling.overlap
        height, width = (
            step * (n - 1) + draw(st.integers(tiling.overlap + 1, side))
            for n in draw(st.sampled_from([(1, 2), (3, 1)]))
        )
        height, width = min(height, (1 << 24) - 1), min(width, (1 << 24) - 1)
    rows, columns = tiling.grid(height, width) if tiling else (1, 1)
    payloads = draw(st.lists(st.binary(max_size=90), min_size=rows * columns * count, max_size=rows * columns * count))
    words = st.integers(0, 0xFFFF)
    fields = draw(st.binary(min_size=8, max_size=8)), draw(words), height, width, draw(words)
    return Container(*fields, tuple(payloads), draw(st.booleans()), tiling)


@given(containers())
@settings(max_examples=100, deadline=None)
def test_round_trip(there):
    data = there.to_bytes()
    back = Container.from_bytes(data, max_pixels=1 << 48)
    assert back == there and all(type(payload) is bytes for payload in back.payloads)
    header = Header.read(data)
    rows, columns = header.grid
    tiles = [header.payloads(data, row, column) for row in range(rows) for column in range(columns)]
    assert sum(tiles, []) == list(there.payloads)


@pytest.mark.parametrize(
    ("write", "payloads"),
    [
        (version_1, (b"some payload",)),
        (version_1, (b"", b"two", bytes(20))),
        (version_2, (b"some payload",)),
        (version_2, (b"", b"two", bytes(20))),
        (tiled, (b"one", b"", b"three", b"")),
    ],
)
def test_every_damage_of_every_byte_is_reported(write, payloads):
    data = write(*payloads)
    assert Container.from_bytes(data).payloads == payloads
    for position in range(len(data)):
        for value in range(256):
            if value != data[position]:
                with pytest.raises(BitstreamError):
                    Container.from_bytes(data[:position] + bytes([value]) + data[position + 1 :])
        with pytest.raises(BitstreamError):
            Container.from_bytes(data[:position])
        with pytest.raises(BitstreamError):
            Container.from_bytes(data[:position] + data[position + 1 :])
    for extra in (b"\0", b"\xff", data):
        with pytest.raises(BitstreamError):
            Container.from_bytes(data + extra)


def test_bursts_and_swaps_are_reported():
    rng = np.random.default_rng(0)
    data = container(rng.bytes(100), rng.bytes(100)).to_bytes()
    for _ in range(3000):
        changed = np.frombuffer(data, np.uint8).copy()
        start, size = rng.integers(0, len(data)), rng.integers(1, 30)
        changed[start : start + size] = rng.integers(0, 256, len(changed[start : start + size]))
        if changed.tobytes() != data:
            with pytest.raises(BitstreamError):
                Container.from_bytes(changed.tobytes())
    with pytest.raises(BitstreamError, match="payload 0"):
        Container.from_bytes(data[:-200] + data[-100:] + data[-200:-100])


FIXED_1 = b"SPC\x01" + HASH + bytes(4)
FIXED = b"SPC\x02" + HASH + bytes(4)
CHUNK = b"\x00" + struct.pack("<I", 0)  # an empty payload; the checksum of nothing is 0


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not an .spc file: it starts with nothing"),
        (b"SPX\x01" + bytes(40), "starts with 535058"),
        (b"SPC\x00" + bytes(40), "version 0"),
        (b"SPC\x03" + bytes(40), "version 3"),
        (sealed(FIXED_1 + b"\x00\x01\x01" + CHUNK), "1 x 0"),
        (sealed(FIXED_1 + b"\x01\x00\x01" + CHUNK), "0 x 1"),
        (sealed(FIXED_1 + b"\x01\x01\x00"), "0 payloads"),
        (sealed(FIXED_1 + b"\x01\x01\x11" + 17 * CHUNK), "up to 16"),
        (sealed(FIXED_1 + b"\x81\x00\x01\x01" + CHUNK), "byte 17"),  # 1 in two bytes
        (FIXED_1 + b"\x01\x01\x10" + CHUNK, "ends inside its header"),
        (sealed(FIXED + b"\x00\x00\x01" + CHUNK), "1 x 0"),
        (sealed(FIXED + b"\x00\x01\x00" + CHUNK), "0 x 1"),
        (sealed(FIXED + b"\x00\x81\x00\x01" + CHUNK), "byte 18"),
        (sealed(FIXED + b"\x00\x80\x80\x80\x08\x01" + CHUNK), "up to 16777215"),
        (sealed(FIXED + b"\x00" + b"\x80" * 50 + b"\x01" + CHUNK), "up to 16777215"),
        (sealed(FIXED + b"\x00\x01\x01\xff\xff\xff\xff\x1f" + bytes(4)), "up to 4294967295"),
        (sealed(FIXED + b"\x00\x01\x01\xff\xff\xff\xff\x0f" + bytes(4)), "promises 4294967295"),
        (sealed(FIXED + b"\x04\x01\x01" + CHUNK), "bits 2 and 3"),
        (sealed(FIXED + b"\x08\x01\x01" + CHUNK), "bits 2 and 3"),
        (FIXED + b"\xf0\x01\x01" + 15 * CHUNK, "16 payloads of 1 tiles need more"),
        (FIXED + b"\x00\x01\x01" + CHUNK, "ends inside its header"),
        (sealed(FIXED + b"\x02\x40\x40\x01\x00" + CHUNK), "is not tiled"),  # 64 x 64 in tiles of 64
        (sealed(FIXED + b"\x02\x41\x40\x00\x00" + 2 * CHUNK), "tile side 0"),
        (sealed(FIXED + b"\x02\x41\x40\x01\x03" + 2 * CHUNK), "overlap 48"),  # more than half of 64
        (sealed(FIXED + b"\x02\x41\x40\x81\x00\x00" + 2 * CHUNK), "byte 20"),  # the side's number in two bytes
        (sealed(FIXED + b"\x02\x41\x40\x01\x80\x00" + 2 * CHUNK), "byte 21"),
        (sealed(FIXED + b"\x02\x41\x40\x80\x80\x10\x00" + 2 * CHUNK), "up to 262143"),
        (sealed(FIXED + b"\x02\x41\x40\x01\x00" + CHUNK), "ends inside its header"),
        (sealed(FIXED + b"\x02\x41\x40\x01\x00" + 3 * CHUNK), "checksum"),  # one more entry than tiles
        (sealed(FIXED + b"\x02" + 2 * b"\xff\xff\xff\x07" + b"\x01\x00" + 99 * CHUNK), "68719476736 payloads"),
    ],
)
def test_hostile_headers_are_refused(data, complaint):
    with pytest.raises(BitstreamError, match=complaint):
        Container.from_bytes(data)


def test_large_pictures_are_refused_by_limit():
    data = container(b"x", height=1000, width=1001).to_bytes()
    assert Container.from_bytes(data, max_pixels=1_001_000).width == 1001
    with pytest.raises(ResourceLimitError, match="1001 x 1000"):
        Container.from_bytes(data, max_pixels=1_000_999)
    with pytest.raises(ResourceLimitError):
        Container.from_bytes(container(b"x", height=1 << 20, width=1 << 20).to_bytes())


@pytest.mark.parametrize(
    "changes",
    [
        {"model_hash": bytes(7)},
        {"numerics": 65536},
        {"quality": -1},
        {"height": 0},
        {"width": 1 << 24},
        {"payloads": ()},
        {"payloads": (b"",) * 17},
        {"payloads": (b"",) * 5, "height": 65, "width": 65, "tiling": Tiling(64, 0)},
        {"number of tiles": 0, "height": 64, "width": 64, "tiling": Tiling(64, 0)},
    ],
)
def test_values_without_a_place_are_refused(changes):
    named = next(iter(changes))
    changes.pop("number of tiles", None)
    with pytest.raises(UsageError, match=named[:6]):
        container(b"x", **changes)


def test_crc32c():
    """Known values (RFC 3720, B.4); the processor's instruction against the table, every length and alignment."""
    for data, value in (
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"", 0),
    ):
        assert crc32c(data) == value == _C.crc32c_portable(data)
    noise = np.random.default_rng(0).bytes(64)
    for start in range(9):
        for end in range(start, 64):
            assert crc32c(noise[start:end]) == _C.crc32c_portable(noise[start:end])
    assert _C.crc32c(noise[20:], _C.crc32c(noise[:20])) == crc32c(noise)
