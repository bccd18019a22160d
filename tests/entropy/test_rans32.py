"""The coder with a 32-bit state: published streams, the judge of conftest.py, joined streams, and damage."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecodec.entropy import (
    Decoder32,
    Encoder32,
    EntropyTables,
    LaneEncoder,
    dcvc_gaussian16_tables,
    dcvc_gaussian16_zigzag_tables,
    dcvc_laplace64_tables,
    encode,
    evc_gaussian_tables,
    join_pairs,
    join_streams,
    observing,
    split_pairs,
)
from sparsecodec.errors import BitstreamError, UsageError

TABLES = {"ascending": dcvc_gaussian16_tables, "zigzag": dcvc_gaussian16_zigzag_tables}


@pytest.fixture(params=TABLES)
def tables(request) -> EntropyTables:
    return TABLES[request.param]()


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def coded(symbols, indexes, tables, streams=1, prefixed=False) -> bytes:
    encoder = Encoder32(streams, prefixed=prefixed)
    encoder.push(np.asarray(symbols, np.int32), np.asarray(indexes), tables)
    return encoder.finish()


def read(data, indexes, tables, streams=1, prefixed=False) -> np.ndarray:
    decoder = Decoder32(data, streams, prefixed=prefixed)
    symbols = decoder.decode(np.asarray(indexes), tables)
    decoder.finish()
    return symbols


def call(seed: int, count: int, skipped: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Symbols as their rows have them, one in 53 far outside; indexes int16, some of them -1."""
    rng = np.random.default_rng(seed)
    indexes = rng.integers(0, 128, count).astype(np.int16)
    symbols = np.round(rng.normal(size=count) * 0.11 * np.exp(indexes * np.log(16 / 0.11) / 127)).astype(np.int32)
    symbols[::53] = rng.integers(-(2**20), 2**20, len(symbols[::53]))
    indexes[rng.random(count) < skipped] = -1
    return symbols, indexes


@pytest.mark.parametrize(
    "tables, stream",
    [(dcvc_gaussian16_tables, "2a4af00f113ff6fd002712"), (dcvc_gaussian16_zigzag_tables, "2efc0204ce3ffefd002712")],
)
def test_published_streams(tables, stream):
    symbols, indexes = ints(0, 1, -1, 3, -9, 40), ints(0, 30, 64, 64, 64, 5)
    assert coded(symbols, indexes, tables()).hex() == stream
    assert read(bytes.fromhex(stream), indexes, tables()).tolist() == symbols.tolist()


@pytest.mark.parametrize(
    "tables, stream",
    [
        (evc_gaussian_tables, "7511973a09000000aef676c823250000"),
        (dcvc_laplace64_tables, "68cbeb5b9c190000f4ff256d23250000"),
    ],
)
def test_published_streams_of_the_wide_coder(tables, stream):
    assert encode(ints(0, 1, -1, 5, -40, 300), ints(0, 60, 128, 128, 128, 10), tables()).hex() == stream


def test_nothing_is_the_first_state(tables):
    assert coded([], np.zeros(0, np.int16), tables).hex() == "00008000"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(st.integers(-12, 12), st.integers(-(2**30), 2**30)), st.integers(0, 127)), max_size=40
    ),
    st.sampled_from(sorted(TABLES)),
)
def test_streams_are_the_judges(oracle_encode, oracle_decode, pairs, name):
    tables = TABLES[name]()
    symbols, indexes = [s for s, _ in pairs], [i for _, i in pairs]
    data = coded(symbols, np.array(indexes, np.uint8), tables)
    assert data == oracle_encode(symbols, indexes, tables, 32)
    assert oracle_decode(data, indexes, tables, 32) == symbols
    assert read(data, np.array(indexes, np.int32), tables).tolist() == symbols


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32])
def test_symbols_at_the_ends_of_their_rows(tables, kind):
    rows = np.arange(128).repeat(8)
    reach = (tables.lengths[rows] - 3) // 2
    symbols = reach * np.tile([-1, -1, -1, 1, 1, 1, 0, 0], 128) + np.tile([-1, 0, 1, -1, 0, 1, -1, 1], 128)
    assert np.array_equal(read(coded(symbols, rows.astype(kind), tables), rows.astype(kind), tables), symbols)


def test_far_symbols(tables):
    far = ints(2**31 - 1, -(2**31 - 1), 2**30, -(2**30)) // (1 if tables.zigzag else 2)
    assert np.array_equal(read(coded(far, ints(3, 9, 70, 127), tables), ints(3, 9, 70, 127), tables), far)


def test_a_symbol_too_far_from_its_row_is_refused():
    with pytest.raises(UsageError, match=r"symbols\[1\] = 2147483647 \(an escape reaches 2\^31"):
        coded([0, 2**31 - 1], ints(0, 0), EntropyTables(ints(0, 1, 65536)[None], ints(3), ints(-(2**30))))


@pytest.mark.parametrize("streams", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("prefixed", [False, True])
def test_several_calls_in_several_streams(tables, streams, prefixed):
    calls = [call(seed, count) for seed, count in enumerate([7, 0, 1, 3000])]
    encoder = Encoder32(streams, prefixed=prefixed)
    for symbols, indexes in calls:
        encoder.push(symbols, indexes, tables)
    decoder = Decoder32(encoder.finish(), streams, prefixed=prefixed)
    for symbols, indexes in calls:
        assert np.array_equal(decoder.decode(indexes, tables), symbols)
    decoder.finish()


def test_skipped_symbols_are_not_in_the_stream(tables):
    """Neither the bytes nor the split over the streams depends on them; they are read as 0."""
    symbols, indexes = call(5, 2001, skipped=0.6)
    kept = indexes >= 0
    for streams in (1, 2, 3):
        data = coded(symbols, indexes, tables, streams)
        assert data == coded(symbols[kept], indexes[kept], tables, streams)
        assert np.array_equal(read(data, indexes, tables, streams), np.where(kept, symbols, 0))


def test_symbols_may_take_the_place_of_their_indexes(tables):
    symbols, indexes = call(6, 999, skipped=0.3)
    memory = torch.from_numpy(indexes.astype(np.int32))
    decoder = Decoder32(coded(symbols, indexes, tables, 2), 2)
    assert decoder.decode(memory, tables, memory) is memory
    assert np.array_equal(memory.numpy(), np.where(indexes >= 0, symbols, 0))


def test_decoded_symbols_are_shown_to_observers(tables):
    symbols, indexes = call(7, 50)
    data, seen = coded(symbols, indexes, tables), []
    with observing(lambda values: seen.append(values.copy())):
        read(data, indexes, tables)
    assert len(seen) == 1 and np.array_equal(seen[0], symbols)


def test_an_index_without_a_row_is_refused(tables):
    with pytest.raises(UsageError, match=r"indexes\[1\] = 128 \(the tables have rows 0 to 127\)"):
        coded([0, 0], np.array([0, 128], np.int16), tables)
    with pytest.raises(UsageError, match=r"indexes\[1\] = 128"):
        read(coded([0, 0], ints(0, 0), tables), ints(0, 128), tables)


def test_zigzag_rows_begin_with_zero():
    with pytest.raises(UsageError, match=r"offsets\[0\] = -1 \(zigzag rows begin with the symbol 0\)"):
        EntropyTables(ints(0, 1, 65536)[None], ints(3), ints(-1), zigzag=True)


def test_lanes_refuse_zigzag_rows():
    with pytest.raises(UsageError, match="zigzag rows"):
        LaneEncoder(1).push(ints(0), ints(0), dcvc_gaussian16_zigzag_tables())


# How streams are joined


@pytest.mark.parametrize(
    "first, second, joined",
    [
        ("01020304", "05060708", "0102030408070605"),
        ("01020307", "05060707", "01020307070605"),  # the same last byte, once
        ("01020000", "05000000", "01020000" + "0005"),  # two zeros in common
        ("010000", "05060007", "010000" + "07000605"),  # a zero meets a 7: nothing in common
        ("0100", "0500", "010005"),
        ("ff" + "00" * 10, "ee" + "00" * 9, "ff" + "00" * 10 + "00" + "ee"),  # eight at most
    ],
)
def test_pairs(first, second, joined):
    assert join_pairs([bytes.fromhex(first), bytes.fromhex(second)]).hex() == joined
    forward, backward = split_pairs(bytes.fromhex(joined), 2)[0]
    assert bytes(forward[: len(first) // 2]).hex() == first and bytes(backward[: len(second) // 2]).hex() == second


def test_groups_of_pairs():
    """Three groups: ends 5 and 9, a pair that shares a byte, one that shares none, and a stream alone."""
    streams = [bytes.fromhex(text) for text in ("010203", "040503", "0607", "0809", "0a0b0c")]
    joined = join_pairs(streams)
    assert joined.hex() == "05000000" + "09000000" + "0102030504" + "06070908" + "0a0b0c"
    groups = split_pairs(joined, 5)
    assert [len(group) for group in groups] == [2, 2, 1]
    assert [bytes(part).hex() for group in groups for part in group] == [
        "0102030504", "0405030201", "06070908", "08090706", "0a0b0c",
    ]  # fmt: skip


def test_one_stream_stands_alone():
    assert join_pairs([b"abc"]) == b"abc" and join_streams([b"abc"]) == b"\x01abc"


@pytest.mark.parametrize("streams", [0, 17])
def test_impossible_numbers_of_streams(streams):
    for attempt in (Encoder32, lambda n: Decoder32(b"\0\0\x80\0", n), lambda n: split_pairs(b"", n)):
        with pytest.raises(UsageError, match=f"streams={streams} \\(needs 1 to 16\\)"):
            attempt(streams)


@pytest.mark.parametrize(
    "data, streams, message",
    [
        ("", 1, "a stream of 0 bytes (needs 4 or more)"),
        ("000080", 1, "a stream of 3 bytes (needs 4 or more)"),
        ("00007f00", 1, "a stream starts with the state 8323072 (needs 2^23 to 2^31 - 1)"),
        ("00000080", 1, "a stream starts with the state 2147483648 (needs 2^23 to 2^31 - 1)"),
        ("000000", 3, "payload of 3 bytes ends inside the ends of its 2 groups"),
        ("09000000" + "00008000" * 2, 3, "group 0 of 2 ends at byte 9 (needs 0 to 8)"),
        ("ffffffff" + "00008000" * 2, 3, "group 0 of 2 ends at byte 4294967295 (needs 0 to 8)"),
        ("0800000007000000" + "00008000" * 3, 5, "group 1 of 3 ends at byte 7 (needs 8 to 12)"),
    ],
)
def test_impossible_payloads(data, streams, message):
    with pytest.raises(BitstreamError) as caught:
        Decoder32(bytes.fromhex(data), streams)
    assert str(caught.value) == message


def test_bytes_that_are_left_or_shared_wrongly_are_noticed(tables):
    symbols, indexes = call(8, 400)
    data = coded(symbols, indexes, tables, 2)
    half = len(data) // 2
    for wrong in (data[:half] + b"\0" + data[half:], data + b"\0", b"\0" + data):
        with pytest.raises(BitstreamError):
            read(wrong, indexes, tables, 2)
    # two streams that share no byte, written as if they shared one that is not there
    alone = [coded(symbols[k], indexes[k], tables) for k in (slice(200), slice(200, 400))]
    assert read(join_pairs(alone), indexes, tables, 2).tolist() == symbols.tolist()
    with pytest.raises(BitstreamError, match="do not join to the"):
        read(alone[0] + b"\0" * 3 + alone[1][::-1], indexes, tables, 2)


@pytest.mark.parametrize("streams", [1, 2, 5])
@pytest.mark.parametrize("prefixed", [False, True])
def test_every_truncation_is_noticed(tables, streams, prefixed):
    symbols, indexes = call(9, 60, skipped=0.2)
    data = coded(symbols, indexes, tables, streams, prefixed)
    for size in range(len(data)):
        with pytest.raises(BitstreamError):
            read(data[:size], indexes, tables, streams, prefixed)


def test_an_escape_of_too_many_digits_is_refused():
    """16 digits of 2 bits at most: a stream that is nothing but ones claims more of them."""
    tables = EntropyTables(ints(0, 1, 65536)[None], ints(3), ints(0))
    with pytest.raises(BitstreamError, match=r"symbol 0: an escape of \d+ digits \(of 16\)"):
        read(b"\xff\xff\xff\x7f" + b"\xff" * 40, ints(0), tables)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 9), st.sampled_from([1, 2, 3, 4]), st.booleans(), st.sampled_from(sorted(TABLES)), st.data())
def test_mutated_payloads_are_refused_or_are_what_was_written(seed, streams, prefixed, name, data):
    tables = TABLES[name]()
    symbols, indexes = call(seed, 80, skipped=0.1)
    payload = bytearray(coded(symbols, indexes, tables, streams, prefixed))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = read(bytes(payload), indexes, tables, streams, prefixed)
    except BitstreamError:
        return
    kept = np.where(indexes >= 0, decoded, 0)
    # Digits of an escape may have zeros in front: then there are shorter bytes for the same symbols.
    assert len(coded(kept, indexes, tables, streams, prefixed)) <= len(payload)
