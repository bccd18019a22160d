"""Claims of conv2d_act and pointwise beyond agreement with the reference: views, aliasing, special values, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsecodec import _C
from sparsecodec.errors import UsageError
from sparsecodec.ops import bind, conv2d_act, pointwise, use_backend
from sparsecodec.ops.conv2d_act import CONV2D_ACT
from sparsecodec.ops.pointwise import POINTWISE

NHWC = torch.channels_last


def _x(*shape, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(*shape).to(dtype).to(memory_format=NHWC)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_may_be_channels_of_a_wider_tensor(dtype):
    x, weight = _x(2, 8, 6, 7, dtype=dtype), torch.randn(37, 8, 3, 3)
    run = bind(CONV2D_ACT, x, weight, padding=1).run
    wide = torch.full((2, 50, 6, 7), 7.0, dtype=dtype).to(memory_format=NHWC)
    run(x, out=wide[:, 4:41])
    assert torch.equal(wide[:, 4:41], run(x))
    assert bool((wide[:, :4] == 7).all()) and bool((wide[:, 41:] == 7).all())


@pytest.mark.parametrize("indexed", [False, True])
def test_residual_may_be_out(indexed):
    x = _x(2, 8, 6, 7)
    out_index = torch.tensor([1, 3, 40, 41, 42]).int() if indexed else None
    weight = torch.randn(5 if indexed else 50, 8)
    residual = torch.randn(2, 50, 6, 7).to(memory_format=NHWC)
    run = bind(POINTWISE, x, weight, out_index=out_index, residual=residual).run
    expected = run(x, residual)
    assert run(x, residual, out=residual) is residual
    assert torch.equal(residual, expected)


def test_shuffle_is_the_pixel_shuffle_of_torch():
    x, weight, bias = _x(2, 8, 5, 3), torch.randn(12, 8, 3, 3), torch.randn(12)
    with use_backend("cpu"), torch.no_grad():
        plain = conv2d_act(x, weight, bias, padding=1)
        shuffled = conv2d_act(x, weight, bias, padding=1, shuffle=2)
    assert torch.equal(shuffled, nn.PixelShuffle(2)(plain))


@pytest.mark.parametrize("channels", [16, 40])  # in registers; with a partly filled block
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
def test_special_values_pass_as_in_torch(activation, channels):
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -1.0, 1.0, 0.0, -0.0, 1e-45])
    x = special.repeat(3).view(1, 1, 4, 6)
    with use_backend("cpu"), torch.no_grad():
        got = pointwise(x, torch.ones(channels, 1), torch.full((channels,), -0.0), activation=activation, slope=0.5)
    expected = POINTWISE.reference(x, torch.ones(channels, 1), activation=activation, slope=0.5)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(nan=3.0), expected.nan_to_num(nan=3.0))


def test_slopes_outside_the_unit_interval():
    x, weight = _x(1, 8, 4, 5), torch.randn(20, 8)
    for slope in (-0.5, 2.0):
        with use_backend("cpu"), torch.no_grad():
            plain = pointwise(x, weight)
            got = pointwise(x, weight, activation="leaky_relu", slope=slope)
        assert torch.equal(got, torch.nn.functional.leaky_relu(plain, slope))


def test_out_index_may_be_int64_and_unsorted():
    x, weight, residual = _x(1, 8, 4, 5), torch.randn(3, 8), torch.randn(1, 9, 4, 5).to(memory_format=NHWC)
    with use_backend("cpu"), torch.no_grad():
        got = pointwise(x, weight, out_index=torch.tensor([7, 0, 4]), residual=residual)
        plain = pointwise(x, weight)
    expected = residual.clone()
    expected[:, [7, 0, 4]] += plain
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": _x(1, 9, 4, 5)}, r"x: 9 channels \(needs 8\)"),
        ({"weight": torch.randn(6)}, r"weight: shape .*6.* \(needs \[C_out, C_in, Kh, Kw\]\)"),
        ({"bias": torch.randn(5)}, r"bias: 5 values \(needs C_out=6\)"),
        ({"activation": "gelu"}, "activation='gelu'"),
        ({"shuffle": 2}, r"shuffle=2 with C_out=6"),
        ({"in_index": torch.tensor([0, 1])}, r"in_index has 2 entries \(needs C_in=8\)"),
        ({"in_index": torch.arange(1, 9)}, r"x: 8 channels \(needs at least 9\)"),
        ({"in_index": torch.arange(-1, 7)}, "in_index holds -1"),
        ({"out_index": torch.arange(6)}, "out_index without residual"),
        ({"out_index": torch.arange(6), "residual": _x(1, 5, 4, 5)}, "out_index holds 5"),
        ({"out_index": torch.zeros(6), "residual": _x(1, 8, 4, 5)}, "out_index holds 0"),
        ({"out_index": torch.arange(6), "residual": _x(1, 8, 4, 4)}, r"residual: shape \[1, 8, 4, 4\]"),
        ({"residual": _x(1, 7, 4, 5)}, r"residual: shape \[1, 7, 4, 5\] \(needs \[1, 6, 4, 5\]\)"),
    ],
)
def test_refusals_name_the_argument(changes, message):
    arguments = {"x": _x(1, 8, 4, 5), "weight": torch.randn(6, 8), "bias": None, "residual": None} | changes
    with use_backend("cpu"), torch.no_grad(), pytest.raises(UsageError, match=message):
        pointwise(**arguments)


def test_plans_refuse_what_they_were_not_built_for():
    x, weight = _x(1, 8, 4, 5), torch.randn(6, 8, 3, 3)
    run = bind(CONV2D_ACT, x, weight, padding=1).run
    with pytest.raises(UsageError, match=r"x: dtype torch.bfloat16 \(needs torch.float32\)"):
        run(x.bfloat16())
    with pytest.raises(UsageError, match=r"x: strides .* \(needs channels innermost"):
        run(x.contiguous())
    with pytest.raises(UsageError, match=r"out: shape \[1, 6, 4, 4\] \(needs \[1, 6, 4, 5\]\)"):
        run(x, out=_x(1, 6, 4, 4))
    with pytest.raises(UsageError, match="x is smaller than the kernel"):
        bind(CONV2D_ACT, x, torch.randn(6, 8, 3, 3), stride=4).run(_x(1, 8, 2, 5))
    with pytest.raises(UsageError, match="dtype torch.float16"):
        _C.pointwise_plan(torch.randn(6, 8), None, None, None, "none", 0.0, 1, 1, False, torch.float16)
    with pytest.raises(UsageError, match="stride=0"):
        bind(CONV2D_ACT, x, weight, stride=0).run(x)
