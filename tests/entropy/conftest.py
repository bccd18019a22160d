"""The judges of the coders: docs/bitstream.md sections 2 and 3b in plain Python, and symbols as of trained models."""

import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sparsecodec.entropy import Decoder, EntropyTables, LaneDecoder, evc_gaussian_tables
from sparsecodec.errors import UsageError

ISAS = ("scalar", "avx2", "avx512")


def _row(tables: EntropyTables, index: int) -> tuple[list[int], int, int]:
    length = int(tables.lengths[index])
    return tables.cdf[index, :length].tolist(), int(tables.offsets[index]), length - 2


@dataclass(frozen=True)
class _Coder:
    """A column of the table in section 2: bits of the lower bound, of a unit and of a digit, and the type of a unit."""

    lower_bits: int
    unit_bits: int
    digit_bits: int
    unit: str

    @property
    def lower(self) -> int:
        return 1 << self.lower_bits

    @property
    def state_units(self) -> int:
        return -(-(self.lower_bits + self.unit_bits) // self.unit_bits)


_CODERS = {64: _Coder(31, 32, 4, "<u4"), 32: _Coder(23, 8, 2, "u1")}


class _OracleWriter:
    def __init__(self, coder: _Coder) -> None:
        self.coder = coder
        self.x = coder.lower
        self.units: list[int] = []

    def shrink(self, frequency: int) -> None:
        bits = self.coder.unit_bits
        while self.x >= (self.coder.lower >> 16 << bits) * frequency:
            self.units.append(self.x % (1 << bits))
            self.x >>= bits

    def interval(self, start: int, frequency: int) -> None:
        self.shrink(frequency)
        self.x = self.x // frequency * 65536 + start + self.x % frequency

    def digit(self, value: int) -> None:
        self.shrink(1 << 16 - self.coder.digit_bits)
        self.x = self.x << self.coder.digit_bits | value

    def finish(self) -> bytes:
        bits = self.coder.unit_bits
        state = [self.x >> bits * k & (1 << bits) - 1 for k in range(self.coder.state_units)]
        return np.array([*state, *reversed(self.units)], self.coder.unit).tobytes()


def _escape_digits(k: int, escape: int, bits: int = 4, *, zigzag: bool = False) -> list[int]:
    """As the decoder reads them: their number, in full digits and one that is not, then they, the lowest one first."""
    raw = k - escape if zigzag else -2 * k - 1 if k < 0 else 2 * (k - escape)
    digits = [raw >> shift & (1 << bits) - 1 for shift in range(0, raw.bit_length(), bits)]
    full = (1 << bits) - 1
    return [full] * (len(digits) // full) + [len(digits) % full, *digits]


def _oracle_encode(symbols, indexes, tables: EntropyTables, bits: int = 64) -> bytes:
    coder = _CODERS[bits]
    writer = _OracleWriter(coder)
    for symbol, index in reversed(list(zip(symbols, indexes, strict=True))):
        cdf, offset, escape = _row(tables, index)
        k = 2 * abs(symbol) - (symbol > 0) if tables.zigzag else symbol - offset
        if not 0 <= k < escape:
            for digit in reversed(_escape_digits(k, escape, coder.digit_bits, zigzag=tables.zigzag)):
                writer.digit(digit)
            k = escape
        writer.interval(cdf[k], cdf[k + 1] - cdf[k])
    return writer.finish()


def _oracle_decode(data: bytes, indexes, tables: EntropyTables, bits: int = 64) -> list[int]:
    coder = _CODERS[bits]
    units = np.frombuffer(data, coder.unit).tolist()
    x = sum(unit << coder.unit_bits * k for k, unit in enumerate(units[: coder.state_units]))
    units = units[coder.state_units :]

    def fill(x: int) -> int:
        while x < coder.lower:
            x = x << coder.unit_bits | units.pop(0)
        return x

    def digit(x: int) -> tuple[int, int]:
        return x % (1 << coder.digit_bits), fill(x >> coder.digit_bits)

    symbols = []
    for index in indexes:
        cdf, offset, escape = _row(tables, index)
        slot = x % 65536
        k = max(i for i in range(len(cdf)) if cdf[i] <= slot)
        x = fill((cdf[k + 1] - cdf[k]) * (x >> 16) + slot - cdf[k])
        if k == escape:
            count, more = 0, True
            while more:
                part, x = digit(x)
                count, more = count + part, part == (1 << coder.digit_bits) - 1
            raw = 0
            for place in range(count):
                part, x = digit(x)
                raw |= part << coder.digit_bits * place
            k = raw + escape if tables.zigzag else -(raw + 1) // 2 if raw % 2 else raw // 2 + escape
        symbols.append(((k + 1) // 2 if k % 2 else -k // 2) if tables.zigzag else offset + k)
    assert x == coder.lower and not units
    return symbols


class _Lanes:
    """A group of lanes while it is written: states, and the words that they emit, the last one first."""

    def __init__(self, lanes: int) -> None:
        self.states = [1 << 16] * lanes
        self.words: list[int] = []

    def shrink(self, lane: int, limit: int) -> None:
        if self.states[lane] >= limit:
            self.words.append(self.states[lane] % 65536)
            self.states[lane] >>= 16

    def symbol(self, lane: int, symbol: int, row: tuple[list[int], int, int]) -> None:
        cdf, offset, escape = row
        k = symbol - offset
        if not 0 <= k < escape:
            for digit in reversed(_escape_digits(k, escape)):
                self.shrink(lane, 1 << 28)
                self.states[lane] = 16 * self.states[lane] + digit
            k = escape
        frequency = cdf[k + 1] - cdf[k]
        self.shrink(lane, frequency << 16)
        x = self.states[lane]
        self.states[lane] = x // frequency * 65536 + cdf[k] + x % frequency

    def finish(self) -> bytes:
        return np.array(self.states, "<u4").tobytes() + np.array(self.words[::-1], "<u2").tobytes()


def _varint(value: int) -> bytes:
    groups = [value >> shift & 127 for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def _oracle_lanes(calls) -> bytes:
    """calls: [(symbols, indexes, tables)], lists -> the payload."""
    total = sum(len(symbols) for symbols, _, _ in calls)
    lanes = 1 << max(0, (total // 16384).bit_length() - 1)
    groups, lanes = max(1, lanes // 32), min(lanes, 32)
    parts = []
    for group in range(groups):
        writer = _Lanes(lanes)
        for symbols, indexes, tables in reversed(calls):
            rows = {index: _row(tables, index) for index in set(indexes)}
            begin = len(symbols) // groups * group
            end = begin + len(symbols) // groups if group + 1 < groups else len(symbols)
            for i in reversed(range(begin, end)):
                writer.symbol((i - begin) % lanes, symbols[i], rows[indexes[i]])
        parts.append(writer.finish())
    return b"".join(_varint(len(part) // 2) for part in parts[:-1]) + b"".join(parts)


@pytest.fixture(scope="session")
def oracle_lanes():
    return _oracle_lanes


@pytest.fixture(scope="session")
def oracle_encode():
    return _oracle_encode


@pytest.fixture(scope="session")
def oracle_decode():
    return _oracle_decode


@pytest.fixture(scope="session")
def latent():
    """n -> (symbols, indexes int16, tables): Gaussian symbols of log-uniform scales, one in 97 far outside its row."""

    def make(n: int, seed: int = 0):
        rng = torch.Generator().manual_seed(seed)
        indexes = torch.randint(0, 256, (n,), generator=rng, dtype=torch.int16)
        scales = 0.11 * torch.exp(indexes * (torch.tensor(64 / 0.11).log() / 255))
        symbols = (torch.randn(n, generator=rng) * scales).round().int()
        symbols[::97] *= 40
        return symbols, indexes, evc_gaussian_tables()

    return make


def _refused(isa: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Why lanes cannot be decoded with this instruction set here; they are from now on if they can."""
    monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
    try:
        LaneDecoder(bytes.fromhex("00000100"), 0)
    except UsageError as error:
        return str(error)


@pytest.fixture
def isas(monkeypatch) -> list[str]:
    """The instruction sets of this CPU that lanes can be decoded with."""
    return [isa for isa in ISAS if _refused(isa, monkeypatch) is None]


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch) -> str:
    """One instruction set after the other, in use."""
    why = _refused(request.param, monkeypatch)
    if why is not None:
        pytest.skip(why)
    return request.param


def assert_threads_may_share(
    decoder: Decoder | LaneDecoder, row: torch.Tensor, tables: EntropyTables, total: int
) -> None:
    """Calls on one decoder are serialised: together twenty threads see every symbol, whose sum is `total`, once."""
    pieces = []
    of_each = len(row) // 20
    threads = [
        threading.Thread(target=lambda: pieces.append(decoder.decode(row[:of_each], tables).sum().item()))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    decoder.finish()
    assert len(pieces) == 20 and sum(pieces) == total
