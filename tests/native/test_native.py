"""The C++ under AddressSanitizer and UBSan, in a short form; and allocations that fail below Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from sparsecodec import _C
from sparsecodec.testing import CASES

from ..conftest import load_script_with_compiler

SCRIPT = Path(__file__).parent / "native.py"

FAILING = """
import ctypes, importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("_C", sys.argv[2])  # without the package, and so without torch,
_C = importlib.util.module_from_spec(spec)  # whose libraries have ideas of their own about operator new
spec.loader.exec_module(_C)
fail_after = ctypes.CDLL(sys.argv[1]).fail_after
fail_after.argtypes = [ctypes.c_long]
left = ctypes.CDLL(sys.argv[1]).left
left.restype = ctypes.c_long
cdf = np.array([[0, 1000, 60000, 65536]], np.int32)
lengths, offsets = np.array([4], np.int32), np.array([-1], np.int32)
symbols = np.arange(4000, dtype=np.int32) % 5 - 3
rows = np.zeros(4000, np.uint8)
tables = _C.RansTables(cdf, lengths, offsets)
data, out = _C.rans_encode(symbols, rows, tables), np.empty_like(symbols)

many = 5 * 10**6
many_symbols, many_rows = np.resize(symbols, many), np.zeros(many, np.uint8)
assert _C.lane_layout(many)[1] > 1  # groups, which threads encode

def pushed(encoder):
    encoder.push(symbols, rows, tables)
    return encoder.finish() == [data]

def pushed_lanes(encoder):
    encoder.push(many_symbols, many_rows, tables)
    encoder.finish()

def new_encoder(name):
    return _C.LaneEncoder(many) if name == "lanes" else _C.RansEncoder(1)

calls = {
    "tables": lambda _: _C.RansTables(cdf, lengths, offsets),
    "encode": lambda _: _C.rans_encode(symbols, rows, tables) == data,
    "decode": lambda _: _C.rans_decode(data, rows, tables, out, True),
    "encoder": pushed,
    "lanes": pushed_lanes,
}
for name, call in calls.items():
    encoder = new_encoder(name)
    fail_after(10**6)
    assert call(encoder) is not False
    allocations = 10**6 - left()
    # The last ones for a new object are pybind11's (3.1): it deletes twice, or ends the process, if they fail.
    for k in range(allocations - 3 * (name == "tables")):
        encoder = new_encoder(name)
        fail_after(k)
        try:
            call(encoder)
        except MemoryError:
            continue
        finally:
            fail_after(-1)
        raise AssertionError(f"{name}: allocation {k} of {allocations} fails unnoticed")
    assert _C.rans_encode(symbols, rows, tables) == data
    print(name, allocations)
"""

FAILING_KERNELS = """
import ctypes, sys
import torch
from sparsecodec.ops._registry import bind, use_backend
from sparsecodec.testing import CASES
fail_after = ctypes.CDLL(sys.argv[1]).fail_after
fail_after.argtypes = [ctypes.c_long]
left = ctypes.CDLL(sys.argv[1]).left
left.restype = ctypes.c_long
torch.set_num_threads(int(sys.argv[2]))
torch.set_grad_enabled(False)

def results(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)

cases = [case for case in CASES if "cpu" in case.must_run and not case.bench]
for case, dtype in ((case, dtype) for case in cases for dtype in case.dtypes):
    arguments = case.arguments(dtype)
    with use_backend("cpu"):
        bound = bind(case.spec, **arguments)
    free = {name: value for name, value in arguments.items() if name not in case.spec.constants}
    result = bound.run(**free)
    expected = [tensor.clone() for tensor in results(result)]
    free["out"] = result  # then torch allocates nothing
    fail_after(10**6)
    bound.run(**free)
    allocations = 10**6 - left()
    noticed = 0
    for k in range(allocations):
        fail_after(k)
        try:
            bound.run(**free)
        except MemoryError:
            noticed += 1
        finally:
            fail_after(-1)
    assert all(map(torch.equal, results(bound.run(**free)), expected))
    assert noticed == allocations, f"{case.op}/{case.id}: {noticed} of {allocations} failures are noticed"
    print(case.op, allocations)
"""


@pytest.fixture(scope="module")
def native() -> ModuleType:
    return load_script_with_compiler(SCRIPT)


@pytest.fixture(scope="module")
def folder(native) -> Path:
    folder = native.ROOT / "build" / "native"
    native.build(folder)
    return folder


def test_every_program_is_clean(native, folder):
    counts = {program: 1500 // native.SLOWER.get(program, 1) for program in native.PROGRAMS}
    outcomes = [native.execute(program, folder, "--executions", str(count)) for program, count in counts.items()]
    failed = [outcome for outcome in outcomes if not outcome.passed]
    assert not failed, "\n".join(f"{outcome.line}\n{outcome.output[-3000:]}" for outcome in failed)
    for outcome in outcomes:
        executions = int(outcome.line.split(": ")[1].split()[0])
        assert executions >= counts[outcome.program], outcome.line


def test_an_overrun_is_found_and_its_input_breaks_it_again(native, folder, tmp_path):
    for compiled in folder.glob("entropy-*.o"):  # the bug is in the program, not in the coder
        shutil.copy2(compiled, tmp_path)
    native.build(tmp_path, ["rans"], ["SC_PLANT_OVERRUN"])
    outcome = native.execute("rans", tmp_path, "--executions", "1500")
    assert not outcome.passed and "heap-buffer-overflow" in outcome.output
    assert not native.execute("rans", tmp_path, str(outcome.input_path)).passed


def test_a_kernel_that_reads_beside_its_image_is_found(native, folder, tmp_path):
    """Everything but the program is taken over as it was built."""
    for path in folder.glob("*.o"):
        if path.name != "kernels.o":
            shutil.copy2(path, tmp_path)
    native.build(tmp_path, ["kernels"], ["SC_PLANT_OVERRUN"])
    outcome = native.execute("kernels", tmp_path, "--executions", "240")
    assert not outcome.passed and "AddressSanitizer" in outcome.output


@pytest.fixture(scope="module")
def failing(native, tmp_path_factory) -> Callable[[str, str], list[list[str]]]:
    """Runs a program under `failing_new.cpp`, which it gets as its first argument; the words of the lines it prints."""
    library = tmp_path_factory.mktemp("failing") / "failing_new.so"
    source = SCRIPT.parent / "failing_new.cpp"
    subprocess.run([native.compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", source, "-o", library], check=True)

    def run(program: str, argument: str) -> list[list[str]]:
        command = [sys.executable, "-c", program, str(library), argument]
        environment = {**os.environ, "LD_PRELOAD": str(library)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return [line.split() for line in done.stdout.splitlines()]

    return run


def test_failed_allocations_become_memory_errors(failing):
    lines = failing(FAILING, _C.__file__)
    assert [name for name, _ in lines] == ["tables", "encode", "decode", "encoder", "lanes"]


@pytest.mark.parametrize("threads", [1, 2])
def test_failed_allocations_of_kernels_become_memory_errors(failing, threads):
    """Each kernel on every case, with memory that runs out at each of its allocations, on any of its threads."""
    most: dict[str, int] = {}
    for op, allocations in failing(FAILING_KERNELS, str(threads)):
        most[op] = max(most.get(op, 0), int(allocations))
    assert set(most) == {case.op for case in CASES}
    none = {"compact_symbols", "expand_symbols", "integer_gate", "integer_warp", "warp"}
    assert {op for op in most if most[op] == 0} == none
