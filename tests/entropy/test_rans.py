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

from .conftest import assert_threads_may_share

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


@pytest.mark.parametrize("symbol", [INT32.min, INT32.min + 1, INT32.max - 1, INT32.max])
def test_extreme_symbols_round_trip(symbol):
    symbols, indexes = np.array([3, symbol, -2], np.int32), np.array([200, 5, 200], np.int16)
    assert np.array_equal(decode(encode(symbols, indexes, gaussian()), indexes, gaussian()), symbols)


def test_symbol_beyond_the_reach_of_an_escape_is_refused():
    tables = EntropyTables(*(np.array(v, np.int32) for v in ([[0, 9, 65536]], [3], [1000])))
    with pytest.raises(UsageError, match=r"symbols\[1\] = -2147483648"):
        encode(np.array([1000, INT32.min], np.int32), np.zeros(2, np.uint8), tables)


@pytest.mark.parametrize(("symbol", "complaint"), [(-(2**31) - 2, "exceeds 32 bits"), (2**33, "9 digits")])
def test_impossible_escapes_are_damage(oracle_encode, symbol, complaint):
    data = oracle_encode([0, symbol], [5, 5], gaussian())
    with pytest.raises(BitstreamError, match=complaint):
        decode(data, np.array([5, 5], np.uint8), gaussian(), strict=False)


@pytest.mark.parametrize("state", [0, (1 << 31) - 1, 1 << 63, (1 << 64) - 1])
def test_impossible_first_states_are_damage(state):
    data, indexes = state.to_bytes(8, "little") + bytes(40), np.array([5, 5], np.uint8)
    with pytest.raises(BitstreamError, match=rf"state {state} "):
        decode(data, indexes, gaussian(), strict=False)
    for possible in ((1 << 31) + 0x8000, (1 << 63) - 0x8000):
        decode(possible.to_bytes(8, "little") + bytes(40), indexes, gaussian(), strict=False)


def test_every_truncation_and_extension_is_damage(latent):
    symbols, indexes, tables = latent(300)
    data = encode(symbols, indexes, tables)
    for size in range(len(data)):
        with pytest.raises(BitstreamError):
            decode(data[:size], indexes, tables)
    for extra in (b"\0", b"\0\0\0\0"):
        with pytest.raises(BitstreamError):
            decode(data + extra, indexes, tables)
    with pytest.raises(BitstreamError, match="left after the last symbol"):
        decode(data, indexes[:-40], tables)
    assert torch.equal(decode(data + b"\0\0\0\0", indexes, tables, strict=False), symbols)


def test_every_changed_byte_is_damage(latent):
    """Of a stream without escapes, that is: their digits are raw bits, and every value of them is a valid stream."""
    symbols, indexes, tables = latent(300)
    symbols = symbols.clamp(-2, 2)
    data = encode(symbols, indexes, tables)
    for position in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[position] ^= flip
            with pytest.raises(BitstreamError):
                decode(changed, indexes, tables)


@pytest.mark.parametrize("streams", [1, 2])
def test_random_bytes_never_do_harm(latent, streams):
    """10^4 random payloads of every small size: symbols or BitstreamError, and nothing written past `out`."""
    _, indexes, tables = latent(200)
    rng = np.random.default_rng(0)
    outcomes = {"symbols": 0, "damage": 0}
    fence = torch.full((202,), -7, dtype=torch.int32)
    for _ in range(10_000):
        parts = [bytearray(rng.bytes(int(rng.integers(0, 60)) * 4 + int(rng.random() < 0.1))) for _ in range(streams)]
        for part in parts:
            if len(part) >= 8:
                part[7] &= 0x7F  # a state that is possible, so that decoding starts
        payload = bytes(parts[0]) if streams == 1 else join_streams([bytes(part) for part in parts])
        try:
            Decoder(payload, streams).decode(indexes, tables, out=fence[1:-1])
            outcomes["symbols"] += 1
        except BitstreamError:
            outcomes["damage"] += 1
    assert fence[0] == fence[-1] == -7
    assert min(outcomes.values()) > 100, outcomes


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"", "empty"),
        (b"\x13\x08\x00" + bytes(16), "no stream prefix: 13"),  # a reserved bit
        (b"\x11\x08", "ends inside the sizes"),
        (b"\x11\x11\x00" + bytes(16), "claims 17 bytes, 16 are left"),
        (b"\x10\xff\xff\xff\xff" + bytes(16), "claims 4294967295 bytes, 16 are left"),
        (b"\x21\x08\x00\x09\x00" + bytes(16), "stream 1 of 3 claims 9 bytes, 8 are left"),
    ],
)
def test_impossible_prefixes_are_damage(payload, complaint):
    with pytest.raises(BitstreamError, match=complaint):
        split_streams(payload)


def test_another_number_of_streams_is_damage(latent):
    call = latent(30)
    for written in (1, 2, 3):
        encoder = Encoder(written, prefixed=True)
        encoder.push(*call)
        payload = encoder.finish()
        for expected in (1, 2, 3):
            if expected != written:
                with pytest.raises(BitstreamError, match=rf"{written} streams \(expected {expected}\)"):
                    Decoder(payload, expected, prefixed=True)
        Decoder(payload, written, prefixed=True)


def test_decoder_is_unusable_after_an_error(latent):
    symbols, indexes, tables = latent(100)
    decoder = Decoder(encode(symbols, indexes, tables)[:-4])
    for _ in range(2):
        with pytest.raises(BitstreamError):
            decoder.decode(indexes, tables)
    with pytest.raises(BitstreamError, match="earlier"):
        decoder.finish()


@pytest.mark.parametrize(
    ("value", "index_type"), [(256, np.int16), (-1, np.int16), (-1, np.int32), (1 << 30, np.int32)]
)
def test_index_without_a_row_is_named(latent, value, index_type):
    symbols, indexes, tables = latent(10)
    good = indexes.numpy().astype(index_type)
    data = encode(symbols, good, tables)
    bad = good.copy()
    bad[6] = value
    for attempt in (
        lambda: encode(symbols, bad, tables),
        lambda: Encoder().push(symbols, bad, tables),
        lambda: decode(data, bad, tables),
        lambda: Decoder(data).decode(bad, tables),
    ):
        with pytest.raises(UsageError, match=rf"indexes\[6\] = {value} \(the tables have rows 0 to 255\)"):
            attempt()


def test_arguments_of_the_wrong_kind_are_refused(latent):
    symbols, indexes, tables = latent(10)
    data = encode(symbols, indexes, tables)
    for attempt, complaint in (
        (lambda: encode(symbols.long(), indexes, tables), "symbols: element type"),
        (lambda: encode(symbols.float(), indexes, tables), "symbols: element type 'f'"),
        (lambda: encode(symbols, indexes.long(), tables), "uint8, int16 or int32"),
        (lambda: encode(symbols[:-1], indexes, tables), "9 elements for 10 indexes"),
        (lambda: encode(symbols.tolist(), indexes, tables), "symbols: list"),
        (lambda: encode(symbols.to("meta"), indexes, tables), "device meta"),
        (lambda: decode(data, indexes, tables, out=torch.empty(9, dtype=torch.int32)), "out: shape"),
        (lambda: decode(data, indexes, tables, out=torch.empty(10)), "out: element type 'f'"),
        (lambda: decode(data, indexes, tables, out=torch.empty(20, dtype=torch.int32)[::2]), "not contiguous"),
        (lambda: decode(data, indexes, tables, out=np.empty(20, np.int32)[::2]), "not contiguous"),
        (lambda: decode(data, indexes, tables, out=np.frombuffer(bytes(40), np.int32)), "writable"),
        (lambda: decode(data.hex(), indexes, tables), "data: <class 'str'>"),
        (lambda: decode(np.zeros(4, np.float32), indexes, tables), "data: element type 'f'"),
        (lambda: Encoder(0), "streams=0"),
        (lambda: Encoder(17), "streams=17"),
        (lambda: Decoder(data, 2, prefixed=False), "prefixed=False"),
    ):
        with pytest.raises(UsageError, match=complaint):
            attempt()


def test_threads_share_tables(latent):
    """Eight threads code at once with one table object: every one gets its own symbols back."""
    symbols, indexes, tables = latent(20_000)
    expected = encode(symbols, indexes, tables)
    wrong = []

    def work(k: int) -> None:
        for _ in range(5):
            mine = symbols.roll(k)
            data = encode(mine, indexes.roll(k), tables)
            if k == 0 and data != expected or not torch.equal(decode(data, indexes.roll(k), tables), mine):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_threads_may_share_a_decoder(latent):
    symbols, indexes, tables = latent(2000)
    few, row = symbols.clamp(-9, 9), indexes * 0 + 128
    assert_threads_may_share(Decoder(encode(few, row, tables)), row, tables, few.sum().item())
