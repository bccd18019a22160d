"""The whole GPU lane: conformance, benches, sanitizer, and a short table last. Under ten minutes; ``make gpu``.

``python bench/gpu.py ops memcheck`` runs only the stages of these names: what one call had no time for, another does,
and kernels that were compiled stay compiled. Rows go to ``bench/results/<device>.jsonl``. The exit status is not 0 if
anything failed, or if there is no GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
LIMIT_S = 560  # and ten seconds for what is cut off to say how far it came
# Small cases of every Triton and CUDA kernel; under a sanitizer each takes seconds.
SANITIZED = "(triton or cuda) and float16 or cuda and (compact or expand or entropy)"


def why_not() -> str | None:
    """One sentence if the lane cannot run here."""
    if not torch.cuda.is_available():
        return f"no GPU lane here: torch {torch.__version__} sees no CUDA device"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"no GPU lane here: triton cannot be imported: {error}"
    return None


class Lane:
    """Runs stages, or only some, one after the other within the time that is left, and remembers which failed."""

    def __init__(self, only: list[str]) -> None:
        self._only = only
        self._start = time.monotonic()
        self.names: list[str] = []
        self.failed: list[str] = []
        self.environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def stage(self, name: str, command: list[str], share: float = 1.0, **variables: str) -> None:
        """Runs `command` for at most `share` of the time that is left; not if other stages are asked for."""
        self.names.append(name)
        if self._only and name not in self._only:
            return
        left = (LIMIT_S - (time.monotonic() - self._start)) * share
        print(f"== {name}: {' '.join(command)}", flush=True)
        begin = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=self.environment | variables, start_new_session=True)
        try:
            code = process.wait(max(left, 1))
        except subprocess.TimeoutExpired:
            code = f"cut off after {left:.0f} s"
            os.killpg(process.pid, signal.SIGINT)  # its workers too; pytest then says what failed so far
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        print(f"== {name}: {code or 'passed'}, {time.monotonic() - begin:.0f} s", flush=True)
        if code:
            self.failed.append(f"{name} ({code})")


def table(rows: list[dict]) -> str:
    """The rows of this run in a few columns."""
    lines = [f"{'case':48} {'backend':22} {'dtype':9} {'us':>10} {'vs eager':>9} {'of roofline':>11}"]
    for row in rows:
        peers = ("reference", "eager_dense", "compressai")
        eager = next((row[f"speedup_over_{peer}"] for peer in peers if f"speedup_over_{peer}" in row), None)
        cells = (eager, row.get("roofline_share"))
        texts = ["-" if value is None else f"{value:.2f}" for value in cells]
        name = f"{row['op']} {row['case']}"[:48]
        lines.append(
            f"{name:48} {row['backend'][:22]:22} {row.get('dtype', '-'):9} {row.get('t_us_p50', 0):10.1f} "
            f"{texts[0]:>9} {texts[1]:>11}"
        )
    return "\n".join(lines)


def results() -> list[str]:
    """All lines of all result files."""
    return [line for path in sorted((ROOT / "bench/results").glob("*.jsonl")) for line in path.read_text().splitlines()]


def main() -> int:
    reason = why_not()
    if reason is not None:
        print(reason)
        return 1
    before = set(results())
    beside = Path(sys.executable).with_name("pytest")  # not `python -m pytest`, which puts this folder on the path
    lane, pytest = Lane(sys.argv[1:]), [str(beside) if beside.exists() else "pytest", "-q"]
    # What is worth most comes first; rows are written as they come, so what is cut off loses only what follows. Kernels
    # compile on all cores, and only those that run: other tiles are compiled where they are timed.
    side_by_side = ["-n", str(min(os.cpu_count() or 1, 12))] if importlib.util.find_spec("xdist") else []
    conformance = [*pytest, "tests/ops/test_conformance.py", "-k", "triton or cuda"]
    lane.stage("conformance", [*conformance, *side_by_side], 0.35, SPARSECODEC_AUTOTUNE="0")
    lane.stage("whole decoders", [*pytest, "bench/bench_codec_gpu.py", "-k", "bench_evc"], 0.4)
    lane.stage("ops", [*pytest, "bench/bench_ops.py", "-k", "triton or cuda"], 0.4)
    lane.stage("video decoders", [*pytest, "bench/bench_video_gpu.py"], 0.4)
    lane.stage("codecs", [*pytest, "tests/runtime/test_gpu.py"], 0.3)
    lane.stage("video codecs", [*pytest, "tests/runtime/test_video_gpu.py"], 0.4)
    lane.stage("CompressAI decoders", [*pytest, "bench/bench_codec_gpu.py", "-k", "bench_compressai"], 0.3)
    lane.stage("lanes", [*pytest, "bench/bench_entropy.py", "-k", "on_gpu"], 0.2)
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if Path(sanitizer).exists():
        for tool in ("memcheck", "racecheck"):
            check = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
            # Each tensor in memory of its own: within a larger piece of torch's nothing would be out of bounds.
            variables = {"SPARSECODEC_AUTOTUNE": "0", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            lane.stage(
                tool, [*check, *pytest, "tests/ops/test_conformance.py", "-x", "-k", SANITIZED], 0.4, **variables
            )
    else:
        print("== sanitizer: compute-sanitizer is not installed")
    lane.stage("torch.compile", [*pytest, "bench/bench_ops.py", "-k", "bench_torch_compile"])
    lane.failed += [f"{name} (no such stage)" for name in sys.argv[1:] if name not in lane.names]
    print(table([json.loads(line) for line in results() if line not in before]))
    print(f"failed: {', '.join(lane.failed)}" if lane.failed else "all stages passed")
    return 1 if lane.failed else 0


if __name__ == "__main__":
    sys.exit(main())
