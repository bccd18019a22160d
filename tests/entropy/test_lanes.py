"""The lanes coder against the oracle of conftest.py, and every instruction set and thread count against each other."""

import ctypes
import mmap
import os

import numpy as np
import pytest
import torch

from sparsecodec.entropy import EntropyTables, LaneDecoder, LaneEncoder, evc_gaussian_tables
from sparsecodec.errors import BitstreamError, UsageError

from .conftest import assert_threads_may_share

INT32 = np.iinfo(np.int32)
# Symbols that make 1, 2, 4 .. 32 lanes, and two groups of 32.
TOTALS = {lanes: 16384 * lanes + 77 for lanes in (1, 2, 4, 8, 16, 32, 64)}


def total_of(calls) -> int:
    return sum(len(symbols) for symbols, _, _ in calls)


def encode(calls) -> bytes:
    encoder = LaneEncoder(total_of(calls))
    for call in calls:
        encoder.push(*call)
    return encoder.finish()


def decode(payload: bytes, calls) -> list:
    decoder = LaneDecoder(payload, total_of(calls))
    symbols = [decoder.decode(indexes, tables) for _, indexes, tables in calls]
    decoder.finish()
    return symbols


def assert_round_trip(calls, payload: bytes | None = None) -> None:
    for (symbols, _, _), decoded in zip(calls, decode(payload or encode(calls), calls), strict=True):
        assert np.array_equal(decoded, symbols)


def outcome(payload, calls) -> str | list:
    """The symbols, or the error with its text."""
    try:
        return [np.asarray(symbols).tolist() for symbols in decode(payload, calls)]
    except (BitstreamError, UsageError) as error:
        return f"{type(error).__name__}: {error}"


def table(*frequencies: list[int], offset: int = 0) -> EntropyTables:
    """A row for each list of frequencies of 65536 slots, the escape's last."""
    cdf = np.zeros((len(frequencies), max(map(len, frequencies)) + 1), np.int32)
    for row, values in zip(cdf, frequencies, strict=True):
        row[1 : len(values) + 1] = np.cumsum(values)
    lengths = np.array([len(values) + 1 for values in frequencies], np.int32)
    return EntropyTables(cdf, lengths, np.full(len(frequencies), offset, np.int32))


def test_golden_payloads(isa):
    golden = bytes.fromhex("81da2300 80f6b2f3 03005202")
    call = np.array([0, 1, -1, 5, -40, 300], np.int32), np.array([0, 60, 128, 128, 128, 10], np.uint8)
    assert encode([(*call, evc_gaussian_tables())]) == golden
    assert_round_trip([(*call, evc_gaussian_tables())], golden)
    assert LaneEncoder(0).finish() == bytes.fromhex("00000100")
    assert decode(bytes.fromhex("00000100"), []) == []


@pytest.mark.parametrize("lanes", [0, *TOTALS])
def test_same_bytes_as_oracle(latent, oracle_lanes, lanes):
    total = TOTALS[lanes] if lanes else 300
    calls = [latent(n, seed) for seed, n in enumerate((1, 60, total - 61))]
    assert encode(calls) == oracle_lanes([(s.tolist(), i.tolist(), t) for s, i, t in calls])


@pytest.mark.parametrize("index_type", [np.uint8, np.int16, np.int32])
@pytest.mark.parametrize("lanes", list(TOTALS))
def test_calls_of_every_size(latent, isa, lanes, index_type):
    """Around a step of all lanes, in one group and in two, at the payload's beginning, middle and end."""
    sizes = [0, 1, 2, lanes - 1, lanes, lanes + 1, 2 * lanes - 1, 2 * lanes, 2 * lanes + 1, 5 * lanes + 3]
    sizes += [TOTALS[lanes] - 2 * sum(sizes), *sizes]
    symbols, indexes, tables = latent(TOTALS[lanes])
    ends = np.cumsum(sizes)
    pieces = [(symbols.numpy()[e - n : e], indexes.numpy()[e - n : e]) for e, n in zip(ends, sizes, strict=True)]
    assert_round_trip([(s, i.astype(index_type), tables) for s, i in pieces])


@pytest.mark.parametrize("lanes", [1, 8, 16, 32])
@pytest.mark.parametrize("every", [1, 2, 1000])
def test_escapes_everywhere(isa, lanes, every):
    """All symbols, every second one, a few: far ones, the nearest ones, and both ends of 32 bits."""
    rng = np.random.default_rng(0)
    symbols = rng.integers(0, 3, TOTALS[lanes], np.int32)
    far = symbols[::every]
    far[:] = rng.integers(-(2**20), 2**20, far.size, np.int32) >> rng.integers(0, 20, far.size, np.int32)
    far[:: max(1, far.size // 3)] = INT32.min
    far[1 :: max(1, far.size // 3)] = INT32.max
    assert_round_trip([(symbols, np.zeros_like(symbols), table([40000, 20000, 5000, 536]))])


@pytest.mark.parametrize("lanes", [1, 8, 32])
def test_extreme_rows(isa, lanes):
    """Frequency 1 and 65535 on both sides of the escape, a lone escape, a slot per symbol, buckets of three symbols."""
    rows = [[65535, 1], [1, 65535], [1, 65534, 1], [65536], [1] * 65536, [16384, 1, 1, 1, 49149]]
    rng = np.random.default_rng(0)
    indexes = rng.integers(0, len(rows), TOTALS[lanes], np.int32)
    plain = np.array([len(row) - 1 for row in rows])[indexes]
    symbols = (rng.random(len(indexes)) * (plain + 1) - 0.1).astype(np.int32) - 7  # some beyond the last plain one
    assert_round_trip([(symbols, indexes, table(*rows, offset=-7))])


def test_encoder_divides_exactly_by_every_frequency():
    """The decoder multiplies only: what it undoes was divided well. States range over [65536, 2^32) as symbols mix."""
    rng = np.random.default_rng(0)
    for begin in range(1, 65536, 4096):
        frequencies = np.arange(begin, min(begin + 4096, 65536))
        cdf = np.stack([0 * frequencies, frequencies, 0 * frequencies + 65536], 1).astype(np.int32)
        tables = EntropyTables(cdf, np.full(len(cdf), 3, np.int32), np.zeros(len(cdf), np.int32))
        indexes = np.tile(np.arange(len(cdf), dtype=np.int32), 10)
        assert_round_trip([((rng.random(len(indexes)) < 0.02).astype(np.int32), indexes, tables)])


def test_threads_and_instruction_sets_change_nothing(latent, monkeypatch, isas):
    """Payloads and symbols for 1 to 8 threads, in four groups; out may be the memory of the indexes."""
    calls = [latent(n, seed) for seed, n in enumerate((400_000, 5000, 1_800_000))]
    payload = encode(calls)
    threads = torch.get_num_threads()
    try:
        for isa in isas:
            monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
            for count in range(1, 9):
                torch.set_num_threads(count)
                assert_round_trip(calls, payload)
                if isa == "scalar":
                    assert encode(calls) == payload
            decoder = LaneDecoder(payload, total_of(calls))
            for symbols, indexes, tables in calls:
                same = indexes.int()
                assert decoder.decode(same, tables, out=same) is same and torch.equal(same, symbols)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("lanes", [1, 16, 32, 64])
def test_damage_has_one_outcome(latent, monkeypatch, isas, lanes):
    """Flips, truncations, extensions, splices: the same symbols or the same words on every instruction set."""
    symbols, indexes, tables = latent(TOTALS[lanes])
    calls = [(symbols[:1000], indexes[:1000], tables), (symbols[1000:], indexes[1000:], tables)]
    payload = encode(calls)
    rng = np.random.default_rng(lanes)
    damaged = [payload + b"\0\0", payload + b"\0", payload[:-2], payload[: len(payload) // 2]]
    for _ in range(12):
        flipped = bytearray(payload)
        flipped[rng.integers(len(payload))] ^= 1 << rng.integers(8)
        cut, length = rng.integers(len(payload) // 2, size=2)
        damaged += [flipped, payload[: len(payload) - cut], payload[:cut] + rng.bytes(length) + payload[cut + length :]]
    damaged.append(payload[: 4 * lanes + 4] + bytes(len(payload)))
    refused = 0
    for case in damaged:
        outcomes = []
        for isa in isas:
            monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
            outcomes.append(outcome(case, calls))
        assert all(one == outcomes[0] for one in outcomes)
        refused += isinstance(outcomes[0], str)
    assert refused > 0.8 * len(damaged)  # the others are digits of escapes


def test_every_truncation_and_extension_is_damage(latent):
    calls = [latent(300)]
    payload = encode(calls)
    for size in range(len(payload)):
        assert outcome(payload[:size], calls).startswith("BitstreamError")
    for extra in (b"\0", b"\0\0", b"\0\0\1\0"):
        assert outcome(payload + extra, calls).startswith("BitstreamError")


def test_flipped_bits_are_damage_or_other_symbols(latent):
    """Hardly a flip passes in a stream without escapes (digits are raw bits), and none leaves all symbols alone."""
    symbols, indexes, tables = latent(300)
    for values, most in ((symbols.clamp(-2, 2), 0.004), (symbols, 0.2)):
        calls = [(values, indexes, tables)]
        payload = encode(calls)
        passed = 0
        for bit in range(8 * len(payload)):
            flipped = bytearray(payload)
            flipped[bit // 8] ^= 1 << bit % 8
            result = outcome(flipped, calls)
            if isinstance(result, str):
                assert result.startswith("BitstreamError")
                continue
            assert result[0] != values.tolist()
            passed += 1
        assert passed <= most * 8 * len(payload)


def test_random_bytes_never_do_harm(latent, isa):
    """Random payloads of 1, 16 and 64 lanes: symbols or BitstreamError, and nothing written past `out`."""
    rng = np.random.default_rng(0)
    for lanes, rounds in ((1, 2000), (16, 40), (64, 10)):
        total = TOTALS[lanes]
        _, indexes, tables = latent(total)
        fence = torch.full((total + 2,), -7, dtype=torch.int32)
        for _ in range(rounds):
            payload = bytearray(rng.bytes(4 * lanes + 2 * int(rng.integers(0, total // 2))))
            if lanes == 64:
                payload = b"\xff\x7f" + payload  # group 0 has 16383 words
            try:
                LaneDecoder(bytes(payload), total).decode(indexes, tables, out=fence[1:-1])
            except BitstreamError:
                pass
            assert fence[0] == fence[-1] == -7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that may crash")
@pytest.mark.parametrize("lanes", [1, 8, 16, 32, 64])
@pytest.mark.parametrize("index_type", [np.uint8, np.int16, np.int32])
def test_reads_end_with_the_buffers(latent, isa, lanes, index_type):
    """Payload and indexes end where forbidden pages begin: one byte too far would end the process."""
    symbols, indexes, tables = latent(TOTALS[lanes])
    payload = encode([(symbols, indexes, tables)])

    def before_a_fence(data: bytes) -> memoryview:
        size = -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = mmap.mmap(-1, size + mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        view = memoryview(pages)[size - len(data) : size]
        view[:] = data
        return view

    rows = np.frombuffer(before_a_fence(indexes.numpy().astype(index_type).tobytes()), index_type)
    cases = [before_a_fence(payload[: len(payload) - cut]) for cut in (0, 2, 2 * lanes, 200)]
    child = os.fork()
    if child == 0:
        outcomes = [outcome(case, [(symbols, rows, tables)]) for case in cases]
        os._exit([isinstance(result, str) for result in outcomes] != [False, True, True, True])
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("lanes", "payload", "complaint"),
    [
        (1, b"", "a payload of 0 bytes for 1 groups of 1 lanes"),
        (1, bytes(3), "a payload of 3 bytes"),
        (1, bytes.fromhex("ffff0000"), "lane 0 starts with the state 65535"),
        (1, bytes.fromhex("00000100 00"), "5 bytes with 5 left"),
        (16, bytes.fromhex("00000100") * 15, "a payload of 60 bytes for 1 groups of 16 lanes"),
        (
            16,
            bytes.fromhex("00000100") * 9 + bytes(4) + bytes.fromhex("00000100") * 6,
            "lane 9 starts with the state 0",
        ),
        (64, b"\x80" * 256, "the size of group 0 is no varint"),
        (64, b"\xc0\x00" + bytes.fromhex("00000100") * 64, "the size of group 0 is no varint"),
        (64, b"\xff\xff\xff\xff\x1f" + bytes.fromhex("00000100") * 64, "the size of group 0 is no varint"),
        (64, b"\xff\xff\xff\xff\x0f" + bytes.fromhex("00000100") * 64, "group 0 of 2: 8589934590 bytes with 256 left"),
        (64, b"\x3f" + bytes.fromhex("00000100") * 64, "group 0 of 2: 126 bytes"),
        (64, b"\x41" + bytes.fromhex("00000100") * 64, "group 1 of 2: 126 bytes"),
        (64, b"\x40" + bytes.fromhex("00000100") * 64 + b"\0", "group 1 of 2: 129 bytes"),
    ],
)
def test_impossible_payloads_are_damage(lanes, payload, complaint):
    with pytest.raises(BitstreamError, match=complaint):
        LaneDecoder(payload, TOTALS[lanes])


def test_errors_name_the_group(latent, oracle_lanes):
    symbols, indexes, tables = latent(TOTALS[64])
    symbols = symbols.clamp(-2, 2)
    calls = [(symbols, indexes, tables)]
    payload = encode(calls)
    with pytest.raises(BitstreamError, match=r"group 1 of 2 ends before symbol 10485\d\d"):
        decode(payload[:-2], calls)
    swapped = payload[:999] + payload[1001:1003] + payload[999:1001] + payload[1003:]
    for damaged in (swapped, swapped[:-2]):  # the second one in both groups: that of the first counts
        with pytest.raises(BitstreamError, match=r"group 0 of 2"):
            decode(damaged, calls)
    with pytest.raises(BitstreamError, match=r"group 1 of 2: 2 bytes are left after its last symbol"):
        decode(payload + b"\0\0", calls)
    far = oracle_lanes([([1, 2**33, 0], [5, 5, 5], tables)])
    call = [(symbols[:3], indexes[:3] * 0 + 5, tables)]
    with pytest.raises(BitstreamError, match="group 0 of 1, symbol 1: an escape of 9 digits"):
        decode(far, call)
    with pytest.raises(BitstreamError, match="group 0 of 1, symbol 1: escaped value -2147483650 exceeds 32 bits"):
        decode(oracle_lanes([([1, -(2**31) - 2, 0], [5, 5, 5], tables)]), call)


@pytest.mark.parametrize("lanes", [1, 8, 32, 64])
@pytest.mark.parametrize(
    ("value", "index_type"), [(256, np.int16), (-1, np.int16), (-1, np.int32), (1 << 30, np.int32)]
)
def test_index_without_a_row_is_named(latent, isa, lanes, value, index_type):
    symbols, indexes, tables = latent(TOTALS[lanes])
    payload = encode([(symbols, indexes, tables)])
    bad = indexes.numpy().astype(index_type)
    place = len(bad) - 41
    bad[place] = bad[place + 1] = value
    for attempt in (
        lambda: LaneDecoder(payload, len(bad)).decode(bad, tables),
        lambda: LaneEncoder(len(bad)).push(symbols, bad, tables),
    ):
        with pytest.raises(UsageError, match=rf"indexes\[{place}\] = {value} \(the tables have rows 0 to 255\)"):
            attempt()


def test_totals_are_kept(latent):
    symbols, indexes, tables = latent(10)
    for total in (-1, 2**40 + 1):
        for attempt in (lambda total=total: LaneEncoder(total), lambda total=total: LaneDecoder(b"", total)):
            with pytest.raises(UsageError, match=f"total={total}"):
                attempt()
    with pytest.raises(BitstreamError, match="a payload of 8 bytes for 2097152 groups"):
        LaneDecoder(bytes(8), 2**40)

    encoder = LaneEncoder(15)
    encoder.push(symbols, indexes, tables)
    with pytest.raises(UsageError, match=r"10 symbols behind 10 \(total=15\)"):
        encoder.push(symbols, indexes, tables)
    with pytest.raises(UsageError, match=r"10 symbols were pushed \(total=15\)"):
        encoder.finish()
    encoder.push(symbols[:5], indexes[:5], tables)  # what was refused was not added
    payload = encoder.finish()
    assert payload == encode([(symbols, indexes, tables), (symbols[:5], indexes[:5], tables)])
    encoder.push(symbols, indexes, tables)
    encoder.push(symbols[:5], indexes[:5], tables)
    assert encoder.finish() == payload

    decoder = LaneDecoder(payload, 15)
    decoder.decode(indexes, tables)
    with pytest.raises(UsageError, match=r"10 indexes behind 10 symbols \(total=15\)"):
        decoder.decode(indexes, tables)
    with pytest.raises(UsageError, match=r"10 symbols were decoded \(total=15\)"):
        decoder.finish()
    decoder.decode(indexes[:5], tables)
    decoder.finish()


def test_symbol_beyond_the_reach_of_an_escape_is_refused():
    near, far = table([9, 65527], offset=0), table([9, 65527], offset=1000)
    symbols, indexes = np.array([1000, INT32.min], np.int32), np.zeros(2, np.uint8)
    with pytest.raises(UsageError, match=r"symbols\[1\] = -2147483648 \(an escape reaches 2\^31"):
        LaneEncoder(2).push(symbols, indexes, far)
    assert_round_trip([(symbols, indexes, near)])


def test_decoder_is_unusable_after_an_error(latent):
    symbols, indexes, tables = latent(100)
    decoder = LaneDecoder(encode([(symbols, indexes, tables)])[:-4], 100)
    with pytest.raises(BitstreamError, match="group 0 of 1 ends before symbol"):
        decoder.decode(indexes, tables)
    for attempt in (lambda: decoder.decode(indexes, tables), decoder.finish):
        with pytest.raises(BitstreamError, match="earlier"):
            attempt()


def test_wrong_tables_are_noticed(latent):
    symbols, indexes, tables = latent(3000)
    payload = encode([(symbols, indexes, tables)])
    assert outcome(payload, [(symbols, indexes.flip(0), tables)]).startswith("BitstreamError")


def test_arguments_of_the_wrong_kind_are_refused(latent):
    symbols, indexes, tables = latent(10)
    payload = encode([(symbols, indexes, tables)])
    for attempt, complaint in (
        (lambda: LaneEncoder(10).push(symbols.long(), indexes, tables), "symbols: element type"),
        (lambda: LaneEncoder(10).push(symbols, indexes.long(), tables), "uint8, int16 or int32"),
        (lambda: LaneEncoder(10).push(symbols[:-1], indexes, tables), "9 elements for 10 indexes"),
        (lambda: LaneDecoder(payload, 10).decode(indexes, tables, torch.empty(9, dtype=torch.int32)), "out: shape"),
        (lambda: LaneDecoder(payload, 10).decode(indexes, tables, torch.empty(10)), "out: element type 'f'"),
        (lambda: LaneDecoder(payload.hex(), 10), "payload: <class 'str'>"),
    ):
        with pytest.raises(UsageError, match=complaint):
            attempt()


def test_threads_may_share_a_decoder(latent):
    symbols, indexes, tables = latent(2000)
    few, row = symbols.clamp(-9, 9), indexes * 0 + 128
    assert_threads_may_share(LaneDecoder(encode([(few, row, tables)]), 2000), row, tables, few.sum().item())
