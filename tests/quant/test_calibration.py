"""Scales from a few pictures, by squared error and by the rate-distortion loss."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from sparsecodec import UsageError
from sparsecodec.quant import (
    Observation,
    Precision,
    find_layers,
    freeze,
    observe,
    post_training,
    quantize_layers,
    quantized_layers,
    refine,
    set_scales,
)
from sparsecodec.quant.calibration import best_range, correct_biases


@pytest.fixture(scope="module")
def decoder(codec) -> dict[str, Precision]:
    return dict.fromkeys(find_layers(codec, ["dec.5", "dec.6", "dec.7"])[0], Precision())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.LeakyReLU(), nn.Conv2d(8, 2, 1)
    )


def inputs() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 16, 16)


def error_after(rule: str, x: torch.Tensor) -> float:
    model = network()
    bits = dict.fromkeys(("0", "2", "4"), Precision())
    small = post_training(model, bits, lambda m: float((m(x) - network()(x)).detach().square().mean()), rule)
    return float((small(x) - model(x)).detach().square().mean())


def test_squared_error_uses_the_whole_range_of_lopsided_inputs():
    """Behind a LeakyReLU a symmetric range wastes half of its integers: four times the squared error."""
    model, x, errors = network(), inputs(), {}
    for rule in ("max", "mse"):
        small = quantize_layers(model, {"4": Precision()})
        set_scales(small, observe(model, ["4"], lambda m: m(x)), rule)
        small[4].weight_log2.data.sub_(6)  # weights as good as float, so that the input decides
        type(small[4]).weight_max = property(lambda self: 2**13)
        try:
            errors[rule] = float((small(x) - model(x)).detach().square().mean())
        finally:
            del type(small[4]).weight_max
    assert errors["mse"] < errors["max"] / 3


def test_rare_extremes_are_clipped_and_frequent_ones_are_not():
    layer = quantize_layers(network(), {"0": Precision()})[0]
    rare = best_range(layer, Observation(torch.linspace(0, 1, 600_000), 0.0, 1.6))
    assert rare[0] == 0 and 1.0 <= rare[1] < 1.2
    frequent = best_range(layer, Observation(torch.linspace(0, 1, 4096), 0.0, 1.6))
    assert frequent == (0.0, 1.6)


def test_no_rule_is_worse_than_the_one_before():
    errors = [error_after(rule, inputs()) for rule in ("max", "mse", "rd")]
    assert errors[2] <= errors[1] < errors[0]


def test_range_is_unsigned_behind_relu_and_lopsided_behind_leaky_relu():
    model, x = network(), inputs()
    small = quantize_layers(model, dict.fromkeys(("2", "4"), Precision()))
    set_scales(small, observe(model, ["2", "4"], lambda m: m(x)))
    assert small[2].input_range == (0, 255)
    low, high = small[4].input_range
    assert -30 < low < 0 and high == low + 255


@pytest.mark.parametrize("dyadic", [False, True])
def test_sixteen_bits_hold_eight_times_the_extremes_of_the_calibration(dyadic: bool):
    small = quantize_layers(network(), {"4": Precision(8, 16, dyadic)})
    set_scales(small, {"4": Observation(torch.linspace(-0.5, 3, 100), -0.5, 3.0)})
    scale, (low, high) = float(small[4].scales()[0]), small[4].input_range
    assert low * scale <= -4.0 and 24.0 * (1 - 1e-4) <= high * scale <= 24.0 * (2 if dyadic else 1 + 1e-4)


@pytest.mark.parametrize("values", [torch.zeros(100), torch.tensor([0.0, 1.0, -1.0, 0.0])])
def test_sixteen_bits_hold_whole_numbers_that_calibration_hardly_has(values: torch.Tensor):
    """A rounded hyper-latent may be all zeros in small pictures; the unit of the layer's bias follows its range."""
    small = quantize_layers(network(), {"4": Precision(16, 16, True)})
    set_scales(small, {"4": Observation(values, float(values.min()), float(values.max()))})
    scale, (low, high) = float(small[4].scales()[0]), small[4].input_range
    assert low * scale <= -15.0 and 15.0 <= high * scale <= 33.0


def test_refinement_beats_plain_calibration_on_a_real_codec(codec, decoder, crops, rd_loss):
    """Max-abs, squared error, rate-distortion: the last is never worse on what it saw."""
    loss = partial(rd_loss, x=crops)
    reference = loss(codec)
    found = {rule: loss(post_training(codec, decoder, loss, rule)) for rule in ("max", "mse", "rd")}
    assert reference * 0.999 < found["rd"] <= found["mse"] < found["max"]
    assert found["rd"] - reference < 0.5 * (found["max"] - reference)


def test_refinement_reports_and_never_raises_the_loss(codec, crops, rd_loss):
    bits = dict.fromkeys(find_layers(codec, ["dec.7"])[0], Precision(4, 8))
    loss = partial(rd_loss, x=crops)
    small = quantize_layers(codec, bits).eval()
    set_scales(small, observe(codec, list(bits), loss), "max")
    before, after = refine(small, loss)
    assert after < before
    assert loss(small) == after and all(layer.active for layer in quantized_layers(small).values())


def test_bias_correction_restores_the_mean_of_every_layer_on_its_own_inputs():
    model, x = network(), inputs()
    names = ("0", "2", "4")
    small = quantize_layers(model, dict.fromkeys(names, Precision(4, 8)))
    set_scales(small, observe(model, names, lambda m: m(x)))

    def shifts():
        found, value = [], x
        for index, layer in enumerate(model):
            if str(index) in names:
                found.append(float((small[index](value) - layer(value)).detach().mean((0, 2, 3)).abs().max()))
            value = layer(value)
        return found

    before = shifts()
    correct_biases(small, model, lambda m: m(x))
    assert max(shifts()) < max(before) / 20, (before, shifts())
    assert not any(layer._forward_hooks for layer in model)


def test_bias_correction_pays_on_a_real_codec(codec, crops, rd_loss):
    """8-bit weights with 16-bit inputs: what is left is mostly a shift by rounded weights."""
    bits = dict.fromkeys(find_layers(codec, ["enc", "dec"])[0], Precision(8, 16))
    loss = partial(rd_loss, x=crops)
    small = quantize_layers(codec, bits).eval()
    set_scales(small, observe(codec, list(bits), loss))
    plain = loss(small) - loss(codec)
    correct_biases(small, codec, loss)
    assert loss(small) - loss(codec) < 0.8 * plain


def test_calibration_is_repeatable(codec, decoder, crops, rd_loss):
    loss = partial(rd_loss, x=crops)
    first, second = (freeze(post_training(codec, decoder, loss, "mse")).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_name_the_layer(value):
    model = network()
    with torch.no_grad():
        model[2].bias[0] = value
    with pytest.raises(UsageError, match=r"^4 reads values in \[.*during calibration"):
        observe(model, ["0", "2", "4"], lambda m: m(inputs()))


def test_hooks_are_gone_after_an_error():
    model = network()
    with pytest.raises(ZeroDivisionError):
        observe(model, ["0"], lambda m: 1 / 0)
    assert not model[0]._forward_hooks


def test_layer_that_never_runs_is_named():
    model = nn.ModuleDict({"used": nn.Conv2d(1, 1, 1), "idle": nn.Conv2d(1, 1, 1)})
    with pytest.raises(UsageError, match="idle does not run"):
        observe(model, ["used", "idle"], lambda m: m["used"](torch.zeros(1, 1, 2, 2)))


def test_constant_activations_calibrate():
    model = network()
    small = post_training(
        model,
        dict.fromkeys(("0", "2", "4"), Precision()),
        lambda m: float(m(torch.zeros(1, 3, 8, 8)).detach().sum()),
        "mse",
    )
    assert small(inputs()).isfinite().all()


def test_unknown_rule_is_refused():
    with pytest.raises(UsageError, match="rule='median'"):
        post_training(network(), {"0": Precision()}, lambda m: float(m(inputs()).detach().sum()), "median")
