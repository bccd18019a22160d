"""The limits of gradient decay: straight-through at beta 1, hard mask at beta 0, and what lies between."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.sparsity import (
    DecayConfig,
    GradientDecay,
    apply_masks,
    compact,
    count,
    trace_model,
)
from sparsecodec.sparsity.gradient_decay import LIFT

from .one_of_each import SHAPE, Net, decaying, mask_about_half, one_step, picture


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def _tensors(net: nn.Module) -> list[Tensor]:
    """What the layers compute with at the moment."""
    return [tensor for module in net.modules() for tensor in module._parameters.values() if tensor is not None]


@pytest.mark.parametrize(
    ("method", "step", "beta"),
    [
        ("gradient_decay", 0, 1.0),
        ("gradient_decay", 10, 1.0),
        ("gradient_decay", 15, 0.5),
        ("gradient_decay", 19, 0.1),
        ("autosparse", 10, 0.5),
    ],
)
def test_masked_gradient_is_beta_times_the_dense_one_at_the_masked_weight(
    net: Net, method: str, step: int, beta: float
) -> None:
    decay = decaying(net, method=method)
    mask_about_half(decay, step)
    assert decay.beta == pytest.approx(beta)
    dense = copy.deepcopy(net)
    with decay.applied():
        for ours, theirs in zip(_tensors(net), dense.parameters(), strict=True):
            theirs.data = ours.detach().clone()
        net(picture()).square().sum().backward()
    dense(picture()).square().sum().backward()
    checked = 0
    for (name, ours), theirs in zip(net.named_parameters(), dense.parameters(), strict=True):
        masked = theirs.abs() <= LIFT
        checked += int(masked.sum())
        torch.testing.assert_close(ours.grad[~masked], theirs.grad[~masked], rtol=1e-12, atol=0)
        torch.testing.assert_close(ours.grad[masked], beta * theirs.grad[masked], rtol=1e-12, atol=0)
        if masked.any() and not name.startswith("deconv"):  # its reader is masked too, because of the sigmoid
            assert ours.grad[masked].abs().max() > 0, f"{name}: masked filters got no gradient"
    assert checked > 100


def test_hard_masks_give_masked_filters_exactly_nothing(net: Net) -> None:
    decay = decaying(net, method="hard")
    mask_about_half(decay, 0)
    dense = copy.deepcopy(net)
    decay.bake(dense)
    dense(picture()).square().sum().backward()
    with decay.applied():
        net(picture()).square().sum().backward()
    for ours, theirs in zip(net.parameters(), dense.parameters(), strict=True):
        masked = theirs == 0
        assert torch.equal(ours.grad[masked], torch.zeros_like(ours.grad[masked]))
        assert torch.equal(ours.grad[~masked], theirs.grad[~masked])


def test_kept_gradient_does_not_depend_on_beta(net: Net) -> None:
    grads = []
    for step in (0, 15, 19):
        decay = decaying(net)
        mask_about_half(decay, step)
        net.zero_grad()
        with decay.applied():
            net(picture()).square().sum().backward()
        grads.append(net.head.weight.grad[decay.masks()["head"]].clone())
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


@pytest.mark.parametrize("step", [0, 15])
def test_nothing_masked_is_the_dense_model(net: Net, step: int) -> None:
    decay = decaying(net, sparsity=0.1)
    decay.set_step(step)
    expected = net(picture())
    expected.sum().backward()
    grads = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with decay.applied():
        got = net(picture())
    got.sum().backward()
    assert decay.mac_reduction == 0
    assert torch.equal(got, expected)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True))


def test_masked_channels_are_zero_and_compaction_agrees(net: Net) -> None:
    decay = decaying(net)
    mask_about_half(decay, 0)
    masks = decay.masks()
    seen: dict[str, Tensor] = {}
    for name in ("head", "plain", "depthwise", "join", "sub_pixel.0", "deconv"):
        net.get_submodule(name).register_forward_hook(lambda _, i, o, name=name: seen.update({name: o.detach()}))
    with torch.no_grad(), decay.applied():
        out = net(picture())
    for name, output in seen.items():
        keep = decay.graph.layers[name].keep_outputs(masks)
        assert not output[:, ~keep].any() and output[:, keep].any(), name
    assert int(decay.graph.layers["sub_pixel.0"].keep_outputs(masks).sum()) % 4 == 0
    torch.testing.assert_close(compact(net, masks, decay.graph)(picture()), out, rtol=0, atol=1e-12)
    torch.testing.assert_close(apply_masks(net, masks, decay.graph)(picture()), out, rtol=0, atol=1e-12)


def test_estimate_of_the_macs_is_exact_for_hard_fractions(net: Net) -> None:
    decay = decaying(net)
    mask_about_half(decay, 0)
    masks = {name: mask for name, mask in decay.masks().items() if not name.startswith("branch:")}
    fractions = torch.ones(len(decay.names))
    for i, name in enumerate(decay.names):
        if name in masks:
            fractions[i] = masks[name].double().mean()
    small = compact(net, type(decay.masks())(masks), decay.graph)
    expected = 1 - count(small, {"": SHAPE}).macs / decay.report.macs
    assert decay._shares.reduction(fractions).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_masks_and_filters_rest_under_weight_decay_and_momentum(net: Net, apply_to: str, optimizer: str) -> None:
    decay = decaying(net, apply_to=apply_to, t0=1, t1=3, round_to=2)
    with torch.no_grad():
        decay.theta.fill_(1.0)
    groups = [{"params": list(net.parameters())}, decay.parameter_group(1e-2)]
    if optimizer == "sgd":
        opt = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.1)
    else:
        opt = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)
    frozen = None
    for step in range(8):
        decay.set_step(step)
        with decay.applied():
            loss = net(picture()).square().mean() + decay.penalty()
        opt.zero_grad()
        loss.backward()
        if step >= 3:
            frozen = frozen or (decay.keep.clone(), copy.deepcopy(net))
        decay.step(opt)
    keep, before = frozen
    assert torch.equal(decay.keep, keep)
    assert decay.beta == 0
    rows = decay.graph.layers["head"].keep_outputs(decay.masks())
    assert not rows.all()
    assert torch.equal(net.head.weight[~rows], before.head.weight[~rows])
    assert torch.equal(net.head.bias[~rows], before.head.bias[~rows])
    assert not net.head.weight.grad[~rows].any() and not net.head.bias.grad[~rows].any()
    assert (net.head.weight[rows] != before.head.weight[rows]).all()


def _displacement(apply_to: str, step: int) -> float:
    torch.manual_seed(0)
    net = Net().double()
    decay = decaying(net, apply_to=apply_to)
    opt = torch.optim.Adam(net.parameters(), lr=1e-3)
    mask_about_half(decay, step)
    before = net.head.weight.detach().clone()
    rows = ~decay.graph.layers["head"].keep_outputs(decay.masks())
    with decay.applied():
        net(picture()).square().mean().backward()
    decay.step(opt)
    return float((net.head.weight.detach() - before)[rows].abs().mean())


def test_adam_displacement_of_masked_filters_follows_beta() -> None:
    assert _displacement("update", 19) / _displacement("update", 0) == pytest.approx(0.1, rel=1e-6)
    # the trap that "update" exists for: Adam divides a constant factor out of a gradient
    assert _displacement("gradient", 19) / _displacement("gradient", 0) > 0.9


def _train(steps: range, state: dict | None = None) -> dict:
    torch.manual_seed(0)
    net = Net().double()
    decay = decaying(net, apply_to="update", t0=2, t1=9, ramp=6, round_to=2)
    opt = torch.optim.Adam([{"params": list(net.parameters())}, decay.parameter_group(0.1)], lr=1e-2)
    if state is not None:
        state = copy.deepcopy(state)
        net.load_state_dict(state["model"])
        decay.load_state_dict(state["decay"])
        opt.load_state_dict(state["opt"])
    for step in steps:
        one_step(net, decay, opt, step)
    return {"model": net.state_dict(), "decay": decay.state_dict(), "opt": opt.state_dict()}


@pytest.mark.parametrize("cut", [4, 9, 11])
def test_resumed_training_equals_uninterrupted_training(cut: int) -> None:
    whole = _train(range(14))
    resumed = _train(range(cut, 14), _train(range(cut)))
    assert bool(whole["decay"]["frozen"]) and not whole["decay"]["keep"].all()
    for part in ("model", "decay"):
        for key, value in whole[part].items():
            assert torch.equal(value, resumed[part][key]), f"{part}.{key}"


def test_scores_are_relative_to_their_space(net: Net) -> None:
    before = decaying(net).scores
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 10
    torch.testing.assert_close(decaying(net).scores, before)


def test_the_model_is_the_same_object_with_the_same_keys(net: Net) -> None:
    keys, parameters = list(net.state_dict()), list(net.parameters())
    decay = decaying(net)
    mask_about_half(decay, 0)
    with pytest.raises(RuntimeError), decay.applied():
        net(torch.rand(1, 5, 4, 4, dtype=torch.float64))
    assert list(net.state_dict()) == keys
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert set(decay.state_dict()) == {"theta", "keep", "frozen", "forced", "gain"}


def test_an_average_of_the_weights_can_be_evaluated(net: Net) -> None:
    decay = decaying(net)
    mask_about_half(decay, 0)
    average = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter *= 0.5
    with torch.no_grad(), decay.applied(average):
        got = average(picture())
    torch.testing.assert_close(got, apply_masks(average, decay.masks(), decay.graph)(picture()), rtol=0, atol=1e-12)


def test_learns_on_every_family(codec) -> None:
    paths = [path for path in codec.transforms if path != "context_prediction"]
    graph = trace_model(codec.model, paths)
    report = count(codec.model, {path: codec.shapes[path] for path in paths})
    config = DecayConfig(sparsity=0.4, t0=1, t1=2, round_to=2)
    decay = GradientDecay(codec.model, graph, report, config)
    for step in range(3):
        decay.set_step(step)
        with decay.applied():
            sum(
                codec.model.get_submodule(path)(torch.rand(codec.shapes[path])).square().mean() for path in paths
            ).backward()
    assert 0.4 <= decay.mac_reduction < 0.5
    small = compact(codec.model, decay.masks(), graph)
    with torch.no_grad(), decay.applied():
        for path in paths:
            x = torch.rand(codec.shapes[path])
            expected, got = codec.model.get_submodule(path)(x.clone()), small.get_submodule(path)(x.clone())
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "weightDecay"}, "method='weightDecay'"),
        ({"apply_to": "weights"}, "apply_to='weights'"),
        ({"schedule": "step"}, "schedule='step'"),
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"t0": 20}, "t0=20, t1=20"),
        ({"ramp": 30}, "ramp=30"),
        ({"sparsity": 0.99, "round_to": 8}, "only 0.[0-9]+ of the MACs.*; locked: "),
    ],
)
def test_wrong_settings_are_named(net: Net, config: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        decaying(net, **config)


def test_a_model_without_prunable_spaces_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1))
    with pytest.raises(GraphError, match="0 prunable spaces"):
        decaying(net)


def test_weights_that_are_not_finite_are_refused(net: Net) -> None:
    decay = decaying(net)
    with torch.no_grad():
        net.head.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UsageError, match="not finite"):
        decay.set_step(0)
