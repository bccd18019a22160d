"""`bench/gpu.py` within its minutes, on a machine that is played, and what it leaves out and names."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparsecodec.errors import UsageError

from .conftest import load_script, pytest_runtest_logreport

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script():
    return load_script(ROOT / "bench" / "gpu.py")


@pytest.fixture
def conftest():
    return load_script(ROOT / "bench" / "conftest.py")


class Machine:
    """Plays the clock and the processes of a lane: a command is (seconds, whether it listens, exit status)."""

    def __init__(self, script, monkeypatch) -> None:
        self.now, self.started, self.variables = 1000.0, [], []
        monkeypatch.setattr(script, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(script.subprocess, "Popen", self.start)
        monkeypatch.setattr(script.os, "killpg", self.kill)
        monkeypatch.setattr(script.shlex, "join", str)

    def start(self, command, cwd, env, start_new_session):
        assert start_new_session, "a signal would end the lane as well"
        self.left, self.listens, self.code = command
        self.started.append(command)
        self.variables.append(env)
        return SimpleNamespace(pid=7, wait=self.wait)

    def wait(self, seconds=None) -> int:
        if seconds is not None and self.left > seconds:
            self.now, self.left = self.now + seconds, self.left - seconds
            raise subprocess.TimeoutExpired("command", seconds)
        self.now += self.left
        return self.code

    def kill(self, group, with_signal) -> None:
        assert group == 7
        if with_signal == signal.SIGKILL:
            self.left = 0
        elif self.listens:
            self.left = min(self.left, 2)


@pytest.fixture
def machine(script, monkeypatch) -> Machine:
    return Machine(script, monkeypatch)


def stage(script, name: str, seconds: float, share: float = 1.0, listens: bool = True, code: int = 0, **variables: str):
    return script.Stage(name, (seconds, listens, code), share, variables)


@pytest.mark.parametrize("listens", [True, False])
def test_what_outlasts_its_time_is_cut_off_and_nothing_begins_without_any(script, machine, listens):
    """Whatever stages do, the lane ends within its limit, and names what it had no time for."""
    after = []
    lane = script.Lane(behind=lambda: after.append(None))
    lane.run([
        stage(script, "quick", 100, 0.4),
        *(stage(script, f"long {number}", 10**6, 0.4, listens) for number in range(20)),
    ])  # fmt: skip
    assert machine.now - 1000 <= script.LIMIT_S <= 580  # of ten minutes, some go to imports
    begun = len(machine.started)
    assert len(after) == begun and 5 < begun < 15 and "quick" not in lane.failed
    assert lane.failed["long 0"] == f"cut off after {0.4 * (script.LIMIT_S - script.GRACE_S - 100):.0f} s"
    reasons = [lane.failed[f"long {number}"] for number in range(20)]
    assert all(reason.startswith("cut off") for reason in reasons[: begun - 1])
    assert set(reasons[begun - 1 :]) == {"no time left"}


def test_the_last_stage_that_was_asked_for_has_all_the_time(script, machine):
    lane = script.Lane()
    lane.run([stage(script, "only", 500, 0.1)])
    assert lane.failed == {}


def test_stages_have_their_own_variables_and_none_that_mislead(script, machine, monkeypatch):
    for name in script.MISLEADING:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SPARSECODEC_CACHE", "mine")
    lane = script.Lane()
    lane.run([stage(script, "one", 1, 0.9, SPARSECODEC_CACHE="own"), stage(script, "other", 1, code=5)])
    assert lane.failed == {"other": "5"}
    assert [variables["SPARSECODEC_CACHE"] for variables in machine.variables] == ["own", "mine"]
    assert not any(name in variables for variables in machine.variables for name in script.MISLEADING)


@pytest.fixture
def played(script, monkeypatch):
    """The lane on a machine with a GPU, whose stages do nothing; what it runs."""
    ran = []
    known = [stage(script, name, 1) for name in ("conformance", "ops", "memcheck")]
    facts = dict.fromkeys(("device", "torch", "cuda", "triton", "cores"), "some")
    monkeypatch.setattr(script, "why_not", lambda: None)
    monkeypatch.setattr(script, "environment", lambda: facts)
    monkeypatch.setattr(script, "backends", lambda: {"cuda": None, "triton": None})
    monkeypatch.setattr(script, "stages", lambda tiles: known)
    monkeypatch.setattr(script.Lane, "_run", lambda self, stage, seconds: ran.append(stage.name))
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    for name in script.MISLEADING:  # the lane forgets them, and this process must not
        monkeypatch.delenv(name, raising=False)
    return ran


def test_kernels_that_are_not_there_are_a_failure(script, played, monkeypatch, capsys):
    """Their tests are skipped: a lane without them would have passed."""
    assert script.main() == 0 and played == ["conformance", "ops", "memcheck"]
    monkeypatch.setattr(script, "backends", lambda: {"cuda": "libsparsecodec_cuda.so is not built", "triton": None})
    assert script.main() == 1
    assert "failed: cuda kernels (libsparsecodec_cuda.so is not built)" in capsys.readouterr().out


def test_stages_are_asked_for_by_name_and_what_failed_can_be_asked_for_again(script, played, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "memcheck", "no such"])
    assert script.main() == 1 and played == ["memcheck"]
    assert "failed: no such (no such stage here)" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(script.Lane, "_run", lambda self, stage, _: self.failed.update({stage.name: "1"}))
    assert script.main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "again: python bench/gpu.py conformance ops memcheck"


def test_rows_are_shown_behind_the_stage_that_wrote_them(script, played, monkeypatch, capsys):
    rows = []
    monkeypatch.setattr(script, "results", lambda: list(rows))

    def write(self, stage, seconds):
        rows.append(f'{{"op": "of {stage.name}", "case": "c", "backend": "triton", "t_us_p50": 3.0}}')
        print("ran", stage.name)

    monkeypatch.setattr(script.Lane, "_run", write)
    script.main()
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith(("ran", "of"))]
    assert lines == [[word, name] for name in ("conformance", "ops", "memcheck") for word in ("ran", "of")]


def test_the_lane_says_what_it_needs(script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no CUDA device" in script.why_not()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(script, "NEEDED", ("pytest", "no_such_package"))
    assert script.why_not() == "no GPU lane here: no_such_package is not installed"
    monkeypatch.setattr(script, "NEEDED", ())
    monkeypatch.setattr(script, "backends", lambda: {"cpu": "sparsecodec._C cannot be imported: none"})
    assert "_C cannot be imported: none" in script.why_not() and "pip install" in script.why_not()


def test_what_is_sanitized_exists_and_is_of_every_op(script):
    """pytest runs nothing at all if it is asked for a test that it does not know."""
    *chosen, lanes = script.sanitized()
    conformance, test = "tests/ops/test_conformance.py", "test_matches_reference"
    known = {f"{conformance}::{test}[{run.id}]" for run in load_script(ROOT / conformance).RUNS}
    assert set(chosen) <= known and len(set(chosen)) == len(chosen)
    for op in {case.op for case in script.CASES}:
        assert 3 <= sum(f"[{op}-" in test for test in chosen) <= 2 * script.SANITIZED_CASES, op
    path, _, name = lanes.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text()


def test_a_trace_without_kernels_counts_none(conftest, monkeypatch):
    """Where the driver lets nobody trace, the profiler only warns; a row must not say that nothing was launched."""

    def profiler(*events: tuple[str, str]):
        found = [SimpleNamespace(name=name, device_type=SimpleNamespace(name=kind)) for name, kind in events]

        class Profile:
            __init__ = lambda self, activities: None  # noqa: E731
            __enter__ = lambda self: self  # noqa: E731
            __exit__ = lambda self, *error: None  # noqa: E731
            events = lambda self: found  # noqa: E731

        monkeypatch.setattr(torch.profiler, "profile", Profile)

    profiler(("aten::add", "CPU"), ("cudaEventSynchronize", "CPU"))
    assert conftest._launches_and_waits(lambda: None) == {}
    profiler(("Memcpy DtoH", "CUDA"), ("_gdn_fwd_kernel", "CUDA"), ("cudaEventSynchronize", "CPU"))
    assert conftest._launches_and_waits(lambda: None) == {"launches": 1, "host_syncs": 1}


def test_the_networks_of_a_call_without_graphs_are_nobody_elses(conftest):
    """The last call is the last entry; None stands for one that could not be captured."""
    replays = []
    graphs = SimpleNamespace(stretches=[SimpleNamespace(replay=lambda: replays.append(None))])
    executor = SimpleNamespace(_captured={"encode": graphs, "decode": None})
    assert conftest._network_calls(executor) is None
    executor._captured = {"encode": None, "decode": graphs}
    conftest._network_calls(executor)()
    assert len(replays) == 1 and conftest._network_calls(SimpleNamespace(_captured={})) is None


def test_a_worker_that_lost_its_gpu_makes_room_for_another(monkeypatch):
    """What follows an illegal access fails, too, and would hide which kernel it was."""
    ended, raised = [], torch.OutOfMemoryError  # any RuntimeError of torch's

    def synchronize():
        if raised is not None:
            raise raised("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    failed, passed = (SimpleNamespace(failed=failed) for failed in (True, False))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytest_runtest_logreport(failed)  # alone there is nobody to go on
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    pytest_runtest_logreport(passed)
    assert ended == []
    pytest_runtest_logreport(failed)
    assert ended == [1]
    raised = None
    pytest_runtest_logreport(failed)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    pytest_runtest_logreport(failed)
    assert ended == [1]


def test_decoders_of_an_absent_compressai_are_skipped(monkeypatch):
    bench = load_script(ROOT / "bench" / "bench_codec_gpu.py")

    def absent():
        raise UsageError("CompressAI does not import")

    monkeypatch.setattr(bench, "import_compressai", absent)
    with pytest.raises(pytest.skip.Exception, match="does not import"):
        bench.bench_compressai(bench.COMPRESSAI[0], next(iter(bench.SIZES)), *[None] * 5)


def test_graphs_of_a_call_are_replayed_and_not_captured_once_more(conftest):
    """A graph cannot be launched into another one's capture: the attempt would spoil the stream."""
    clock, replays = object.__new__(conftest.DeviceClock), []
    clock._capture, clock._graphs = False, None
    clock._captured("network", [lambda: replays.append(None)])()
    assert len(replays) == 2


def test_what_is_timed_call_by_call_is_named(script, conftest, monkeypatch):
    """Its time is that of the host, perhaps: neither the row nor the table may pass it off as the device's."""

    def capture(work, pool):
        if refused in calls:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return work(), lambda: None

    refused, calls = "reference", []
    clock = object.__new__(conftest.DeviceClock)
    clock._capture, clock.uncaptured = True, {}
    clock._graphs = SimpleNamespace(session=contextlib.nullcontext, new_pool=lambda: None, capture=capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for name in ("kernel", "reference"):
        calls.append(name)
        clock._captured(name, [lambda: None])
    assert clock.uncaptured == {"reference": "operation not permitted when stream is capturing"}
    row = {"op": "gdn", "case": "c", "backend": "triton", "uncaptured": clock.uncaptured}
    assert script.table([row]).endswith(" not captured: reference")
