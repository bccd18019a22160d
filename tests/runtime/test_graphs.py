"""What `CudaGraphs` asks of CUDA, and in which order: of a torch.cuda whose streams, graphs and allocator keep a log.

`torch.cuda.graph` is the installed torch's own.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sparsecodec.runtime import graphs
from sparsecodec.runtime.graphs import CudaGraphs

DEVICE = SimpleNamespace(type="cuda", index=3)
POOL = (0, 7)


class Stream:
    def __init__(self, name: str, log: list) -> None:
        self.name, self.log, self.device = name, log, DEVICE

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} follows {other.name}")


class Cuda:
    """A device with an allocator.

    Attributes:
        underway: pools of captures that the allocator takes for underway.
        users: of each pool.
        fails: what raises: "begin" or "end" of a capture, or nothing.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.caller = self.current = Stream("caller", self.log)
        self.underway: list[tuple] = []
        self.users: dict[tuple, int] = {}
        self.modes: list[str] = []
        self.fails = ""

    def stream(self, stream: Stream) -> Within:
        return Within(self, stream)

    def end_allocation(self, device: int, pool: tuple) -> None:
        assert device == DEVICE.index
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def release(self, device: int, pool: tuple) -> None:
        assert device == DEVICE.index
        self.users[pool] -= 1

    def graph(self) -> Graph:
        return Graph(self)

    def event(self) -> SimpleNamespace:
        return SimpleNamespace(
            record=lambda: self.log.append(f"mark on {self.current.name}"), synchronize=lambda: self.log.append("wait")
        )


class Within:
    """As `torch.cuda.StreamContext`: puts back what was current when it was entered, if it is left."""

    def __init__(self, cuda: Cuda, stream: Stream) -> None:
        self.cuda, self.stream = cuda, stream

    def __enter__(self) -> None:
        self.before, self.cuda.current = self.cuda.current, self.stream

    def __exit__(self, *args: object) -> None:
        self.cuda.current = self.before


class Graph:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def capture_begin(self, pool: tuple, capture_error_mode: str, **options) -> None:
        self.pool = pool
        self.cuda.underway.append(pool)
        self.cuda.users[pool] = self.cuda.users.get(pool, 0) + 1
        self.cuda.modes.append(capture_error_mode)
        if self.cuda.fails == "begin":
            raise RuntimeError("no capture begins")
        self.cuda.log.append(f"capture on {self.cuda.current.name}")

    def capture_end(self) -> None:
        if self.cuda.fails == "end":
            raise RuntimeError("operation failed due to a previous error during capture")
        self.cuda.underway.remove(self.pool)
        self.cuda.log.append("captured")

    def replay(self) -> None:
        self.cuda.log.append("replay")


@pytest.fixture
def cuda(monkeypatch) -> Cuda:
    fake = Cuda()
    for name, value in {
        "Stream": lambda device: Stream("own", fake.log),
        "stream": fake.stream,
        "current_stream": lambda device=None: fake.current,
        "CUDAGraph": fake.graph,
        "graph_pool_handle": lambda: POOL,
        "Event": fake.event,
        "synchronize": lambda: None,
        "empty_cache": lambda: fake.log.append(f"emptied, {'locked' if graphs._capturing.locked() else 'free'}"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", fake.end_allocation, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", fake.release, raising=False)
    return fake


def test_work_follows_the_callers_stream_which_follows_it(cuda):
    with CudaGraphs(DEVICE).session():
        cuda.log.append(f"work on {cuda.current.name}")
    assert cuda.log == ["own follows caller", "work on own", "caller follows own"]
    assert cuda.current is cuda.caller


def test_the_callers_stream_follows_work_that_failed(cuda):
    """What was launched before may still read the caller's tensors."""
    with pytest.raises(ValueError, match="damage"), CudaGraphs(DEVICE).session():
        raise ValueError("damage")
    assert cuda.log == ["own follows caller", "caller follows own"] and cuda.current is cuda.caller


def test_a_capture_is_on_the_codecs_stream_alone_in_the_process_and_lets_other_threads_work(cuda):
    held = []

    def work() -> int:
        held.append(graphs._capturing.locked())
        cuda.log.append(f"work on {cuda.current.name}")
        return 5

    ours = CudaGraphs(DEVICE)
    result, replay = ours.capture(work, ours.new_pool())
    assert result == 5 and held == [True] and not graphs._capturing.locked()
    replay()
    assert cuda.log[-4:] == ["capture on own", "work on own", "captured", "replay"]
    assert cuda.modes == ["thread_local"] and cuda.users == {POOL: 1}
    assert cuda.current is cuda.caller


@pytest.mark.parametrize("fails", ["begin", "end"])
def test_after_a_capture_that_failed_stream_lock_and_allocator_are_as_before(cuda, fails):
    """Else the allocator defers for ever what other streams have used: a picture of each decode."""
    ours = CudaGraphs(DEVICE)
    ours.capture(lambda: None, POOL)  # another graph of the same pool, which keeps it
    cuda.fails = fails
    with pytest.raises(RuntimeError, match="no capture begins|previous error during capture"):
        ours.capture(lambda: None, POOL)
    assert cuda.underway == [] and cuda.users == {POOL: 1}
    assert cuda.current is cuda.caller and not graphs._capturing.locked()


def test_work_that_fails_by_itself_ends_its_capture_once(cuda):
    """The graph is recorded and gives the pool back itself."""

    def work() -> None:
        raise RuntimeError("another number of coding calls")

    with pytest.raises(RuntimeError, match="another number"):
        CudaGraphs(DEVICE).capture(work, POOL)
    assert cuda.underway == [] and cuda.users == {POOL: 1} and cuda.log[-1] == "captured"
    assert cuda.current is cuda.caller


def test_a_torch_without_those_calls_still_says_what_failed(cuda, monkeypatch):
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    cuda.fails = "end"
    with pytest.raises(RuntimeError, match="previous error during capture"):
        CudaGraphs(DEVICE).capture(lambda: None, POOL)


def test_memory_is_given_back_while_nothing_is_captured(cuda):
    CudaGraphs(DEVICE).give_back()
    assert cuda.log == ["emptied, locked"]


def test_results_are_copies_that_the_allocator_keeps_for_the_callers_stream(cuda):
    copy = SimpleNamespace(record_stream=lambda stream: cuda.log.append(f"kept for {stream.name}"))
    ours = CudaGraphs(DEVICE)
    with ours.session():
        assert ours.handed_over(SimpleNamespace(clone=lambda: copy)) is copy
    assert cuda.log == ["own follows caller", "kept for caller", "caller follows own"]


def test_the_host_waits_for_a_mark_in_the_codecs_work(cuda):
    ours = CudaGraphs(DEVICE)
    with ours.session():
        mark = ours.mark()
        ours.wait(mark)
    assert cuda.log[1:-1] == ["mark on own", "wait"]


def test_what_crosses_to_the_host_is_page_locked(cuda, monkeypatch):
    made = []
    monkeypatch.setattr(torch, "empty", lambda shape, **options: made.append((shape, options)))
    CudaGraphs(DEVICE).pinned(torch.zeros(2, 3, dtype=torch.int16))
    assert made == [(torch.Size((2, 3)), {"dtype": torch.int16, "device": "cpu", "pin_memory": True})]
