"""Divisive normalisation on integers as a layer: what it computes, what it stores, what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.nn.dcvc_layers import PlainGDN
from sparsecodec.ops.integer_gdn import NORM_LIMIT, norm_bound
from sparsecodec.quant import (
    W8A8,
    W16A16,
    Precision,
    apply_quantization,
    find_layers,
    freeze,
    prove_no_overflow,
    quantization_config,
    quantize_layers,
    quantized_layers,
    trained_numbers,
)
from sparsecodec.quant.calibration import correct_biases, observe, set_scales
from sparsecodec.quant.gdn import QuantGDN

CHANNELS = 12
WAYS = pytest.mark.parametrize("inverse", [True, False], ids=["times", "divided"])


def _float(inverse: bool, largest: float = 0.5, beta: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    layer = PlainGDN(CHANNELS, inverse)
    with torch.no_grad():
        layer.gamma.uniform_(0, largest)
        layer.beta.fill_(beta)
    return nn.Sequential(layer).eval()


def _frozen(model: nn.Module, x: Tensor) -> nn.Module:
    small = quantize_layers(model, {"0": W16A16})
    with torch.no_grad():
        set_scales(small, observe(model, ["0"], lambda m: m(x)))
        correct_biases(small, model, lambda m: m(x))  # leaves it as it is
    return freeze(small)


@WAYS
@torch.no_grad()
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("largest", "beta"), [(0.5, 1.0), (1e-3, 1.0), (30.0, 1.0), (0.5, 100.0), (0.5, 0.0)])
def test_is_close_to_the_float_layer_over_the_range(inverse, scale, largest, beta):
    """Of the values that it was calibrated on, and of those at the end of its headroom."""
    x = scale * torch.randn(2, CHANNELS, 9, 7, generator=torch.Generator().manual_seed(1))
    model = _float(inverse, largest, beta)
    small = _frozen(model, x)
    for factor in (1.0, 7.9):
        found, expected = small(factor * x), model(factor * x)
        step = float(small[0].input_scale)  # an input is rounded to it
        assert float((found - expected).abs().max()) < 2e-3 * float(expected.abs().max()), (factor, step)
    assert not torch.equal(small(9 * x), model(9 * x))  # beyond it inputs are clipped


@WAYS
def test_integers_fill_their_room(inverse):
    layer = _frozen(_float(inverse), torch.randn(1, CHANNELS, 8, 8))[0]
    bound = norm_bound(layer.beta, layer.gamma)
    assert int(bound.max()) <= NORM_LIMIT and int(bound.min()) > NORM_LIMIT // 8
    assert int(layer.gamma.min()) >= 0 and int(layer.beta.min()) > 0
    assert layer.gamma.dtype == torch.int32 and layer.beta.dtype == torch.int64
    assert torch.equal(torch.frexp(layer.gamma_scale).exponent % 2, torch.ones(CHANNELS, dtype=torch.int32))


def test_frozen_and_loaded_compute_the_same():
    x = torch.randn(1, CHANNELS, 5, 6)
    model = _float(True)
    small = quantize_layers(model, {"0": W16A16})
    small[0].set_input_range(-8.0, 8.0)
    frozen = freeze(small)
    assert torch.equal(small(x), frozen(x)) and not list(frozen.parameters())
    config = quantization_config(frozen)
    loaded = apply_quantization(_float(True, 0.1), config)
    loaded.load_state_dict(frozen.state_dict())
    assert isinstance(loaded[0], QuantGDN) and torch.equal(loaded(x), frozen(x))
    assert torch.equal(copy.deepcopy(frozen).half()(x), frozen(x))  # tensors keep their types
    assert trained_numbers(frozen) == CHANNELS * (CHANNELS + 1)
    assert prove_no_overflow(frozen) == {}  # its norms have a limit of their own


def test_state_of_other_types_is_refused():
    frozen = _frozen(_float(False), torch.randn(1, CHANNELS, 5, 6))
    state = frozen.state_dict()
    for name, dtype in (("gamma", torch.int64), ("beta", torch.int32), ("beta", torch.float32)):
        with pytest.raises(RuntimeError, match=rf"0.{name} is {dtype}"):
            copy.deepcopy(frozen).load_state_dict({**state, f"0.{name}": state[f"0.{name}"].to(dtype)})


def test_only_dyadic_integers_have_a_rule():
    model = nn.Sequential(PlainGDN(4), nn.BatchNorm2d(4))
    assert find_layers(model, [""], required=False)[0] == []
    found, left = find_layers(model, [""], dyadic=True)
    assert found == ["0"] and left == {"1": "BatchNorm2d has no integer rule"}
    for precision in (W8A8, W16A16):
        with pytest.raises(UsageError, match="1 cannot be quantised: BatchNorm2d has no integer rule"):
            quantize_layers(model, {"1": precision})
    with pytest.raises(UsageError, match="0 cannot be quantised: PlainGDN has no integer rule"):
        quantize_layers(model, {"0": Precision(8, 8)})
    assert list(quantized_layers(quantize_layers(model, {"0": W16A16}))) == ["0"]


def test_what_no_integers_hold_is_refused():
    model = _float(True, beta=1e20)
    small = quantize_layers(model, {"0": W16A16})
    small[0].set_input_range(-1e-3, 1e-3)
    with pytest.raises(UsageError, match="too large for integers"):
        freeze(small)
    broken = quantize_layers(_float(True), {"0": W16A16})
    with torch.no_grad():
        broken[0].beta[0] = float("nan")
    with pytest.raises(UsageError, match="0: .*not finite"):
        freeze(broken)
