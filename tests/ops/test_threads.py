"""Kernels run on as many threads as torch is set to, wherever they are called."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Each case is the first work of a new thread. Prints how many threads the kernel started for it, at most.
PROGRAM = """
import os, sys, threading
import numpy as np
import torch
from sparsecodec import _C
from sparsecodec.ops._registry import bind, use_backend
from sparsecodec.testing import CASES

def started_by(call):
    def run():
        before = set(os.listdir("/proc/self/task"))
        call()
        found.append(len(set(os.listdir("/proc/self/task")) - before))
    found = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]

torch.set_num_threads(int(sys.argv[1]))
torch.set_grad_enabled(False)
most = {}
for case in CASES:
    if "cpu" in case.must_run and not case.bench:
        arguments = case.arguments(case.dtypes[0])
        with use_backend("cpu"):
            bound = bind(case.spec, **arguments)
        free = {name: value for name, value in arguments.items() if name not in case.spec.constants}
        free["out"] = bound.run(**free)
        most[case.op] = max(most.get(case.op, 0), started_by(lambda: bound.run(**free)))
total = 5 * 10**6
assert _C.lane_layout(total)[1] > 1
tables = _C.RansTables(np.array([[0, 1000, 65536]], np.int32), np.array([3], np.int32), np.array([0], np.int32))
symbols, rows = np.zeros(total, np.int32), np.zeros(total, np.uint8)
encoder = _C.LaneEncoder(total)
encoder.push(symbols, rows, tables)
payload = []
most["lanes, encoding"] = started_by(lambda: payload.append(encoder.finish()))
decoder = _C.LaneDecoder(payload[0], total)
most["lanes, decoding"] = started_by(lambda: decoder.decode(rows, tables, symbols))
for name, count in most.items():
    print(count, name)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_new_thread_runs_kernels_on_the_threads_of_torch(threads):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(threads)],
        env={**os.environ, "OMP_NUM_THREADS": "3"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    started = {name: int(count) for count, name in (line.split(" ", 1) for line in done.stdout.splitlines())}
    assert max(started.values()) == threads - 1, started
    assert {"conv2d_act", "depth_conv_block", "gdn", "lanes, encoding", "lanes, decoding"} <= {
        name for name, count in started.items() if count == threads - 1
    }
