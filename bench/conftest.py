"""What the suites share: one row per timed case, with the machine it was timed on."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest
import torch

from sparsecodec.info import device_name, environment

RESULTS = Path(__file__).parent / "results"


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else ""


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
