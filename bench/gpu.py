"""The whole GPU lane: conformance, sanitizer, benches, and a short table last. Under ten minutes; ``make gpu``.

Rows go to ``bench/results/<device>.jsonl``. The exit status is not 0 if anything failed, or if there is no GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
LIMIT_S = 580
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
    """Runs stages one after the other within the time that is left, and remembers which failed."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self.failed: list[str] = []
        self.environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def stage(self, name: str, command: list[str], share: float = 1.0, **variables: str) -> None:
        """Runs `command` for at most `share` of the time that is left."""
        left = (LIMIT_S - (time.monotonic() - self._start)) * share
        print(f"== {name}: {' '.join(command)}", flush=True)
        begin = time.monotonic()
        try:
            code = subprocess.run(command, cwd=ROOT, env=self.environment | variables, timeout=max(left, 1)).returncode
        except subprocess.TimeoutExpired:
            code = f"cut off after {left:.0f} s"
        print(f"== {name}: {code or 'passed'}, {time.monotonic() - begin:.0f} s", flush=True)
        if code:
            self.failed.append(f"{name} ({code})")


def table(rows: list[dict]) -> str:
    """The rows of this run in a few columns."""
    lines = [
        f"{'case':48} {'backend':22} {'dtype':9} {'us':>10} {'vs eager':>9} {'vs compile':>10} {'of roofline':>11}"
    ]
    for row in rows:
        peers = ("reference", "eager_dense", "compressai")
        eager = next((row[f"speedup_over_{peer}"] for peer in peers if f"speedup_over_{peer}" in row), None)
        cells = (eager, row.get("speedup_over_torch_compile"), row.get("roofline_share"))
        texts = ["-" if value is None else f"{value:.2f}" for value in cells]
        name = f"{row['op']} {row['case']}"[:48]
        lines.append(
            f"{name:48} {row['backend'][:22]:22} {row.get('dtype', '-'):9} {row.get('t_us_p50', 0):10.1f} "
            f"{texts[0]:>9} {texts[1]:>10} {texts[2]:>11}"
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
    lane, pytest = Lane(), [str(beside) if beside.exists() else "pytest", "-q"]
    lane.stage("conformance", [*pytest, "tests/ops/test_conformance.py", "-k", "triton or cuda"], 0.4)
    lane.stage("codecs", [*pytest, "tests/runtime/test_gpu.py"], 0.3)
    lane.stage("video codecs", [*pytest, "tests/runtime/test_video_gpu.py"], 0.3)
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if Path(sanitizer).exists():
        for tool in ("memcheck", "racecheck"):
            check = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
            lane.stage(tool, [*check, *pytest, "tests/ops/test_conformance.py", "-x", "-k", SANITIZED], 0.25)
    else:
        print("== sanitizer: compute-sanitizer is not installed")
    lane.stage("video decoders", [*pytest, "bench/bench_video_gpu.py"], 0.3)
    lane.stage("whole decoders", [*pytest, "bench/bench_codec_gpu.py"], 0.6)
    lane.stage("ops", [*pytest, "bench/bench_ops.py", "-k", "triton or cuda"])
    print(table([json.loads(line) for line in results() if line not in before]))
    print(f"failed: {', '.join(lane.failed)}" if lane.failed else "all stages passed")
    return 1 if lane.failed else 0


if __name__ == "__main__":
    sys.exit(main())
