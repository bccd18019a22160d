"""The package against the decoder written from the pages: on valid bytes, and on which bytes are damaged."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from spc_oracle import Damaged, container, lanes, rans, tables
from spc_oracle.checksum import crc32c as oracle_crc32c
from spc_oracle.fingerprint import model_hash as oracle_model_hash

from sparsecodec import zoo
from sparsecodec.entropy import (
    Container,
    Encoder,
    EntropyTables,
    LaneDecoder,
    LaneEncoder,
    crc32c,
    decode,
    evc_gaussian_tables,
    pmf_to_quantized_cdf,
    split_streams,
)
from sparsecodec.errors import BitstreamError, UsageError
from sparsecodec.nn.fingerprint import model_hash


def oracle_rows(native: EntropyTables) -> list[tables.Row]:
    return tables.rows(native.cdf.tolist(), native.lengths.tolist(), native.offsets.tolist())


def symbols_and_rows(count: int, seed: int, wild: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Symbols for the rows of EVC, one in `wild` far away."""
    rng = np.random.default_rng(seed)
    indexes = rng.integers(0, 256, count).astype(np.int16)
    symbols = np.rint(rng.standard_normal(count) * 0.11 * np.exp(indexes * 0.025)).astype(np.int32)
    far = rng.random(count) < 1 / wild
    symbols[far] = rng.integers(-(2**31) + 100, 2**31 - 100, far.sum()) >> rng.integers(0, 30, far.sum())
    return symbols, indexes


def test_checksums():
    assert oracle_crc32c(b"123456789") == 0xE3069283
    data = np.random.default_rng(0).bytes(300)
    assert all(oracle_crc32c(data[:n]) == crc32c(data[:n]) for n in range(300))


@pytest.mark.parametrize("name", ["evc-tiny-sparse-feds-portable", "dcvc-rt-tiny-portable", "evc-tiny-sparse-int8"])
def test_model_hashes(name):
    """Of weights stored in half precision, in integers, and in parts."""
    path = Path(zoo.__file__).parent / f"{name}.safetensors"
    assert oracle_model_hash(path.read_bytes()) == model_hash(zoo.load(name))[:8]


def test_quantised_distributions():
    rng = np.random.default_rng(1)
    for _ in range(150):
        pmf = rng.random(rng.integers(1, 60)).astype(np.float32) ** rng.integers(1, 30)
        pmf /= rng.choice([pmf.sum(), 0.7, 3]).astype(np.float32)
        pmf = torch.from_numpy(np.minimum(pmf, 2).astype(np.float32))
        try:
            expected = pmf_to_quantized_cdf(pmf).tolist()
        except UsageError as error:
            assert "rounds to 0" in str(error)
            continue
        assert tables.from_probabilities(pmf.tolist()) == expected


def test_the_example_on_the_page():
    rows = oracle_rows(evc_gaussian_tables())
    decoder = rans.Decoder([bytes.fromhex("7511973a09000000aef676c823250000")])
    assert decoder.call([rows[i] for i in (0, 60, 128, 128, 128, 10)]) == [0, 1, -1, 5, -40, 300]
    decoder.finish()


@pytest.mark.parametrize(("count", "streams"), [(0, 1), (1, 1), (700, 1), (701, 2), (5, 3), (350, 16)])
def test_streams(count, streams):
    symbols, indexes = symbols_and_rows(count, seed=count, wild=9)
    encoder = Encoder(streams)
    for part in (slice(0, count // 3), slice(count // 3, count)):
        encoder.push(symbols[part], indexes[part], evc_gaussian_tables())
    payload = encoder.finish()
    rows = oracle_rows(evc_gaussian_tables())
    parts = rans.split(payload) if streams > 1 else [payload]
    oracle = rans.Decoder(parts)
    decoded = oracle.call([rows[i] for i in indexes[: count // 3]]) + oracle.call(
        [rows[i] for i in indexes[count // 3 :]]
    )
    oracle.finish()
    assert decoded == symbols.tolist()


def test_both_call_the_same_streams_damaged():
    symbols, indexes = symbols_and_rows(60, seed=4, wild=4)
    native = evc_gaussian_tables()
    tables = oracle_rows(native)
    rows = [tables[i] for i in indexes]
    encoder = Encoder(1)
    encoder.push(symbols, indexes, native)
    data = encoder.finish()
    rng = random.Random(0)
    agreed = {True: 0, False: 0}
    for _ in range(1200):
        changed = bytearray(data)
        for _ in range(rng.choice((0, 1, 1, 2))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        changed = bytes(changed)[: rng.choice((len(data),) * 6 + (rng.randrange(len(data)),))]
        oracle = ours = None
        try:
            decoder = rans.Decoder([changed])
            oracle = decoder.call(rows)
            decoder.finish()
        except Damaged:
            oracle = None
        try:
            ours = decode(changed, indexes, native).tolist()
        except BitstreamError:
            pass
        assert ours == oracle
        agreed[ours is None] += 1
    assert min(agreed.values()) > 30, agreed


def test_prefixes():
    rng = random.Random(1)
    for _ in range(2000):
        payload = bytes([rng.randrange(256) & rng.choice((0xF1, 0xFF))]) + rng.randbytes(rng.randrange(80))
        payload = bytes(b if rng.random() < 0.5 else 0 for b in payload[: rng.randrange(len(payload) + 1)])
        try:
            oracle = rans.split(payload)
        except Damaged:
            with pytest.raises(BitstreamError):
                split_streams(payload)
        else:
            assert [bytes(part) for part in split_streams(payload)] == oracle


def files() -> list[bytes]:
    """Containers of version 1."""
    small = Container(b"12345678", 1, 65, 33, 150, (b"payload",))
    more = Container(bytes(8), 0xFFFF, 1, 16384, 0, tuple(bytes(n) for n in (0, 3, 130)))
    return [small.to_bytes(), more.to_bytes()]


def sealed(data: bytes, header: int) -> bytes:
    """With the checksum of a header of that many bytes put right."""
    return data[:header] + struct.pack("<I", crc32c(data[:header])) + data[header + 4 :]


def test_containers():
    rng = random.Random(2)
    agreed = {True: 0, False: 0}
    for data in files():
        ends = [n for n in range(4, len(data)) if sealed(data, n) == data]
        for _ in range(2500):
            changed = bytearray(data)
            for _ in range(rng.choice((0, 1, 1, 3))):
                changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            changed = sealed(bytes(changed), ends[0])
            try:
                ours = Container.from_bytes(changed, max_pixels=1 << 48)
            except BitstreamError:
                ours = None
            try:
                oracle = container.parse(changed)
            except Damaged:
                oracle = None
            assert (ours is None) == (oracle is None), changed.hex()
            agreed[ours is None] += 1
            if ours is not None:
                fields = ("model_hash", "numerics", "quality", "height", "width")
                assert all(getattr(ours, name) == getattr(oracle, name) for name in fields)
                assert list(ours.payloads) == oracle.payloads
    assert min(agreed.values()) > 100, agreed


@pytest.mark.parametrize("total", [0, 1, 6, 500, 16384, 33001, 270001])
def test_lanes(total):
    """From one lane to 32."""
    symbols, indexes = symbols_and_rows(total, seed=total, wild=100)
    cut = total // 3
    encoder = LaneEncoder(total)
    encoder.push(symbols[:cut], indexes[:cut], evc_gaussian_tables())
    encoder.push(symbols[cut:], indexes[cut:], evc_gaussian_tables())
    payload = encoder.finish()
    rows = oracle_rows(evc_gaussian_tables())
    decoder = lanes.Decoder(payload, total)
    decoded = decoder.call([rows[i] for i in indexes[:cut]]) + decoder.call([rows[i] for i in indexes[cut:]])
    decoder.finish()
    assert decoded == symbols.tolist()


def test_the_lanes_on_the_page():
    rows = oracle_rows(evc_gaussian_tables())
    decoder = lanes.Decoder(bytes.fromhex("81da230080f6b2f303005202"), 6)
    assert decoder.call([rows[i] for i in (0, 60, 128, 128, 128, 10)]) == [0, 1, -1, 5, -40, 300]
    decoder.finish()
    lanes.Decoder(bytes.fromhex("00000100"), 0).finish()


@pytest.mark.parametrize(("total", "rounds"), [(40, 1500), (33000, 12)])  # one lane and two
def test_both_call_the_same_lanes_damaged(total, rounds):
    symbols, indexes = symbols_and_rows(total, seed=total, wild=4 if total < 100 else 60)
    native = evc_gaussian_tables()
    tables = oracle_rows(native)
    rows = [tables[i] for i in indexes]
    encoder = LaneEncoder(total)
    encoder.push(symbols, indexes, native)
    data = encoder.finish()
    rng = random.Random(total)
    agreed = {True: 0, False: 0}
    for _ in range(rounds):
        changed = bytearray(data)
        for _ in range(rng.choice((0, 1, 1, 2))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        changed = bytes(changed)[: rng.choice((len(data),) * 6 + (rng.randrange(len(data)),))]
        try:
            decoder = lanes.Decoder(changed, total)
            oracle = decoder.call(rows)
            decoder.finish()
        except Damaged:
            oracle = None
        try:
            decoder = LaneDecoder(changed, total)
            ours = decoder.decode(indexes, native).tolist()
            decoder.finish()
        except BitstreamError:
            ours = None
        assert ours == oracle
        agreed[ours is None] += 1
    assert min(agreed.values()) > rounds // 40 - 1, agreed
