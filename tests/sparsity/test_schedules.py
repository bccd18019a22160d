"""The schedules of the trained masks, at their ends and in between."""

from __future__ import annotations

import math

import pytest
import torch

from sparsecodec.errors import UsageError
from sparsecodec.sparsity import DecayConfig, MaskDecayConfig
from sparsecodec.sparsity.schedules import psi


def test_gradient_decay_and_its_ramp() -> None:
    cosine = DecayConfig(sparsity=0.5, t0=10, t1=20)
    assert [cosine.beta(t) for t in (0, 10, 20, 99)] == [1, 1, 0, 0]
    assert cosine.beta(15) == pytest.approx(0.5) and cosine.beta(12) == pytest.approx(0.9045, abs=1e-4)
    assert DecayConfig(sparsity=0.5, t0=10, t1=20, method="ste").beta(19) == 1
    assert DecayConfig(sparsity=0.5, t0=10, t1=20, method="hard").beta(0) == 0
    ramp = DecayConfig(sparsity=0.8, t0=10, t1=20, ramp=10)
    assert [ramp.target(t) for t in (0, 10, 15)] == [0, 0.8, 0.8] and ramp.target(5) == pytest.approx(0.7)


def test_autosparse_decays_along_a_sigmoid_from_the_first_step() -> None:
    config = DecayConfig(sparsity=0.5, t0=10, t1=20, method="autosparse")
    betas = [config.beta(t) for t in range(21)]
    assert betas[0] == 1 and betas[10] == pytest.approx(0.5) and betas[20] == 0
    steps = [before - after for before, after in zip(betas[:-1], betas[1:], strict=True)]
    assert min(steps) > 0 and max(steps) == pytest.approx(steps[9]) and steps[9] > 5 * steps[0]  # not linear


def test_psi_is_odd_in_its_slope_bounded_and_anneals_as_published() -> None:
    for e in (0.1, 0.01, 1e-3):
        m = torch.linspace(-2, 2, 4001, dtype=torch.float64, requires_grad=True)
        psi(m, e).sum().backward()
        torch.testing.assert_close(m.grad, -m.grad.flip(0), rtol=1e-9, atol=1e-9)
        assert 0.6 / math.sqrt(e) < m.grad.max() <= 0.65 / math.sqrt(e)
        assert abs(m[m.grad.argmax()].item() - math.sqrt(e / 3)) < 1e-3
        assert (m.grad[2001:] > 0).all()
    config = MaskDecayConfig(t1=100, weight=0.5)
    assert [config.e(t) for t in (0, 50, 100, 200)] == pytest.approx([0.1, 0.0505, 1e-3, 1e-3])
    assert [config.mu(t) for t in (0, 49, 99, 300)] == pytest.approx([0.005, 0.25, 0.5, 0.5])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"t1": 0}, "t1=0"),
        ({"weight": 0.0}, "weight=0.0"),
        ({"penalty": "l3"}, "penalty='l3' .*psi, l1, l2, group_lasso"),
        ({"e_start": 1e-4}, "e_start=0.0001, e_end=0.001"),
        ({"e_end": 0.0}, "e_end=0.0"),
    ],
)
def test_wrong_settings_are_named(config: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MaskDecayConfig(**{"t1": 5} | config)


@pytest.mark.parametrize("value", [{"round_to": 0}, {"temperature": 0.0}, {"p": 0}, {"theta": -0.1}, {"theta": 1.0}])
def test_settings_of_gradient_decay_out_of_range_are_named(value: dict) -> None:
    ((name, wrong),) = value.items()
    with pytest.raises(UsageError, match=f"{name}={wrong}"):
        DecayConfig(sparsity=0.5, t0=1, t1=5, **value)
