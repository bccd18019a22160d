"""Every implementation of every op against its reference, on the shared cases."""

from __future__ import annotations

import inspect

import pytest
import torch

from sparsecodec.ops._registry import reasons_against, resolve, specs, why_unavailable
from sparsecodec.testing import CASES, islanded, judge, run_eager, run_planned

RUNS = [
    pytest.param(case, impl, dtype, id=f"{case.op}-{case.id}-{impl.backend}-{str(dtype).removeprefix('torch.')}")
    for case in CASES
    for impl in case.spec.impls
    for dtype in case.dtypes
    if case.interpreted or impl.backend != "triton" or torch.cuda.is_available()
]
PLANNED = [run for run in RUNS if run.values[1].plan is not None]


def _called(case, impl, dtype) -> bool:
    """Sizes that are timed take seconds on a CPU, where call and plan run the same kernel: there the plan suffices."""
    return impl.plan is None or impl.backend != "cpu" or not case.bench


CALLED = [run for run in RUNS if _called(*run.values)]


def _require(case, impl, dtype):
    """Skips a backend that this machine has not; fails if an available one refuses a case it must run."""
    missing = why_unavailable(impl.backend)
    if missing is not None and impl.backend != "cpu":
        pytest.skip(missing)
    with torch.no_grad():
        reasons = reasons_against(impl, islanded(case, impl.backend, dtype))
    if reasons and impl.backend not in case.must_run:
        pytest.skip("; ".join(reasons))
    assert not reasons, reasons


def _check(case, outputs, dtype, record_property):
    verdict = judge(case, outputs, dtype)
    record_property("error", verdict.error)
    record_property("reference_error", verdict.reference_error)
    assert verdict.complaint is None, verdict.complaint


@pytest.mark.parametrize(("case", "impl", "dtype"), CALLED)
def test_matches_reference(case, impl, dtype, record_property):
    _require(case, impl, dtype)
    _check(case, run_eager(case, impl.backend, dtype), dtype, record_property)


@pytest.mark.parametrize(("case", "impl", "dtype"), PLANNED)
def test_plan_matches_reference(case, impl, dtype, record_property):
    _require(case, impl, dtype)
    _check(case, run_planned(case, impl.backend, dtype), dtype, record_property)


@pytest.mark.parametrize("spec", specs().values(), ids=lambda spec: spec.name)
def test_every_op_has_cases_and_a_true_schema(spec):
    assert any(case.op == spec.name for case in CASES)
    schema = torch._C.parse_schema(f"sparsecodec::{spec.name}{spec.schema}")
    parameters = inspect.signature(spec.reference).parameters
    assert [argument.name for argument in schema.arguments] == list(parameters)
    for argument in schema.arguments:
        default = parameters[argument.name].default
        assert argument.default_value == (None if default is inspect.Parameter.empty else default), argument.name
    assert set(spec.constants) <= set(parameters)


@pytest.mark.parametrize("impl", [impl for spec in specs().values() for impl in spec.impls], ids=lambda i: i.target)
def test_targets_exist(impl):
    if why_unavailable(impl.backend) is not None and impl.backend != "cpu":
        pytest.skip(why_unavailable(impl.backend))
    assert callable(resolve(impl.target))
    assert impl.plan is None or callable(resolve(impl.plan))
