"""The judge of the coder: docs/bitstream.md section 2 in plain Python, and symbols such as trained models produce."""

import numpy as np
import pytest
import torch

from sparsecodec.entropy import EntropyTables, evc_gaussian_tables

LOWER = 1 << 31


def _row(tables: EntropyTables, index: int) -> tuple[list[int], int, int]:
    length = int(tables.lengths[index])
    return tables.cdf[index, :length].tolist(), int(tables.offsets[index]), length - 2


class _OracleWriter:
    def __init__(self) -> None:
        self.x = LOWER
        self.words: list[int] = []

    def shrink(self, frequency: int) -> None:
        if self.x >= frequency << 47:
            self.words.append(self.x & 0xFFFFFFFF)
            self.x >>= 32

    def interval(self, start: int, frequency: int) -> None:
        self.shrink(frequency)
        self.x = self.x // frequency * 65536 + start + self.x % frequency

    def digit(self, value: int) -> None:
        self.shrink(1 << 12)
        self.x = self.x << 4 | value

    def finish(self) -> bytes:
        words = [self.x & 0xFFFFFFFF, self.x >> 32, *reversed(self.words)]
        return np.array(words, "<u4").tobytes()


def _oracle_encode(symbols, indexes, tables: EntropyTables) -> bytes:
    writer = _OracleWriter()
    for symbol, index in reversed(list(zip(symbols, indexes, strict=True))):
        cdf, offset, escape = _row(tables, index)
        k = symbol - offset
        if not 0 <= k < escape:
            raw = -2 * k - 1 if k < 0 else 2 * (k - escape)
            digits = [int(d, 16) for d in reversed(f"{raw:x}")] if raw else []
            for digit in reversed([len(digits), *digits]):
                writer.digit(digit)
            k = escape
        writer.interval(cdf[k], cdf[k + 1] - cdf[k])
    return writer.finish()


def _oracle_decode(data: bytes, indexes, tables: EntropyTables) -> list[int]:
    words = np.frombuffer(data, "<u4").tolist()
    x, words = words[0] | words[1] << 32, words[2:]

    def fill(x: int) -> int:
        return x << 32 | words.pop(0) if x < LOWER else x

    symbols = []
    for index in indexes:
        cdf, offset, escape = _row(tables, index)
        slot = x % 65536
        k = max(i for i in range(len(cdf)) if cdf[i] <= slot)
        x = fill((cdf[k + 1] - cdf[k]) * (x >> 16) + slot - cdf[k])
        if k == escape:
            digits = []
            for _ in range(x % 16 + 1):
                digits.append(x % 16)
                x = fill(x >> 4)
            raw = sum(digit << 4 * i for i, digit in enumerate(digits[1:]))
            k = -(raw + 1) // 2 if raw % 2 else raw // 2 + escape
        symbols.append(offset + k)
    assert x == LOWER and not words
    return symbols


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
