"""DCVC's blocks become one call each: gates, sums of chunks, shortcuts, factors, several inputs and results."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparsecodec.nn.rt_layers import DCB, Down, SubpelConv, Up
from sparsecodec.runtime.transform import CompiledTransform

SIZES = [(5, 7), (4, 6), (5, 7)]  # the first comes back: on its planned buffers


class Network(nn.Module):
    """`forward` from a function of (module, inputs), with child modules given by name."""

    def __init__(self, function: Callable, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.function = function


class One(Network):
    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Scaled(Network):
    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        return self.function(self, x, step)


class Two(Network):
    def forward(self, x: Tensor, other: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(self, x, other)


def check(module: Network, channels: list[int], dtype: torch.dtype = torch.float32) -> list[tuple[str, str]]:
    """Compares with the module in float64, allows twice torch's own error, and returns (op, backend) rows."""
    generator = torch.Generator().manual_seed(11)
    module = module.eval().requires_grad_(False)
    factors = ("step",) if isinstance(module, Scaled) else ()
    transform = CompiledTransform(module, "t", dtype, factors=factors)
    exact_module, eager_module = copy.deepcopy(module).double(), copy.deepcopy(module).to(dtype)
    with torch.inference_mode():
        for h, w in SIZES:
            inputs = [torch.randn(1, c, h, w, generator=generator) for c in channels]
            inputs = [x.to(dtype).float() for x in inputs]
            if factors:
                inputs[-1] = torch.rand(1, channels[-1], 1, 1, generator=generator).to(dtype).float() + 0.5
            exact = exact_module(*(x.double() for x in inputs))
            eager = eager_module(*(x.to(dtype) for x in inputs))
            ours = transform(*inputs)
            for mine, theirs, right in zip(*map(_tuple, (ours, eager, exact)), strict=True):
                assert mine.shape == right.shape and mine.dtype == dtype
                bound = 2 * (theirs - right).abs().max() + 1e-6 * right.abs().max()
                assert (mine - right).abs().max() <= bound
    rows = transform.rows(1, {})
    assert all(row.reason for row in rows if row.backend == "torch")
    return [(row.op, row.backend) for row in rows]


def _tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


BLOCK = ("depth_conv_block", "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("c_in", [8, 12])
def test_rt_block_is_one_call(c_in: int, shortcut: bool, dtype: torch.dtype):
    rows = check(One(lambda m, x: m.a(x), a=DCB(c_in, 8, shortcut=shortcut)), [c_in], dtype)
    assert rows == [BLOCK] if c_in == 8 else rows == [("pointwise", "cpu"), BLOCK]


def test_only_what_a_block_starts_from_is_its_shortcut():
    rows = check(Two(lambda m, x, f: m.a(x) + f, a=DCB(8, 8)), [8, 8])
    assert rows == [BLOCK, ("add", "torch")]


@pytest.mark.parametrize("shortcut", [False, True])
def test_the_quantisation_step_is_in_the_block(shortcut: bool):
    assert check(Scaled(lambda m, x, q: m.a(x, quant_step=q), a=DCB(8, 8, shortcut=shortcut)), [8, 8]) == [BLOCK]
    assert check(Scaled(lambda m, x, q: m.a(x) * q, a=nn.Conv2d(8, 8, 1)), [8, 8]) == [("pointwise", "cpu")]


def test_a_step_times_what_no_kernel_scales():
    rows = check(Scaled(lambda m, x, q: q * m.a(x), a=nn.Conv2d(8, 8, 3, padding=1)), [8, 8])
    assert rows == [("conv2d_act", "cpu"), ("scale_channels", "torch")]


def test_up_and_down():
    rows = check(One(lambda m, x: m.b(m.a(x)), a=Up(8, 12), b=Down(12, 8)), [8])
    assert rows == [("pointwise", "cpu"), BLOCK, ("conv2d_act", "cpu"), BLOCK]


def test_concatenation_and_several_inputs():
    net = Two(lambda m, x, f: m.b(m.a(x, to_cat=f)), a=DCB(8, 8), b=DCB(20, 8))
    assert check(net, [8, 12]) == [BLOCK, ("cat", "torch"), ("pointwise", "cpu"), BLOCK]
    up = One(lambda m, x: m.b(m.a(x)), a=SubpelConv(8, 8, 3), b=DCB(8, 8))
    assert check(up, [8]) == [("conv2d_act", "cpu"), BLOCK]


def test_several_results():
    """The first lives on while the second is computed from it."""

    def function(m: nn.Module, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        first = m.a(x)
        return first, m.c(m.b(first)) + f

    net = Two(function, a=DCB(8, 8), b=nn.Conv2d(8, 8, 1), c=nn.Conv2d(8, 8, 1))
    assert ("depth_conv_block", "cpu") in check(net, [8, 8])


class Neighbours(nn.Module):
    """DCVC-UF's feed-forward block: four neighbouring channels are added."""

    def __init__(self, channels: int, chunks: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, chunks * channels, 1), nn.Conv2d(channels, channels, 1)
        self.chunks = chunks

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h * torch.sigmoid(4 * h)
        total = h[:, 0 :: self.chunks]
        for i in range(1, self.chunks):
            total = total + h[:, i :: self.chunks]
        return self.last(total) + x


@pytest.mark.parametrize("chunks", [2, 4])
def test_neighbours_are_added_in_the_product(chunks: int):
    assert check(One(lambda m, x: m.a(x), a=Neighbours(8, chunks)), [8]) == [("pointwise", "cpu")] * 2


UNFUSED = {
    "one half twice": lambda h: h[:, :8] + h[:, :8],
    "halves of other sizes": lambda h: h[:, :8] + h[:, 4:12],
    "three of four": lambda h: h.chunk(4, 1)[0] + h.chunk(4, 1)[1] + h.chunk(4, 1)[2],
    "rows, not channels": lambda h: h[:, :, ::2][:, :, :1] + h[:, :, 1::2][:, :, :1],
    "another factor": lambda h: h * torch.sigmoid(3 * h),
    "another operand": lambda h: h * torch.sigmoid(4 * h.flip(1)),
}


@pytest.mark.parametrize("form", UNFUSED)
def test_what_only_looks_alike_is_computed_as_it_stands(form: str):
    assert ("pointwise", "cpu") in check(One(lambda m, x: UNFUSED[form](m.a(x)), a=nn.Conv2d(8, 16, 1)), [8])


def test_a_gate_that_others_read_into():
    """The sigmoid itself is a result, so the product may not swallow it."""

    def function(m: nn.Module, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        y = m.a(x)
        weight = torch.sigmoid(4 * y)
        return y * weight, weight + f

    check(Two(function, a=nn.Conv2d(8, 8, 1)), [8, 8])


def test_a_gate_after_a_convolution_and_alone():
    def gate(x: Tensor) -> Tensor:
        return x * torch.sigmoid(4.0 * x)

    assert check(One(lambda m, x: gate(m.a(x)), a=nn.Conv2d(8, 8, 3, padding=1)), [8]) == [("conv2d_act", "cpu")]
    assert check(One(lambda m, x: m.a(gate(x)), a=nn.Conv2d(8, 8, 1)), [8])[0] == ("Gate", "torch")


def test_a_block_without_its_second_gate_is_no_block():
    block = DCB(8, 8)
    block.ffn[1].activation = nn.Identity()
    rows = check(One(lambda m, x: m.a(x), a=block), [8])
    assert rows[-2:] == [("pointwise", "cpu")] * 2
