"""The thresholds of gradient decay: from below every score to the MAC target, and what the freeze leaves to force."""

from __future__ import annotations

import pytest
import torch

from sparsecodec.sparsity import compact, count

from .one_of_each import SHAPE, Net, decaying, mask_about_half, one_step, picture


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def test_threshold_moves_up_while_below_the_target_and_rests_above_it(net: Net) -> None:
    decay = decaying(net, sparsity=0.5)
    decay.set_step(0)
    assert decay.mac_reduction == 0
    decay.penalty().backward()
    assert (decay.theta.grad < 0).all()  # every threshold is pushed up
    decay.theta.grad = None
    with torch.no_grad():
        decay.theta.fill_(1.05)
    decay.set_step(1)
    assert decay.mac_reduction > 0.5
    penalty = decay.penalty()
    penalty.backward()
    assert penalty == 0 and not decay.theta.grad.any()


def test_training_reaches_the_target_on_whole_tiles(net: Net) -> None:
    decay = decaying(net, sparsity=0.6, t0=5, t1=60, ramp=40, round_to=2, apply_to="update")
    opt = torch.optim.Adam([{"params": list(net.parameters())}, decay.parameter_group(0.05)], lr=1e-3)
    for step in range(61):
        one_step(net, decay, opt, step)
        if step == 50:
            assert decay.mac_reduction == pytest.approx(0.6, abs=0.1)
    assert 0.6 <= decay.mac_reduction < 0.65
    for name, (kept, width) in decay.masks().widths.items():
        assert kept % 2 == 0 and 2 <= kept <= width, name
    small = compact(net, decay.masks(), decay.graph)
    assert 1 - count(small, {"": SHAPE}).macs / decay.report.macs == pytest.approx(decay.mac_reduction)
    with decay.applied():
        torch.testing.assert_close(small(picture()), net(picture()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("theta", [0.1, 1.3])
def test_freeze_meets_the_target_by_force_and_tells_it(net: Net, theta: float, caplog) -> None:
    decay = decaying(net, sparsity=0.7, t0=0, t1=1)
    with torch.no_grad():
        decay.theta.fill_(theta)  # far too low, far too high
    with caplog.at_level("WARNING"):
        decay.set_step(1)
    assert bool(decay.frozen) and 0.7 <= decay.mac_reduction < 0.75
    if theta < 1:  # nothing lay below
        assert decay.forced == (~decay.keep).sum()
        assert "the thresholds removed 0.000 of the MACs of 0.700" in caplog.text
        assert f"at once, {int(decay.forced)} channels of {len(decay.keep)}" in caplog.text
    else:
        assert decay.forced == 0 and not caplog.text


def test_thresholds_begin_below_every_score(net: Net) -> None:
    with torch.no_grad():
        net.plain.weight[:4] *= 1e-4
        net.deconv.weight[:, 5] = 0
    decay = decaying(net)
    decay.set_step(0)
    assert decay.keep.all() and decay.mac_reduction == 0
    tenth = {name: 0.1 * float(scores.max()) for name, scores in decay.gating.sections(decay.scores).items()}
    theta = dict(zip(decay.names, decay.theta.tolist(), strict=True))
    assert theta["head"] == pytest.approx(tenth["head"]) and theta["deconv"] < 0 < theta["plain"] + 1e-3 < 2e-3


def test_distance_is_the_least_rise_of_all_thresholds_that_meets_the_target(net: Net) -> None:
    decay = decaying(net, sparsity=0.6)
    distance, start = decay.distance(), decay.theta.detach().clone()
    reductions = []
    for rise in (0.98 * distance, 1.001 * distance):
        with torch.no_grad():
            decay.theta.copy_(start + rise)
        decay.set_step(1)
        reductions.append(decay.mac_reduction)
    assert 0.4 < reductions[0] < 0.6 <= reductions[1] < 0.7


def test_widths_are_whole_tiles_before_the_freeze(net: Net) -> None:
    """From halfway through the decay on, so that thresholds and filters have steps left to adapt to it."""
    decay = decaying(net, round_to=4, t0=10, t1=20)
    for step, whole in ((14, False), (15, True), (19, True)):
        mask_about_half(decay, step)
        assert all(kept % 4 == 0 for kept, _ in decay.masks().widths.values()) == whole
        assert not decay.frozen and decay.beta > 0
        assert decay.mac_reduction == decay._reduction(decay.keep) > 0


def test_every_space_keeps_a_tile(net: Net) -> None:
    decay = decaying(net, round_to=4)
    with torch.no_grad():
        decay.theta.fill_(100.0)
    decay.set_step(0)
    decay.masks().validate(decay.graph)
    assert all(kept == 4 for kept, _ in decay.masks().widths.values())


def test_temperature_of_the_soft_sparsity(net: Net) -> None:
    """The published 0.4, in units of a space's mean score; the gradient of the thresholds follows from it."""
    decay = decaying(net, sparsity=0.5)
    decay.set_step(0)
    decay.penalty().backward()
    theta = decay.theta.detach().clone().requires_grad_()
    soft = torch.sigmoid((decay.scores - theta[decay.unit_of]) / 0.4)
    removed = decay._shares.reduction(torch.stack([soft[decay.unit_of == i].mean() for i in range(len(theta))]))
    (slope,) = torch.autograd.grad(removed, theta)
    torch.testing.assert_close(decay.theta.grad, -2 * 0.5 * slope)


def test_a_weight_of_the_penalty_would_change_nothing(net: Net) -> None:
    ends = []
    for weight in (1.0, 20.0):
        decay = decaying(net)
        opt = torch.optim.Adam([decay.parameter_group(0.02)])
        for step in range(5):
            decay.set_step(step)
            opt.zero_grad()
            (weight * decay.penalty()).backward()
            decay.step(opt)
        ends.append(decay.theta.detach())
    assert (ends[0] > decaying(net).theta).all()
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [0, 16])
def test_thresholds_stop_at_the_target_however_fast_they_are(net: Net, step: int) -> None:
    decay = decaying(net, sparsity=0.4, round_to=2)
    opt = torch.optim.Adam([decay.parameter_group(3.0)], lr=1.0)
    one_step(net, decay, opt, step)
    decay.set_step(step + 1)
    assert 0.4 <= decay.mac_reduction < 0.55  # a step of 3 would have left one tile everywhere
