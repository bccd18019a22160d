"""What is particular to integer_warp."""

from __future__ import annotations

import pytest
import torch

from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.ops import bind, integer_warp, use_backend, why_unavailable
from sparsecodec.ops.integer_warp import INTEGER_WARP
from sparsecodec.ops.warp import warp_reference
from sparsecodec.testing import CASES

PIXEL = 2**16
TRITON = pytest.param(
    "triton",
    marks=[
        pytest.mark.skipif(why_unavailable("triton") is not None, reason=str(why_unavailable("triton"))),
        pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter"),
    ],
)
BACKENDS = ["reference", "cpu", TRITON]
CPU_CASES = [case for case in CASES if case.op == "integer_warp" and not case.bench]


def _clip(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def _defined(x: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """The definition on Python's integers, which have no width."""
    (n, channels, height, width), pixels, moved = x.shape, x.tolist(), flow.tolist()
    out = torch.empty(x.shape, dtype=torch.int16)
    for k in range(n):
        for h in range(height):
            for w in range(width):
                col = _clip(2**16 * w + moved[k][0][h][w], 0, 2**16 * (width - 1))
                row = _clip(2**16 * h + moved[k][1][h][w], 0, 2**16 * (height - 1))
                i, a = col // 2**16, (col % 2**16 + 2) // 4
                j, b = row // 2**16, (row % 2**16 + 2) // 4
                i_next, j_next = min(i + 1, width - 1), min(j + 1, height - 1)
                for c in range(channels):
                    picture = pixels[k][c]
                    top, bottom = (
                        (picture[y][i] * (2**14 - a) + picture[y][i_next] * a + 2**13) // 2**14 for y in (j, j_next)
                    )
                    out[k, c, h, w] = (top * (2**14 - b) + bottom * b + 2**13) // 2**14
    return out


@pytest.mark.parametrize("case", CPU_CASES, ids=lambda case: case.id)
def test_the_reference_is_the_definition(case):
    arguments = case.arguments(torch.int16)
    with use_backend("reference"):
        assert torch.equal(integer_warp(**arguments), _defined(**arguments))


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    """A row of 0, 10, 20, 31: right by one, left by a quarter, half way, past both ends."""
    x = torch.tensor([0, 10, 20, 31], dtype=torch.int16).view(1, 1, 1, 4)
    flow = torch.zeros(1, 2, 1, 4, dtype=torch.int32)
    flow[0, 1] = 5 * PIXEL  # there is one row
    with use_backend(backend):
        flow[0, 0, 0] = torch.tensor([PIXEL, -PIXEL // 4, -(2**31), 2**31 - 1])
        assert integer_warp(x, flow).flatten().tolist() == [10, 8, 0, 31]  # 7.5 goes up
        flow[0, 0, 0] = torch.tensor([2 * PIXEL - 3, PIXEL - 2, PIXEL // 2, -1])
        assert integer_warp(x, flow).flatten().tolist() == [20, 20, 26, 31]
        assert integer_warp(-x, flow).flatten().tolist() == [-20, -20, -25, -31]  # -25.5 goes up


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_weight_is_that_of_the_next_pixel(backend):
    """Fractions in quarters of a step round to the nearest; two that are nearest to 1 take the next sample whole."""
    x = torch.tensor([-(2**15), 2**15 - 1], dtype=torch.int16).view(1, 1, 1, 2)
    flow = torch.zeros(1, 2, 1, 2, dtype=torch.int32)
    for fraction, expected in ((1, -32768), (2, -32764), (65533, 32763), (65534, 32767), (65535, 32767)):
        flow[0, 0, 0, 0] = fraction
        with use_backend(backend):
            assert int(integer_warp(x, flow)[0, 0, 0, 0]) == expected, fraction


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("span", [8, 2**10, 2**15])
def test_is_the_float_warp_but_for_rounding(backend, span):
    """Two roundings to integers, 1/2 each, and two weights that are off by 2^-15 of what neighbours differ."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-span, span, (2, 5, 7, 9), generator=generator).to(torch.int16)
    flow = torch.randint(-4 * PIXEL, 4 * PIXEL, (2, 2, 7, 9), generator=generator).to(torch.int32)
    with use_backend(backend):
        y = integer_warp(x.to(memory_format=torch.channels_last), flow)
    error = (warp_reference(x.double(), flow.double() / PIXEL) - y).abs().max()
    assert float(error) <= 1 + 2 * 2 * span * 2.0**-15


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_positions_behind_2_to_the_15_pixels_leave_32_bits(backend):
    """2^16 w has 33 bits there."""
    x = torch.arange(40000).sub(20000).to(torch.int16).view(1, 1, 1, -1)
    flow = torch.zeros(1, 2, 1, 40000, dtype=torch.int32)
    flow[0, 0, 0, 39000], flow[0, 0, 0, 39001], flow[0, 0, 0, 39002] = -30000 * PIXEL, 2**31 - 1, -(2**31)
    expected = x.clone()
    expected[0, 0, 0, 39000:39003] = torch.tensor([9000 - 20000, 19999, 39002 - 2**15 - 20000])
    with use_backend(backend):
        assert torch.equal(integer_warp(x, flow), expected)
        if backend == "cpu":  # rows likewise
            turned = integer_warp(x.mT, flow.mT.flip(1))
            assert torch.equal(turned, expected.mT)


@pytest.mark.parametrize("case", CPU_CASES, ids=lambda case: case.id)
def test_instruction_sets_give_the_same_bits(case, instruction_sets, monkeypatch):
    arguments = case.arguments(torch.int16)
    expected = INTEGER_WARP.reference(**arguments)
    for isa in instruction_sets:
        monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
        with use_backend("cpu"):
            assert torch.equal(integer_warp(**arguments), expected), isa


def test_bits_do_not_depend_on_threads():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**15), 2**15, (2, 64, 33, 29), generator=generator).to(torch.int16)
    x = x.contiguous(memory_format=torch.channels_last)
    flow = torch.randint(-3 * PIXEL, 3 * PIXEL, (2, 2, 33, 29), generator=generator).to(torch.int32)
    with use_backend("cpu"):
        run = bind(INTEGER_WARP, x=x, flow=flow).run
    expected, threads = run(x=x, flow=flow), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(run(x=x, flow=flow), expected)
    finally:
        torch.set_num_threads(threads)


def test_refuses_what_does_not_fit():
    x, flow = torch.zeros(1, 3, 4, 5, dtype=torch.int16), torch.zeros(1, 2, 4, 5, dtype=torch.int32)
    with use_backend("reference"):
        for wrong, message in (
            ((x, flow[..., 1:]), r"flow.shape=\[1, 2, 4, 4\]"),
            ((x, flow.expand(2, -1, -1, -1)), r"flow.shape=\[2, 2, 4, 5\]"),
            ((x[0], flow), r"x.shape=\[3, 4, 5\]"),
            ((x.int(), flow), r"x.dtype=int32 \(needs int16\)"),
            ((x, flow.float()), r"flow.dtype=float32 \(needs int32\)"),
        ):
            with pytest.raises(UsageError, match=message):
                integer_warp(*wrong)
    with use_backend("cpu"), pytest.raises(NoBackendError, match="channels innermost"):
        integer_warp(x, flow)
    for impl in INTEGER_WARP.impls:
        assert f"flow.shape={[1, 1, 4, 5]} (needs {[1, 2, 4, 5]})" in impl.rejects(x, flow[:, :1])
        assert "flow.dtype=int64 (needs int32)" in impl.rejects(x, flow.long())
        assert "x.dtype=int8 (needs int16)" in impl.rejects(x.to(torch.int8), flow)
        assert f"x.shape={[3, 4, 5]} (needs [N, C, H, W])" in impl.rejects(x[0], flow)
