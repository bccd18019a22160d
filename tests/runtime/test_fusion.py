"""A compiled transform computes what its module computes: each pattern, alone and where it must not match."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec._compat import import_compressai
from sparsecodec.errors import GraphError
from sparsecodec.nn import PriorBlock, PriorDepthConv
from sparsecodec.ops import entropy_parameters
from sparsecodec.ops._spatial_prior import take_active
from sparsecodec.ops.prior_head import split_parameters
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.sparsity import ChannelMasks, ScatterConv2d, compact, trace_model

SHAPES = [(1, 8, 5, 7), (2, 8, 4, 6), (1, 8, 5, 7), (1, 8, 1, 1)]  # the first comes back: on its planned buffers


def compile_and_check(module: nn.Module, shapes=SHAPES) -> list[tuple[str, str]]:
    """Compares with the module in float64, allows twice torch's own float32 error, and returns (op, backend) rows."""
    generator = torch.Generator().manual_seed(11)
    module = module.eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in module.parameters():  # also biases, GDN's identity and zeros
            parameter += 0.05 * torch.rand(parameter.shape, generator=generator)
    transform = CompiledTransform(module, "t", torch.float32)
    exact_module = copy.deepcopy(module).double()
    with torch.inference_mode():
        for shape in shapes * 2:
            x = torch.randn(shape, generator=generator)
            exact, eager = exact_module(x.clone().double()), module(x.clone())
            given = x.clone()
            ours = transform(given)
            assert torch.equal(given, x), "the input was modified"
            assert ours.shape == exact.shape
            bound = 2 * (eager - exact).abs().max() + 1e-6 * exact.abs().max()
            assert (ours - exact).abs().max() <= bound
    rows = transform.rows(1, {})
    assert all(row.reason for row in rows if row.backend == "torch")
    return [(row.op, row.backend) for row in rows]


class Lambda(nn.Module):
    """`forward` from a function of (module, x), with child modules given by name."""

    def __init__(self, function, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(c_in: int = 8, c_out: int = 8, kernel: int = 3, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, **kwargs)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# --- patterns that match ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(), nn.LeakyReLU(0.2, inplace=True), nn.Identity()])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_activation(activation: nn.Module, kernel: int):
    op = "pointwise" if kernel == 1 else "conv2d_act"
    assert compile_and_check(nn.Sequential(conv(kernel=kernel), activation)) == [(op, "cpu")]


@pytest.mark.parametrize("bias", [True, False])
def test_strided_and_transposed(bias: bool):
    down = nn.Conv2d(8, 12, 5, stride=2, padding=2, bias=bias)
    up = nn.ConvTranspose2d(12, 8, 5, stride=2, padding=2, output_padding=1, bias=bias)
    rows = compile_and_check(nn.Sequential(down, nn.ReLU(), up, nn.LeakyReLU()))
    assert rows == [("conv2d_act", "cpu"), ("conv_transpose2d_act", "cpu")]


@pytest.mark.parametrize("order", ["shuffle-activation", "activation-shuffle", "shuffle"])
def test_pixel_shuffle(order: str):
    layers = {"shuffle": nn.PixelShuffle(2), "activation": nn.LeakyReLU()}
    rows = compile_and_check(nn.Sequential(conv(8, 16), *[layers[name] for name in order.split("-")], conv(4, 4, 1)))
    assert rows == [("conv2d_act", "cpu"), ("pointwise", "cpu")]


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn(inverse: bool):
    gdn = import_compressai().layers.GDN(8, inverse=inverse)
    assert compile_and_check(nn.Sequential(conv(), gdn)) == [("conv2d_act", "cpu"), ("gdn", "cpu")]


def test_gdn_of_another_norm_stays_a_torch_layer():
    rows = compile_and_check(nn.Sequential(conv(), import_compressai().layers.GDN1(8)))
    assert rows == [("conv2d_act", "cpu"), ("GDN1", "torch")]


ADDITIONS = {
    "conv-plus-x": lambda m, x: m.b(F.relu(m.a(x))) + x,
    "functions": lambda m, x: x + m.b(F.leaky_relu(F.relu(m.a(x)), negative_slope=0.2, inplace=True)),
    "x-plus-conv": lambda m, x: x + m.b(m.act(m.a(x))),
    "iadd": lambda m, x: _iadd(m.b(m.act(m.a(x))), x),
    "torch.add": lambda m, x: torch.add(m.act(m.b(m.act(m.a(x)))), x),
    "two-convs": lambda m, x: m.a(x) + m.b(x),
    "chain": lambda m, x: m.b(x + m.a(x)) + (x + m.a(x)),
}


def _iadd(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


@pytest.mark.parametrize("form", ADDITIONS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_residual(form: str, kernel: int):
    module = Lambda(ADDITIONS[form], a=conv(kernel=kernel), b=conv(kernel=kernel), act=nn.LeakyReLU(inplace=True))
    rows = compile_and_check(module)
    assert "add" not in dict(rows)


@pytest.mark.parametrize("alone", [True, False])
def test_residual_of_a_block_that_activates_first(alone: bool):
    """As in DCVC: x + conv(relu(conv(relu(x)))), where only an activation and the addition read x."""
    block = Lambda(lambda m, x: x + m.b(m.act(m.a(m.act(x)))), a=conv(), b=conv(), act=nn.ReLU())
    assert "add" not in dict(compile_and_check(block if alone else nn.Sequential(block, conv())))


def test_residual_joins_equal_sizes_made_in_different_ways():
    """As in cheng2020: 3x3 and 1x1 with stride 2 meet, and sub-pixel convolutions meet."""
    down = Lambda(lambda m, x: m.b(m.a(x)) + m.skip(x), a=conv(stride=2), b=conv(), skip=conv(kernel=1, stride=2))
    assert "add" not in dict(compile_and_check(down))
    up = Lambda(
        lambda m, x: m.c(m.shuffle(m.a(x))) + m.shuffle(m.b(x)),
        **{"a": conv(8, 32), "b": conv(8, 32), "c": conv(), "shuffle": nn.PixelShuffle(2)},
    )
    assert "add" not in dict(compile_and_check(up))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("activation", [False, True])
def test_scattered_residual(kernel: int, activation: bool):
    scattered = ScatterConv2d(conv(8, 3, kernel), torch.tensor([1, 4, 7]), 8)
    module = Lambda(
        lambda m, x: x + (m.act(m.b(m.a(x))) if activation else m.b(m.a(x))),
        **{"a": conv(), "b": scattered, "act": nn.LeakyReLU()},
    )
    assert compile_and_check(module) == [("conv2d_act", "cpu"), ("pointwise" if kernel == 1 else "conv2d_act", "cpu")]


class Block(nn.Module):
    """1x1, depthwise, 1x1 with a skip, then two 1x1 with a skip: what a DepthConv block is made of."""

    def __init__(self, c_in: int, c_out: int, hidden: int = 12, slope: float = 0.01) -> None:
        super().__init__()
        act = nn.LeakyReLU(slope, inplace=True)
        depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.body = nn.Sequential(conv(c_in, hidden, 1), act, depthwise, conv(hidden, c_out, 1))
        self.adaptor = conv(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.ffn = nn.Sequential(conv(c_out, 20, 1), act, conv(20, c_out, 1), act)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x) + self.adaptor(x)
        return x + self.ffn(x)


@pytest.mark.parametrize("c_out", [8, 16])
def test_depth_conv_block(c_out: int):
    rows = compile_and_check(nn.Sequential(Block(8, c_out), Block(c_out, c_out)))
    assert rows == [("depth_conv_block", "cpu")] * 2


class TwoSlopes(Block):
    """Its hidden layer is the sum of two halves, each with an activation of its own."""

    def __init__(self, c_in: int, c_out: int, first: int = 0) -> None:
        super().__init__(c_in, c_out)
        self.first, self.wide, self.narrow = first, conv(c_out, 24, 1), conv(12, c_out, 1)
        self.acts = nn.ModuleList([nn.LeakyReLU(0.1), nn.LeakyReLU(0.01)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x) + self.adaptor(x)
        halves = self.wide(x).chunk(2, 1)
        return x + self.narrow(self.acts[0](halves[self.first]) + self.acts[1](halves[1 - self.first]))


@pytest.mark.parametrize("c_out", [8, 16])
@pytest.mark.parametrize("first", [0, 1])
def test_depth_conv_block_of_two_slopes(c_out: int, first: int):
    assert compile_and_check(TwoSlopes(8, c_out, first)) == [("depth_conv_block", "cpu")]


def test_two_slopes_that_others_read_are_not_fused_away():
    def leaking(m: nn.Module, x: Tensor) -> Tensor:
        x = m.block.body(x) + x
        halves = m.block.wide(x).chunk(2, 1)
        second = m.block.acts[1](halves[1])
        return x + m.block.narrow(m.block.acts[0](halves[0]) + second) + m.last(second)

    assert ("LeakyReLU", "torch") in compile_and_check(Lambda(leaking, block=TwoSlopes(8, 8), last=conv(12, 8)))


@pytest.mark.parametrize("seed", range(3))
def test_compact_depth_conv_block(seed: int):
    model = nn.ModuleDict({"t": nn.Sequential(Block(8, 16), Block(16, 16), conv(16, 8))}).eval()
    graph = trace_model(model, ["t"])
    small = compact(model, ChannelMasks.random(graph, sparsity=0.5, seed=seed), graph)
    assert any(isinstance(module, ScatterConv2d) for module in small.modules())
    assert compile_and_check(small["t"]) == [("depth_conv_block", "cpu")] * 2 + [("conv2d_act", "cpu")]


# --- patterns that must not match -------------------------------------------------------------------------------


@pytest.mark.parametrize("c_out", [8, 12])
@pytest.mark.parametrize("behind", [nn.Identity(), nn.Conv2d(12, 5, 3, padding=1)])
def test_half_a_depth_conv_block(c_out: int, behind: nn.Module):
    """1x1, depthwise, 1x1 + skip, with or without an adaptor, and no feed-forward half."""
    if isinstance(behind, nn.Conv2d) and c_out != 12:
        behind = nn.Conv2d(c_out, 5, 3, padding=1)
    rows = compile_and_check(nn.Sequential(PriorDepthConv(8, c_out), behind))
    assert rows == [("depth_conv_block", "cpu")] + [("conv2d_act", "cpu")] * isinstance(behind, nn.Conv2d)


@pytest.mark.parametrize("seed", range(3))
def test_half_a_compact_depth_conv_block(seed: int):
    module = nn.Sequential(conv(), PriorDepthConv(8, 8), conv())
    graph = trace_model(nn.ModuleDict({"t": module}), ("t",))
    small = compact(nn.ModuleDict({"t": module}), ChannelMasks.random(graph, 0.4, seed=seed), graph)["t"]
    assert "depth_conv_block" in {op for op, _ in compile_and_check(small)}


HEAD = {"thresholds": torch.linspace(-1, 1, 15), "part": "odd", "order": "by_group"}


@pytest.mark.parametrize("blocks", [1, 2])
def test_prior_head(blocks: int):
    """The last 1x1 gives indexes and means, with the bits of the network and the ops behind it."""
    module = nn.Sequential(*(PriorBlock(8, 8) for _ in range(blocks))).eval()
    head = CompiledTransform(module, "t", torch.float32, head=HEAD)
    whole = CompiledTransform(module, "t", torch.float32)
    assert head.has_head and not whole.has_head
    assert [row.op for row in head.rows(1, {})][-3:] == ["depth_conv_block", "pointwise", "prior_head"]
    for shape in SHAPES * 2:
        x = torch.randn(shape)
        indexes, means = head(x)
        scales, expected = split_parameters(whole(x), "odd", "by_group")
        assert torch.equal(indexes, entropy_parameters(scales, HEAD["thresholds"], "odd"))
        assert torch.equal(means, take_active(expected, "odd"))


@pytest.mark.parametrize("last", [conv(), nn.PixelShuffle(2)])
def test_no_head_where_the_network_ends_otherwise(last: nn.Module):
    transform = CompiledTransform(nn.Sequential(conv(kernel=1), last), "t", torch.float32, head=HEAD)
    assert not transform.has_head and isinstance(transform(torch.randn(1, 8, 4, 4)), Tensor)


def test_a_result_that_others_read_is_not_fused_away():
    act = nn.LeakyReLU(0.3)
    compile_and_check(Lambda(lambda m, x: m.act(y := m.a(x)) * y, a=conv(), act=act))
    compile_and_check(Lambda(lambda m, x: _block_with_a_leak(m.block, x), block=Block(8, 8)))


def _block_with_a_leak(block: Block, x: Tensor) -> Tensor:
    middle = block.body(x) + x
    return middle + block.ffn(middle) + 2 * middle


def test_an_activation_in_place_changes_what_others_read():
    module = Lambda(lambda m, x: _then(y := m.a(x), m.act(y)) + m.b(y), a=conv(), b=conv(), act=nn.ReLU(inplace=True))
    compile_and_check(module)
    compile_and_check(Lambda(lambda m, x: _then(y := m.a(x), y.mul_(3)) + m.b(y), a=conv(), b=conv()))


def test_a_result_outlives_what_is_computed_after_it():
    layers = {name: conv(kernel=1) for name in "abcd"}
    compile_and_check(Lambda(lambda m, x: _then(m.d(m.c(m.b(y := m.a(x)))), y), **layers))


def _then(first: Tensor, second: Tensor) -> Tensor:
    return second


BROADCASTS = {
    "one-channel": lambda m, x: x + m.one(x),
    "pooled": lambda m, x: x + m.a(m.pool(x)),
    "pooled-conv": lambda m, x: m.b(x) + m.a(m.pool(x)),
    "one-channel-conv": lambda m, x: m.b(x) + m.one(x),
}


@pytest.mark.parametrize("form", BROADCASTS)
def test_an_addition_that_broadcasts_is_not_fused(form: str):
    layers = {"one": conv(8, 1, 1), "a": conv(kernel=1), "b": conv(), "pool": nn.AdaptiveAvgPool2d(1)}
    assert ("add", "torch") in compile_and_check(Lambda(BROADCASTS[form], **layers))


def test_a_scattered_convolution_without_an_addition():
    scattered = ScatterConv2d(conv(8, 3), torch.tensor([0, 2, 5]), 8)
    rows = compile_and_check(nn.Sequential(scattered, nn.LeakyReLU(), conv()))
    assert rows == [("Sequential", "torch"), ("conv2d_act", "cpu")]


# --- layers that no rule knows ----------------------------------------------------------------------------------


class Unseen(nn.Module):
    """Attention, normalisation, views, chunks, constants, grouped and dilated convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.head = conv()
        self.norm = nn.GroupNorm(2, 8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.uneven = nn.Conv2d(8, 8, (1, 3), padding=(0, 1))
        self.reflect = nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate")
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(kernel=1), nn.ReLU(), conv(kernel=1), nn.Sigmoid())
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1))
        self.tail = conv()

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(F.gelu(self.norm(self.head(x))))
        a, b = x.chunk(2, 1)
        x = torch.cat([b, a.neg()], dim=1) * self.scale
        x = x.flatten(2).transpose(1, 2).transpose(1, 2).view_as(x)
        x = self.uneven(self.dilated(x)) + self.reflect(x)
        x = x * self.gate(x) + self.depthwise(x).clamp(-1, 1)
        return self.tail(F.leaky_relu(x, 0.1) + F.leaky_relu(x))


def test_an_unseen_module_stays_correct_and_says_so():
    rows = compile_and_check(Unseen(), [shape for shape in SHAPES if shape[2] > 2])
    kept = [op for op, backend in rows if backend == "torch"]
    assert {"GroupNorm", "gelu", "chunk", "cat", "neg", "Sigmoid", "LeakyReLU", "AdaptiveAvgPool2d"} <= set(kept)
    assert [op for op, backend in rows if backend == "cpu"].count("conv2d_act") == 2


def test_an_unseen_module_in_half_precision():
    """Attributes follow the dtype; nothing is promoted on the way to a kernel."""
    module = Unseen().eval().requires_grad_(False)
    x = torch.randn(1, 8, 6, 5)
    transform = CompiledTransform(module, "t", torch.bfloat16)
    with torch.inference_mode():
        exact, eager = copy.deepcopy(module).double()(x.double()), copy.deepcopy(module).bfloat16()(x.bfloat16())
        ours = transform(x)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).abs().max() <= 2 * (eager - exact).abs().max() + 1e-2 * exact.abs().max()


def test_what_cannot_be_traced_is_named():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if x.sum() > 0 else x

    with pytest.raises(GraphError, match="t cannot be traced"):
        CompiledTransform(Branching(), "t", torch.float32)
    named = Lambda(lambda m, x: {"y": m.a(x)}, a=conv())
    with pytest.raises(GraphError, match="something else than a tensor"):
        CompiledTransform(named, "t", torch.float32)


@pytest.mark.parametrize("layer", [conv(), nn.ReLU(), nn.PixelShuffle(2)], ids=lambda layer: type(layer).__name__)
def test_a_lone_layer(layer: nn.Module):
    assert len(compile_and_check(layer)) == 1


def test_a_masked_convolution_is_a_convolution_with_what_its_mask_leaves():
    """CompressAI's replaces its own weight when it runs: nothing may reach the caller's, nor a fake tensor its copy."""
    masked = import_compressai().layers.MaskedConv2d(8, 12, 5, padding=2, stride=2)
    rows = compile_and_check(nn.Sequential(nn.Conv2d(8, 8, 1), masked, nn.LeakyReLU()))
    assert ("Conv2d", "torch") in rows
    compile_and_check(import_compressai().layers.MaskedConv2d(8, 12, 5, padding=2, bias=False))
