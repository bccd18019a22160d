"""How many damaged inputs each target took, one row each in ``bench/results/robustness.json``.

``python bench/robustness.py [TARGET ...]`` runs the fuzz targets for the numbers of docs/robustness.md, under an hour
on one core; ``--seconds S`` bounds each. A target that breaks ends it without a row.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from sparsecodec.info import environment

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "robustness.json"
SCRIPTS = {"python": ROOT / "tests" / "fuzz" / "fuzz.py", "c++": ROOT / "tests" / "native" / "native.py"}
TARGETS = {  # name -> side, and how many inputs
    "container": ("python", 1_000_000),
    "rans": ("c++", 1_000_000),
    "lanes": ("c++", 20_000),
    "kernels": ("c++", 15_000),  # the script runs a fifth of them
    "context": ("c++", 20_000),
    "header": ("python", 300_000),
    "differential": ("python", 100_000),
    "decode-native": ("python", 5_000),
    "decode-portable": ("python", 5_000),
    "decode-batch": ("python", 1_000),
    "decode-region": ("python", 2_000),
    "checkpoint": ("python", 500),
    "video": ("python", 100_000),
    "decode-video": ("python", 100_000),
    "video-rt": ("python", 100_000),
    "video-rt-portable": ("python", 100_000),
    "video-hem-portable": ("python", 100_000),
    "video-dcvc-portable": ("python", 100_000),
    "video-fvc-portable": ("python", 100_000),
    "decode-video-rt": ("python", 1_000),
    "decode-video-rt-portable": ("python", 1_000),
    "decode-video-hem-portable": ("python", 20_000),
    "decode-video-dcvc-portable": ("python", 5_000),
    "decode-video-fvc-portable": ("python", 5_000),
    "decode-video-hem": ("python", 50),
    "decode-video-dcvc": ("python", 50),
    "decode-video-fvc": ("python", 50),
    "decode-autoregressive": ("python", 200),
    "units": ("python", 20_000),
    "payload-32": ("python", 20_000),
    "decode-units": ("python", 100),
    "frame-files": ("python", 5_000),
    "drop-in": ("python", 1_000),
}
LINE = re.compile(
    r"^ok +[\w-]+: (?P<executions>\d+) executions.*?, (?P<refused>\d+) refused, (?P<accepted>\d+) accepted", re.M
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=TARGETS, help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=1e9, help="of each Python target, at most")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    facts = environment()
    where = {
        "commit": commit.stdout.strip(),
        **{key: facts[key] for key in ("device", "cpu_kernels", "torch", "python")},
    }
    rows = {row["target"]: row for row in (json.loads(RESULTS.read_text()) if RESULTS.exists() else [])}
    for name in options.targets:
        side, executions = TARGETS[name]
        command = [sys.executable, SCRIPTS[side], name, "--executions", str(executions), "--seed", str(options.seed)]
        command += ["--seconds", str(options.seconds)] if side == "python" else []
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        found = LINE.search(done.stdout)
        if done.returncode or found is None:
            sys.exit(f"{name} broke: no row")
        counts = {key: int(value) for key, value in found.groupdict().items()}
        rows[name] = {"target": name, "side": side, "seed": options.seed, **counts, **where}
        ordered = [rows[key] for key in TARGETS if key in rows]
        RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, ordered)) + "\n]\n")


if __name__ == "__main__":
    main()
