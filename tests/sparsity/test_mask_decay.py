"""The limits of mask decay: the teacher at masks 1, exact widths at the end, and a narrow codec that is the same."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.models import create
from sparsecodec.sparsity import (
    ChannelGraph,
    MaskDecay,
    MaskDecayConfig,
    compact,
    student_targets,
    trace_model,
)
from sparsecodec.sparsity.mask_decay import ZERO

from .one_of_each import picture

TARGETS = {"head": 5, "inner": 7, "sub_pixel.0": 3, "deconv": 4}
THREE = pytest.mark.parametrize("codec", ["evc-tiny", "mbt2018-mean", "cheng2020-anchor"], indirect=True)


class Net(nn.Module):
    """A residual space, a depthwise inner width, a sub-pixel, a transposed convolution, and a sigmoid behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, 12, 3, padding=1)
        self.inner = nn.Conv2d(12, 10, 1, bias=False)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.join = nn.Conv2d(10, 12, 1)
        self.sub_pixel = nn.Sequential(nn.Conv2d(12, 32, 1), nn.PixelShuffle(2))
        self.deconv = nn.ConvTranspose2d(8, 10, 3, padding=1)
        self.gated = nn.Conv2d(10, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.head(x))
        x = x + F.relu(self.join(F.gelu(self.depthwise(F.leaky_relu(self.inner(x))))))
        x = F.relu(self.deconv(self.sub_pixel(x)))
        return self.gated(torch.sigmoid(x))  # zeroed filters do not make zeros behind the sigmoid


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def _decay(net: nn.Module, targets: dict[str, int] | None = None, **config) -> MaskDecay:
    config = {"t1": 20, "weight": 0.01} | config
    return MaskDecay(net, ChannelGraph.trace(net), targets or TARGETS, MaskDecayConfig(**config))


def _measured(decay: MaskDecay, x: Tensor | None = None) -> MaskDecay:
    decay.set_step(0)
    with decay.applied():
        decay.model(picture() if x is None else x)
    return decay


def _random_masks(decay: MaskDecay) -> None:
    """Masks away from 1, every space at its width."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        decay.mask.copy_(0.2 + torch.rand(decay.gating.size, generator=draw))
    decay.energy.copy_(torch.rand(decay.gating.size, generator=draw))
    decay.set_step(decay.config.t1)
    assert bool(decay.frozen)


def _kept(decay: MaskDecay) -> dict[str, int]:
    return {name: kept for name, (kept, _) in decay.masks().widths.items()}


# --- what the masks do to the model ---


@THREE
def test_masks_of_one_are_the_teacher_bit_for_bit(codec) -> None:
    graph = trace_model(codec.model, codec.transforms)
    targets = {name: 3 for name, space in graph.prunable.items() if space.joined is None}
    decay = MaskDecay(codec.model, graph, targets, MaskDecayConfig(t1=5))
    for path, shape in codec.shapes.items():
        x = torch.rand(shape)
        expected = codec.model.get_submodule(path)(x.clone())
        with decay.applied():
            assert torch.equal(codec.model.get_submodule(path)(x.clone()), expected), path


@THREE
def test_folded_and_compacted_equals_masked(codec) -> None:
    model = codec.model.double()
    graph = trace_model(model, codec.transforms)
    targets = {name: max(space.width // 2, 1) for name, space in graph.prunable.items() if space.joined is None}
    decay = MaskDecay(model, graph, targets, MaskDecayConfig(t1=5))
    _random_masks(decay)
    assert _kept(decay) == targets
    folded = copy.deepcopy(model)
    decay.fold(folded)
    small = compact(folded, decay.masks(), graph)
    for path, shape in codec.shapes.items():
        x = torch.rand(shape, dtype=torch.float64)
        with torch.no_grad(), decay.applied():
            expected = model.get_submodule(path)(x.clone())
        with torch.no_grad():
            dense, got = (m.get_submodule(path)(x.clone()) for m in (model, small))
            assert torch.equal(folded.get_submodule(path)(x.clone()), expected), path
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
        if any(name.startswith(path + ".") for name in targets):
            assert (got - dense).abs().max() > 1e-4, f"{path}: the masks did nothing"


def test_folds_where_zero_does_not_stay_zero(net: Net) -> None:
    decay = _decay(net)
    _random_masks(decay)
    with torch.no_grad(), decay.applied():
        expected = net(picture())
    decay.fold()
    assert torch.equal(net(picture()), expected)
    torch.testing.assert_close(compact(net, decay.masks(), decay.graph)(picture()), expected, rtol=0, atol=1e-12)


def test_the_model_keeps_its_parameters_and_the_average_can_be_evaluated(net: Net) -> None:
    decay = _decay(net)
    _random_masks(decay)
    parameters, average = list(net.parameters()), copy.deepcopy(net)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter *= 0.5
    with torch.no_grad(), decay.applied(average):
        got = average(picture())
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    decay.fold(average)
    assert torch.equal(average(picture()), got)
    assert set(decay.state_dict()) == {"mask", "energy", "frozen", "forced"}


# --- the penalty ---


def test_only_the_surplus_of_least_importance_is_pushed(net: Net) -> None:
    decay = _measured(_decay(net))
    decay.penalty().backward()
    for name, grad in decay.gating.sections(decay.mask.grad).items():
        energy = decay.gating.sections(decay.energy)[name]
        surplus = len(energy) - TARGETS[name]
        assert set(grad.nonzero().flatten().tolist()) == set(energy.argsort()[:surplus].tolist()), name
        slope = decay.config.mu(0) * surplus * 2 * 0.1 / 1.1**2
        assert grad[grad != 0].tolist() == pytest.approx([slope] * surplus, rel=1e-5)


def test_a_space_at_its_width_gets_exactly_no_gradient(net: Net) -> None:
    decay = _measured(_decay(net))
    with torch.no_grad():
        decay.gating.sections(decay.mask)["inner"][torch.tensor([0, 4, 9])] = 0
    decay.penalty().backward()
    grads = decay.gating.sections(decay.mask.grad)
    assert _kept(decay)["inner"] == TARGETS["inner"] and not grads["inner"].any()
    assert all(grads[name].any() for name in TARGETS if name != "inner")


def test_importance_does_not_see_a_factor_moved_between_mask_and_filters(net: Net) -> None:
    before = _measured(_decay(net))._importance()
    with torch.no_grad():
        net.deconv.weight[:, 2] *= 4
        net.deconv.bias[2] *= 4
        net.inner.weight[3] *= 4
        net.depthwise.bias[3] *= 4
    decay = _decay(net)
    with torch.no_grad():
        decay.gating.sections(decay.mask)["deconv"][2] /= 4
        decay.gating.sections(decay.mask)["inner"][3] /= 4
    after = _measured(decay)._importance()
    columns = decay.gating.offsets["deconv"] + 2  # its readers' weights carry the mask, too: behind a sigmoid
    same = torch.arange(len(after)) != columns
    torch.testing.assert_close(after[same], before[same], rtol=1e-5, atol=0)


def test_energies_are_measured_at_first_and_then_in_every_eighth_step(net: Net) -> None:
    decay = _decay(net)
    energies = []
    for step in range(3, 18):  # a run that does not begin at 0
        decay.set_step(step)
        with decay.applied():
            net(picture() * step)
        energies.append(decay.energy.clone())
    changed = [3 + i for i in range(1, 15) if not torch.equal(energies[i], energies[i - 1])]
    assert (energies[0] >= 0).all() and changed == [8, 16]


def test_the_running_mean_of_the_energies_keeps_seven_tenths(net: Net) -> None:
    decay = _decay(net)
    measured = []
    for step, scale in ((0, 1.0), (8, 3.0)):
        for target in (decay, _decay(net)):  # the second one measures this step alone
            target.set_step(step)
            with target.applied():
                net(picture() * scale)
            measured.append(target.energy.clone())
    torch.testing.assert_close(measured[2], 0.7 * measured[0] + 0.3 * measured[3])
    assert not torch.allclose(measured[3], measured[0])


def test_importance_is_the_energy_in_the_readers_outputs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1)).double()
    decay = _decay(net, {"0": 3})
    x = torch.rand(4, 3, 9, 9, dtype=torch.float64)
    _measured(decay, x)
    hidden = F.relu(net[0](x)).detach()
    alone = [hidden[:, i].square().mean() * net[2].weight[:, i].square().sum() for i in range(6)]
    torch.testing.assert_close(decay.energy, torch.stack(alone).detach().float())


@pytest.mark.parametrize(
    ("penalty", "slope"), [("psi", 2 * 0.4 * 0.1 / 0.26**2), ("l1", 1.0), ("l2", 0.8), ("group_lasso", None)]
)
def test_penalties_push_the_same_channels_each_with_its_slope(net: Net, penalty: str, slope: float | None) -> None:
    decay = _measured(_decay(net, penalty=penalty))
    with torch.no_grad():
        decay.mask.fill_(0.4)
    decay.penalty().backward()
    for name, grad in decay.gating.sections(decay.mask.grad).items():
        energy = decay.gating.sections(decay.energy)[name]
        surplus = len(energy) - TARGETS[name]
        pushed = energy.argsort()[:surplus]
        assert set(grad.nonzero().flatten().tolist()) == set(pushed.tolist()), name
        norms = decay.gating.sections(decay.gating.norms(net).detach())[name]
        expected = norms[pushed] / norms.mean() if slope is None else torch.full((surplus,), slope)
        torch.testing.assert_close(grad[pushed], decay.config.mu(0) * surplus * expected, rtol=1e-4, atol=0)
    moved = net.head.weight.grad
    assert (moved is not None and bool(moved.any())) == (penalty == "group_lasso")


# --- until the end ---


def _train(decay: MaskDecay, steps: range, lr: float = 0.1, optimizer: torch.optim.Optimizer | None = None) -> None:
    net = decay.model
    opt = optimizer or torch.optim.Adam([{"params": list(net.parameters())}, decay.parameter_group(lr)], lr=1e-3)
    for step in steps:
        decay.set_step(step)
        with decay.applied():
            out = net(picture())
        loss = (out - 1).square().mean() + decay.penalty()
        opt.zero_grad()
        loss.backward()
        decay.step(opt)


@pytest.mark.parametrize("penalty", ["psi", "l1", "l2", "group_lasso"])
def test_the_loss_alone_reaches_the_widths(net: Net, penalty: str) -> None:
    decay = _decay(net, t1=60, weight=0.3, penalty=penalty)
    _train(decay, range(60))
    assert _kept(decay) == TARGETS and not decay.frozen
    decay.set_step(60)
    assert decay.forced == 0 and bool(decay.frozen)


@pytest.mark.parametrize("t1", [1, 3])
def test_every_space_has_its_width_at_t1_by_force(net: Net, t1: int) -> None:
    decay = _decay(net, t1=t1, weight=1e-9)
    _train(decay, range(t1))
    assert decay.live == decay.gating.size
    importance = decay.gating.sections(decay._importance())
    decay.set_step(t1)
    assert _kept(decay) == TARGETS and decay.forced == decay.gating.size - sum(TARGETS.values())
    for name, keep in decay.masks().items():
        assert importance[name][keep].min() > importance[name][~keep].max(), name


def test_never_below_the_width_even_if_all_masks_fall_at_once(net: Net) -> None:
    decay = _measured(_decay(net))
    with torch.no_grad():
        decay.mask.fill_(ZERO / 2)
    decay.step(torch.optim.SGD([decay.mask], lr=0.1))
    assert _kept(decay) == TARGETS
    assert set(decay.mask.tolist()) == {0.0, torch.tensor(ZERO).item()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_zeroed_mask_never_revives_and_all_rest_at_the_end(net: Net, name: str) -> None:
    decay = _measured(_decay(net, t1=6))
    with torch.no_grad():
        decay.mask[::5] = 0
    groups = [{"params": list(net.parameters())}, {"params": [decay.mask]}]
    opt = (
        torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.1)
        if name == "sgd"
        else torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)
    )
    dead = decay.mask == 0
    for step in range(10):
        if step == 7:
            final = decay.mask.detach().clone()
        decay.set_step(step)
        opt.zero_grad()
        with decay.applied():
            net(picture()).square().mean().backward()
        decay.mask.grad = torch.full_like(decay.mask, -1.0)  # whatever pulls them up
        decay.step(opt)
        assert not decay.mask[dead].any() and (decay.mask >= 0).all()
        dead = decay.mask == 0
    assert torch.equal(decay.mask, final) and _kept(decay) == TARGETS
    assert decay.penalty() == 0


def _state(steps: range, state: dict | None = None) -> dict:
    torch.manual_seed(0)
    net = Net().double()
    decay = _decay(net, t1=9, weight=0.3)
    opt = torch.optim.Adam([{"params": list(net.parameters())}, decay.parameter_group(0.14)], lr=1e-2)
    if state is not None:
        state = copy.deepcopy(state)
        net.load_state_dict(state["model"])
        decay.load_state_dict(state["decay"])
        opt.load_state_dict(state["opt"])
    _train(decay, steps, optimizer=opt)
    return {"model": net.state_dict(), "decay": decay.state_dict(), "opt": opt.state_dict()}


@pytest.mark.parametrize("cut", [5, 8, 11])
def test_resumed_training_equals_uninterrupted_training(cut: int) -> None:
    half = _state(range(cut))
    assert cut == 5 or not half["decay"]["mask"].all()
    whole, resumed = _state(range(13)), _state(range(cut, 13), half)
    assert whole["decay"]["frozen"]
    for part in ("model", "decay"):
        for key, value in whole[part].items():
            assert torch.equal(value, resumed[part][key]), f"{part}.{key}"


# --- the student ---


def test_the_result_is_the_student(evc) -> None:
    graph = trace_model(evc.model, evc.transforms)
    student = create("evc-tiny-s").eval()
    targets = student_targets(evc.model, graph, student)
    assert targets["enc.0.conv2"] == 16 and targets["dec.2.block.1.conv.0"] == 192
    assert not any(name.startswith(("hyper", "y_", "branch")) for name in targets)
    decay = MaskDecay(evc.model, graph, targets, MaskDecayConfig(t1=5))
    _random_masks(decay)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad(), decay.applied():
        expected = evc.model(x, 1.0)
    decay.fold()
    small = compact(evc.model, decay.masks(), graph)
    student.load_state_dict(small.state_dict())
    with torch.no_grad():
        got = student(x, 1.0)
    torch.testing.assert_close(got["x_hat"], expected["x_hat"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got["bpp"], expected["bpp"], rtol=1e-3, atol=1e-4)


# --- errors ---


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ({"heed": 3}, GraphError, "no channel space 'heed'.*did you mean head"),
        ({"head": 13}, GraphError, "target width 13 of 'head': the space has 12 channels"),
        ({"head": 0}, UsageError, "target width 0 of 'head'"),
        ({"branch:join": 3}, GraphError, "give a target for 'head'"),
        ({"gated": 3}, GraphError, "target width 3 of 'gated': it is locked at 8, because it is an output"),
        ({"head": 12, "gated": 8}, UsageError, "2 targets drop nothing"),
    ],
)
def test_wrong_targets_are_named(net: Net, targets: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        _decay(net, targets)


def test_a_penalty_without_a_forward_is_an_error(net: Net) -> None:
    decay = _decay(net)
    with torch.no_grad(), decay.applied():
        net(picture())  # an evaluation measures nothing
    with pytest.raises(UsageError, match="no forward ran under applied"):
        decay.penalty()


def test_psi_narrows_from_step_to_step(net: Net) -> None:
    decay = _measured(_decay(net, {"head": 5}, e_start=0.1, e_end=0.001, t1=20, weight=0.5))
    with torch.no_grad():
        decay.mask.fill_(0.5)
    for step, e in ((0, 0.1), (10, 0.0505), (19, 0.00595)):
        decay.set_step(step)
        expected = 0.5 * (step + 1) / 20 * (12 - 5) ** 2 * 0.25 / (0.25 + e)
        assert decay.penalty().item() == pytest.approx(expected)
