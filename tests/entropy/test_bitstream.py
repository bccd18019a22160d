"""The container: it gives back what went in, and nothing else passes."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecodec import _C
from sparsecodec.entropy import Container, crc32c
from sparsecodec.errors import BitstreamError, ResourceLimitError, UsageError

HASH = bytes(range(8))


def container(*payloads: bytes, **changes) -> Container:
    fields = dict(model_hash=HASH, numerics=0x0102, height=512, width=768, quality=150, payloads=payloads)
    return Container(**{**fields, **changes})


def sealed(header: bytes, body: bytes = b"") -> bytes:
    """A header that someone wrote by hand, with a correct checksum."""
    return header + struct.pack("<I", crc32c(header)) + body


def test_golden_file():
    data = container(b"payload").to_bytes()
    assert data.hex() == (
        "535043" "01" "0001020304050607" "0201" "9600"  # magic, version, model hash, numerics, quality
        "8004" "8006" "01"  # 512, 768, one payload
        "07" "7069e3f4"  # its size and checksum
        "d5c51a63" + b"payload".hex()
    )  # fmt: skip


def test_overhead_of_one_payload():
    assert len(container(bytes(20_000)).to_bytes()) - 20_000 == 32
    assert len(container(bytes((1 << 21) - 1), height=16383, width=16383).to_bytes()) - (1 << 21) + 1 == 32


@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=16),
    st.integers(1, (1 << 24) - 1),
    st.integers(1, (1 << 24) - 1),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.binary(min_size=8, max_size=8),
)
@settings(max_examples=100, deadline=None)
def test_round_trip(payloads, height, width, quality, numerics, model_hash):
    there = Container(model_hash, numerics, height, width, quality, tuple(payloads))
    back = Container.from_bytes(there.to_bytes(), max_pixels=1 << 48)
    assert back == there and all(type(payload) is bytes for payload in back.payloads)


@pytest.mark.parametrize("payloads", [(b"some payload",), (b"", b"two", bytes(20))])
def test_every_damage_of_every_byte_is_reported(payloads):
    data = container(*payloads).to_bytes()
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


FIXED = b"SPC\x01" + HASH + bytes(4)
CHUNK = b"\x00" + struct.pack("<I", 0)  # an empty payload; the checksum of nothing is 0


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not an .spc file: it starts with nothing"),
        (b"SPX\x01" + bytes(40), "starts with 535058"),
        (b"SPC\x02" + bytes(40), "version 2"),
        (sealed(FIXED + b"\x00\x01\x01" + CHUNK), "1 x 0"),
        (sealed(FIXED + b"\x01\x00\x01" + CHUNK), "0 x 1"),
        (sealed(FIXED + b"\x01\x01\x00"), "0 payloads"),
        (sealed(FIXED + b"\x01\x01\x11" + 17 * CHUNK), "up to 16"),
        (sealed(FIXED + b"\x81\x00\x01\x01" + CHUNK), "byte 17"),  # 1 in two bytes
        (sealed(FIXED + b"\x80\x80\x80\x08\x01\x01" + CHUNK), "up to 16777215"),
        (sealed(FIXED + b"\x80" * 50 + b"\x01\x01" + CHUNK), "up to 16777215"),
        (sealed(FIXED + b"\x01\x01\x01\xff\xff\xff\xff\x1f" + bytes(4)), "up to 4294967295"),
        (sealed(FIXED + b"\x01\x01\x01\xff\xff\xff\xff\x0f" + bytes(4)), "promises 4294967295"),
        (FIXED + b"\x01\x01\x10" + CHUNK, "ends inside its header"),
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
    ],
)
def test_values_without_a_place_are_refused(changes):
    with pytest.raises(UsageError, match=str(next(iter(changes)))[:6]):
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
