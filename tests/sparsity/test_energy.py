"""Energies of channels: what the readers' sums lose, in every kind of layer, and what it is worth on a real codec."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsecodec
from sparsecodec.errors import UsageError
from sparsecodec.sparsity import ChannelGraph, DecayConfig, GradientDecay, count, masked, trace_model
from sparsecodec.sparsity.energy import channel_energies
from sparsecodec.sparsity.plans import mac_cost
from sparsecodec.sparsity.ranking import CRITERIA, rank_channels
from sparsecodec.sparsity.search import global_threshold, uniform
from sparsecodec.training.families import calibration_loss, family_of


class Net(nn.Module):
    """A joined space with two readers, a depthwise layer in between, a sub-pixel, a transposed convolution, a sigmoid,
    and two branches: one behind an activation of the kind asked for, one that only the outside reads."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 10, 1)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.outer = nn.Conv2d(10, 6, 1)
        self.activation = activation
        self.sub_pixel = nn.Sequential(nn.Conv2d(6, 20, 1), nn.PixelShuffle(2))
        self.deconv = nn.ConvTranspose2d(5, 7, 3, padding=1)
        self.gated = nn.Conv2d(7, 4, 1)
        self.beside = nn.Conv2d(4, 9, 1)
        self.last = nn.Conv2d(9, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.head(x))
        x = x + self.activation(self.outer(F.gelu(self.depthwise(F.leaky_relu(self.inner(x))))))
        x = F.relu(self.deconv(self.sub_pixel(x)))
        x = self.gated(torch.sigmoid(x))
        return x + self.last(torch.relu(self.beside(x)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net(nn.LeakyReLU(0.1)).double().eval()


X = torch.rand((2, 3, 6, 7), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _energies(net: nn.Module, x: Tensor = X) -> dict[str, Tensor]:
    return channel_energies(net, ChannelGraph.trace(net), lambda: net(x))


def _lost(layer: nn.Module, x: Tensor, channel: int) -> Tensor:
    """The mean power that `channel` brings into the layer's outputs, product by product: E[(w x)^2] of every tap."""
    weight = layer.weight.detach()
    taps = weight[channel] if isinstance(layer, nn.ConvTranspose2d) else weight[:, channel]
    return sum((tap * x[:, channel]).square().mean() for tap in taps.flatten())


class Resized(nn.Module):
    """What is added has been brought to the size of the other side, which tracing computes."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.inner = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 10, 3, stride=2)
        self.outer, self.last = nn.Conv2d(10, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.last(x + F.interpolate(self.outer(self.inner(x)), size=x.shape[2:]))


def test_a_branch_that_is_resized_to_the_other_side_is_none() -> None:
    net = Resized().double().eval()
    graph = ChannelGraph.trace(net)
    assert list(graph.prunable) == ["inner"]
    assert list(channel_energies(net, graph, lambda: net(X))) == ["inner"]


@torch.no_grad()
def test_energies_are_the_power_that_each_channel_brings_to_its_readers(net: Net) -> None:
    tensors = {}
    for name in ("inner", "sub_pixel.0", "outer", "deconv", "gated", "beside", "last"):
        net.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: tensors.update({name: x[0].clone()}))
    found = _energies(net)
    head = [
        _lost(net.inner, tensors["inner"], i) + _lost(net.sub_pixel[0], tensors["sub_pixel.0"], i) for i in range(6)
    ]
    expected = {
        "head": head,
        "inner": [_lost(net.outer, tensors["outer"], i) for i in range(10)],  # behind the depthwise layer
        "sub_pixel.0": [_lost(net.deconv, tensors["deconv"], i) for i in range(5)],
        "deconv": [_lost(net.gated, tensors["gated"], i) for i in range(7)],
        "beside": [_lost(net.last, tensors["last"], i) for i in range(9)],
    }
    brought = F.leaky_relu(net.outer(tensors["outer"]), 0.1)
    expected["branch:outer"] = [_lost(net.sub_pixel[0], brought, i) for i in range(6)]  # inner reads what was before it
    expected["branch:last"] = list(net.last(tensors["last"]).square().mean((0, 2, 3)))  # only the outside reads it
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], torch.stack(values).float(), msg=name)


class Short(nn.Module):
    """A branch of one layer, which reads the very channels that it is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.branch, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.last(x + F.relu(self.branch(x)))


@torch.no_grad()
def test_what_a_branch_itself_reads_is_not_behind_it() -> None:
    torch.manual_seed(0)
    net = Short().double().eval()
    brought = F.relu(net.branch(net.head(X)))
    expected = torch.stack([_lost(net.last, brought, i) for i in range(6)])
    torch.testing.assert_close(_energies(net)["branch:branch"], expected.float())


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.LeakyReLU(0.1, inplace=True), nn.Sigmoid()])
@torch.no_grad()
def test_a_branch_is_ranked_by_what_the_sum_loses_without_it(activation: nn.Module) -> None:
    torch.manual_seed(0)
    net = Net(activation).double().eval()
    net.outer.bias[::2] -= 0.4  # half of the channels are negative
    sums = []
    net.sub_pixel[0].register_forward_pre_hook(lambda _, x: sums.append(x[0].clone()))
    found = _energies(net)["branch:outer"]
    for i in range(6):
        weight, bias = net.outer.weight[i].clone(), net.outer.bias[i].clone()
        net.outer.weight[i], net.outer.bias[i] = 0, 0
        net(X)
        net.outer.weight[i], net.outer.bias[i] = weight, bias
        lost = (sums[0] - sums[-1])[:, i].square().mean() * net.sub_pixel[0].weight[:, i].square().sum()
        torch.testing.assert_close(found[i], lost.float())


def test_a_branch_of_a_sub_pixel_width_counts_all_filters_of_a_channel() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1), nn.Conv2d(3, 2, 3, padding=1)
            self.mid = nn.Conv2d(12, 12, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.c(F.pixel_shuffle(x + self.b(torch.relu(self.mid(x))), 2))

    torch.manual_seed(0)
    net = Shuffled().double()
    heard = []
    net.b.register_forward_hook(lambda *args: heard.append(F.pixel_shuffle(args[2], 2)))
    found = _energies(net)["branch:b"]
    expected = heard[0].square().mean((0, 2, 3)) * net.c.weight.square().sum((0, 2, 3))
    torch.testing.assert_close(found, expected.detach().float())


def test_energies_add_up_over_calls(net: Net) -> None:
    graph = ChannelGraph.trace(net)
    both = channel_energies(net, graph, lambda: (net(X), net(3 * X)))
    for name, energies in _energies(net).items():
        torch.testing.assert_close(both[name], energies + _energies(net, 3 * X)[name])


def _chain() -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 16, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.ConvTranspose2d(16, 12, 2, 2),
        nn.ReLU(),
        nn.Conv2d(12, 4, 1),
    )
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("space", ["0", "3"])
@torch.no_grad()
def test_a_scale_that_the_codec_does_not_see_changes_no_energy_of_its_space(space: str) -> None:
    net = _chain()
    graph = ChannelGraph.trace(net)
    before, y = _energies(net)[space], net(X)
    norms = rank_channels(net, graph, "l2").scores[space]
    filters, readers = {  # the channels first in each of them
        "0": ((net[0].weight, net[0].bias), net[3].weight),
        "3": ((net[3].weight.transpose(0, 1), net[3].bias), net[5].weight.transpose(0, 1)),
    }[space]
    for parameter in filters:
        parameter[::2] *= 8
    readers[::2] /= 8
    torch.testing.assert_close(net(X), y)
    torch.testing.assert_close(_energies(net)[space], before)
    assert not torch.equal(rank_channels(net, graph, "l2").scores[space].argsort(), norms.argsort())


@torch.no_grad()
def test_channels_that_are_silent_or_not_read_rank_last() -> None:
    net = _chain()
    net[0].bias[5] = -1e3  # large filters, but the ReLU below never lets them through
    net[1] = nn.ReLU()
    net[0].weight[5] *= 10
    net[3].bias += 1
    net[5].weight[:, 7] = 0
    found = _energies(net)
    assert found["0"].argmin() == 5 and found["0"][5] == 0 < found["0"].sort().values[1]
    assert found["3"].argmin() == 7 and found["3"][7] == 0 < found["3"].sort().values[1]
    assert rank_channels(net, ChannelGraph.trace(net), "l2").scores["0"].argmax() == 5


def _hooks(net: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in net.modules())


def test_the_model_is_left_alone_whatever_happens(net: Net) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    graph, modes = ChannelGraph.trace(net), []

    def run() -> None:
        modes.append((net.training, torch.is_grad_enabled(), _hooks(net) > 0))
        net(X)

    channel_energies(net, graph, run)
    assert modes == [(False, False, True)] and _hooks(net) == 0

    def fail() -> None:
        net(X)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        channel_energies(net, graph, fail)
    assert _hooks(net) == 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@torch.no_grad()
def test_values_that_are_no_numbers_are_refused_by_layer(net: Net, value: float) -> None:
    graph = ChannelGraph.trace(net)
    net.deconv.bias[1] = value  # a sigmoid makes 1 of infinity, so `gated` alone would not see it
    net.deconv.weight[0, 0, 0, 0] = value
    with pytest.raises(UsageError, match="activations or weights of deconv are not finite"):
        channel_energies(net, graph, lambda: net(X))
    with pytest.raises(UsageError, match="activations or weights of inner are not finite"):
        channel_energies(net, graph, lambda: net(X * value))
    assert _hooks(net) == 0


def test_data_that_do_not_reach_a_layer_are_refused(net: Net) -> None:
    graph = ChannelGraph.trace(net)
    with pytest.raises(UsageError, match="inner did not run on the calibration data"):
        channel_energies(net, graph, lambda: None)

    def without_the_end() -> None:
        x = net.head(X)
        net.outer(net.inner(x))
        net.gated(net.deconv(net.sub_pixel(x)))

    with pytest.raises(UsageError, match="beside did not run on the calibration data"):
        channel_energies(net, graph, without_the_end)


def test_criteria_are_checked(net: Net) -> None:
    graph = ChannelGraph.trace(net)
    assert CRITERIA == ("energy", "l1", "l2")
    with pytest.raises(UsageError, match=r"criterion='taylor' \(one of energy, l1, l2"):
        rank_channels(net, graph, "taylor")
    with pytest.raises(UsageError, match="criterion='energy' needs a run of the model on calibration data"):
        rank_channels(net, graph)
    by_energy = rank_channels(net, graph, "energy", lambda: net(X))
    assert all(torch.equal(by_energy.scores[name], values) for name, values in _energies(net).items())
    locked = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert channel_energies(locked, ChannelGraph.trace(locked), lambda: None) == {}


def test_gradient_decay_scores_begin_as_its_root_and_follow_the_filters(net: Net) -> None:
    graph, energies = ChannelGraph.trace(net), _energies(net)
    report, config = count(net, {"": tuple(X.shape)}), DecayConfig(sparsity=0.4, t0=10, t1=20)
    decay = GradientDecay(net, graph, report, config, energies)
    for name, score in decay.gating.sections(decay.scores).items():
        root = energies[name].sqrt()
        torch.testing.assert_close(score, root / root.mean())

    with torch.no_grad():
        net.inner.weight[2] *= 3
    decay.set_step(0)
    after, root = decay.gating.sections(decay.scores)["inner"], energies["inner"].sqrt()
    torch.testing.assert_close(after[2] / after[0], 3 * root[2] / root[0])

    resumed = GradientDecay(net, graph, report, config)
    resumed.load_state_dict(decay.state_dict())
    torch.testing.assert_close(resumed._score(), decay._score(), rtol=0, atol=0)


@pytest.fixture(scope="module")
def evc(photo: Tensor):
    """(evc-tiny, graph of its decoder, cost, crops, the loss that coding them has)."""
    model = sparsecodec.load("evc-tiny").eval().requires_grad_(False)
    shapes = family_of(model).transforms(model, "decoder")
    graph = trace_model(model, list(shapes))
    crops = torch.cat([photo[:, :, :64, :64], photo[:, :, 64:128, 128:192]])
    return model, graph, mac_cost(count(model, shapes), graph), partial(calibration_loss, x=crops)


@pytest.mark.parametrize("method", [uniform, global_threshold])
def test_a_trained_decoder_loses_ten_times_less_by_energy_than_by_norms(evc, method) -> None:
    model, graph, cost, loss = evc
    dense, increase = loss(model), {}
    for criterion in CRITERIA:
        plan = method(graph, rank_channels(model, graph, criterion, partial(loss, model)), cost, 0.3)
        assert abs(plan.missed) < 0.01
        with masked(model, plan.masks(graph), graph):
            increase[criterion] = loss(model) / dense - 1
    assert 10 * increase["energy"] < min(increase["l1"], increase["l2"]), increase
