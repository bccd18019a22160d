"""The coder against golden bytes, against the oracle of conftest.py, against itself, and against bad arguments."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecodec.entropy import Decoder, Encoder, EntropyTables, decode, encode, join_streams, split_streams
from sparsecodec.entropy import evc_gaussian_tables as gaussian
from sparsecodec.entropy.tables import tables_from_pmf
from sparsecodec.errors import BitstreamError, UsageError

INT32 = np.iinfo(np.int32)


def laplace_tables() -> EntropyTables:
    """The Laplace table of DCVC-HEM's and DCVC-DC's P frames: 256 scales, 0.01 .. 64."""
    scales = torch.exp(torch.linspace(np.log(0.01), np.log(64.0), 256))[:, None]

    def cumulative(x):
        return 0.5 - 0.5 * x.sign() * torch.expm1(-x.abs() / scales)

    steps = torch.arange(2, 51).float()[None]
    inside = cumulative(steps) > 0.9999
    reach = torch.where(inside.any(1), inside.int().argmax(1) + 2, 50).int()
    k = (torch.arange(101) - reach[:, None]).float()
    tail = 2 * cumulative(-reach[:, None].float() - 0.5)[:, 0]
    return tables_from_pmf(cumulative(k + 0.5) - cumulative(k - 0.5), tail, 2 * reach + 1, -reach)


@pytest.mark.parametrize(
    ("make_tables", "digest", "stream"),
    [
        (gaussian, "0f8f8a0a98a176b7", "7511973a09000000aef676c823250000"),
        (laplace_tables, "34192d53b1f08c8f", "68cbeb5b9c190000f4ff256d23250000"),
    ],
)
def test_golden_streams(make_tables, digest, stream):
    tables = make_tables()
    assert tables.digest == digest
    symbols = np.array([0, 1, -1, 5, -40, 300], np.int32)
    indexes = np.array([0, 60, 128, 128, 128, 10], np.uint8)
    assert encode(symbols, indexes, tables).hex() == stream
    assert decode(bytes.fromhex(stream), indexes, tables).tolist() == symbols.tolist()


def test_no_symbols_are_the_bare_state():
    none = np.empty(0, np.int32)
    assert encode(none, none, gaussian()).hex() == "0000008000000000"
    assert decode(bytes.fromhex("0000008000000000"), none, gaussian()).shape == (0,)


# 1: less than a word is emitted; 1000: about ten escapes and 100 words.
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_same_bytes_as_oracle(latent, oracle_encode, oracle_decode, n):
    symbols, indexes, tables = latent(n)
    data = encode(symbols, indexes, tables)
    assert data == oracle_encode(symbols.tolist(), indexes.tolist(), tables)
    assert oracle_decode(data, indexes.tolist(), tables) == symbols.tolist()
    assert torch.equal(decode(data, indexes, tables), symbols)


@st.composite
def coding_calls(draw):
    """Tables with arbitrary rows (a lone escape, one slot per symbol, skewed) and symbols, near and far."""
    rows = draw(
        st.lists(
            st.lists(st.integers(1, 65535), unique=True, max_size=draw(st.sampled_from([0, 3, 40, 400]))),
            min_size=1,
            max_size=4,
        )
    )
    cdf = np.full((len(rows), max(map(len, rows)) + 2), -1, np.int32)
    for row, inner in zip(cdf, rows, strict=True):
        row[: len(inner) + 2] = [0, *sorted(inner), 65536]
    lengths = np.array([len(inner) + 2 for inner in rows], np.int32)
    offsets = np.array(draw(st.lists(st.integers(-500, 500), min_size=len(rows), max_size=len(rows))), np.int32)
    tables = EntropyTables(cdf, lengths, offsets)
    count = draw(st.integers(0, 60))
    indexes = draw(st.lists(st.integers(0, len(rows) - 1), min_size=count, max_size=count))
    value = st.one_of(st.integers(-600, 900), st.integers(-(2**31) + 1000, 2**31 - 1000))
    symbols = draw(st.lists(value, min_size=count, max_size=count))
    return np.array(symbols, np.int32), np.array(indexes, np.int32), tables


@settings(max_examples=150, deadline=None)
@given(coding_calls(), st.sampled_from([np.uint8, np.int16, np.int32]), st.integers(1, 5))
def test_round_trip_of_any_tables(oracle_encode, call, index_type, streams):
    symbols, indexes, tables = call
    indexes = indexes.astype(index_type)
    data = encode(symbols, indexes, tables)
    assert data == oracle_encode(symbols.tolist(), indexes.tolist(), tables)
    assert np.array_equal(decode(data, indexes, tables), symbols)

    encoder = Encoder(streams, prefixed=True)
    for _ in range(2):
        encoder.push(symbols, indexes, tables)
    decoder = Decoder(encoder.finish(), streams, prefixed=True)
    for _ in range(2):
        assert np.array_equal(decoder.decode(indexes, tables), symbols)
    decoder.finish()


@pytest.mark.parametrize("n", [0, 1, 2, 5, 1001])
def test_streams_split_every_call(latent, n):
    """Stream k of n holds the k-th share of each call, the last one the rest: what EVC expects."""
    symbols, indexes, tables = latent(n)
    other_symbols, other_indexes, _ = latent(n + 3, seed=1)
    encoder = Encoder(2)
    encoder.push(symbols, indexes, tables)
    encoder.push(other_symbols, other_indexes, tables)
    payload = encoder.finish()

    def share(a, b, k):
        return torch.cat([x[: len(x) // 2] if k == 0 else x[len(x) // 2 :] for x in (a, b)])

    alone = [encode(share(symbols, other_symbols, k), share(indexes, other_indexes, k), tables) for k in (0, 1)]
    assert payload == bytes([0x11]) + len(alone[0]).to_bytes(2, "little") + alone[0] + alone[1]
    decoder = Decoder(payload, 2)
    assert torch.equal(decoder.decode(indexes, tables), symbols)
    assert torch.equal(decoder.decode(other_indexes, tables), other_symbols)
    decoder.finish()


def test_decoder_continues_symbol_by_symbol(latent):
    symbols, indexes, tables = latent(400)
    decoder = Decoder(encode(symbols, indexes, tables))
    pieces = [decoder.decode(indexes[i : i + 1], tables) for i in range(200)] + [decoder.decode(indexes[200:], tables)]
    assert torch.equal(torch.cat(pieces), symbols)
    decoder.finish()


def test_prefix_has_wide_sizes_only_when_needed():
    assert join_streams([b"a" * 4]) == b"\x01aaaa"
    small, large = b"a" * 0xFFFF, b"a" * 0x10000
    assert join_streams([small, b"b"])[:3] == b"\x11\xff\xff"
    assert join_streams([large, b"b"])[:5] == b"\x10\x00\x00\x01\x00"
    for streams in ([b"x"], [small, b"b"], [large, b""], [b"", b"", b"c"], [bytes([i]) * i for i in range(16)]):
        assert [bytes(part) for part in split_streams(join_streams(streams))] == streams


def test_views_and_out_are_used_in_place(latent):
    symbols, indexes, tables = latent(64)
    data = encode(symbols, indexes, tables)
    spread = torch.stack([symbols, symbols * 0 - 7], 1)[:, 0]
    assert not spread.is_contiguous()
    assert encode(spread, indexes.view(8, 8).t().contiguous().t(), tables) == data

    wide = torch.full((3, 64), -7, dtype=torch.int32)
    result = decode(memoryview(b"x" + data)[1:], indexes, tables, out=wide[1])
    assert result.data_ptr() == wide[1].data_ptr()
    assert torch.equal(wide, torch.stack([symbols * 0 - 7, symbols, symbols * 0 - 7]))
    assert decode(data, indexes.view(4, 16), tables).shape == (4, 16)
    assert isinstance(decode(data, indexes.numpy(), tables), np.ndarray)

    same = indexes.int()
    assert torch.equal(decode(data, same, tables, out=same), symbols)


@pytest.mark.parametrize("symbol", [INT32.min + 100, INT32.max - 100, INT32.min, INT32.max])
def test_extreme_symbols_round_trip_or_are_refused(symbol):
    tables = gaussian()
    symbols, indexes = np.array([3, symbol, -2], np.int32), np.array([200, 5, 200], np.int16)
    # Row 5 reaches from -2 to 2; raw values have 32 bits, so the last few values on either side have none.
    if abs(symbol) > 2**31 - 10:
        with pytest.raises(UsageError, match=rf"symbols\[1\] = {symbol}") if symbol < 0 else _codes(symbols, indexes):
            encode(symbols, indexes, tables)
    else:
        assert np.array_equal(decode(encode(symbols, indexes, tables), indexes, tables), symbols)


class _codes:
    """2^31 - 1 is within reach: raw = 2 (k - M) with k - M = 2^31 - 1 - 3 at most."""

    def __init__(self, symbols, indexes):
        self.arguments = symbols, indexes

    def __enter__(self):
        symbols, indexes = self.arguments
        assert np.array_equal(decode(encode(symbols, indexes, gaussian()), indexes, gaussian()), symbols)

    def __exit__(self, *error):
        return False
