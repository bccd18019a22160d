"""Integer networks: the arithmetic of docs/portable.md, from frozen layers alone."""

from __future__ import annotations

import copy
import hashlib
import re
from fractions import Fraction
from itertools import cycle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec import zoo
from sparsecodec.errors import GraphError, UsageError
from sparsecodec.nn import PriorBlock, PriorBlockUp
from sparsecodec.nn.dcvc_layers import PlainGDN
from sparsecodec.nn.fvc_layers import DeformableConv2d
from sparsecodec.nn.rt_layers import DCB, Down, SubpelConv, Up
from sparsecodec.ops._registry import use_backend
from sparsecodec.quant import (
    W8A8,
    W8A16,
    W16A16,
    Precision,
    freeze,
    observe,
    quantize_layers,
    quantized_layers,
    set_scales,
)
from sparsecodec.runtime.integer_constants import as_convolution, factors
from sparsecodec.runtime.integer_network import IntegerNetwork, IntegerScale
from sparsecodec.sparsity import ScatterConv2d

from .conftest import TRITON

NETWORKS = {
    "up": lambda: PriorBlockUp(8),  # pixel shuffle, residual of two scales
    "adaptor": lambda: PriorBlock(8, 12),  # a residual that nothing else reads
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(8, 6, 5, 2, 2, 1), nn.LeakyReLU(0.01), nn.Conv2d(6, 10, 3, padding=1), nn.ReLU()
    ),
    "transposed, no output padding": lambda: nn.Sequential(nn.ConvTranspose2d(8, 4, 4, 2, 1)),
    "gates": lambda: nn.Sequential(DCB(8, 12), DCB(12, 12)),  # sums of chunks, an adaptor
    "gates, up": lambda: Up(8, 4),  # three terms: what is added is summed before
    "subpel": lambda: SubpelConv(8, 4, 3),
    "lone": lambda: nn.Conv2d(8, 4, 3, padding=1),
}


LAYERS = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | PlainGDN | DeformableConv2d


def frozen(network: nn.Module, x: Tensor | tuple[Tensor, ...], *precisions: Precision) -> nn.Module:
    """`network` as the only child ``net`` of a module, calibrated on `x` and frozen; its layers take turns."""
    inputs = x if isinstance(x, tuple) else (x,)
    model = nn.Sequential()
    model.add_module("net", network)
    names = [name for name, layer in model.named_modules() if isinstance(layer, LAYERS)]
    small = quantize_layers(model, dict(zip(names, cycle(precisions or (W8A16,)))))
    set_scales(small, observe(model, names, lambda m: m.net(*inputs)))
    return freeze(small)


def integers(x: Tensor, exponent: int) -> Tensor:
    """The nearest int16 of that exponent."""
    return (x * 2.0**-exponent).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)


def fixed(x: Tensor) -> Tensor:
    return x.double() / 65536


PRECISIONS = {"W8A16": (W8A16,), "W8A8": (W8A8,), "mixed": (W8A8, W8A16, W8A8)}  # of a network's layers, in turn


@pytest.fixture(params=[(network, precision) for precision in PRECISIONS for network in NETWORKS], ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    network, precision = request.param
    torch.manual_seed(0)
    x = 3 * torch.randn(2, 8, 6, 5)
    return frozen(NETWORKS[network]().eval(), x, *PRECISIONS[precision]), x


@torch.no_grad()
def test_computes_what_the_frozen_layers_compute(case):
    model, x = case
    network = IntegerNetwork({"net": model.net})
    x = integers(x, network.exponent) * 2.0**network.exponent  # what both can represent
    expected = model(x)
    found = fixed(network(integers(x, network.exponent)))
    assert found.shape == expected.shape
    error, size = (found - expected).abs(), float(expected.abs().max())
    if all(layer.activation_bits == 16 for layer in quantized_layers(model).values()):
        assert float(error.max()) < 2e-3 * size
    else:  # halves go upwards here and to the even there, which is a whole step of 8 bits
        assert float(error.max()) < 3e-2 * size and float(error.mean()) < 2e-3 * size


@pytest.mark.parametrize("backend", ["cpu", TRITON])
def test_every_backend_gives_the_bits_of_the_reference(case, backend):
    model, x = case
    with use_backend("reference"):
        network = IntegerNetwork({"net": model.net})
        x = integers(x, network.exponent)
        expected = network(x).clone()
    with use_backend(backend):
        assert torch.equal(IntegerNetwork({"net": model.net})(x), expected)


def test_extreme_inputs_saturate_alike_on_every_backend(case):
    model, x = case
    sign = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    x = (sign * (2**15)).clamp(max=2**15 - 1).to(torch.int16)
    with use_backend("reference"):
        expected = IntegerNetwork({"net": model.net})(x).clone()
    assert torch.equal(IntegerNetwork({"net": model.net})(x), expected)
    assert int(expected.abs().max()) <= 2**31 - 1


def test_a_batch_is_its_pictures(case):
    model, x = case
    network = IntegerNetwork({"net": model.net})
    x = integers(x, network.exponent)
    together = network(x).clone()
    assert all(torch.equal(network(x[i : i + 1])[0], together[i]) for i in range(len(x)))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "extra"), [(5, 2, 2, 1), (4, 2, 1, 0), (3, 1, 1, 0), (3, 3, 0, 0)]
)
def test_a_transposed_convolution_is_a_convolution_before_a_pixel_shuffle(kernel, stride, padding, extra):
    torch.manual_seed(0)
    weight = torch.randint(-9, 10, (4, 6, kernel, kernel)).double()
    x = torch.randint(-9, 10, (2, 4, 5, 7)).double()
    expected = F.conv_transpose2d(x, weight, None, stride, padding, extra)
    plain, reach = as_convolution(weight, stride, padding)
    assert torch.equal(F.pixel_shuffle(F.conv2d(x, plain, padding=reach), stride), expected)


def test_a_transposed_convolution_that_crops_is_refused():
    x = torch.randn(1, 8, 6, 5)
    model = frozen(nn.Sequential(nn.ConvTranspose2d(8, 4, 5, 2, 2, 0)), x)
    with pytest.raises(GraphError, match="does not grow by its stride"):
        IntegerNetwork({"net": model.net})


@torch.no_grad()
def test_strides_are_unshuffled_tensors():
    torch.manual_seed(0)
    x = 3 * torch.randn(2, 8, 6, 4)
    model = frozen(nn.Sequential(Down(8, 8), Down(8, 12)).eval(), torch.randn(1, 8, 8, 8) * 3)
    x = 3 * torch.randn(2, 8, 8, 12)
    network = IntegerNetwork({"net": model.net})
    x = integers(x, network.exponent)
    found, expected = fixed(network(x)), model(x * 2.0**network.exponent)
    assert float((found - expected).abs().max()) < 2e-3 * float(expected.abs().max())
    with use_backend("reference"):
        assert torch.equal(fixed(IntegerNetwork({"net": model.net})(x)), found)


@torch.no_grad()
def test_networks_pass_int16_on():
    """The first writes what the second reads; a coarser input costs no more than its own rounding."""
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, 4)
    net = nn.Sequential(DCB(8, 8), DCB(8, 8), nn.Conv2d(8, 4, 1)).eval()
    model = frozen(net, x).net
    whole, last = IntegerNetwork({"net": model}), IntegerNetwork({"net": model[2]}, sources=(-8,))
    first = IntegerNetwork({"net": model[:2]}, results=(last.exponent,))
    x = integers(x, whole.exponent)
    assert last.exponent == -8 and first(x).dtype == torch.int16
    found, expected = fixed(last(first(x))), fixed(whole(x))
    bound = 2.0**-8 * float(model[2].weight.abs().float().mul(model[2].weight_scale.view(-1, 1, 1, 1)).sum(1).max())
    assert float((found - expected).abs().max()) < bound
    with pytest.raises(GraphError, match="an input of exponent -30"):
        IntegerNetwork({"net": model[2]}, sources=(-30,))


def test_factors_of_a_quality():
    factors = torch.tensor([[1.0, -0.75, 2.0**-9, 0.0], [3.0, 1.0, 1.0, 1.0]]).view(2, 4, 1, 1)
    x = torch.tensor([[100, 100, 1, 5], [-32768, 32767, 256, -7]], dtype=torch.int16).view(2, 4, 1, 1)
    x = x.contiguous(memory_format=torch.channels_last)
    scale = IntegerScale(factors, -10, -9, "q")
    assert scale(x, 0).flatten().tolist() == [50, -37, 0, 0, -16384, -12288, 0, 0]
    assert scale(x, 1).flatten().tolist() == [150, 50, 1, 3, -32768, 16384, 128, -3]


class Gated(nn.Module):
    """A gate whose result is added to other layers' result."""

    def __init__(self, *others: nn.Module) -> None:
        super().__init__()
        self.a, self.others = nn.Conv2d(8, 8, 1), nn.Sequential(*others)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.others(x) + y * torch.sigmoid(4 * y)


@pytest.mark.parametrize(
    ("layers", "reason"), [(1, "a gate between a convolution and an addition"), (2, "what a gate gives is only added")]
)
def test_gates_that_only_additions_read_are_refused(layers, reason):
    others = [nn.Conv2d(8, 8, 1) for _ in range(layers)]
    model = frozen(Gated(*others).eval(), torch.randn(1, 8, 4, 4))
    with pytest.raises(GraphError, match=reason):
        IntegerNetwork({"net": model.net})


def _exponents(network: IntegerNetwork) -> list[int]:
    return [step.constants["bits"] for step in network._program.steps[1:]]


def test_only_what_convolutions_read_is_narrow():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, 5)
    network = IntegerNetwork({"net": frozen(PriorBlock(8, 12).eval(), x).net})
    assert sorted(_exponents(network)) == [16] * 4 + [32] * 2  # the adaptor and the result are wide


def test_a_tensor_takes_the_coarsest_scale_of_its_readers():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, 5)
    model = frozen(PriorBlock(8, 12).eval(), x)
    fine = IntegerNetwork({"net": model.net})
    layer = model.net.block[0].adaptor
    layer.input_scale.mul_(8)
    layer.weight_scale.div_(8)
    coarse = IntegerNetwork({"net": model.net})
    assert coarse.exponent == fine.exponent + 3
    first = model.net.block[0].conv1[0]
    bias = coarse._program.steps[[s.paths[0].endswith("conv1.0") for s in coarse._program.steps[1:]].index(True) + 1]
    assert torch.equal(bias.constants["bias"], ((first.bias.long() + 4) >> 3).int())
    x = integers(x, coarse.exponent)
    with torch.no_grad():
        found, expected = fixed(coarse(x)), model(x * 2.0**coarse.exponent)
    assert float((found - expected).abs().max()) < 2e-3 * float(expected.abs().max())


def test_channels_that_were_pruned_alone_are_zeros():
    torch.manual_seed(0)
    block = PriorBlock(8, 8).eval()
    kept = torch.tensor([1, 4, 6])
    ffn = block.block[1].conv
    narrow = nn.Conv2d(ffn[0].out_channels, 3, 1)
    ffn[2] = ScatterConv2d(narrow, kept, 8)
    x = torch.randn(1, 8, 4, 4)
    model = frozen(block, x)
    network = IntegerNetwork({"net": model.net})
    x = integers(x, network.exponent)
    with torch.no_grad():
        expected = model(x * 2.0**network.exponent)
    assert float((fixed(network(x)) - expected).abs().max()) < 2e-3 * float(expected.abs().max())


def test_refuses_an_accumulator_that_could_overflow():
    x = torch.randn(1, 8, 6, 5)
    model = frozen(nn.Sequential(nn.Conv2d(8, 4, 3, padding=1)), x, W16A16)
    IntegerNetwork({"net": model.net})
    layer = model.net[0]
    layer.weight[2] = 2**31 // 2**15 // 72 + 1  # of 72 weights, the least that is too large
    with pytest.raises(GraphError, match=r"net\.0: an accumulator can reach \d+"):
        IntegerNetwork({"net": model.net})


def test_refuses_what_is_not_frozen_dyadic():
    x = torch.randn(1, 8, 6, 5)
    with pytest.raises(UsageError, match="net.0 is a float layer"):
        IntegerNetwork({"net": nn.Sequential(nn.Conv2d(8, 4, 1))})
    with pytest.raises(UsageError, match="not to frozen dyadic"):
        IntegerNetwork({"net": frozen(nn.Sequential(nn.Conv2d(8, 4, 1)), x, Precision(8, 8)).net})


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (lambda: [nn.Conv2d(8, 8, 1), nn.MaxPool2d(3)], "net.1 has no rule for integers"),
        (lambda: [nn.Conv2d(8, 8, 1), nn.Sigmoid()], "net.1 has no rule for integers"),
        (lambda: [nn.Conv2d(8, 8, 1), nn.LeakyReLU(1.5)], "slope 1.5"),
        (lambda: [nn.Conv2d(8, 8, 1, groups=2)], "groups=2"),
    ],
)
def test_refuses_structures_without_a_rule(layers, reason):
    model = frozen(nn.Sequential(*layers()).eval(), torch.randn(1, 8, 6, 6))
    with pytest.raises(GraphError, match=re.escape(reason)):
        IntegerNetwork({"net": model.net})


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_factors_that_no_shift_can_hold(scale):
    x = torch.randn(1, 8, 6, 5)
    model = frozen(nn.Sequential(nn.Conv2d(8, 4, 1)), x)
    model.net[0].weight_scale.mul_(scale)
    if scale > 1:
        with pytest.raises(GraphError, match=r"net\.0: a factor of"):
            IntegerNetwork({"net": model.net})
    else:
        assert IntegerNetwork({"net": model.net})(torch.ones(1, 8, 2, 2, dtype=torch.int16)).eq(0).all()


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_factors_are_the_nearest_integers(slope):
    mantissas = torch.tensor([2**14, 20001, 2**15 - 1])
    found, shifts = factors(mantissas * 2.0**-25, -3, slope, "layer")
    for m, positive, negative, shift in zip(mantissas.tolist(), *found.tolist(), shifts.tolist(), strict=True):
        assert positive == m * 2 ** (shift - 28)
        assert abs(negative - Fraction(slope) * positive) <= Fraction(1, 2)


def test_scales_that_are_no_integers_are_refused():
    x = torch.randn(1, 8, 6, 5)
    model = frozen(nn.Sequential(nn.Conv2d(8, 4, 1)), x)
    broken = copy.deepcopy(model)
    broken.net[0].input_scale.mul_(1.5)
    with pytest.raises(UsageError, match="power of two"):
        IntegerNetwork({"net": broken.net})
    model.net[0].weight_scale.mul_(1 + 2**-20)
    with pytest.raises(UsageError, match="weight_scale"):
        IntegerNetwork({"net": model.net})


def test_the_arithmetic_is_that_of_every_version():
    """Golden: another digest is another stream, which no file made before opens."""
    model = zoo.load("evc-tiny-sparse-int8")
    network = IntegerNetwork({path: model.get_submodule(path) for path in ("hyper_dec", "y_prior_fusion")})
    z = torch.randint(-9, 10, (1, 96, 2, 3), generator=torch.Generator().manual_seed(0))
    result = network(integers(z.float(), network.exponent)).contiguous()
    digest = hashlib.sha256(result.numpy().astype("<i4").tobytes()).hexdigest()
    assert digest.startswith("8b56ea2643179962")
    assert len(quantized_layers(model)) > len(network._program.steps) - 1
