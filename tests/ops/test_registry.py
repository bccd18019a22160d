"""Choosing an implementation: reasons, overrides, binding."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.ops import bind, pointwise, specs, use_backend, why_unavailable
from sparsecodec.ops._registry import Impl, OpSpec, call, register, select
from sparsecodec.ops._triton_rules import triton_rejects
from sparsecodec.ops.pointwise import POINTWISE


def _arguments(**changes):
    torch.manual_seed(0)
    x = torch.randn(1, 8, 4, 5).to(memory_format=torch.channels_last)
    return {"x": x, "weight": torch.randn(6, 8), "bias": torch.randn(6)} | changes


def test_contiguous_input_falls_back_to_the_reference_and_says_why():
    arguments = _arguments(x=torch.randn(1, 8, 4, 5))
    bound = bind(POINTWISE, **arguments)
    assert bound.backend == "reference"
    assert any("channels innermost" in line for line in bound.refused)
    assert torch.equal(pointwise(**arguments), POINTWISE.reference(**arguments))


def test_forced_backend_obeys_or_raises_with_reasons():
    with use_backend("cpu"), pytest.raises(NoBackendError, match="dtype=float64.*x.stride=") as raised:
        pointwise(**_arguments(x=torch.randn(1, 8, 4, 5, dtype=torch.float64)))
    assert "no backend for pointwise" in str(raised.value)
    with use_backend("cpu"):
        assert bind(POINTWISE, **_arguments()).backend == "cpu"
    with use_backend("reference"):
        assert bind(POINTWISE, **_arguments()).backend == "reference"


def test_environment_forces_a_backend(monkeypatch):
    monkeypatch.setenv("SPARSECODEC_BACKEND", "reference")
    assert bind(POINTWISE, **_arguments()).backend == "reference"
    monkeypatch.setenv("SPARSECODEC_BACKEND", "nonsense")
    with pytest.raises(UsageError, match="SPARSECODEC_BACKEND=nonsense .one of cuda, triton, cpu, reference"):
        pointwise(**_arguments())


def test_unknown_backend_is_refused():
    with pytest.raises(UsageError, match="one of cuda"), use_backend("gpu"):
        pass
    assert "unknown backend" in why_unavailable("gpu")


def test_training_runs_the_reference():
    arguments = _arguments(weight=torch.randn(6, 8, requires_grad=True))
    bound = bind(POINTWISE, **arguments)
    assert bound.backend == "reference"
    assert any("inference-only" in line for line in bound.refused)
    pointwise(**arguments).sum().backward()
    assert arguments["weight"].grad.abs().sum() > 0
    with torch.no_grad():
        assert bind(POINTWISE, **arguments).backend == "cpu"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_bound_op_takes_names_positions_and_out(backend):
    arguments = _arguments()
    residual = torch.randn(1, 6, 4, 5).to(memory_format=torch.channels_last)
    with use_backend(backend):
        run = bind(POINTWISE, **arguments, residual=residual).run
        expected = pointwise(**arguments, residual=residual)
    out = torch.full_like(expected, float("nan"))
    assert run(arguments["x"], residual, out=out) is out
    assert torch.equal(out, expected)
    assert torch.equal(run(x=arguments["x"], residual=residual), expected)


def test_constants_are_copied_when_packed():
    arguments = _arguments()
    run = bind(POINTWISE, **arguments).run
    before = run(arguments["x"])
    arguments["weight"].zero_()
    arguments["bias"].zero_()
    assert torch.equal(run(arguments["x"]), before)


def test_specs_are_registered_once():
    with pytest.raises(UsageError, match="registered twice"):
        register(POINTWISE)
    assert specs()["pointwise"] is POINTWISE


def test_tuple_results_are_copied_into_out():
    def split(x, sizes=1):
        return x * sizes, x + sizes

    spec = OpSpec("split", "(Tensor x, int sizes=1) -> (Tensor, Tensor)", split, (), constants=("sizes",))
    out = (torch.empty(3), torch.empty(3))
    assert bind(spec, torch.ones(3), 4).run(torch.full((3,), 2.0), out=out) is out
    assert out[0].tolist() == [8.0] * 3 and out[1].tolist() == [6.0] * 3


def test_best_accepting_implementation_is_chosen():
    first = Impl("cpu", "torch:neg", rejects=lambda x: ["too small"] if x.numel() < 2 else [])
    second = Impl("cpu", "torch:abs", rejects=lambda x: [])
    spec = OpSpec("sign", "(Tensor x) -> Tensor", torch.clone, (first, second))
    assert select(spec, {"x": torch.ones(2)}) is first
    assert select(spec, {"x": torch.ones(1)}) is second


def test_mixed_devices_are_refused():
    spec = OpSpec(
        "add", "(Tensor x, Tensor y) -> Tensor", lambda x, y: x + y, (Impl("cpu", "torch:add", lambda x, y: []),)
    )
    with use_backend("cpu"), pytest.raises(NoBackendError, match="mixed devices cpu, meta"):
        call(spec, torch.ones(2), torch.ones(2, device="meta"))


def test_the_interpreter_takes_no_tensors_of_a_gpu(monkeypatch):
    """It would take them, by way of the CPU: hours for a picture, and nothing would say why."""
    gpu = SimpleNamespace(type="cuda")
    x = SimpleNamespace(device=gpu, dtype=torch.float32, shape=(1, 8, 4, 4), dim=lambda: 4, numel=lambda: 128)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_rejects((torch.float32,), x=x) == ["x.device=cuda (needs cpu with TRITON_INTERPRET=1)"]
    monkeypatch.delenv("TRITON_INTERPRET")
    assert triton_rejects((torch.float32,), x=x) == []
    found = triton_rejects((torch.float32,), x=torch.zeros(1, 8, 4, 4))
    assert found == ["x.device=cpu (needs cuda, or cpu with TRITON_INTERPRET=1)"]
