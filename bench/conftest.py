"""What the suites share: clocks for hosts and for GPUs, and one row per timed case with the machine it was timed on."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest
import torch

from sparsecodec.info import device_name, environment
from sparsecodec.models import create
from sparsecodec.runtime.executor import Executor
from sparsecodec.runtime.graphs import CudaGraphs
from sparsecodec.sparsity import compact, count, magnitude_scores, masks_for_macs, trace_model
from sparsecodec.training.families import family_of

RESULTS = Path(__file__).parent / "results"
Calls = dict[str, Sequence[Callable[[], object]]]  # contender -> the same call on rotated inputs


class HostClock:
    """For calls that end on the host: wall time, or, of calls that stay on one thread of a shared machine, CPU time."""

    uncaptured: dict[str, str] = {}

    def __init__(self, one_thread: bool = False) -> None:
        self.name = f"{'thread CPU time' if one_thread else 'host'}, rounds interleaved"
        self._now = time.thread_time if one_thread else time.perf_counter

    def race(self, calls: Calls, rounds: int) -> dict[str, list[float]]:
        """Seconds of each contender's call, one of each per round, after one that does not count."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for rotated in calls.values():
            rotated[0]()
        for number in range(rounds):
            for name, rotated in calls.items():
                call = rotated[number % len(rotated)]
                start = self._now()
                call()
                times[name].append(self._now() - start)
        return times


class DeviceClock:
    """Time on a GPU between two events around a CUDA graph that holds a contender's calls on all its rotated inputs.

    The second-level cache is flushed before each graph, and inputs are rotated within, so that every call finds its
    inputs in memory. What cannot be captured is launched call by call.

    Args:
        capture: False for calls that replay graphs of their own, which no other graph takes.

    Attributes:
        uncaptured: contenders of the last race that were launched call by call, and why: to launch may take longer.
    """

    name = "CUDA events, graph over rotated inputs, L2 flushed, rounds interleaved"

    def __init__(self, capture: bool = True) -> None:
        self._capture = capture
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._flush = torch.empty(2 * cache, dtype=torch.uint8, device="cuda")
        self._graphs = CudaGraphs(self._flush.device)

    def race(self, calls: Calls, rounds: int) -> dict[str, list[float]]:
        """As `HostClock.race`, seconds on the device."""
        self.uncaptured = {}
        launches = {name: self._captured(name, rotated) for name, rotated in calls.items()}
        events = {name: [(_event(), _event()) for _ in range(rounds)] for name in calls}
        for number in range(rounds):
            for name, launch in launches.items():
                start, end = events[name][number]
                self._flush.zero_()
                start.record()
                launch()
                end.record()
        torch.cuda.synchronize()
        return {
            name: [start.elapsed_time(end) / 1e3 / len(calls[name]) for start, end in pairs]
            for name, pairs in events.items()
        }

    def _captured(self, name: str, rotated: Sequence[Callable[[], object]]) -> Callable[[], None]:
        def launch() -> None:
            for call in rotated:
                call()

        if not self._capture:
            launch()
            return launch
        with self._graphs.session():
            for _ in range(3):
                launch()
            torch.cuda.synchronize()
            try:
                _, replay = self._graphs.capture(launch, self._graphs.new_pool())
            except RuntimeError as error:
                self.uncaptured[name] = str(error).splitlines()[0]
                return launch
        return replay


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


@pytest.fixture
def clock_of() -> Callable[..., HostClock | DeviceClock]:
    """``clock_of(device, one_thread=False)``: the clock for work there."""
    return lambda device, one_thread=False: DeviceClock() if device.type == "cuda" else HostClock(one_thread)


def _git(*arguments: str) -> str:
    """What git says; nothing where there is none, or no repository."""
    if shutil.which("git") is None:
        return ""
    result = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else ""


@pytest.fixture(scope="session")
def once(pytestconfig: pytest.Config) -> bool:
    """Whether cases run once and untimed (``--benchmark-disable``): that they work shows on less than is timed."""
    return pytestconfig.getoption("benchmark_disable")


@pytest.fixture(scope="session")
def machine() -> dict[str, Any]:
    """What all rows of a run have in common."""
    facts = environment()
    return {
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        **{key: facts[key] for key in ("device", "cpu_flags", "cores", "threads", "cuda", "torch", "triton")},
    }


@pytest.fixture
def bench_row(
    request: pytest.FixtureRequest, machine: dict[str, Any], pytestconfig: pytest.Config
) -> Callable[..., None]:
    """``bench_row(op=, case=, backend=, **fields)``: appends a row to ``results/<device>.jsonl``.

    Call it after the timing and after the conformance check of the case: a red case leaves no row. If the test used the
    fixture ``benchmark``, its times are added; ``flops`` and ``bytes_moved`` give rates beside them. With
    ``--benchmark-disable`` nothing was timed and nothing is written.
    """

    def append(*, op: str, case: str, backend: str, **fields: Any) -> None:
        if pytestconfig.getoption("benchmark_disable"):
            return
        row = {**machine, "suite": Path(request.node.path).stem, "op": op, "case": case, "backend": backend}
        row["threads"] = torch.get_num_threads()
        stats = getattr(request.node.funcargs.get("benchmark"), "stats", None)
        if stats is not None and "t_us_p50" not in fields:
            row |= _times([1e6 * seconds for seconds in stats.stats.data])
        row |= fields
        seconds = row.get("t_us_p50", 0) / 1e6
        if seconds and "flops" in row:
            row["tflop_s"] = row["flops"] / seconds / 1e12
        if seconds and "bytes_moved" in row:
            row["gb_s"] = row["bytes_moved"] / seconds / 1e9
        RESULTS.mkdir(exist_ok=True)
        name = re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")
        with open(RESULTS / f"{name}.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    return append


def _times(values_us: list[float]) -> dict[str, float]:
    if len(values_us) < 2:
        return {"t_us_p50": values_us[0], "n_runs": len(values_us)}
    fifths = quantiles(values_us, n=5, method="inclusive")
    return {"t_us_p20": fifths[0], "t_us_p50": median(values_us), "t_us_p80": fifths[3], "n_runs": len(values_us)}


def _synchronised(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


@pytest.fixture(scope="session")
def synchronised() -> Callable[[Callable[[], object]], Callable[[], None]]:
    """``synchronised(call)``: `call`, which then also waits for the GPU if there is one."""
    return _synchronised


def _coder_seconds(executor: Executor, call: Callable[[], object]) -> float:
    """Time within one call that the host spends coding between two stretches of device work."""
    spent: list[float] = []
    run = executor.run

    def watched(routine, *inputs, host):
        def timed(request, out):
            start = time.perf_counter()
            answer = host(request, out)
            spent.append(time.perf_counter() - start)
            return answer

        return run(routine, *inputs, host=timed)

    executor.run = watched
    try:
        call()
    finally:
        del executor.run
    return sum(spent)


def _network_calls(executor: Executor) -> Callable[[], None] | None:
    """Replays the graphs of the last call without the coder; None if it has none."""
    captured = next(reversed(executor._captured.values()), None)
    if captured is None:
        return None

    def replay() -> None:
        for stretch in captured.stretches:
            stretch.replay()

    return replay


def _launches_and_waits(call: Callable[[], object]) -> dict[str, int]:
    """Kernels that run, and times that the host waits for the device, in one call; nothing where none can be seen."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
    kernels = [e for e in profile.events() if e.device_type.name == "CUDA" and "mem" not in e.name.lower()[:4]]
    if not kernels:  # a driver that lets nobody trace only warns
        return {}
    waits = [e for e in profile.events() if e.name in ("cudaEventSynchronize", "cudaStreamSynchronize")]
    return {"launches": len(kernels), "host_syncs": len(waits)}


def _peak_bytes(keepers: Sequence[Any], call: Callable[[], object]) -> int:
    """Device memory that a codec needs for `call` beside its weights: what torch reserves at most above what it had.

    The codec's buffers and graphs are dropped and all unused memory is given back before, so that of two calls the
    first plans, runs eagerly and captures, and the second replays. Reserved, not allocated: the private pool of a graph
    is in no other figure. It goes in torch's segments, of 2 MiB at the least; what else is alive does not count.

    Args:
        keepers: all that holds memory for the codec between calls.
        call: waits for the device at its end.
    """
    for keeper in keepers:
        keeper.release()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    call()
    call()
    return torch.cuda.max_memory_reserved() - before


def _joules(call: Callable[[], object]) -> dict[str, float]:
    """Of one call, where the driver's counter can be read (it ticks every 20 ms or so, hence a second of calls)."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        before, count, start = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), 0, time.perf_counter()
        while time.perf_counter() - start < 1.0:
            call()
            count += 1
        return {"joules": (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / 1e3 / count}
    except pynvml.NVMLError:
        return {}


@pytest.fixture(scope="session")
def routine_facts() -> Callable[[Executor, Sequence[Any], Callable[[], object], torch.device], dict[str, float]]:
    """``routine_facts(executor, keepers, call, device)``: what a row says of a call beside its time.

    `call` waits at its end; `keepers` are the codec's.
    """

    def facts(
        executor: Executor, keepers: Sequence[Any], call: Callable[[], object], device: torch.device
    ) -> dict[str, float]:
        found = {"coder_us": 1e6 * _coder_seconds(executor, call)}
        if device.type == "cuda":
            replay = _network_calls(executor)
            if replay is not None:
                found["network_us"] = 1e6 * median(
                    DeviceClock(capture=False).race({"network": [replay]}, 20)["network"]
                )
            found |= {**_launches_and_waits(call), "peak_bytes": _peak_bytes(keepers, call), **_joules(call)}
        return found

    return facts


@pytest.fixture(scope="session")
def video_pair() -> Callable[[str, float, int], tuple[torch.nn.Module, torch.nn.Module, float, float]]:
    """``video_pair(name, sparsity, round_to)``: a model of predicted frames with random weights and its
    magnitude-pruned, compact twin; and the MACs per pixel of a decoded frame of each.
    """

    def make(name: str, sparsity: float, round_to: int) -> tuple[torch.nn.Module, torch.nn.Module, float, float]:
        torch.manual_seed(0)
        dense = create(name)
        dense = getattr(dense, "inter", dense).eval().requires_grad_(False)
        transforms = family_of(dense).transforms(dense, "decoder")
        report, graph = count(dense, transforms), trace_model(dense, list(transforms))
        masks = masks_for_macs(report, graph, magnitude_scores(dense, graph), sparsity, round_to)
        pruned = compact(dense, masks, graph).eval()
        after = count(pruned, family_of(pruned).transforms(pruned, "decoder")).macs
        return dense, pruned, report.macs / 256**2, after / 256**2  # transforms are those of 256 x 256

    return make


EVC_DECODER = ("hyper_dec", "y_prior_fusion", "y_spatial_prior", "dec")


def _decoder_shapes(model: torch.nn.Module, height: int, width: int) -> dict[str, tuple[int, ...]]:
    c, h, w = model.latent_channels, -(-height // 64) * 4, -(-width // 64) * 4
    z, y = (1, c, h // 4, w // 4), (1, c, h, w)
    return {"hyper_dec": z, "y_prior_fusion": y, "y_spatial_prior": (1, 4 * c, h, w), "dec": y}


@pytest.fixture(scope="session")
def decoder_macs() -> Callable[[torch.nn.Module, int, int], int]:
    """``decoder_macs(model, height, width)``: multiply-accumulates of one decode of an EVC."""
    return lambda model, height, width: count(model, _decoder_shapes(model, height, width)).macs


@pytest.fixture(scope="session")
def evc_pair() -> Callable[[str, torch.Tensor, float], tuple[torch.nn.Module, torch.nn.Module]]:
    """``evc_pair(name, picture, sparsity)``: an EVC with random weights and its magnitude-pruned, compact twin.

    The latents are scaled to a deviation of 2 on that picture. The sparsity is that of the decoder's MACs.
    """

    def make(name: str, picture: torch.Tensor, sparsity: float) -> tuple[torch.nn.Module, torch.nn.Module]:
        torch.manual_seed(0)
        dense = create(name).eval()
        with torch.no_grad():
            dense.enc[6].weight.mul_(2.0 / dense.enc(picture).std())
        graph = trace_model(dense, EVC_DECODER)
        report = count(dense, _decoder_shapes(dense, 512, 512))
        masks = masks_for_macs(report, graph, magnitude_scores(dense, graph), sparsity, round_to=16)
        return dense, compact(dense, masks, graph).eval()

    return make


@pytest.fixture(scope="session")
def psnr() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """``psnr(a, b)`` in dB of two tensors in [0, 1]."""
    return lambda a, b: -10 * math.log10(max(float((a - b).square().mean()), 1e-12))
