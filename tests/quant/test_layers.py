"""Convolutions on integers against numpy's int64, which shares no code with them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from sparsecodec import UsageError
from sparsecodec.quant import Precision, QuantConv2d, QuantConvTranspose2d
from sparsecodec.quant.fixed_point import dyadic, pack_nibbles, unpack_nibbles
from sparsecodec.quant.layers import quantized

LAYERS = {
    "3x3": lambda: nn.Conv2d(5, 6, 3, padding=1),
    "1x1": lambda: nn.Conv2d(6, 4, 1),
    "1x1 no bias": lambda: nn.Conv2d(6, 4, 1, bias=False),
    "strided": lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "5x5 strided, dilated": lambda: nn.Conv2d(3, 4, 5, stride=2, padding=4, dilation=2),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "grouped": lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 5, stride=2, padding=2, output_padding=1),
    "transposed, stride 1": lambda: nn.ConvTranspose2d(4, 3, 3, padding=1),
}
SIZES = [(1, 1), (5, 7), (8, 6)]


def layer_of(kind: str, precision: Precision, low: float = -1.7, high: float = 3.1):
    torch.manual_seed(0)
    layer = quantized(LAYERS[kind](), precision)
    layer.set_input_range(low, high)
    return layer


def as_int64(tensor) -> np.ndarray:
    values = tensor.detach().double().numpy()
    assert np.array_equal(values, np.rint(values))
    return values.astype(np.int64)


def integer_convolution(q: np.ndarray, layer) -> np.ndarray:
    """The accumulator by its definition: one product at a time over the taps, in int64."""
    weight, bias = layer.integers()
    weight = as_int64(weight)
    bias = np.zeros(layer.out_channels, np.int64) if bias is None else as_int64(bias)
    n, _, height, width = q.shape
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    if isinstance(layer, nn.ConvTranspose2d):
        oh, ow = layer.output_padding
        full = np.zeros((n, layer.out_channels, (height - 1) * sh + kh + oh, (width - 1) * sw + kw + ow), np.int64)
        for y, x, i, j in itertools.product(range(height), range(width), range(kh), range(kw)):
            full[:, :, y * sh + i, x * sw + j] += q[:, :, y, x] @ weight[:, :, i, j]
        result = full[:, :, ph : full.shape[2] - ph, pw : full.shape[3] - pw]
    else:
        padded = np.pad(q, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
        rows = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
        columns = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
        result = np.zeros((n, layer.out_channels, rows, columns), np.int64)
        per_out, per_in = layer.out_channels // layer.groups, layer.in_channels // layer.groups
        for o, y, x in itertools.product(range(layer.out_channels), range(rows), range(columns)):
            first = o // per_out * per_in
            top, left = y * sh, x * sw
            window = padded[:, first : first + per_in, top : top + dh * kh : dh, left : left + dw * kw : dw]
            result[:, o, y, x] = (window * weight[o]).sum((1, 2, 3))
    return result + bias[:, None, None]


def expected_output(layer, x) -> np.ndarray:
    s_x, s_w = layer.scales()
    low = int(layer.input_low)
    high = low + 2**layer.activation_bits - 1
    q = np.clip(np.rint(x.numpy() / np.float32(s_x.item())), low, high).astype(np.int64)
    scale = (s_x * s_w).detach().double().numpy()[:, None, None]
    return (integer_convolution(q, layer) * scale).astype(np.float32)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("precision", [Precision(), Precision(4, 8), Precision(8, 16, dyadic=True)], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_equals_integer_arithmetic_bit_for_bit(kind, precision, frozen):
    layer = layer_of(kind, precision)
    if frozen:
        layer.freeze()
    for height, width in SIZES:
        if kind == "5x5 strided, dilated" and height * width == 1:
            width = 3
        x = 2 * torch.randn(2, layer.in_channels, height, width)
        with torch.no_grad():
            assert np.array_equal(layer(x).numpy(), expected_output(layer, x))


@pytest.mark.parametrize("kind", LAYERS)
def test_freezing_changes_no_bit(kind):
    layer = layer_of(kind, Precision())
    x = torch.randn(1, layer.in_channels, 6, 7)
    before = layer(x).detach()
    layer.freeze()
    assert torch.equal(layer(x), before)
    assert layer.weight.dtype == torch.int8 and not list(layer.parameters())


def test_halves_round_to_even_and_ends_are_clipped():
    layer = quantized(nn.Conv2d(1, 1, 1, bias=False), Precision())
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight_log2.zero_()
        layer.input_log2.zero_()
        layer.input_low.fill_(-3)
    x = torch.tensor([-9.0, -3.5, -2.5, -0.5, 0.5, 1.5, 2.5, 251.5, 252.5, 300.0]).view(1, 1, 1, -1)
    assert layer(x).flatten().tolist() == [-3, -3, -2, 0, 0, 2, 2, 252, 252, 252]


@pytest.mark.parametrize("channels", [96, 600])
def test_sums_beyond_24_bits_stay_exact(channels):
    """The largest weights and inputs: float32 alone would round the accumulator."""
    layer = quantized(nn.Conv2d(channels, 2, 3, padding=1), Precision(8, 16, dyadic=True))
    layer.set_input_range(-1, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_(torch.where(torch.rand_like(layer.weight) < 0.5, -1.0, 1.0) * (0.9 + 0.1 * torch.rand(1)))
        layer.weight.div_(16 if channels == 600 else 1)
        layer.bias.fill_(0.3)
        layer.set_weight_scale(torch.full((2,), float(layer.weight.abs().max()) / 127))
        x = torch.sign(torch.randn(1, channels, 4, 5)) * (0.99 + 0.01 * torch.rand(1, channels, 4, 5))
        layer.freeze()
        assert np.array_equal(layer(x).numpy(), expected_output(layer, x))
        assert np.abs(integer_convolution((x / layer.input_scale).round().long().numpy(), layer)).max() > 2**24


def test_result_does_not_depend_on_threads_batch_or_layout():
    layer = layer_of("3x3", Precision(8, 16, dyadic=True))
    x = torch.randn(4, 5, 33, 47)
    with torch.no_grad():
        together = layer(x)
        assert torch.equal(together, torch.cat([layer(one[None]) for one in x]))
        assert torch.equal(together, layer(x.contiguous(memory_format=torch.channels_last)))
        torch.set_num_threads(2)
        try:
            assert torch.equal(together, layer(x))
        finally:
            torch.set_num_threads(1)


def test_autocast_and_casts_leave_the_integers_alone():
    layer = layer_of("3x3", Precision())
    x = torch.randn(1, 5, 8, 8)
    before = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), before)
    layer.freeze()
    lowered = layer.to(torch.bfloat16)
    assert lowered.weight_scale.dtype == torch.float32
    assert torch.equal(lowered(x), before)
    assert lowered(x.bfloat16()).dtype == torch.bfloat16


# --- the overflow proof -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["3x3", "1x1", "depthwise", "transposed"])
def test_bound_is_what_the_worst_input_reaches(kind):
    """All sign patterns of a small layer: the worst of them reaches the bound of a symmetric range."""
    torch.manual_seed(0)
    conv = {
        "3x3": nn.Conv2d(1, 1, 3, padding=1),
        "1x1": nn.Conv2d(5, 2, 1),
        "depthwise": nn.Conv2d(2, 2, 2, groups=2),
        "transposed": nn.ConvTranspose2d(3, 2, 1, stride=2),
    }[kind]
    layer = quantized(conv, Precision(8, 16, dyadic=True))
    layer.set_input_range(-1, 1)
    weight, bias = (as_int64(values) for values in layer.integers())
    extreme = 2**15
    filters = np.moveaxis(weight, layer.OUT_DIM, 0).reshape(layer.out_channels, -1)
    worst = np.zeros(layer.out_channels, np.int64)
    for signs in itertools.product((-extreme, extreme), repeat=filters.shape[1]):
        worst = np.maximum(worst, np.abs(filters @ np.array(signs) + bias))
    assert layer.accumulator_bound().tolist() == worst.tolist()


def test_freezing_makes_overflow_impossible():
    """1000 weights of full size times 16-bit inputs need 33 bits: the weights become coarser."""
    layer = quantized(nn.Conv2d(1000, 2, 1), Precision(8, 16, dyadic=True))
    layer.set_input_range(-1, 1)
    with torch.no_grad():
        layer.weight[0].fill_(1.0)
        layer.weight[1].normal_(0, 0.02)
        layer.set_weight_scale(layer.weight.abs().amax((1, 2, 3)) / 127)
        assert layer.accumulator_bound()[0] > 2**31 > layer.accumulator_bound()[1]
        fine = layer.scales()[1].clone()
        layer.freeze()
    assert layer.accumulator_bound().max() < 2**31
    assert layer.weight_scale[0] == 2 * fine[0] and layer.weight_scale[1] == fine[1]
    assert float(layer(torch.ones(1, 1000, 1, 1))[0, 0]) == pytest.approx(1000 * (1 - 2**-15), rel=0.01)


def test_dyadic_scales_are_what_integers_can_apply():
    layer = layer_of("3x3", Precision(8, 16, dyadic=True))
    s_x, s_w = layer.scales()
    assert math.log2(s_x.item()) == int(math.log2(s_x.item()))
    mantissas = torch.frexp(s_w.detach().double())[0] * 2**15
    assert torch.equal(mantissas, mantissas.round())
    values = torch.rand(1000) * torch.exp2(torch.randint(-20, 20, (1000,)).float()) + 1e-9
    assert ((dyadic(values) / values - 1).abs() <= 2.0**-15).all()
    ratios = dyadic(values, 1) / values
    assert ((ratios >= 2 / 3) & (ratios <= 4 / 3)).all()


# --- gradients --------------------------------------------------------------------------------------------------


def test_gradient_passes_inside_the_range_and_is_zero_outside():
    layer = quantized(nn.Conv2d(1, 1, 1, bias=False), Precision())
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.set_weight_scale(torch.tensor([2.0 / 127]))
    layer.set_input_range(-1.0, 1.0)
    x = torch.tensor([-1.5, -0.9, 0.0, 0.3, 0.9, 1.5]).view(1, 1, 1, -1).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.flatten().tolist() == pytest.approx([0, 2, 2, 2, 2, 0], rel=1e-5)
    assert layer.weight.grad.item() == pytest.approx(float((layer(x) / 2).sum()), abs=0.02)


def test_bias_gets_the_plain_gradient():
    layer = layer_of("3x3", Precision())
    layer(torch.randn(2, 5, 4, 4)).sum().backward()
    assert layer.bias.grad.tolist() == pytest.approx([32.0] * 6, rel=1e-5)


@pytest.mark.parametrize(("high", "sign"), [(0.2, -1), (50.0, 1)], ids=["clips too much", "too coarse"])
def test_scale_gradient_points_to_the_better_scale(high, sign):
    """Descent must widen a range that clips and narrow one whose steps are too coarse."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 1)
    layer = quantized(conv, Precision())
    layer.set_input_range(-high, high)
    x = torch.randn(4, 4, 16, 16)
    (layer(x) - conv(x).detach()).square().mean().backward()
    assert sign * layer.input_log2.grad > 0


def test_weight_scales_are_per_channel_in_value_and_gradient():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        conv.weight[1].mul_(1e-3)
    layer = quantized(conv, Precision())
    layer.set_input_range(-4, 4)
    assert layer.scales()[1][0] > 100 * layer.scales()[1][1]
    x = torch.randn(2, 3, 8, 8)
    small = conv(x)[:, 1]
    assert ((layer(x)[:, 1] - small).abs().max() / small.abs().max()) < 0.05
    layer(x)[:, 0].square().sum().backward()
    assert layer.weight_log2.grad[0] != 0 and layer.weight_log2.grad[1] == 0


# --- edges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [Precision(), Precision(8, 16, dyadic=True)], ids=str)
def test_zero_weights_give_the_bias(precision):
    conv = nn.Conv2d(2, 3, 3, padding=1)
    with torch.no_grad():
        conv.weight[:2].zero_()
        conv.bias.copy_(torch.tensor([0.0, 123.25, 1.0]))
    layer = quantized(conv, precision)
    layer.set_input_range(-1, 1)
    layer.set_weight_scale(conv.weight.detach().abs().amax((1, 2, 3)) / 127)
    layer.freeze()
    y = layer(torch.randn(1, 2, 4, 4))
    assert torch.equal(y[:, 0], torch.zeros(1, 4, 4))
    assert y[:, 1].flatten().tolist() == pytest.approx([123.25] * 16, rel=1e-6)
    assert y.isfinite().all()


def test_constant_zero_input_has_a_scale():
    layer = layer_of("3x3", Precision(), low=0.0, high=0.0)
    assert layer.scales()[0] == 1
    assert layer(torch.zeros(1, 5, 3, 3)).isfinite().all()


def test_sixteen_bits_are_close_to_float():
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 32, 3, padding=1)
    x = torch.randn(1, 32, 16, 16)
    errors = {}
    for bits in (8, 16):
        layer = quantized(conv, Precision(8, bits))
        layer.set_input_range(float(x.min()), float(x.max()))
        layer.weight_log2.data.sub_(8)  # weights as good as float, so that the input's bits decide
        type(layer).weight_max = property(lambda self: 2**15)
        try:
            errors[bits] = float((layer(x) - conv(x)).abs().max() / conv(x).abs().max())
        finally:
            del type(layer).weight_max
    assert errors[16] < 5e-4 < 2e-3 < errors[8] < 0.05


def test_weights_that_are_not_finite_are_refused():
    layer = layer_of("3x3", Precision())
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(UsageError, match="not finite"):
        layer.freeze()


@pytest.mark.parametrize("bits", [(2, 8), (8, 4), (16, 16), (8, None), ("8", 8)], ids=str)
def test_unknown_bits_are_refused(bits):
    with pytest.raises(UsageError, match="bits="):
        Precision(*bits)


def test_layers_without_a_rule_say_why():
    for layer, reason in [
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'"),
        (nn.ConvTranspose2d(4, 4, 3, groups=2), "2 groups"),
        (nn.Bilinear(2, 2, 2), "Bilinear has no integer rule"),
    ]:
        with pytest.raises(UsageError, match=reason):
            quantized(layer, Precision())


def test_every_int4_survives_packing():
    values = torch.arange(-8, 8, dtype=torch.int8).repeat(3)[:47].reshape(47, 1, 1, 1)
    packed = pack_nibbles(values)
    assert packed.dtype == torch.uint8 and packed.shape == (24,)
    assert torch.equal(unpack_nibbles(packed, values.shape), values)


def test_classes_stay_convolutions():
    assert isinstance(layer_of("3x3", Precision()), QuantConv2d) and issubclass(QuantConv2d, nn.Conv2d)
    assert isinstance(layer_of("transposed", Precision()), QuantConvTranspose2d)
