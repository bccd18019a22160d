"""Threads on streams of their own share a codec's buffers: on a CPU taken for a GPU whose streams keep a log."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsecodec.ops import use_backend
from sparsecodec.runtime.executor import Executor
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.runtime.turns import Turns

from .recorded_graphs import RecordedGraphs

CPU, CUDA = torch.device("cpu"), SimpleNamespace(type="cuda")


class Stream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} follows {other.name}")


class Gpu:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.one, self.other, self.own = (Stream(name, self.log) for name in ("one", "other", "own"))
        self.current = self.one
        self.capturing = False


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    """What is on the CPU counts as on a GPU."""
    fake, take = Gpu(), Turns.take
    monkeypatch.setattr(Turns, "take", lambda self, device: take(self, CUDA))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: fake.current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: fake.capturing)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, stream: fake.log.append(f"kept for {stream.name}")
    )
    return fake


def compiled() -> CompiledTransform:
    with use_backend("reference"):
        layers = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)).eval().requires_grad_(False)
        return CompiledTransform(layers, "layers", torch.float32)


def test_on_one_stream_nothing_waits(gpu):
    turns = Turns()
    assert [turns.take(CUDA) for _ in range(3)] == [gpu.one] * 3 and gpu.log == []


def test_another_stream_waits_for_the_last_one_and_for_no_other(gpu):
    turns = Turns()
    for stream in (gpu.one, gpu.other, gpu.other, gpu.own, gpu.one):
        gpu.current = stream
        turns.take(CUDA)
    assert gpu.log == ["other follows one", "own follows other", "one follows own"]


def test_a_capture_of_the_callers_waits_for_nothing(gpu):
    """It would be refused; and what is captured has not run: nobody waits for it."""
    turns = Turns()
    turns.take(CUDA)
    gpu.current, gpu.capturing = gpu.other, True
    assert turns.take(CUDA) is None and gpu.log == []
    gpu.current, gpu.capturing = gpu.own, False
    turns.take(CUDA)
    assert gpu.log == ["own follows one"]


def test_a_cpu_has_no_streams(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", pytest.fail)
    assert Turns().take(CPU) is None


def test_a_call_waits_before_it_writes_to_the_buffers_and_they_live_as_long_as_its_stream(gpu, monkeypatch):
    transform, x = compiled(), torch.zeros(1, 8, 4, 4)
    run = CompiledTransform._run
    monkeypatch.setattr(CompiledTransform, "_run", lambda *args: gpu.log.append("step") or run(*args))
    transform(x)
    kept = gpu.log.count("kept for one")
    assert kept == 2 and gpu.log == ["kept for one"] * kept + ["step"] * 2
    for stream in (gpu.other, gpu.one):
        gpu.log.clear()
        before, gpu.current = gpu.current, stream
        transform(x)
        held = [f"kept for {stream.name}"] * kept if stream is gpu.other else []
        assert gpu.log == [f"{stream.name} follows {before.name}", *held, "step", "step"]


def test_a_new_size_waits_too(gpu):
    """Its buffers are new, the packed weights are not."""
    transform = compiled()
    transform(torch.zeros(1, 8, 4, 4))
    gpu.current = gpu.other
    transform(torch.zeros(1, 8, 8, 4))
    assert gpu.log[-3:] == ["other follows one", "kept for other", "kept for other"]


def test_replays_and_calls_share_the_buffers(gpu):
    """A transform that a routine runs in graphs, on the codec's own stream, and that another thread calls by itself."""
    transform, runner, x = compiled(), Executor(CPU, RecordedGraphs()), torch.rand(1, 8, 4, 4)

    def routine(x):
        yield from ()
        return transform(x)

    gpu.current = gpu.own
    first = runner.run(routine, x, host=None)
    assert runner.refusals == [] and "follows" not in " ".join(gpu.log)
    for _ in range(2):
        gpu.log.clear()
        gpu.current = gpu.one
        transform(x)
        gpu.current = gpu.own
        assert torch.equal(runner.run(routine, x, host=None), first)
        assert [line for line in gpu.log if "follows" in line] == ["one follows own", "own follows one"]
