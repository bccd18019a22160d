"""What a bench row calls the memory that a codec needs, with an allocator of numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .conftest import load_script

WEIGHTS, ELSEWHERE, UNUSED = 300, 5000, 700
PLAN, EAGER, POOL, REPLAY = 80, 50, 30, 4


class Codec:
    """Has been called before: buffers and a graph are held, and torch keeps memory that nobody uses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fixed, self.held, self.unused = WEIGHTS + ELSEWHERE, PLAN + POOL, UNUSED
        self.peak = 10**6  # of whatever ran before
        self.calls: list[str] = []
        for name, function in {
            "synchronize": lambda: None,
            "empty_cache": self.empty,
            "memory_reserved": lambda: self.reserved,
            "max_memory_reserved": lambda: self.peak,
            "max_memory_allocated": lambda: self.fixed + PLAN,  # of a graph's pool, nothing
            "reset_peak_memory_stats": self.reset,
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)

    @property
    def reserved(self) -> int:
        return self.fixed + self.held + self.unused

    def take(self, held: int = 0, unused: int = 0) -> None:
        self.held += held
        self.unused += unused
        self.peak = max(self.peak, self.reserved)

    def reset(self) -> None:
        self.peak = self.reserved

    def empty(self) -> None:
        self.unused = 0

    def release(self) -> None:
        self.unused, self.held = self.unused + self.held, 0

    def __call__(self) -> None:
        self.calls.append("replayed" if self.held else "captured")
        if not self.held:
            self.take(held=PLAN, unused=EAGER)
            self.empty()  # as a capture begins
            self.take(held=POOL)
        else:
            self.take(unused=REPLAY)


@pytest.fixture
def peak_bytes():
    return load_script(Path(__file__).parents[1] / "bench" / "conftest.py")._peak_bytes


def test_it_is_what_the_codec_adds_and_neither_weights_nor_what_else_is_there(peak_bytes, monkeypatch):
    codec = Codec(monkeypatch)
    assert peak_bytes([codec], codec) == max(PLAN + EAGER, PLAN + POOL + REPLAY)
    assert codec.calls == ["captured", "replayed"]


def test_the_private_pool_of_a_graph_counts(peak_bytes, monkeypatch):
    monkeypatch.setitem(globals(), "POOL", 90)
    codec = Codec(monkeypatch)
    assert peak_bytes([codec], codec) == PLAN + 90 + REPLAY
