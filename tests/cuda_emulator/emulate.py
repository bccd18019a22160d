"""Builds the programs beside this file and runs them: the CUDA kernels on CPU threads, against the CPU kernels.

Each program is run as it is, under ThreadSanitizer (races) and under AddressSanitizer with UBSan (overruns, misaligned
vectors). Prints one line for each run; the exit status is 1 if any of them failed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.cpp"))
FLAGS = ["-std=c++20", "-O1", "-g1", "-pthread", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
INCLUDES = [f"-I{FOLDER / 'include'}", f"-I{ROOT / 'csrc'}"]
VARIANTS = {
    "plain": [],
    "thread": ["-fsanitize=thread"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
JOBS = 2
LIMIT_S = 300


class Run(NamedTuple):
    """One program, built and run in one way.

    Attributes:
        program: one of `PROGRAMS`.
        variant: one of `VARIANTS`.
        few: only as many cases as ThreadSanitizer needs, which is slow with hundreds of threads.
        define: a bug to plant, ``SC_PLANT_RACE=1`` or ``SC_PLANT_OVERRUN``, if any.
    """

    program: str
    variant: str
    few: bool = False
    define: str | None = None


class Outcome(NamedTuple):
    """What came of it: whether it passed, its one line, and everything it said."""

    run: Run
    passed: bool
    line: str
    output: str


def compiler() -> str | None:
    """The path of g++, or None."""
    return shutil.which("g++")


def _execute(run: Run, folder: Path) -> Outcome:
    binary = folder / "-".join(filter(None, [run.program, run.variant, run.define]))
    defines = [f"-D{run.define}"] if run.define else []
    source = str(FOLDER / f"{run.program}.cpp")
    build = [compiler(), *FLAGS, *VARIANTS[run.variant], *defines, *INCLUDES, source, "-o", str(binary)]
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode:
        return Outcome(run, False, f"{run.program}: does not compile", built.stderr)
    command = [str(binary), *(["few"] if run.few else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        if "unexpected memory mapping" in done.stderr and shutil.which("setarch"):
            # ThreadSanitizer of older gcc under a kernel with vm.mmap_rnd_bits=32: run without random addresses.
            done = subprocess.run(["setarch", "-R", *command], capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return Outcome(run, False, f"{run.program}: not done after {LIMIT_S} s (a deadlock?)", "")
    line = done.stdout.strip() or f"{run.program}: stopped with status {done.returncode}"
    return Outcome(run, done.returncode == 0, line, done.stdout + done.stderr)


def build_library(path: Path) -> None:
    """All of csrc/cuda as a shared library whose kernels run on the CPU, for sparsecodec/_cuda.py to load."""
    sources = sorted(map(str, (ROOT / "csrc" / "cuda").glob("*.cu")))
    flags = ["-shared", "-fPIC", "-x", "c++", "-DSC_TURNS", '-DSPARSECODEC_CUDA_ARCHS="90"']
    subprocess.run([compiler(), *FLAGS, *flags, *INCLUDES, *sources, "-o", str(path)], check=True)


def execute(runs: Iterable[Run]) -> list[Outcome]:
    """Builds and runs all of them, two at a time."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(lambda run: _execute(run, Path(folder)), runs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run the CUDA kernels on CPU threads, under the sanitizers.")
    parser.add_argument("--few", action="store_true", help="few cases under ThreadSanitizer")
    options = parser.parse_args()
    if compiler() is None:
        sys.exit("no g++ on the PATH")
    runs = [Run(program, way, options.few and way == "thread") for program in PROGRAMS for way in VARIANTS]
    outcomes = execute(runs)
    for outcome in outcomes:
        print(f"{outcome.run.variant:8}{'ok  ' if outcome.passed else 'FAIL'} {outcome.line}")
        if not outcome.passed:
            print(outcome.output[-4000:], file=sys.stderr)
    sys.exit(not all(outcome.passed for outcome in outcomes))
