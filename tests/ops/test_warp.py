"""What is particular to warp."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.ops import use_backend, warp, why_unavailable
from sparsecodec.ops.warp import WARP, warp_reference

TRITON = pytest.param(
    "triton",
    marks=[
        pytest.mark.skipif(why_unavailable("triton") is not None, reason=str(why_unavailable("triton"))),
        pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter"),
    ],
)


def _grid_sample(x, flow):
    """The definition that the DCVC family uses."""
    _, _, height, width = x.shape
    columns = torch.linspace(-1, 1, width, dtype=x.dtype) + flow[:, 0] / ((width - 1) / 2)
    rows = torch.linspace(-1, 1, height, dtype=x.dtype)[:, None] + flow[:, 1] / ((height - 1) / 2)
    grid = torch.stack([columns, rows], -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def test_is_grid_sample_with_its_gradients():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64, generator=generator).requires_grad_()
    flow = (torch.randn(2, 2, 7, 9, dtype=torch.float64, generator=generator) * 4).requires_grad_()
    weight = torch.randn(2, 3, 7, 9, dtype=torch.float64, generator=generator)
    theirs = _grid_sample(x, flow)
    expected = torch.autograd.grad((theirs * weight).sum(), (x, flow))
    ours = warp_reference(x, flow)
    torch.testing.assert_close(ours, theirs)
    for got, wanted in zip(torch.autograd.grad((ours * weight).sum(), (x, flow)), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", ["reference", "cpu", TRITON])
def test_by_hand(backend):
    """A row of 0, 10, 20, 30: right by one, by a quarter to the left, past both ends."""
    x = torch.tensor([0.0, 10, 20, 30]).view(1, 1, 1, 4)
    flow = torch.zeros(1, 2, 1, 4)
    flow[0, 0, 0] = torch.tensor([1.0, -0.25, -7.0, math.inf])
    flow[0, 1] = 5.0  # there is one row
    with use_backend(backend):
        assert warp(x, flow).flatten().tolist() == [10, 7.5, 0, 30]


@pytest.mark.parametrize("backend", ["reference", "cpu", TRITON])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_where_it_is(backend, dtype):
    x = torch.ones(1, 5, 3, 4, dtype=dtype).to(memory_format=torch.channels_last)
    flow = torch.zeros(1, 2, 3, 4)
    flow[0, 0, 0, 1] = flow[0, 1, 2, 3] = math.nan
    with use_backend(backend):
        y = warp(x, flow)
    assert torch.equal(y.isnan(), flow.isnan().any(1, keepdim=True).expand_as(y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instruction_sets_give_the_same_bits(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 45, 11, 13, generator=generator).to(dtype).to(memory_format=torch.channels_last)
    flow = torch.randn(1, 2, 11, 13, generator=generator)
    with use_backend("cpu"):
        best = warp(x, flow)
        monkeypatch.setenv("SPARSECODEC_CPU_ISA", "scalar")
        assert torch.equal(warp(x, flow), best)


def test_refuses_what_does_not_fit():
    x, flow = torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 4, 5)
    with pytest.raises(UsageError, match=r"flow.shape=\[1, 2, 4, 4\]"):
        warp(x, flow[..., 1:])
    with pytest.raises(UsageError, match=r"x.shape"):
        warp(x[0], flow)
    with use_backend("cpu"), pytest.raises(NoBackendError, match="channels innermost"):
        warp(x, flow)
    for impl in WARP.impls:
        assert f"flow.shape={[1, 1, 4, 5]} (needs {[1, 2, 4, 5]})" in impl.rejects(x, flow[:, :1])
        assert "flow.dtype=float64 (needs float32)" in impl.rejects(x, flow.double())


def test_a_flow_of_16_bits_moves_by_what_it_says():
    x, flow = torch.rand(1, 2, 3, 200), torch.full((1, 2, 3, 200), 0.25)
    torch.testing.assert_close(warp(x, flow.bfloat16()), warp(x, flow), atol=1e-6, rtol=0)
