"""Every implementation of every op against its reference, on the shared cases."""

from __future__ import annotations

import inspect

import pytest
import torch

from sparsecodec.ops._registry import reasons_against, resolve, specs, why_unavailable
from sparsecodec.testing import CASES, islanded, judge, run_eager, run_planned

ON_GPU = torch.cuda.is_available()


def _ways(case, impl, dtype) -> list[str]:
    """As a call with all arguments, and planned: with packed constants, into memory that it is given.

    Both run the same kernel. Where that takes seconds the plan suffices: on the CPU for sizes that are timed, and in
    Triton's interpreter for all dtypes of a case but one.
    """
    if impl.plan is None:
        return ["call"]
    slow = case.bench if impl.backend == "cpu" else not ON_GPU and dtype != case.dtypes[0]
    return ["plan"] if slow else ["call", "plan"]


RUNS = [  # those of one case and dtype in a row: `judge` remembers what the reference gave
    pytest.param(
        case, impl, dtype, way, id=f"{case.op}-{case.id}-{impl.backend}-{str(dtype).removeprefix('torch.')}-{way}"
    )
    for case in CASES
    for dtype in case.dtypes
    for impl in case.spec.impls
    if impl.backend != "triton" or ON_GPU or (case.interpreted and not case.bench)
    for way in _ways(case, impl, dtype)
]


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


@pytest.mark.parametrize(("case", "impl", "dtype", "way"), RUNS)
def test_matches_reference(case, impl, dtype, way, record_property):
    _require(case, impl, dtype)
    outputs = (run_eager if way == "call" else run_planned)(case, impl.backend, dtype)
    verdict = judge(case, outputs, dtype)
    record_property("error", verdict.error)
    record_property("reference_error", verdict.reference_error)
    assert verdict.complaint is None, verdict.complaint


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
