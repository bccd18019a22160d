"""Each op's kernels against plain torch on the same inputs, rounds interleaved; conformance before time."""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch

from sparsecodec.ops._registry import bind, specs, use_backend, why_unavailable
from sparsecodec.testing import CASES, OpCase, judge, run_planned

ROUNDS = 15


def _runs() -> list:
    runs = []
    for case in CASES:
        if not case.bench:
            continue
        for impl in specs()[case.op].impls:
            if why_unavailable(impl.backend) is None and not (
                impl.backend == "triton" and not torch.cuda.is_available()
            ):
                names = [str(dtype).removeprefix("torch.") for dtype in case.dtypes]
                runs += [
                    pytest.param(case, impl.backend, dtype, id=f"{case.op}-{case.id}-{impl.backend}-{name}")
                    for dtype, name in zip(case.dtypes, names, strict=True)
                ]
    return runs


@pytest.mark.parametrize("case, backend, dtype", _runs())
def bench_op(case: OpCase, backend: str, dtype: torch.dtype, benchmark, bench_row):
    verdict = judge(case, run_planned(case, backend, dtype), dtype)
    assert verdict.complaint is None, verdict.complaint

    arguments = case.arguments(dtype)
    free = {name: value for name, value in arguments.items() if name not in case.spec.constants}
    reference_times: list[float] = []
    with torch.inference_mode(), use_backend(backend):
        bound = bind(case.spec, **arguments)
        out = bound.run(**free)

        def reference() -> None:
            start = time.perf_counter()
            case.spec.reference(**arguments)
            reference_times.append(time.perf_counter() - start)

        reference()
        benchmark.pedantic(lambda: bound.run(**free, out=out), setup=reference, rounds=ROUNDS, warmup_rounds=1)
    fields = {
        "dtype": str(dtype).removeprefix("torch."),
        "passed": True,
        "err": verdict.error,
        "err_ref": verdict.reference_error,
        "timer": "host, rounds interleaved with the reference",
        "t_us_reference_p50": 1e6 * median(reference_times),
    }
    if case.flops:
        fields["flops"] = case.flops
    if case.bytes_moved is not None:
        fields["bytes_moved"] = case.bytes_moved(torch.empty(0, dtype=dtype).element_size())
    if benchmark.stats:
        fields["speedup_over_reference"] = median(reference_times) / benchmark.stats.stats.median
    bench_row(op=case.op, case=case.id, backend=backend, **fields)
