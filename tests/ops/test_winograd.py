"""Claims of minimal filtering beyond agreement with the reference, which conformance cases check."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsecodec import _C
from sparsecodec.ops import bind
from sparsecodec.ops.conv2d_act import CONV2D_ACT
from sparsecodec.ops.conv_transpose2d_act import CONV_TRANSPOSE2D_ACT

ISA = _C.cpu_isa()
pytestmark = pytest.mark.skipif(ISA != "avx512bf16", reason=f"needs AVX512-BF16 without AMX, this is {ISA}")


DOUBLING = {"stride": 2, "padding": 2, "output_padding": 1}


def _layer(c_in: int, c_out: int, height: int = 33, width: int = 27, **options):
    torch.manual_seed(0)
    x = torch.randn(2, c_in, height, width).bfloat16().to(memory_format=torch.channels_last)
    weight = torch.randn(c_out, c_in, 3, 3) / (9 * c_in) ** 0.5
    return x, weight, bind(CONV2D_ACT, x, weight, torch.randn(c_out), padding=1, **options).run


def _upward(c_in: int, c_out: int):
    torch.manual_seed(0)
    x = torch.randn(2, c_in, 17, 26).bfloat16().to(memory_format=torch.channels_last)
    weight = torch.randn(c_in, c_out, 5, 5) / (6 * c_in) ** 0.5
    return x, weight, bind(CONV_TRANSPOSE2D_ACT, x, weight, torch.randn(c_out), **DOUBLING).run


def _like_direct(run, x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the products are those of bfloat16 weights: with one input of 1 and no other each output is a weight."""
    one = torch.zeros_like(x[:1])
    one[0, 0, 2, 2] = 1
    got = run(one)[0, :, 1:4, 1:4].float() - run(torch.zeros_like(one))[0, :, 1:4, 1:4].float()
    return torch.allclose(got, weight[:, 0].flip(1, 2).bfloat16().float(), atol=1e-6)


@pytest.mark.parametrize(("c_in", "c_out", "direct"), [(32, 32, False), (31, 32, True), (32, 31, True)])
def test_layers_of_few_channels_are_computed_directly(c_in, c_out, direct):
    x = torch.zeros(1, c_in, 6, 6).bfloat16().to(memory_format=torch.channels_last)
    weight = torch.full((c_out, c_in, 3, 3), 1 + 2**-7)  # the sum of three of them is no bfloat16
    weight[:, :, 1, 1] = 1
    run = bind(CONV2D_ACT, x, weight, None, padding=1).run
    assert _like_direct(run, x, weight) == direct


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layer", [_layer, _upward])
def test_bits_depend_neither_on_threads_nor_on_the_rest_of_the_batch(layer, threads):
    x, _, run = layer(40, 48)
    expected, before = run(x), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(run(x[1:]), expected[1:])
    finally:
        torch.set_num_threads(before)


def test_bits_depend_on_what_the_kernel_covers_alone():
    x, _, run = _layer(32, 32, 20, 30)
    cut = x[:, :, 4:18, 2:28].contiguous(memory_format=torch.channels_last)
    assert torch.equal(run(cut)[:, :, 1:-1, 1:-1], run(x)[:, :, 5:17, 3:27])


def test_errors_stay_below_twice_those_of_direct_products():
    x, weight, _ = _layer(64, 64, 24, 24)
    got = bind(CONV2D_ACT, x, weight, None, padding=1).run(x).double()
    truth = F.conv2d(x.double(), weight.double(), padding=1)
    direct = F.conv2d(x.double(), weight.bfloat16().double(), padding=1).bfloat16().double()
    assert float((got - truth).pow(2).mean() / (direct - truth).pow(2).mean()) < 4


def test_residual_may_be_out():
    x, _, _ = _layer(32, 70, 9, 11)
    for options in ({}, {"out_index": torch.arange(1, 65, 2).int()}):
        weight = torch.randn(32 if options else 70, 32, 3, 3) / 17
        residual = torch.randn(2, 70, 9, 11).bfloat16().to(memory_format=torch.channels_last)
        run = bind(CONV2D_ACT, x, weight, None, padding=1, residual=residual, **options).run
        expected = run(x, residual)
        assert run(x, residual, out=residual) is residual
        assert torch.equal(residual, expected)


@pytest.mark.parametrize(("c_in", "c_out", "direct"), [(32, 32, False), (31, 32, True), (32, 31, True)])
def test_transposed_layers_of_few_channels_are_computed_directly(c_in, c_out, direct):
    weight = torch.full((c_in, c_out, 5, 5), 1 + 2**-7)  # the sum of three of them is no bfloat16
    weight[:, :, 2, 2] = 1
    one = torch.zeros(1, c_in, 4, 4).bfloat16().to(memory_format=torch.channels_last)
    one[0, 0, 1, 1] = 1
    got = bind(CONV_TRANSPOSE2D_ACT, one, weight, None, **DOUBLING).run(one)[0, :, :5, :5].float()
    assert torch.allclose(got, weight[0], atol=1e-6) == direct


def test_transposed_errors_stay_below_twice_those_of_direct_products():
    x, weight, _ = _upward(64, 64)
    got = bind(CONV_TRANSPOSE2D_ACT, x, weight, None, **DOUBLING).run(x).double()
    truth = F.conv_transpose2d(x.double(), weight.double(), **DOUBLING)
    direct = F.conv_transpose2d(x.double(), weight.bfloat16().double(), **DOUBLING).bfloat16().double()
    assert float((got - truth).pow(2).mean() / (direct - truth).pow(2).mean()) < 4
