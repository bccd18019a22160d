"""Integer networks of more than a chain: pre-activations, pools, excitations, strides, several inputs and results."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.nn.dcvc_layers import LeakyBlock, PlainGDN
from sparsecodec.nn.fvc_layers import Compensation
from sparsecodec.nn.hem_layers import (
    ActivatedBlock,
    BottleneckBlock,
    ContextFusion,
    ContextualDecoder,
    ExcitedBlock,
    FeatureExtractor,
    FrameGenerator,
    SqueezeExcite,
    UNet,
    conv3x3,
)
from sparsecodec.ops._registry import use_backend
from sparsecodec.runtime.integer_excitation import Excitation, plane_sums
from sparsecodec.runtime.integer_network import IntegerNetwork

from .conftest import TRITON
from .test_integer_network import fixed, frozen

WIDTHS = (8, 8, 16)


class Sum(nn.Module):
    """An addition of two tensors that no convolution gives, then a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(F.relu(x + y))


def _normalising(inverse: bool) -> nn.Sequential:
    """Norms before a shuffled block, and as the result."""
    layers = (conv3x3(8, 24), PlainGDN(24, inverse), LeakyBlock(24), conv3x3(24, 24), nn.PixelShuffle(2))
    network = nn.Sequential(*layers, PlainGDN(6, inverse))
    with torch.no_grad():
        for layer in (network[1], network[5]):
            layer.gamma.uniform_(0, 0.4)
            layer.beta.uniform_(0.5, 1.5)
    return network


def _compensating() -> Compensation:
    """Samples of other pixels, taps that are weighed."""
    network = Compensation(10, 2, modulated=True)
    with torch.no_grad():
        nn.init.normal_(network.alignment.offsets.weight, std=0.1)
    return network


# (network, channels and divisors of the sizes of its inputs)
NETWORKS = {
    "pre-activation": (lambda: ActivatedBlock(8), [(8, 1)]),
    "pre-activations, bottleneck": (lambda: BottleneckBlock(8), [(8, 1)]),
    "excited": (lambda: ExcitedBlock(8, 20), [(8, 1)]),  # more channels than SQUEEZE
    "excited alone": (lambda: nn.Sequential(conv3x3(8, 32), SqueezeExcite(32)), [(8, 1)]),
    "pools": (lambda: UNet(8, 12, WIDTHS), [(8, 1)]),
    "strides": (lambda: nn.Sequential(conv3x3(8, 12, 2), nn.LeakyReLU(0.1), conv3x3(12, 8, 2)), [(8, 1)]),
    "three results": (lambda: FeatureExtractor(8), [(8, 1)]),
    "three of three": (lambda: ContextFusion(8), [(8, 1), (8, 2), (8, 4)]),
    "sizes": (lambda: ContextualDecoder(8, 12, 6), [(12, 16), (8, 2), (8, 4)]),
    "two of two": (lambda: FrameGenerator(8, 8, WIDTHS), [(8, 1), (8, 1)]),
    "sum": (Sum, [(6, 1), (6, 1)]),
    "norms": (lambda: _normalising(inverse=False), [(8, 1)]),
    "inverse norms": (lambda: _normalising(inverse=True), [(8, 1)]),
    "moved taps": (_compensating, [(10, 4), (10, 4)]),  # few: the interpreter takes its time
}
RESULTS = {"three results": (-9, -10, -8), "three of three": (-9,), "two of two": (-12, None)}


def integers_of(x: Tensor, exponent: int | None) -> Tensor:
    """int16 of that exponent, or int32 of -16."""
    low, high, dtype = (-(2**15), 2**15 - 1, torch.int16) if exponent is not None else (-(2**30), 2**30, torch.int32)
    scaled = x.double() * 2.0 ** -(-16 if exponent is None else exponent)
    return scaled.round().clamp(low, high).to(dtype).contiguous(memory_format=torch.channels_last)


def as_floats(x: Tensor, exponent: int | None) -> Tensor:
    return x.double() * 2.0 ** (-16 if exponent is None else exponent)


def together(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[Tensor, ...], tuple[int | None, ...]]:
    make, inputs = NETWORKS[request.param]
    torch.manual_seed(0)
    xs = tuple(2 * torch.randn(1, channels, 16 // by, 32 // by) for channels, by in inputs)
    return frozen(make().eval(), xs).net, xs, RESULTS.get(request.param, ())


@torch.no_grad()
def test_computes_what_the_frozen_layers_compute(case):
    model, xs, results = case
    network = IntegerNetwork({"net": model}, results=results)
    xs = [integers_of(x, exponent) for x, exponent in zip(xs, network.exponents, strict=True)]
    expected = together(model(*(as_floats(x, e).float() for x, e in zip(xs, network.exponents, strict=True))))
    found = together(network(*xs))
    assert len(found) == len(expected) == len(network.result_exponents)
    for x, y, exponent in zip(found, expected, network.result_exponents, strict=True):
        assert x.shape == y.shape and x.dtype == (torch.int32 if exponent is None else torch.int16)
        error = float((as_floats(x, exponent) - y).abs().max())
        assert error < 3e-3 * float(y.abs().max()) + (0 if exponent is None else 2.0**exponent), error


@pytest.mark.parametrize("backend", ["cpu", TRITON])
def test_every_backend_gives_the_bits_of_the_reference(case, backend):
    model, xs, results = case
    with use_backend("reference"):
        network = IntegerNetwork({"net": model}, results=results)
        xs = [integers_of(x, exponent) for x, exponent in zip(xs, network.exponents, strict=True)]
        expected = [x.clone() for x in together(network(*xs))]
    with use_backend(backend):
        found = together(IntegerNetwork({"net": model}, results=results)(*xs))
    assert all(map(torch.equal, found, expected))


def test_extreme_inputs_saturate_alike(case):
    model, xs, results = case
    generator = torch.Generator().manual_seed(1)
    with use_backend("reference"):
        network = IntegerNetwork({"net": model}, results=results)
        signs = [torch.randint(0, 2, x.shape, generator=generator) * 2 - 1 for x in xs]
        xs = [integers_of(s * 1e9, exponent) for s, exponent in zip(signs, network.exponents, strict=True)]
        expected = [x.clone() for x in together(network(*xs))]
    assert all(map(torch.equal, together(IntegerNetwork({"net": model}, results=results)(*xs)), expected))


def test_what_is_concatenated_has_one_exponent():
    torch.manual_seed(0)
    xs = tuple(torch.randn(1, 8, 16 // by, 16 // by) for by in (1, 2, 4))
    network = IntegerNetwork({"net": frozen(ContextFusion(8).eval(), xs).net})
    coarser = tuple(exponent + 2 for exponent in network.exponents)
    again = IntegerNetwork({"net": frozen(ContextFusion(8).eval(), xs).net}, sources=coarser)
    assert again.exponents == coarser and again.result_exponents == (None, None, None)


def test_exponents_that_contradict_each_other_are_refused():
    torch.manual_seed(0)
    xs = (torch.randn(1, 8, 8, 8), torch.randn(1, 8, 8, 8))
    net = frozen(FrameGenerator(8, 8, WIDTHS).eval(), xs).net  # reads both as one tensor
    with pytest.raises(GraphError, match="is both a result of 32 bits and read by net.recon_conv"):
        IntegerNetwork({"net": net})
    with pytest.raises(GraphError, match="an input of exponent -3 that goes with one of -2"):
        IntegerNetwork({"net": net}, sources=(-3, -2), results=(-9,))
    with pytest.raises(GraphError, match=r"exponents of 3 inputs \(has 2\)"):
        IntegerNetwork({"net": net}, sources=(-3, -2, -2), results=(-9,))


def test_inputs_of_another_type_are_refused():
    network = IntegerNetwork({"net": frozen(ActivatedBlock(8).eval(), torch.randn(1, 8, 4, 4)).net})
    assert network.exponents == (None,)
    with pytest.raises(UsageError, match=r"net: an input of torch.int16 \(needs torch.int32\)"):
        network(torch.zeros(1, 8, 4, 4, dtype=torch.int16))


def test_excitations_are_of_one_picture():
    network = IntegerNetwork({"net": frozen(ExcitedBlock(8, 8).eval(), torch.randn(1, 8, 4, 4)).net})
    with pytest.raises(UsageError, match="2 pictures at once"):
        network(torch.zeros(2, 8, 4, 4, dtype=torch.int16))


@torch.no_grad()
def test_biases_of_units_far_below_those_of_the_input_are_lost():
    """Of two layers that read one tensor, the larger unit is its; a shift has no more than 62 bits."""
    torch.manual_seed(0)
    net = frozen(Pair().eval(), torch.randn(1, 4, 4, 4)).net
    net.second.input_scale.fill_(2.0**-90)
    network = IntegerNetwork({"net": net})
    (bias,) = (step.constants["bias"] for step in network._program.steps if step.paths == ("net.second",))
    assert not bias.any()


class Pair(nn.Module):
    """Two layers that read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


class Beside(nn.Module):
    """A ReLU of what no convolution reads or gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), F.relu(y)


def test_a_tensor_without_layers_is_refused():
    net = frozen(Beside().eval(), (torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4))).net
    with pytest.raises(GraphError, match="of a tensor whose number of channels no layer tells"):
        IntegerNetwork({"net": net})


@pytest.mark.parametrize(("exponent", "wanted"), [(-16, [2, 0, -1, 6]), (-15, [3, -1, -3, 11]), (-18, [0, 0, 0, 1])])
def test_means_are_to_the_nearest_and_halves_upwards(exponent, wanted):
    """Of 3 / 2, -1 / 2, -3 / 2 and 11 / 2 units of 2^exponent, in units of 2^-16."""
    torch.manual_seed(0)
    down, up = frozen(nn.Sequential(conv3x3(4, 4), SqueezeExcite(4)).eval(), torch.randn(1, 4, 4, 4)).net[1].fc[0::2]
    down.input_scale.fill_(2.0**-16)
    excitation, read = Excitation(down, up, exponent, ("down", "up")), []
    rest = excitation._down
    excitation._down = lambda q: read.append(q) or rest(q)
    x = torch.tensor([[1, 2], [-1, 0], [-1, -2], [5, 6]], dtype=torch.int32).view(1, 4, 1, 2)
    factors = excitation(x.contiguous(memory_format=torch.channels_last))
    assert read[0].flatten().tolist() == wanted
    assert factors.shape == (2, 4) and torch.equal(factors[0], factors[1])


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_sums_of_planes_do_not_overflow(dtype):
    low = torch.iinfo(dtype).min if dtype == torch.int16 else -(2**30)
    x = torch.full((1, 3, 64, 128), low, dtype=dtype).contiguous(memory_format=torch.channels_last)
    assert plane_sums(x).tolist() == [low * 64 * 128] * 3


@torch.no_grad()
def test_norms_of_a_coarser_input_are_of_its_units():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8, 8)
    net = frozen(PlainGDN(6).eval(), x).net
    own, coarser = IntegerNetwork({"net": net}), IntegerNetwork({"net": net}, sources=(-8,))
    assert own.exponent < coarser.exponent == -8
    found, expected = (fixed(one(integers_of(x, one.exponent))) for one in (coarser, own))
    assert float((found - expected).abs().max()) < 2.0**-9 + 1e-4
    small = frozen(PlainGDN(6).eval(), 1e-9 * x).net  # its offsets are lost in the squares of such units
    assert torch.equal(IntegerNetwork({"net": small}, sources=(0,))._program.output.constants["beta"], torch.zeros(6))
    with pytest.raises(GraphError, match=r"net: a shift of -\d+ to -\d+ from .*needs 0 to 35"):
        IntegerNetwork({"net": net}, results=(20,))


@torch.no_grad()
def test_a_pre_activation_does_not_clip_what_is_added():
    """Values far below zero survive beside an activation that takes them to next to nothing."""
    torch.manual_seed(0)
    x = torch.randn(1, 8, 8, 8).abs() * torch.tensor([1.0, -100.0]).repeat(4).view(1, 8, 1, 1)
    net = frozen(ActivatedBlock(8).eval(), x).net
    found = fixed(IntegerNetwork({"net": net})(integers_of(x, None)))
    assert float((found - net(x)).abs().max()) < 0.05
