"""Each op's kernels against plain torch on the same inputs, rounds interleaved; conformance before time.

An integer op also against the same layer in float32, on the CPU.

On a GPU also against the roofline, the time that the counted bytes or operations take at the device's nominal rates,
and, in rows of its own because compiling takes minutes, ``torch.compile(mode="max-autotune")`` of the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch

from sparsecodec.ops._registry import bind, specs, use_backend, why_unavailable
from sparsecodec.testing import CASES, OpCase, judge, run_planned
from sparsecodec.testing.compare import device_of

ROUNDS = 15
ROTATIONS = 4  # sets of inputs

# Nominal dense rates by device: 16-bit tensor-core and float32 FLOP/s, bytes/s of memory (vendor data sheets).
RATES = {"H200": (989e12, 67e12, 4.8e12), "H100": (989e12, 67e12, 3.35e12), "A100": (312e12, 19.5e12, 2.0e12)}


def _runs() -> list:
    runs = []
    for case in CASES:
        for impl in specs()[case.op].impls:
            interpreted = impl.backend == "triton" and not torch.cuda.is_available()
            if not case.bench or interpreted or why_unavailable(impl.backend) is not None:
                continue
            halves = {torch.float16} if impl.backend in ("triton", "cuda") and len(case.dtypes) > 1 else set()
            for dtype in (*case.dtypes, *(halves - set(case.dtypes))):
                name = str(dtype).removeprefix("torch.")
                runs.append(pytest.param(case, impl.backend, dtype, id=f"{case.op}-{case.id}-{impl.backend}-{name}"))
    # First what codecs compute in on a GPU: time may run out.
    return sorted(runs, key=lambda run: len(run.values[0].dtypes) > 1 and run.values[2] != torch.float16)


def _on(device: torch.device, arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to(device, copy=True) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


def _roofline(case: OpCase, dtype: torch.dtype) -> dict[str, float]:
    """Least time on this GPU, if it is one of `RATES`."""
    rates = next((rates for name, rates in RATES.items() if name in torch.cuda.get_device_name()), None)
    if rates is None or case.bytes_moved is None:
        return {}
    flop_s = rates[0] if dtype.itemsize == 2 else rates[1]
    return {"t_us_roofline": 1e6 * max(case.flops / flop_s, case.bytes_moved(dtype.itemsize) / rates[2])}


@pytest.mark.parametrize("case, backend, dtype", _runs())
def bench_op(case: OpCase, backend: str, dtype: torch.dtype, benchmark, bench_row, clock_of):
    verdict = judge(case, run_planned(case, backend, dtype), dtype)
    assert verdict.complaint is None, verdict.complaint

    device = device_of(backend)
    inputs = [_on(device, case.arguments(dtype)) for _ in range(ROTATIONS if device.type == "cuda" else 1)]
    reference = case.spec.reference
    with torch.inference_mode(), use_backend(backend):
        bound = bind(case.spec, **inputs[0])
        free = [{k: v for k, v in one.items() if k not in case.spec.constants} for one in inputs]
        out = [bound.run(**one) for one in free]
        kernel: list[Callable[[], object]] = [
            lambda one=one, to=to: bound.run(**one, out=to) for one, to in zip(free, out, strict=True)
        ]
        contenders = {"kernel": kernel, "reference": [lambda one=one: reference(**one) for one in inputs]}
        if case.rival is not None and device.type == "cpu":
            name, rival = case.rival(inputs[0])
            contenders[name] = [rival]
        clock = clock_of(device, one_thread=torch.get_num_threads() == 1)
        times = None if benchmark.disabled else clock.race(contenders, ROUNDS)

        def once() -> None:
            kernel[0]()
            if device.type == "cuda":
                torch.cuda.synchronize()

        benchmark.pedantic(once, rounds=1 if benchmark.disabled else 3, warmup_rounds=0)
    if times is None:
        return
    middle = {name: 1e6 * median(values) for name, values in times.items()}
    fields = {
        "dtype": str(dtype).removeprefix("torch."),
        "passed": True,
        "err": verdict.error,
        "err_ref": verdict.reference_error,
        "timer": clock.name,
        "t_us_p50": middle.pop("kernel"),
        "n_runs": ROUNDS,
        **{f"t_us_{name}_p50": t for name, t in middle.items()},
    }
    fields |= {f"speedup_over_{name}": t / fields["t_us_p50"] for name, t in middle.items()}
    if case.flops:
        fields["flops"] = case.flops
    if case.bytes_moved is not None:
        fields["bytes_moved"] = case.bytes_moved(dtype.itemsize)
    if device.type == "cuda":
        fields |= _roofline(case, dtype)
        if "t_us_roofline" in fields:
            fields["roofline_share"] = fields["t_us_roofline"] / fields["t_us_p50"]
    if clock.uncaptured:
        fields["uncaptured"] = clock.uncaptured
    note = getattr(bound.run, "note", None)  # how the kernel was split, where it chooses
    bench_row(op=case.op, case=case.id, backend=backend, **fields, **({"note": note} if note else {}))


def _compiled_runs() -> list:
    """A case of each op whose reference is arithmetic in 16 bits."""
    cases = {case.op: case for case in reversed(CASES) if case.bench and torch.bfloat16 in case.dtypes}
    return [pytest.param(case, id=f"{op}-{case.id}") for op, case in cases.items()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", _compiled_runs())
def bench_torch_compile(case: OpCase, benchmark, bench_row, clock_of):
    device, dtype = torch.device("cuda"), torch.float16
    inputs = [_on(device, case.arguments(dtype)) for _ in range(ROTATIONS)]
    compiled = torch.compile(case.spec.reference, mode="max-autotune-no-cudagraphs", dynamic=False)
    with torch.inference_mode():
        expected, got = case.spec.reference(**inputs[0]), compiled(**inputs[0])
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
        if not benchmark.disabled:
            calls = {"compiled": [lambda one=one: compiled(**one) for one in inputs]}
            clock = clock_of(device)
            t = 1e6 * median(clock.race(calls, ROUNDS)["compiled"])
            fields = {"dtype": "float16", "passed": True, "timer": clock.name, "t_us_p50": t, "n_runs": ROUNDS}
            bench_row(op=case.op, case=case.id, backend="torch.compile", **fields)
        benchmark.pedantic(lambda: compiled(**inputs[0]), rounds=1)
