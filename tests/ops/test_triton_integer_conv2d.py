"""What is particular to the Triton kernels of `integer_conv2d`: bytes, borders, tiles, 64-bit products."""

from __future__ import annotations

import importlib

import pytest
import torch

from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.ops import bind, integer_conv2d, specs, use_backend, why_unavailable
from sparsecodec.testing.compare import island, poisoned_allocations

pytestmark = [
    pytest.mark.skipif(why_unavailable("triton") is not None, reason=str(why_unavailable("triton"))),
    pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter"),
]
REFERENCE = specs()["integer_conv2d"].reference
SPLIT = (-32768, -32767, -256, -255, -129, -128, -127, -1, 0, 1, 127, 128, 255, 256, 32640, 32767)  # edges of bytes


def _arguments(n, c_in, c_out, h, w, kernel=1, *, wide=False, residual=None, seed=0, **options):
    """Random arguments near the bound that the caller proves; residual: its dtype, or None."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape, low, high, dtype=torch.int32):
        return torch.randint(low, high, shape, generator=generator).to(dtype)

    groups, r = options.get("groups", 1), options.get("shuffle", 1)
    terms = c_in // groups * kernel**2
    top = min(32767 if wide else 127, 60000 // terms)
    to_h, to_w = ((size + 2 * options.get("padding", 0) - kernel) // options.get("stride", 1) + 1 for size in (h, w))
    arguments = {
        "x": uniform((n, c_in, h, w), -32768, 32768, torch.int16).to(memory_format=torch.channels_last),
        "weight": uniform((c_out, c_in // groups, kernel, kernel), -top, top + 1, torch.int16 if wide else torch.int8),
        "bias": uniform((c_out,), -(2**27), 2**27),
        "multiplier": uniform((2, c_out), 0, 2**30),
        "shift": uniform((c_out,), 30, 52),
    }
    if residual is not None:
        limit = torch.iinfo(residual).max
        shape = (n, c_out // r**2, to_h * r, to_w * r)
        arguments["residual"] = uniform(shape, -limit - 1, limit, residual).to(memory_format=torch.channels_last)
    return arguments | options


def _check(**arguments):
    """Equal to the reference: inputs among the smallest integers, the result in poisoned memory."""
    expected = REFERENCE(**arguments)
    given = {name: island(value) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    with use_backend("triton"), poisoned_allocations():
        result = integer_conv2d(**given)
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)
    return result


@pytest.mark.parametrize("wide", [False, True], ids=["int8", "int16"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 64, 128, 8, 8), {}),
        ((1, 65, 33, 5, 13, 3), {"padding": 1}),  # one more than a tile of 64 positions, of 64 channels, of 32 columns
        ((1, 8, 16, 3, 4, 5), {"padding": 3, "bits": 32}),  # more padding than half the kernel
        ((2, 16, 24, 3, 4, 3), {"padding": 1, "shuffle": 2, "residual": torch.int16}),
        ((1, 65, 33, 5, 13, 3), {"padding": 1, "input_shift": 8, "input_low": -77}),
        ((1, 33, 33, 5, 13, 3), {"padding": 1, "groups": 33, "input_shift": -3, "input_low": -255}),
        ((1, 65, 33, 10, 25, 3), {"padding": 1, "stride": 2}),  # of the result, that is
        ((1, 33, 33, 9, 26, 3), {"padding": 1, "stride": 2, "groups": 33}),
        ((1, 33, 33, 5, 13, 3), {"padding": 1, "groups": 33}),  # one more than a tile of 64 positions, of 32 channels
    ],
)
def test_tiles_and_borders_with_bytes_and_pairs_of_bytes(shape, options, wide):
    result = _check(**_arguments(*shape, wide=wide, **options))
    assert result.numel() < 40 or result.unique().numel() > 20  # not all clipped


@pytest.mark.parametrize("wide", [False, True], ids=["int8", "int16"])
def test_every_split_of_a_value_into_bytes(wide):
    """Beside a padding of zeros, which is split too: its lower byte is no zero."""
    x = torch.tensor(SPLIT, dtype=torch.int16).view(1, 1, 1, -1).to(memory_format=torch.channels_last)
    for weight in (-32768, 32767, 32640, 129, 1) if wide else (-128, -1, 1, 127):
        result = _check(
            x=x,
            weight=torch.tensor([0, weight, 0], dtype=torch.int16 if wide else torch.int8).view(1, 1, 1, 3),
            bias=torch.tensor([-5], dtype=torch.int32),
            multiplier=torch.full((2, 1), 2, dtype=torch.int32),
            shift=torch.tensor([1], dtype=torch.int32),
            bits=32,
            padding=1,
        )
        assert result[0, 0, 1].tolist() == [max(-(2**30), min(2**30 - 1, value * weight - 5)) for value in SPLIT]
        assert result[0, 0, 0].unique().tolist() == result[0, 0, 2].unique().tolist() == [-5]


@pytest.mark.parametrize("shift", [1, 2, 31, 32, 33, 61, 62])
def test_shifts_of_a_64_bit_product(shift):
    """Sums up to the ends of int32, halves upwards, then the clip."""
    bias = torch.tensor([-(2**31), -(2**31) + 1, -3, -1, 0, 1, 3, 2**31 - 1], dtype=torch.int32)
    factors = (0, 1, 3, 2**30 - 1)
    bias = bias.repeat_interleave(len(factors))
    multiplier = torch.tensor(factors * 8, dtype=torch.int32)
    _check(
        x=torch.zeros(1, 8, 1, 2, dtype=torch.int16).to(memory_format=torch.channels_last),
        weight=torch.zeros(32, 8, 1, 1, dtype=torch.int8),
        bias=bias,
        multiplier=torch.stack([multiplier, multiplier.flip(0)]),
        shift=torch.full((32,), shift, dtype=torch.int32),
        bits=32,
    )


@pytest.mark.parametrize("left", [-30, -1, 0, 1, 16, 30])
def test_shifts_of_a_residual(left):
    """Clipped to 31 bits before it is added: twice the largest sum does not leave int32."""
    values = (-(2**31), -(2**30) - 1, -3, -2, -1, 0, 1, 2, 3, 2**29, 2**30, 2**31 - 1)
    residual = torch.tensor(values, dtype=torch.int32).view(1, 1, 1, -1).to(memory_format=torch.channels_last)
    for bias in (-(2**31), 0, 2**31 - 1):
        _check(
            x=torch.zeros(1, 1, 1, len(values), dtype=torch.int16),
            weight=torch.zeros(1, 1, 1, 1, dtype=torch.int8),
            bias=torch.tensor([bias], dtype=torch.int32),
            multiplier=torch.full((2, 1), 2**30 - 1, dtype=torch.int32),
            shift=torch.tensor([30], dtype=torch.int32),
            residual=residual,
            residual_shift=left,
            bits=32,
        )


def test_a_slice_of_a_wider_tensor_and_a_residual_that_is_the_output():
    arguments = _arguments(1, 24, 16, 4, 5, 3, padding=1, residual=torch.int16)
    wide = torch.full((1, 40, 4, 5), -32768, dtype=torch.int16).to(memory_format=torch.channels_last)
    wide[:, 5:29] = arguments["x"]
    arguments["x"] = wide[:, 5:29]
    expected = REFERENCE(**arguments)
    residual = arguments["residual"]
    with use_backend("triton"):
        bound = bind(specs()["integer_conv2d"], **arguments)
    assert bound.run(arguments["x"], residual, out=residual) is residual
    assert torch.equal(residual, expected)


@pytest.mark.parametrize("wide", [False, True], ids=["int8", "int16"])
def test_any_tile_gives_the_result_and_timing_leaves_the_output_alone(wide, monkeypatch):
    arguments = _arguments(1, 40, 48, 5, 7, 3, padding=1, wide=wide, residual=torch.int16)
    expected = REFERENCE(**arguments)
    module = importlib.import_module("sparsecodec._triton.integer_conv2d")
    offered = []

    def choose(name, key, tiles, device, trial):
        run = trial()
        for tile in tiles:
            run(tile)
        offered.extend(tiles)
        return tiles[-1]

    monkeypatch.setattr(module, "choose", choose)
    with use_backend("triton"):
        run = bind(specs()["integer_conv2d"], **arguments).run
    residual = arguments["residual"]
    assert torch.equal(run(arguments["x"], residual, out=residual), expected)
    assert len(offered) >= 2


def test_refusals_say_why():
    arguments = _arguments(1, 8, 8, 3, 4)
    changes = {
        "x.dtype=int32 .needs int16": {"x": arguments["x"].int()},
        "stride=.* .needs channels innermost": {"x": arguments["x"].contiguous()},
        "weight.dtype=int32 .needs int8 or int16": {"weight": arguments["weight"].int()},
        "groups=2 of weight.shape=.8, 4, 1, 1. .needs 1, or depthwise": {
            "weight": arguments["weight"][:, :4],
            "groups": 2,
        },
        "bits=8": {"bits": 8},
        "input_low=-256 .needs -255 to 0": {"input_low": -256},
        "input_shift=16 .needs -15 to 15": {"input_low": 0, "input_shift": 16},
        "input_shift=1 .needs 0 where": {"input_shift": 1},
        "stride=0 .needs stride >= 1": {"stride": 0},
        "stride=-1 .needs stride >= 1": {"stride": -1},
    }
    for message, change in changes.items():
        with use_backend("triton"), pytest.raises(NoBackendError, match=message):
            integer_conv2d(**arguments | change)
    with pytest.raises(UsageError, match="bits=8"):
        integer_conv2d(**arguments, bits=8)
