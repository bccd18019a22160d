"""Builds the programs beside this file with AddressSanitizer and UBSan, and runs them.

Each program feeds mutated inputs to a part of ``csrc/`` (see ``fuzz.h``). ``make sanitize`` runs a fixed number of
them, ``make fuzz`` as many as fit into a time. A report of a sanitizer, a broken promise or an input that takes too
long is a failure: the exit status is 1 and the input is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.cpp") if path.stem != "failing_new")
KERNEL_PROGRAMS = ("context", "kernels")  # which need csrc/cpu as well
SLOWER = {"kernels": 5}  # an input is a kernel under every instruction set: so many times fewer of them
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-pthread",
    "-fopenmp",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-fno-omit-frame-pointer",
]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
COVERAGE = ["-fsanitize-coverage=trace-pc"]
PLAIN = ["-O0"]  # the kernels: their templates and intrinsics take the optimiser minutes
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "OMP_NUM_THREADS": "2",
}
JOBS = 2
EXECUTIONS = 10_000
GRACE_S = 240  # beyond the time asked for


class Outcome(NamedTuple):
    """What came of a program: whether it passed, its one line, everything it said, and the input that broke it."""

    program: str
    passed: bool
    line: str
    output: str
    input_path: Path | None


def compiler() -> str | None:
    """The path of g++, or None."""
    return shutil.which("g++")


def _sources(part: str) -> list[Path]:
    """A folder of csrc, without what is Python's."""
    return sorted(path for path in (ROOT / "csrc" / part).glob("*.cpp") if not path.name.startswith("bind"))


def _compile(source: Path, target: Path, flags: Sequence[str]) -> None:
    """An object file, unless there is one newer than all that it may depend on."""
    inputs = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.inl"), source]
    if source.parent == FOLDER:
        inputs += FOLDER.glob("*.h")
    if target.exists() and target.stat().st_mtime > max(path.stat().st_mtime for path in inputs):
        return
    partial = target.with_suffix(f".{os.getpid()}.o")
    command = [compiler(), *FLAGS, *SANITIZE, *flags, f"-I{ROOT / 'csrc'}", f"-I{FOLDER}", "-c", str(source)]
    subprocess.run([*command, "-o", str(partial)], check=True, capture_output=True, text=True)
    partial.replace(target)


def build(folder: Path, programs: Iterable[str] = PROGRAMS, defines: Sequence[str] = ()) -> None:
    """Programs in `folder`, with the bugs that `defines` plants, if any.

    Raises:
        subprocess.CalledProcessError: something does not compile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flags = [f"-D{name}" for name in defines]
    programs = list(programs)
    parts = {"entropy": COVERAGE, "cpu": PLAIN} if set(programs) & set(KERNEL_PROGRAMS) else {"entropy": COVERAGE}
    objects = {part: {s: folder / f"{part}-{s.stem}.o" for s in _sources(part)} for part in parts}
    mains = {name: folder / f"{name}.o" for name in programs}

    link = [compiler(), *SANITIZE, "-pthread", "-fopenmp"]

    def linked(name: str) -> list[str]:
        needed = [part for part in parts if part == "entropy" or name in KERNEL_PROGRAMS]
        return [str(o) for part in needed for o in objects[part].values()]

    with ThreadPoolExecutor(JOBS) as pool:
        compiled = [
            pool.submit(_compile, s, o, [*parts[part], *flags])
            for part, made in objects.items()
            for s, o in made.items()
        ]
        compiled += [pool.submit(_compile, FOLDER / f"{name}.cpp", o, flags) for name, o in mains.items()]
        for each in compiled:
            each.result()
        links = [
            pool.submit(subprocess.run, [*link, str(o), *linked(name), "-o", str(folder / name)], check=True)
            for name, o in mains.items()
        ]
        for each in links:
            each.result()


def execute(program: str, folder: Path, *options: str, limit_s: float = GRACE_S) -> Outcome:
    """Runs one built program with these options; an input that breaks it is kept in ``folder/broken``."""
    trace = folder / f"{program}-{os.getpid()}.trace"
    command = [str(folder / program), *options, "--trace", str(trace)]
    try:
        environment = {**os.environ, **ENVIRONMENT}
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=environment)
        status, said = done.returncode, done.stdout + done.stderr
        line = done.stdout.strip() or f"{program}: stopped with status {status}"
    except subprocess.TimeoutExpired:
        status, said, line = -1, "", f"{program}: not done after {limit_s:.0f} s"
    kept = None
    if status != 0 and trace.exists():
        data = trace.read_bytes()
        data = data[4 : 4 + struct.unpack("<I", data[:4])[0]]
        kept = folder / "broken" / f"{program}-{hashlib.sha256(data).hexdigest()[:12]}"
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(data)
        line += f" (input: {kept})"
    trace.unlink(missing_ok=True)
    return Outcome(program, status == 0, line, said, kept)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the C++ under the sanitizers, on mutated inputs.")
    parser.add_argument("programs", nargs="*", default=PROGRAMS, help=f"of {', '.join(PROGRAMS)}")
    parser.add_argument("--seconds", type=float, help="time per program, instead of a number of inputs")
    parser.add_argument("--executions", type=int, default=EXECUTIONS, help="inputs per program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "native")
    options = parser.parse_args()
    if compiler() is None:
        print("no g++ on the PATH", file=sys.stderr)
        return 1
    begin = time.monotonic()
    build(options.folder, options.programs)
    print(f"built in {time.monotonic() - begin:.0f} s with {' '.join(SANITIZE)}", flush=True)
    passed = True
    for program in options.programs:
        amount = ["--executions", str(options.executions // SLOWER.get(program, 1))]
        if options.seconds is not None:
            amount = ["--seconds", str(options.seconds)]
        limit_s = GRACE_S + (options.executions / 100 if options.seconds is None else options.seconds)
        outcome = execute(program, options.folder, *amount, "--seed", str(options.seed), limit_s=limit_s)
        print(f"{'ok  ' if outcome.passed else 'FAIL'} {outcome.line}", flush=True)
        if not outcome.passed:
            print(outcome.output[-4000:], file=sys.stderr)
        passed &= outcome.passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
