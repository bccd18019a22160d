"""Every Triton kernel compiles for the GPUs we ship for, without spills, and on tensor cores where it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsecodec.ops import specs

SCRIPT = Path(__file__).parent / "aot_compile.py"
RECORD = Path(__file__).parents[2] / "bench" / "results" / "aot.json"
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}


def complaints(rows: list[dict]) -> list[str]:
    """What is wrong with compiled kernels; one sentence each."""
    found = []
    for row in rows:
        name = f"{row['kernel']} on {row['arch']}, {row['config']}"
        if row["spill_bytes"]:
            found.append(f"{name}: {row['spill_bytes']} bytes spilled")
        if row["shared_bytes"] > SHARED_LIMIT[row["arch"]]:
            found.append(f"{name}: {row['shared_bytes']} bytes of shared memory")
        tensor_cores = "pointwise" in row["kernel"] and "float32" not in row["config"]
        if tensor_cores != (row["mma"] > 0):  # float32 on tensor cores would be tf32
            found.append(f"{name}: {row['mma']} tensor-core instructions")
    return found


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    """Every tile in one variant; the record has the others."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), "--variants", "scatter"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


def test_kernels_compile_without_spills(compiled):
    assert complaints(compiled) == []


@pytest.mark.parametrize("source", ["compiled", "record"])
def test_every_kernel_is_compiled_for_every_architecture(source, compiled):
    rows = compiled if source == "compiled" else json.loads(RECORD.read_text())
    found = {(row["kernel"], row["arch"]) for row in rows}
    names = [f"_{spec.name}_fwd_kernel" for spec in specs().values() if "triton" in {i.backend for i in spec.impls}]
    assert found == {(name, arch) for name in names for arch in SHARED_LIMIT}


def test_the_record_is_clean_and_up_to_date(compiled):
    """``make aot`` wrote it: the same figures wherever the same compiler is at work."""
    record = json.loads(RECORD.read_text())
    assert complaints(record) == []
    assert {(row["config"], row["arch"]) for row in compiled} <= {(row["config"], row["arch"]) for row in record}


def test_complaints_are_made():
    good = {"kernel": "_pointwise_fwd_kernel", "config": "bfloat16", "arch": "sm_80", "registers": 1, "mma": 8}
    good |= {"shared_bytes": 0, "spill_bytes": 0}
    assert complaints([good, good | {"config": "float32", "mma": 0}]) == []
    bad = [{"spill_bytes": 8}, {"mma": 0}, {"config": "float32"}, {"shared_bytes": 10**6}, {"kernel": "other"}]
    assert all(len(complaints([good | change])) == 1 for change in bad)
