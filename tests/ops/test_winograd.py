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
HALF = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(ISA != "avx512bf16", reason=f"needs AVX512-BF16 without AMX, this is {ISA}"),
)
both = pytest.mark.parametrize("dtype", [torch.float32, HALF])

DOUBLING = {"stride": 2, "padding": 2, "output_padding": 1}


def _layer(dtype: torch.dtype, c_in: int, c_out: int, height: int = 33, width: int = 27):
    torch.manual_seed(0)
    x = torch.randn(2, c_in, height, width).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(c_out, c_in, 3, 3) / (9 * c_in) ** 0.5
    return x, weight, bind(CONV2D_ACT, x, weight, torch.randn(c_out), padding=1, pinned=False).run


def _upward(dtype: torch.dtype, c_in: int, c_out: int):
    torch.manual_seed(0)
    x = torch.randn(2, c_in, 17, 26).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(c_in, c_out, 5, 5) / (6 * c_in) ** 0.5
    return x, weight, bind(CONV_TRANSPOSE2D_ACT, x, weight, torch.randn(c_out), **DOUBLING, pinned=False).run


@pytest.mark.parametrize(
    ("dtype", "c_in", "c_out", "pinned", "direct"),
    [
        *(
            (dtype, *rest)
            for dtype in (torch.float32, torch.bfloat16)
            for rest in ((31, 32, False, True), (32, 31, False, True))
        ),
        (torch.float32, 32, 32, False, False),
        (torch.float32, 32, 32, True, True),
        pytest.param(torch.bfloat16, 32, 32, False, False, marks=HALF.marks),
        pytest.param(torch.bfloat16, 32, 32, True, False, marks=HALF.marks),  # it is for float32
    ],
)
def test_what_is_computed_directly(dtype, c_in, c_out, pinned, direct):
    """With one input of 1 and no other each output of a direct product is a weight."""
    one = torch.zeros(1, c_in, 6, 6, dtype=dtype).to(memory_format=torch.channels_last)
    one[0, 0, 2, 2] = 1
    weight = torch.full((c_out, c_in, 3, 3), 1 + torch.finfo(dtype).eps)  # sums of three of them are rounded
    weight[:, :, 1, 1] = 1
    got = bind(CONV2D_ACT, one, weight, None, padding=1, pinned=pinned).run(one)[0, :, 1:4, 1:4]
    assert torch.equal(got.float(), weight[:, 0].flip(1, 2)) == direct
    weight = torch.full((c_in, c_out, 5, 5), 1 + torch.finfo(dtype).eps)
    weight[:, :, 2, 2] = 1
    got = bind(CONV_TRANSPOSE2D_ACT, one, weight, None, **DOUBLING, pinned=pinned).run(one)[0, :, 2:7, 2:7]
    assert torch.equal(got.float(), weight[0]) == direct


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layer", [_layer, _upward])
@both
def test_bits_depend_neither_on_threads_nor_on_the_rest_of_the_batch(dtype, layer, threads):
    x, _, run = layer(dtype, 40, 48)
    expected, before = run(x), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(run(x[1:]), expected[1:])
    finally:
        torch.set_num_threads(before)


@both
def test_bits_depend_on_what_the_kernel_covers_alone(dtype):
    x, _, run = _layer(dtype, 32, 32, 20, 30)
    cut = x[:, :, 4:18, 2:28].contiguous(memory_format=torch.channels_last)
    assert torch.equal(run(cut)[:, :, 1:-1, 1:-1], run(x)[:, :, 5:17, 3:27])


@pytest.mark.parametrize(
    ("layer", "convolve", "options"),
    [
        (_layer, F.conv2d, {"padding": 1}),
        (_upward, F.conv_transpose2d, DOUBLING),
    ],
)
@both
def test_errors_stay_below_twice_those_of_direct_products(dtype, layer, convolve, options):
    x, weight, _ = layer(dtype, 64, 64)
    op = CONV2D_ACT if layer is _layer else CONV_TRANSPOSE2D_ACT
    truth = convolve(x.double(), weight.double(), **options)
    got = bind(op, x, weight, None, **options, pinned=False).run(x).double()
    if dtype == torch.float32:
        direct = bind(op, x, weight, None, **options).run(x).double()
    else:
        direct = convolve(x.double(), weight.bfloat16().double(), **options).bfloat16().double()
    assert not torch.equal(got, direct)
    assert float((got - truth).pow(2).mean() / (direct - truth).pow(2).mean()) < 4


@both
def test_residual_may_be_out(dtype):
    x, _, _ = _layer(dtype, 32, 70, 9, 11)
    for options in ({}, {"out_index": torch.arange(1, 65, 2).int()}):
        weight = torch.randn(32 if options else 70, 32, 3, 3) / 17
        residual = torch.randn(2, 70, 9, 11).to(dtype, memory_format=torch.channels_last)
        run = bind(CONV2D_ACT, x, weight, None, padding=1, residual=residual, **options, pinned=False).run
        expected = run(x, residual)
        assert run(x, residual, out=residual) is residual
        assert torch.equal(residual, expected)
