"""Claims of `prior_context` beside conformance."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.ops import prior_context, use_backend, why_unavailable
from sparsecodec.ops._fixed_point import fixed_point, narrowed
from sparsecodec.ops._registry import bind, resolve
from sparsecodec.ops._spatial_prior import PARTS, groups_of
from sparsecodec.ops.prior_context import PRIOR_CONTEXT
from sparsecodec.testing.prior_context import fixed_points, hostile

TRITON = pytest.param(
    "triton",
    marks=[
        pytest.mark.skipif(why_unavailable("triton") is not None, reason=str(why_unavailable("triton"))),
        pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter"),
    ],
)
BACKENDS = ["reference", "cpu", TRITON]
EXPONENTS = [-45, -31, -30, -17, -16, -15, -9, 0, 6, 14]
NAMES = ("means", "scales", "step")


def _inputs(part: str, n: int = 1, c: int = 12, h: int = 5, w: int = 19, seed: int = 0) -> dict[str, torch.Tensor]:
    """Symbols near those of pictures and hostile ones, parameters that are slices of one tensor."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, c // groups_of(part), h, w)
    usual = torch.randint(-20, 21, shape, generator=generator).to(torch.int32)
    symbols = torch.where(torch.rand(shape, generator=generator) < 0.5, usual, hostile(shape, generator))
    parameters = fixed_points((n, 3 * c, h, w), generator).chunk(3, 1)
    return {"symbols": symbols, **dict(zip(NAMES, parameters, strict=True))}


def _narrow(value: int, exponent: int) -> int:
    exact = Fraction(value) * Fraction(2) ** (-16 - exponent)
    return max(min(math.floor(exact + Fraction(1, 2)), 2**15 - 1), -(2**15))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_values_are_those_of_exact_arithmetic(backend, exponent):
    """By the formulas of docs/portable.md, with rationals; the checkerboard stands here once more."""
    inputs = _inputs("odd", c=4, h=3, w=5, seed=exponent % 64)
    with use_backend(backend):
        context, first = prior_context(**inputs, exponent=exponent, part="odd")
    at = [(c, y, x) for c in range(4) for y in range(3) for x in range(5)]
    for c, y, x in at:
        wanted = 0
        if (y + x) % 2 != c // 2:
            symbol = max(min(int(inputs["symbols"][0, c % 2, y, x]), 2**14 - 1), -(2**14))
            wanted = max(min(symbol * 2**16 + int(inputs["means"][0, c, y, x]), 2**30 - 1), -(2**30))
        assert int(first[0, c, y, x]) == wanted
        rest = [int(inputs[name][0, c, y, x]) for name in NAMES]
        assert context[0, c::4, y, x].tolist() == [_narrow(value, exponent) for value in (wanted, *rest)]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("exponent", [-45, *EXPONENTS])
def test_bits_are_those_of_the_torch_ops_it_replaces(part, exponent):
    inputs = _inputs(part, n=2)
    groups = groups_of(part)
    cells = torch.tensor(PARTS[part]).view(2, 2).repeat(3, 10)[:5, :19]
    here = torch.stack([cells == group for group in range(groups)]).repeat_interleave(12 // groups, 0)
    values = fixed_point(inputs["symbols"].repeat(1, groups, 1, 1), inputs["means"]) * here
    expected = torch.cat([narrowed(v, exponent) for v in (values, *(inputs[name] for name in NAMES))], 1)
    with use_backend("cpu"):
        context, first = prior_context(**inputs, exponent=exponent, part=part)
    assert torch.equal(first, values)
    assert torch.equal(context, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_by_hand(backend):
    half, top = 2**15, 2**30 - 1
    symbols = torch.tensor([1, -1, 2**31 - 1, -(2**31), 2**14 - 1]).int().view(1, 5, 1, 1)
    means = torch.tensor([half, -half - 1, top, -top - 1, half]).int().view(1, 5, 1, 1)
    scales = torch.tensor([half - 1, half, -half, -half - 1, 0]).int().view(1, 5, 1, 1)
    with use_backend(backend):
        context, first = prior_context(symbols, means, scales, -scales, exponent=0)
        narrow, _ = prior_context(symbols, means, scales, -scales, exponent=-16)
    assert first.flatten().tolist() == [3 * half, -3 * half - 1, top, -top - 1, top - half + 1]
    expected = [2, -2, 2**14, -(2**14), 2**14, 1, -1, 2**14, -(2**14), 1, 0, 1, 0, -1, 0, 0, 0, 1, 1, 0]
    assert context.flatten().tolist() == expected
    assert narrow[0, 10:15].flatten().tolist() == [half - 1, half - 1, -half, -half, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_channels_last(backend):
    with use_backend(backend):
        for result in prior_context(**_inputs("even", c=2), exponent=-10, part="even"):
            assert result.is_contiguous(memory_format=torch.channels_last)


def test_bits_do_not_depend_on_threads():
    inputs = _inputs("even", c=64, h=33, w=29)
    run = bind(PRIOR_CONTEXT, **inputs, exponent=-10, part="even").run
    expected, threads = run(**inputs), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert all(map(torch.equal, run(**inputs), expected))
    finally:
        torch.set_num_threads(threads)


def _changed(**values) -> dict:
    return _inputs("even") | {"exponent": -10, "part": "even"} | values


WRONG = {
    "symbols.dtype=int64": _changed(symbols=torch.zeros(1, 6, 5, 19, dtype=torch.int64)),
    "step.dtype=float32": _changed(step=_inputs("even")["step"].float()),
    "exponent=15 \\(needs -45 to 14\\)": _changed(exponent=15),
    "exponent=-46 \\(needs -45 to 14\\)": _changed(exponent=-46),
    "part='middle' \\(one of all, even": _changed(part="middle"),
    "symbols.shape=\\[5, 19\\]": _changed(symbols=torch.zeros(5, 19, dtype=torch.int32)),
    "scales.shape=\\[1, 11, 5, 19\\] \\(needs \\[1, 12, 5, 19\\]\\)": _changed(scales=_inputs("even")["scales"][:, 1:]),
    "means.shape=\\[1, 12, 5, 19\\] \\(needs \\[1, 24, 5, 19\\]\\)": _changed(part="quarter0"),
}


@pytest.mark.parametrize("message", WRONG)
@pytest.mark.parametrize("backend", BACKENDS)
def test_refuses_what_does_not_fit(backend, message):
    with use_backend(backend), pytest.raises((NoBackendError, UsageError), match=message):
        prior_context(**WRONG[message])


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_kernels_refuse_other_layouts(backend):
    planes = _changed(means=_inputs("even")["means"].contiguous())
    with use_backend(backend), pytest.raises(NoBackendError, match="means.stride=.* \\(needs channels innermost"):
        prior_context(**planes)
    pixels = _changed(symbols=_inputs("even")["symbols"].contiguous(memory_format=torch.channels_last))
    with use_backend(backend), pytest.raises(NoBackendError, match="symbols.stride=.* \\(needs contiguous\\)"):
        prior_context(**pixels)
    with use_backend("reference"):
        assert all(map(torch.equal, prior_context(**planes), prior_context(**_changed())))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"exponent": 15}, "exponent=15 \\(needs -45 to 14\\)"),
        ({"part": "middle"}, "part='middle'"),
        ({"symbols": torch.zeros(1, 5, 5, 19, dtype=torch.int32)}, "means: shape \\[1, 12, 5, 19\\]"),
        ({"scales": torch.zeros(1, 12, 5, 18, dtype=torch.int32)}, "scales: .*channels innermost"),
        ({"step": _inputs("even")["step"][:, :, :4]}, "step: shape \\[1, 12, 4, 19\\]"),
        ({"symbols": torch.zeros(1, 6, 19, 5, dtype=torch.int32).mT}, "symbols: .* contiguous"),
        ({"means": _inputs("even")["means"].to(torch.int16)}, "means: dtype torch.int16"),
    ],
)
def test_the_cpu_kernel_trusts_nobody(values, message):
    """What reaches it past the registry, as calls of a bound op do."""
    with pytest.raises(UsageError, match=message):
        resolve("sparsecodec._C:prior_context")(**_changed(**values))


def test_writes_into_what_is_given():
    inputs = _inputs("even")
    run = bind(PRIOR_CONTEXT, **inputs, exponent=-10, part="even").run
    expected = run(**inputs)
    out = tuple(torch.empty_like(value) for value in expected)
    assert all(got is given for got, given in zip(run(**inputs, out=out), out, strict=True))
    assert all(map(torch.equal, out, expected))
    with pytest.raises(UsageError, match="out\\[0\\]: shape \\[1, 12, 5, 19\\]"):
        run(**inputs, out=(out[0][:, :12], out[1]))
    with pytest.raises(UsageError, match="out\\[1\\]: shape \\[1, 12, 4, 19\\]"):
        run(**inputs, out=(out[0], out[1][:, :, :4]))
