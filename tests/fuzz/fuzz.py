"""Fuzzes the Python side for a bounded time, a process per target.

``fuzz.py [--seconds S] [--executions N] [TARGET ...]`` prints a line per target with what was run, and keeps the input
that broke a promise. Exit status 1 if any did.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
MODULES = (FOLDER, FOLDER.parent / "oracle", FOLDER.parent)  # of the targets, the oracle and the toy codec
NAMES = (
    "container",
    "header",
    "decode-native",
    "decode-portable",
    "decode-autoregressive",
    "decode-batch",
    "decode-region",
    "differential",
    "checkpoint",
    "video",
    "decode-video",
    "video-rt",
    "video-rt-portable",
    "decode-video-rt",
    "decode-video-rt-portable",
    "video-hem-portable",
    "decode-video-hem-portable",
    "video-dcvc-portable",
    "video-fvc-portable",
    "decode-video-dcvc-portable",
    "decode-video-fvc-portable",
    "decode-video-hem",
    "decode-video-dcvc",
    "decode-video-fvc",
    "units",
    "payload-32",
    "decode-units",
    "frame-files",
    "drop-in",
)
LIMIT_S = 20  # of processor time for one input
LIMIT_BYTES = 12 << 30  # of address space: an allocation without bounds fails here


class _TooLong(BaseException):
    pass


def _too_long(*_: object) -> None:
    raise _TooLong


def fuzz(name: str, seconds: float, executions: int, seed: int, broken: Path) -> bool:
    """Runs one target in this process; False if an input broke it."""
    sys.path += map(str, MODULES)
    import torch
    from targets import TARGETS

    torch.set_num_threads(1)
    target = TARGETS[name]()
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    signal.signal(signal.SIGPROF, _too_long)
    rng, begin = random.Random(seed), time.monotonic()
    done = accepted = 0
    trace = broken / f"{name}.input"
    broken.mkdir(parents=True, exist_ok=True)
    while done < executions and time.monotonic() - begin < seconds:
        data = target.pool[done] if done < len(target.pool) else target.make(rng)
        if name.startswith("decode"):  # what may crash in C++ leaves its input behind
            trace.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        try:
            accepted += target.run(data)
        except target.refusals:
            pass
        except BaseException as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            if isinstance(error, KeyboardInterrupt):
                raise
            kept = broken / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
            kept.write_bytes(data)
            traceback.print_exc()
            print(f"FAIL {name}: execution {done} broke it: {type(error).__name__}: {error} (input: {kept})")
            return False
        signal.setitimer(signal.ITIMER_PROF, 0)
        done += 1
    trace.unlink(missing_ok=True)
    spent = time.monotonic() - begin
    print(f"ok   {name}: {done} executions in {spent:.0f} s, {done - accepted} refused, {accepted} accepted")
    return done > 0 and accepted > 0


def replay(name: str, path: Path) -> bool:
    """Runs one kept input; its error comes through."""
    sys.path += map(str, MODULES)
    from targets import TARGETS

    return TARGETS[name]().run(path.read_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz containers, decoding and model files.")
    parser.add_argument("targets", nargs="*", default=NAMES, help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="per target")
    parser.add_argument("--executions", type=int, default=sys.maxsize, help="per target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz", help="for inputs that break something")
    parser.add_argument("--replay", type=Path, help="run this input of the one target named")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(NAMES):
        parser.error(f"no target {', '.join(sorted(unknown))} (there are {', '.join(NAMES)})")
    if options.replay is not None:
        return 0 if replay(options.targets[0], options.replay) else 1
    if len(options.targets) == 1:
        amount = (options.seconds, options.executions, options.seed)
        return 0 if fuzz(options.targets[0], *amount, options.folder) else 1
    passed = True
    for name in options.targets:
        amount = ["--seconds", str(options.seconds), "--executions", str(options.executions)]
        command = [
            sys.executable,
            __file__,
            name,
            *amount,
            "--seed",
            str(options.seed),
            "--folder",
            str(options.folder),
        ]
        status = subprocess.run(command).returncode
        if status < 0:
            print(f"FAIL {name}: died of signal {-status} (input: {options.folder / (name + '.input')})", flush=True)
        passed &= status == 0
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
