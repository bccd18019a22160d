"""What is particular to the Triton kernels."""

from __future__ import annotations

import pytest
import torch

from sparsecodec.errors import NoBackendError
from sparsecodec.ops import pointwise, specs, use_backend, why_unavailable
from sparsecodec.ops._registry import bind

pytestmark = [
    pytest.mark.skipif(why_unavailable("triton") is not None, reason=str(why_unavailable("triton"))),
    pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter"),
]


def _scatter(height: int = 3):
    torch.manual_seed(0)
    x, residual = (torch.randn(1, c, height, 5).to(memory_format=torch.channels_last) for c in (8, 100))
    kept = torch.randperm(100)[:30].int()
    return {"x": x, "weight": torch.randn(30, 8), "out_index": kept, "residual": residual}


def test_untouched_channels_are_the_residual_even_beside_infinite_features():
    arguments = _scatter()
    arguments["x"][0, 0, 0, 0] = float("inf")
    with use_backend("triton"):
        y = pointwise(**arguments)
    others = torch.ones(100, dtype=torch.bool)
    others[arguments["out_index"].long()] = False
    assert torch.equal(y[:, others], arguments["residual"][:, others])
    assert not y[:, ~others].isfinite().all()


def test_residual_may_be_the_output():
    arguments = _scatter()
    expected = pointwise(**arguments)
    with use_backend("triton"):
        bound = bind(specs()["pointwise"], **arguments)
    residual = arguments["residual"]
    assert bound.run(arguments["x"], residual, out=residual) is residual
    torch.testing.assert_close(residual, expected)


def test_refusals_say_why(monkeypatch):
    with use_backend("triton"), pytest.raises(NoBackendError, match="the interpreter takes 65536 elements"):
        pointwise(**_scatter(height=300))
    with use_backend("triton"), pytest.raises(NoBackendError, match=r"out_index with shuffle=2 \(needs a residual"):
        pointwise(**_scatter(), shuffle=2)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(NoBackendError), use_backend("triton"):
        pointwise(**_scatter())


def test_the_interpreter_never_replaces_a_native_kernel():
    assert bind(specs()["pointwise"], **_scatter()).backend == "cpu"
