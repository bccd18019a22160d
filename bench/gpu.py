"""The whole GPU lane: conformance, benches, sanitizer, and short tables. Under ten minutes; ``make gpu``.

``python bench/gpu.py ops memcheck`` runs only the stages of these names: what one call had no time for, another does,
and kernels that were compiled stay compiled. Rows go to ``bench/results/<device>.jsonl``. The exit status is not 0 if
anything failed or was not run to its end, or if there is no GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

from sparsecodec.info import backends, environment
from sparsecodec.testing import CASES

ROOT = Path(__file__).parents[1]
LIMIT_S = 560  # beside importing torch, which takes longest where it has never been read
GRACE_S = 10  # for what is cut off to say how far it came
LEAST_S = 15  # with less a stage would hardly begin: its processes import torch first
SANITIZED_CASES = 5  # of each op and backend: under a sanitizer each takes a second or more
NEEDED = ("pytest", "pytest_benchmark", "triton")
MISLEADING = ("TRITON_INTERPRET", "SPARSECODEC_BACKEND", "CUDA_LAUNCH_BLOCKING")  # variables left over from a search


def why_not() -> str | None:
    """One sentence if the lane cannot run here."""
    if not torch.cuda.is_available():
        return f"no GPU lane here: torch {torch.__version__} sees no CUDA device"
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            return f"no GPU lane here: {package} is not installed"
    missing = backends()["cpu"]  # which codes what networks give
    return None if missing is None else f"no GPU lane here: {missing} (pip install --no-build-isolation --no-deps -e .)"


class Stage(NamedTuple):
    """One command.

    Attributes:
        name: for people, and to ask for it.
        command: what runs, in the repository's root.
        share: of the time that is left, at most; the last one gets all.
        variables: of its environment.
    """

    name: str
    command: Sequence[str]
    share: float = 1.0
    variables: Mapping[str, str] = MappingProxyType({})


class Lane:
    """Runs stages one after the other within a limit of time, and remembers what failed.

    Attributes:
        failed: stage -> why.
    """

    def __init__(self, limit: float = LIMIT_S, behind: Callable[[], None] = lambda: None) -> None:
        """`limit`: seconds from now; `behind`: called when a stage has run."""
        self._until = time.monotonic() + limit
        self._behind = behind
        self.failed: dict[str, str] = {}
        self._environment = {name: value for name, value in os.environ.items() if name not in MISLEADING}

    def run(self, stages: Sequence[Stage]) -> None:
        """Those for which there is time."""
        for stage in stages:
            left = self._until - time.monotonic() - GRACE_S
            if left < LEAST_S:
                self.failed[stage.name] = "no time left"
                continue
            self._run(stage, left if stage is stages[-1] else max(left * stage.share, LEAST_S))
            self._behind()

    def _run(self, stage: Stage, seconds: float) -> None:
        print(f"== {stage.name}: {shlex.join(stage.command)[:300]}", flush=True)
        begin, environment = time.monotonic(), {**self._environment, **stage.variables}
        process = subprocess.Popen(stage.command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = f"cut off after {seconds:.0f} s"
            os.killpg(process.pid, signal.SIGINT)  # its workers too; pytest then says what failed so far
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        print(f"== {stage.name}: {code or 'passed'}, {time.monotonic() - begin:.0f} s", flush=True)
        if code:
            self.failed[stage.name] = str(code)


def sanitized() -> list[str]:
    """The tests that run under a sanitizer: small cases of every op on each of its kernels, spread over them all."""
    tests = []
    for op in dict.fromkeys(case.op for case in CASES):
        cases = [case for case in CASES if case.op == op and case.interpreted and not case.bench]
        for case in cases[:: -(-len(cases) // SANITIZED_CASES)]:
            for impl in case.spec.impls:
                if impl.backend in ("triton", "cuda"):
                    dtype, way = str(case.dtypes[-1]).removeprefix("torch."), "plan" if impl.plan else "call"
                    test = f"test_matches_reference[{op}-{case.id}-{impl.backend}-{dtype}-{way}]"
                    tests.append(f"tests/ops/test_conformance.py::{test}")
    return [*tests, "tests/runtime/test_gpu.py::test_lanes_decode_on_the_device"]


def stages(tiles: str) -> list[Stage]:
    """All of them. What is worth most comes first; rows are written as they come.

    Args:
        tiles: a folder for choices of tiles that are not worth keeping, since more than one process was timed at once.
    """
    beside = Path(sys.executable).with_name("pytest")  # not `python -m pytest`, which puts this folder on the path
    pytest = [str(beside) if beside.exists() else "pytest", "-q"]
    workers = ["-n", str(min(os.cpu_count() or 1, 12)), "--dist", "worksteal"]
    side_by_side = [*pytest, *(workers if importlib.util.find_spec("xdist") else [])]
    alone = {"OMP_NUM_THREADS": "1", "SPARSECODEC_CACHE": tiles}
    decoders, ops, video = (f"bench/bench_{name}.py" for name in ("codec_gpu", "ops", "video_gpu"))
    on_gpu = "bench_op and (triton or cuda)"
    # Kernels compile where they first run. Those of all benches do so on all cores, before anything is timed.
    once = f"bench_evc and 768x512 or bench_predicted_frame and 720 or {on_gpu}"
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    # Each tensor in memory of its own: within a larger piece of torch's nothing would be out of bounds.
    bare = {"SPARSECODEC_AUTOTUNE": "0", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

    def check(tool: str) -> Stage:
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", *pytest, "-x"]
        return Stage(tool, [*command, *sanitized()], 0.4, bare)

    return [
        Stage(
            "conformance",
            [*side_by_side, "tests/ops/test_conformance.py", "-k", "triton or cuda"],
            0.35,
            {"SPARSECODEC_AUTOTUNE": "0"},
        ),
        Stage("once", [*side_by_side, decoders, video, ops, "--benchmark-disable", "-k", once], 0.3, alone),
        Stage("whole decoders", [*pytest, decoders, "-k", "bench_evc"], 0.4),
        Stage("ops", [*pytest, ops, "-k", on_gpu], 0.4),
        Stage("video decoders", [*pytest, video], 0.4),
        Stage("golden streams", [*side_by_side, "tests/golden/test_golden_on_gpu.py"], 0.2, alone),
        Stage("codecs", [*side_by_side, "tests/runtime/test_gpu.py", "tests/runtime/test_video_gpu.py"], 0.4, alone),
        Stage("CompressAI decoders", [*pytest, decoders, "-k", "bench_compressai"], 0.3),
        Stage("lanes", [*pytest, "bench/bench_entropy.py", "-k", "on_gpu"], 0.2),
        *([check(tool) for tool in ("memcheck", "racecheck")] if Path(sanitizer).exists() else []),
        Stage("torch.compile", [*pytest, ops, decoders, "-k", "bench_torch_compile"]),
    ]


def table(rows: list[dict]) -> str:
    """Rows in a few columns."""
    lines = [f"{'case':48} {'backend':22} {'dtype':9} {'us':>10} {'vs eager':>9} {'of roofline':>11}"]
    for row in rows:
        peers = ("reference", "eager_dense", "compressai")
        eager = next((row[f"speedup_over_{peer}"] for peer in peers if f"speedup_over_{peer}" in row), None)
        cells = (eager, row.get("roofline_share"))
        beside = " not captured: " + ", ".join(row["uncaptured"]) if "uncaptured" in row else ""
        texts = ["-" if value is None else f"{value:.2f}" for value in cells]
        name = f"{row['op']} {row['case']}"[:48]
        lines.append(
            f"{name:48} {row['backend'][:22]:22} {row.get('dtype', '-'):9} {row.get('t_us_p50', 0):10.1f} "
            f"{texts[0]:>9} {texts[1]:>11}{beside}"
        )
    return "\n".join(lines)


def results() -> list[str]:
    """All lines of all result files."""
    return [line for path in sorted((ROOT / "bench/results").glob("*.jsonl")) for line in path.read_text().splitlines()]


def main() -> int:
    for name in MISLEADING:
        os.environ.pop(name, None)
    reason = why_not()
    if reason is not None:
        print(reason)
        return 1
    facts = environment()
    print(", ".join(f"{name} {facts[name]}" for name in ("device", "torch", "cuda", "triton", "cores")), flush=True)
    seen = set(results())

    def show() -> None:
        new = [line for line in results() if line not in seen]
        seen.update(new)
        if new:
            print(table([json.loads(line) for line in new]), flush=True)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tiles:
        known, wanted, lane = stages(tiles), sys.argv[1:], Lane(behind=show)
        lane.run([stage for stage in known if not wanted or stage.name in wanted])
    again = [stage.name for stage in known if stage.name in lane.failed]
    # Tests of kernels that are not there are skipped, and a lane that skipped them has shown nothing.
    lane.failed |= {f"{name} kernels": why for name, why in backends().items() if why is not None}
    names = {stage.name for stage in known}
    if "memcheck" not in names:
        print("no memcheck, no racecheck: compute-sanitizer is not installed")
    lane.failed |= {name: "no such stage here" for name in wanted if name not in names}
    if not lane.failed:
        print("all stages passed")
        return 0
    print("failed: " + ", ".join(f"{name} ({why})" for name, why in lane.failed.items()))
    if again:
        print(f"again: {shlex.join(['python', 'bench/gpu.py', *again])}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
