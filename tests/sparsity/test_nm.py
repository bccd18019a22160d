"""N:M: the limits of every variant, and masks that are what they say."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.sparsity import (
    NM,
    NMConfig,
    NMTraining,
    NMVariant,
    nm_layers,
    nm_mask,
    nm_masked,
)

# More than one group, a prime number of outputs, both kinds of kernel; 16 = two groups of the widest pattern of 1:2
SHAPES = [(5, 16, 1, 1), (3, 8, 3, 3), (7, 4)]
PATTERNS = [NM(2, 4), NM(1, 4), NM(3, 4), NM(1, 2), NM(4, 4), NM(1, 1)]


def _weight(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# --- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_each_group_of_input_channels_keeps_its_n_largest(shape: tuple[int, ...], pattern: NM):
    weight = _weight(*shape)
    keep = nm_mask(weight, pattern)
    assert keep.dtype == torch.bool and keep.shape == weight.shape
    for o in range(shape[0]):
        for position in [(i, j) for i in range(shape[2]) for j in range(shape[3])] if len(shape) == 4 else [()]:
            for start in range(0, shape[1], pattern.m):
                group = [(o, c, *position) for c in range(start, start + pattern.m)]
                kept = {index for index in group if keep[index]}
                assert kept == set(sorted(group, key=lambda index: -abs(weight[index]))[: pattern.n])


def test_transposed_convolutions_group_their_own_input_channels():
    weight = _weight(8, 5, 3, 3)
    assert torch.equal(nm_mask(weight, NM(2, 4), dim=0), nm_mask(weight.transpose(0, 1), NM(2, 4)).transpose(0, 1))


def test_ties_go_to_the_lower_channel():
    for value in (0.0, -1.0):
        keep = nm_mask(torch.full((3, 8, 1, 1), value), NM(2, 4))
        assert keep[:, :, 0, 0].tolist() == [[True, True, False, False] * 2] * 3
    assert nm_mask(torch.tensor([[1.0, -2, 2, -1]]), NM(3, 4)).tolist() == [[True, True, True, False]]
    wide = nm_mask(torch.ones(2, 256), NM(128, 256))  # sorts of so many elements move equal ones unless told not to
    assert wide[:, :128].all() and not wide[:, 128:].any()


@pytest.mark.parametrize("channels", [6, 2, 9])
def test_channels_that_are_no_multiple_of_m_are_refused(channels: int):
    with pytest.raises(UsageError, match=f"{channels} input channels.*multiple of 4"):
        nm_mask(torch.ones(3, channels, 1, 1), NM(2, 4))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value: float):
    with pytest.raises(UsageError, match="not finite"):
        nm_mask(torch.tensor([[1.0, value, 2, 3]]), NM(2, 4))


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (-1, 2), (1, 0)])
def test_impossible_patterns_are_refused(n: int, m: int):
    with pytest.raises(UsageError, match=f"pattern {n}:{m}"):
        NM(n, m)


# --- forward and backward -----------------------------------------------------------------------------------------


def _through(weight: Tensor, keep: Tensor, **how) -> tuple[Tensor, Tensor]:
    """(W~, gradient of W) for a fixed gradient of W~."""
    weight = weight.clone().requires_grad_()
    out = nm_masked(weight, keep, **how)
    (out * _upstream(weight)).sum().backward()
    return out.detach(), weight.grad


def _upstream(weight: Tensor) -> Tensor:
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(5), dtype=weight.dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward_are_those_of_the_table(shape: tuple[int, ...]):
    weight, keep = _weight(*shape), nm_mask(_weight(*shape), NM(2, 4))
    m, g = keep.double(), _upstream(weight)
    for kappa, beta, factor in [
        (1, 1, 0),
        (0, 1, 0),
        (0, 0, 0),
        (0.25, 1, 0),
        (0, 1, 2e-4),
        (0, 0.3, 0),
        (0.5, 0.5, 1),
    ]:
        out, grad = _through(weight, keep, kappa=kappa, beta=beta, factor=factor)
        torch.testing.assert_close(out, weight * (m + (1 - m) * kappa), rtol=1e-15, atol=0)
        torch.testing.assert_close(grad, (m + (1 - m) * beta) * g + factor * (1 - m) * weight, rtol=1e-15, atol=1e-18)


def test_kappa_1_is_the_dense_layer_bit_for_bit():
    weight, keep = _weight(5, 16, 1, 1), nm_mask(_weight(5, 16, 1, 1), NM(2, 4))
    out, grad = _through(weight, keep, kappa=1.0)
    assert torch.equal(out, weight) and torch.equal(grad, _upstream(weight))


def test_sr_ste_with_factor_0_is_the_straight_through_estimator():
    weight, keep = _weight(5, 16, 1, 1), nm_mask(_weight(5, 16, 1, 1), NM(2, 4))
    out, grad = _through(weight, keep, factor=0.0)
    assert torch.equal(out, weight * keep)
    assert torch.equal(grad, _upstream(weight))  # masked weights receive all of it


def test_n_equal_to_m_changes_nothing():
    weight = _weight(5, 16, 1, 1)
    keep = nm_mask(weight, NM(4, 4))
    for how in ({}, {"kappa": 0.0, "beta": 0.0, "factor": 3.0}):
        out, grad = _through(weight, keep, **how)
        assert torch.equal(out, weight) and torch.equal(grad, _upstream(weight))


# --- schedules ----------------------------------------------------------------------------------------------------


def _config(variant: str, **changes) -> NMConfig:
    return NMConfig(**{"n": 2, "m": 4, "t0": 10, "t1": 30, "variant": variant} | changes)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("mdgf_linear", {0: 1, 10: 1, 15: 0.75, 20: 0.5, 29: 0.05, 30: 0, 99: 0}),
        ("mdgf_exponential", {0: 1, 10: 1, 20: 0.1, 15: 0.01**0.25, 30: 0, 99: 0}),
        ("sr_ste", {0: 0, 20: 0, 30: 0}),
        ("gradient_decay", {0: 0, 20: 0}),
    ],
)
def test_kappa_follows_its_schedule(variant: str, expected: dict[int, float]):
    assert {step: _config(variant).kappa(step) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize("variant", [variant.value for variant in NMVariant])
def test_beta_falls_only_for_gradient_decay_and_ends_at_0_for_all(variant: str):
    beta = _config(variant).beta
    assert [beta(0), beta(10), beta(30), beta(99)] == [1, 1, 0, 0]
    middle = [beta(15), beta(20), beta(25)]
    decayed = [(1 + math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(math.pi / 4)) / 2]
    assert middle == pytest.approx(decayed if variant == "gradient_decay" else [1, 1, 1])


@pytest.mark.parametrize(
    ("variant", "n", "m", "expected"),
    [
        ("sdgf_stepwise", 2, 4, ["3:4", "2:4"]),
        ("sdgf_stepwise", 1, 4, ["3:4", "2:4", "1:4"]),
        ("sdgf_stepwise", 1, 16, ["15:16", "8:16", "4:16", "2:16", "1:16"]),
        ("sdgf_stepwise", 3, 8, ["7:8", "4:8", "3:8"]),
        ("sdgf_stepwise", 3, 4, ["3:4"]),
        ("sdgf_geometric", 2, 4, ["16:32", "8:16", "4:8", "2:4"]),
        ("mdgf_linear", 2, 4, ["2:4"]),
    ],
)
def test_patterns_take_equal_times_down_to_the_last(variant: str, n: int, m: int, expected: list[str]):
    config = _config(variant, n=n, m=m, t0=10, t1=10 + 5 * len(expected))
    assert [str(pattern) for pattern in config.patterns] == expected
    seen = [str(config.pattern_at(10 + 5 * i + offset)) for i in range(len(expected)) for offset in (0, 4)]
    assert seen == [pattern for pattern in expected for _ in range(2)]
    assert config.pattern_at(config.t1) == NM(n, m)
    assert config.pattern_at(9) == (None if variant.startswith("sdgf") else NM(n, m))


@pytest.mark.parametrize(("channels", "expected"), [(64, "16:32"), (48, "8:16"), (12, "2:4"), (40, "4:8")])
def test_wide_groups_are_halved_until_they_divide_the_channels(channels: int, expected: str):
    assert str(NM(16, 32).halved_to_fit(channels)) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"t0": 30}, "t0=30, t1=30"),
        ({"factor": -1.0}, "factor=-1.0"),
        ({"factor": math.nan}, "factor=nan"),
        ({"variant": "mdgf"}, "variant='mdgf'.*mdgf_linear"),
        ({"apply_to": "weights"}, "apply_to='weights'.*gradient"),
    ],
)
def test_wrong_settings_are_refused(values: dict, message: str):
    with pytest.raises(UsageError, match=message):
        NMConfig(**{"n": 2, "m": 4, "t0": 10, "t1": 30} | values)


# --- in training --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """One of each: wide 1x1, 3x3, depthwise, transposed, linear, and one whose input is no multiple of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(16, 12, 1)
        self.spatial = nn.Conv2d(12, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.deconv = nn.ConvTranspose2d(12, 10, 1)
        self.odd = nn.Conv2d(10, 12, 1)
        self.head = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.deconv(self.depthwise(F.leaky_relu(self.spatial(self.wide(x))))))
        return self.head(self.odd(x).mean((2, 3)))


LAYERS = ["wide", "deconv", "head"]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def _x() -> Tensor:
    return torch.rand((2, 16, 5, 5), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _training(net: nn.Module, variant: str, **changes) -> NMTraining:
    return NMTraining(net, LAYERS, _config(variant, **changes))


def _step(net: nn.Module, training: NMTraining, step: int, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    training.set_step(step)
    with training.applied():
        out = net(_x())
    (out - 1).square().sum().backward()
    training.step(optimizer)


def test_layers_that_cannot_or_should_not_be_sparse_stay_dense_and_say_so(net: Net):
    chosen, dense = nm_layers(net, [""], NM(2, 4), min_channels=8)
    assert chosen == LAYERS
    assert dense == {
        "spatial": "kernel of 3 x 3 (max_kernel=1)",
        "depthwise": "12 groups",
        "odd": "10 input channels are no multiple of 4",
    }
    assert nm_layers(net, [""], NM(2, 4), min_channels=8, max_kernel=3)[0] == ["wide", "spatial", "deconv", "head"]
    chosen, dense = nm_layers(net, [""], NM(2, 4), min_channels=12)
    assert chosen == ["wide"] and dense["deconv"] == "12 to 10 channels (min_channels=12)"
    with pytest.raises(GraphError, match=r"can be 2:4.*wide: 16 to 12 channels \(min_channels=256\)"):
        nm_layers(net, [""], NM(2, 4))


@pytest.mark.parametrize("variant", [variant.value for variant in NMVariant])
def test_frozen_masks_are_stable_and_exact_whatever_the_optimiser_does(net: Net, variant: str):
    training = _training(net, variant, t0=1, t1=3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05, weight_decay=0.1)
    for step in range(4):
        _step(net, training, step, optimizer)
    assert training.frozen and training.kappa == training.beta == 0
    masks = training.masks()
    assert training.sparsity == 0.5
    before = {name: net.get_submodule(name).weight.detach().clone() for name in LAYERS}
    for step in range(4, 8):
        _step(net, training, step, optimizer)
    for name, keep in training.masks().items():
        weight = net.get_submodule(name).weight
        assert torch.equal(keep, masks[name])
        assert torch.equal(weight[~keep], before[name][~keep]) and not weight.grad[~keep].any(), "masked weights learn"
        assert not torch.equal(weight[keep], before[name][keep])
        dim = 0 if name == "deconv" else 1
        groups = keep.movedim(dim, -1).unflatten(-1, (-1, 4))
        assert (groups.sum(-1) == 2).all()


@pytest.mark.parametrize("variant", [variant.value for variant in NMVariant])
def test_the_masked_forward_is_that_of_the_baked_model_once_frozen(net: Net, variant: str):
    training = _training(net, variant, t0=0, t1=1)
    training.set_step(1)
    baked = copy.deepcopy(net)
    training.bake(baked)
    with training.applied():
        out = net(_x())
    assert torch.equal(out, baked(_x()))
    assert not torch.equal(out, net(_x())), "the model itself must stay dense"
    for name in LAYERS:
        assert float((baked.get_submodule(name).weight == 0).double().mean()) == 0.5


@pytest.mark.parametrize("variant", ["mdgf_linear", "mdgf_exponential", "sdgf_stepwise", "sdgf_geometric"])
def test_decaying_variants_begin_as_the_dense_model(net: Net, variant: str):
    training = _training(net, variant)
    training.set_step(9)
    with training.applied():
        out = net(_x())
    assert torch.equal(out, net(_x()))


def test_masks_follow_the_weights_until_they_are_frozen(net: Net):
    training = _training(net, "sr_ste")
    training.set_step(0)
    first = training.masks()["wide"]
    with torch.no_grad():
        net.wide.weight.copy_(torch.where(first, 0.01, 1.0) * net.wide.weight.sign())
    training.set_step(1)
    assert torch.equal(training.masks()["wide"], ~first)
    training.set_step(30)
    frozen = training.masks()["wide"]
    with torch.no_grad():
        net.wide.weight.copy_(torch.where(frozen, 0.01, 1.0) * net.wide.weight.sign())
    training.set_step(31)
    assert torch.equal(training.masks()["wide"], frozen)


def test_frozen_masks_stay_frozen_when_the_steps_begin_again(net: Net):
    training = _training(net, "mdgf_linear")
    training.set_step(30)
    keep = training.keep.clone()
    again = _training(net, "mdgf_linear")
    again.load_state_dict(training.state_dict())
    with torch.no_grad():
        net.wide.weight.copy_(net.wide.weight.flip(1))
    again.set_step(0)
    assert again.kappa == again.beta == 0
    assert torch.equal(again.keep, keep)


def test_another_model_can_be_masked_alike(net: Net):
    training = _training(net, "sr_ste")
    training.set_step(0)
    average = copy.deepcopy(net)
    with torch.no_grad():
        average.wide.weight *= 2
    with training.applied(average):
        masked = average.wide.weight.detach().clone()
    assert torch.equal(masked, 2 * net.wide.weight * training.masks()["wide"])
    assert isinstance(average.wide.weight, nn.Parameter)


def test_parameters_come_back_after_an_error(net: Net):
    training = _training(net, "sr_ste")
    weight = net.wide.weight
    with pytest.raises(ZeroDivisionError), training.applied():
        raise ZeroDivisionError
    assert net.wide.weight is weight


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_masked_weights_move_by_beta_times_what_they_would(net: Net, apply_to: str):
    """With SGD both ways of decay are the same; with Adam only the update follows the schedule."""
    moved = {}
    for optimiser in (torch.optim.SGD, torch.optim.Adam):
        for step in (10, 25):  # beta 1 and 0.146
            twin = copy.deepcopy(net)
            training = _training(twin, "gradient_decay", apply_to=apply_to)
            before = twin.wide.weight.detach().clone()
            _step(twin, training, step, optimiser(twin.parameters(), lr=1e-3))
            masked = ~training.masks()["wide"]
            moved[optimiser, step] = (twin.wide.weight - before)[masked].abs().mean().item()
    beta = _config("gradient_decay").beta(25)
    assert moved[torch.optim.SGD, 25] == pytest.approx(beta * moved[torch.optim.SGD, 10], rel=1e-6)
    expected = beta if apply_to == "update" else 1.0
    assert moved[torch.optim.Adam, 25] == pytest.approx(expected * moved[torch.optim.Adam, 10], rel=1e-3)


@pytest.mark.parametrize("variant", [variant.value for variant in NMVariant])
@pytest.mark.parametrize("cut", [2, 5])
def test_resumed_training_equals_an_uninterrupted_one(net: Net, variant: str, cut: int):
    def fresh() -> tuple[Net, NMTraining, torch.optim.Optimizer]:
        twin = copy.deepcopy(net)
        return twin, _training(twin, variant, t0=1, t1=4), torch.optim.Adam(twin.parameters(), lr=0.02)

    whole, training, optimizer = fresh()
    for step in range(7):
        _step(whole, training, step, optimizer)
    first, first_training, first_optimizer = fresh()
    for step in range(cut):
        _step(first, first_training, step, first_optimizer)
    second, second_training, second_optimizer = fresh()
    for target, source in ((second, first), (second_training, first_training), (second_optimizer, first_optimizer)):
        target.load_state_dict(copy.deepcopy(source.state_dict()))
    for step in range(cut, 7):
        _step(second, second_training, step, second_optimizer)
    for ours, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(second_training.keep, training.keep)
