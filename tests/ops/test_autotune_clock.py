"""How tiles are timed: on a GPU played by two clocks, the host's and the stream's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sparsecodec.ops import why_unavailable

if why_unavailable("triton") is not None:
    pytest.skip(str(why_unavailable("triton")), allow_module_level=True)

from triton.runtime.errors import OutOfResources

from sparsecodec._triton import _autotune
from sparsecodec._triton._autotune import Tuner, time_on_device

FLUSH_US = 35.0
TILES = tuple({"BLOCK_P": p} for p in (64, 128, 32))


class Gpu:
    """One stream that works in order behind a host; microseconds.

    Attributes:
        cold, warm: what a launch of each BLOCK_P needs behind a flush, and behind another launch.
        host: what the host needs to launch a kernel.
        drift: how much slower kernels get with each one that was launched, as under a falling clock.
    """

    def __init__(self, cold: dict[int, float], warm: dict[int, float], host: float, drift: float = 0.0) -> None:
        self.cold, self.warm, self.host, self.drift = cold, warm, host, drift
        self.now = self.free_at = 0.0  # of the host; of the stream
        self.flushed = False
        self.launched: list[int] = []

    def queue(self, host: float, device: float) -> None:
        self.now += host
        self.free_at = max(self.free_at, self.now) + device

    def zero_(self) -> None:
        self.queue(5.0, FLUSH_US)
        self.flushed = True

    def run(self, tile) -> None:
        block = tile["BLOCK_P"]
        needs = (self.cold if self.flushed else self.warm)[block] * (1 + self.drift * len(self.launched))
        self.queue(self.host, needs)
        self.flushed = False
        self.launched.append(block)

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace()

        def record() -> None:
            self.queue(2.0, 0.0)
            event.at = self.free_at

        def synchronize() -> None:
            self.now = max(self.now, event.at)

        event.record, event.synchronize = record, synchronize
        event.query = lambda: event.at <= self.now
        event.elapsed_time = lambda end: (end.at - event.at) / 1e3
        return event


@pytest.fixture
def on(monkeypatch):
    """``on(gpu)``: the clock takes that one for torch's."""

    def install(gpu: Gpu) -> Gpu:
        torch = SimpleNamespace(int8=None, empty=lambda *args, **kwargs: gpu, cuda=SimpleNamespace(Event=gpu.event))
        monkeypatch.setattr(_autotune, "torch", torch)
        return gpu

    return install


COLD = {64: 30.0, 128: 12.0, 32: 20.0}
WARM = {64: 4.0, 128: 9.0, 32: 6.0}  # the order is another one


@pytest.mark.parametrize("host", [1.0, 60.0, 700.0])
def test_times_are_the_kernels_behind_a_flush_whatever_a_launch_costs_the_host(on, host):
    gpu = on(Gpu(COLD, WARM, host))
    assert time_on_device(gpu.run, TILES) == pytest.approx([COLD[tile["BLOCK_P"]] / 1e3 for tile in TILES])


def test_the_fastest_is_chosen(on, tmp_path):
    gpu = on(Gpu(COLD, WARM, 60.0))
    assert Tuner(tmp_path, "a GPU").choose("gdn", (1,), TILES, lambda: gpu.run) == TILES[1]


def test_a_falling_clock_meets_all_tiles(on):
    """One after the other, the first tile would seem the fastest."""
    gpu = on(Gpu({64: 12.0, 128: 11.0, 32: 13.0}, WARM, 60.0, drift=0.03))
    times = time_on_device(gpu.run, TILES)
    assert min(times) == times[1] and max(times) == times[2]


def test_a_run_that_was_held_up_now_and_then_does_not_decide(on):
    gpu = on(Gpu(COLD, WARM, 60.0))
    plain = gpu.run

    def run(tile) -> None:
        if len(gpu.launched) == 7:  # the fastest tile's second run, by whatever else uses the device
            gpu.queue(0.0, 1000.0)
        plain(tile)

    assert time_on_device(run, TILES)[1] == pytest.approx(COLD[128] / 1e3)


def test_tiles_that_do_not_fit_are_out_and_are_not_run_again(on):
    gpu = on(Gpu(COLD, WARM, 60.0))
    refused = []

    def run(tile) -> None:
        if tile["BLOCK_P"] == 128:
            refused.append(tile)
            raise OutOfResources(300_000, 232_448, "shared memory")
        gpu.run(tile)

    times = time_on_device(run, TILES)
    assert times[1] == float("inf") and times[2] < times[0] < 1 and len(refused) == 1


def test_a_host_that_waits_for_each_launch_is_not_waited_for_without_end(on):
    """CUDA_LAUNCH_BLOCKING=1: nothing is ever queued ahead."""
    gpu = on(Gpu(COLD, WARM, 60.0))
    plain = gpu.queue

    def blocking(host: float, device: float) -> None:
        plain(host, device)
        gpu.now = gpu.free_at

    gpu.queue = blocking
    assert len(time_on_device(gpu.run, TILES)) == 3
