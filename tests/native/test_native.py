"""The C++ under AddressSanitizer and UBSan, in a short form; and allocations that fail below Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sparsecodec import _C

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

def pushed(encoder):
    encoder.push(symbols, rows, tables)
    return encoder.finish() == [data]

calls = {
    "tables": lambda _: _C.RansTables(cdf, lengths, offsets),
    "encode": lambda _: _C.rans_encode(symbols, rows, tables) == data,
    "decode": lambda _: _C.rans_decode(data, rows, tables, out, True),
    "encoder": pushed,
}
for name, call in calls.items():
    encoder = _C.RansEncoder(1)
    fail_after(10**6)
    assert call(encoder) is not False
    allocations = 10**6 - left()
    # The last ones for a new object are pybind11's (3.1): it deletes twice, or ends the process, if they fail.
    for k in range(allocations - 3 * (name == "tables")):
        encoder = _C.RansEncoder(1)
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


def test_failed_allocations_become_memory_errors(native, tmp_path):
    library = tmp_path / "failing_new.so"
    source = SCRIPT.parent / "failing_new.cpp"
    subprocess.run([native.compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", source, "-o", library], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    command = [sys.executable, "-c", FAILING, str(library), _C.__file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["tables", "encode", "decode", "encoder"]
