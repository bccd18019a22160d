"""Claims of `integer_gdn` beside conformance: the documented formula, one result whatever computes it, refusals."""

from __future__ import annotations

from math import isqrt

import pytest
import torch

from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.ops import bind, gdn, integer_gdn, use_backend
from sparsecodec.ops.integer_gdn import INTEGER_GDN, NORM_LIMIT, SHIFTS
from sparsecodec.testing import CASES, run_eager, run_planned

OURS = [case for case in CASES if case.op == "integer_gdn" and not case.bench]
WAYS = pytest.mark.parametrize("inverse", [True, False], ids=["times", "divided"])
ENDS = (-(2**15), -(2**15) + 1, -1234, -1, 0, 1, 77, 2**15 - 1)


def _formula(x, norm, shift, inverse, bits):
    """The documented formula in Python's integers, which have no width."""
    root = isqrt(norm)
    if inverse:
        value = (x * root + 2 ** (shift - 1)) >> shift
    else:
        root = max(root, 1)
        value = (x * 2 ** (shift + 1) + root) // (2 * root)
    for width in (31, bits):
        value = max(-(2 ** (width - 1)), min(value, 2 ** (width - 1) - 1))
    return value


def _one_channel(x, beta, gamma, shift, inverse, bits):
    values = torch.tensor(x, dtype=torch.int16).view(1, 1, 1, -1)
    constants = torch.tensor([beta]), torch.tensor([[gamma]], dtype=torch.int32), torch.tensor([shift]).int()
    return integer_gdn(values, *constants, inverse, bits).flatten().tolist()


@WAYS
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_is_the_documented_formula(backend, bits, inverse):
    low, high = SHIFTS[inverse]
    largest = 2**22 - 1  # NORM_LIMIT less 2^30, for beta
    with use_backend(backend):
        for beta, gamma in ((0, 0), (0, 1), (3, 0), (2**30, 0), (2**51 - 1, 2**21), (NORM_LIMIT, 0), (2**30, largest)):
            for shift in (low, low + 1, 17, 24, 34, high):
                expected = [_formula(x, beta + gamma * x * x, shift, inverse, bits) for x in ENDS]
                assert _one_channel(ENDS, beta, gamma, shift, inverse, bits) == expected, (beta, gamma, shift)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_roots_around_squares_are_floors(backend):
    """1 / root is what an input of 1 gets, and next to a square the root of a double may be rounded up to it."""
    norms = [k * k + d for k in (1, 2, 3, 2**13, 2**20 - 1, 2**25 + 1, 2**26 - 1, 2**26) for d in (-1, 0, 1)]
    norms = torch.tensor([norm for norm in norms if norm <= NORM_LIMIT])
    count = len(norms)
    x = torch.full((1, count, 1, 1), 2**15 - 1, dtype=torch.int16).contiguous(memory_format=torch.channels_last)
    with use_backend(backend):
        found = integer_gdn(x, norms, torch.zeros(count, count).int(), torch.full((count,), 12).int(), True, 32)
    expected = [_formula(2**15 - 1, norm, 12, True, 32) for norm in norms.tolist()]
    assert found.flatten().tolist() == expected


@WAYS
def test_approximates_the_normalisation_of_floats(inverse):
    """With constants as the runtime makes them: half a unit of the result and 2^-20 of it."""
    generator = torch.Generator().manual_seed(0)
    channels, exponent, power = 24, -11, 9  # of x; gamma in units of 2^-18
    x = torch.randint(-3000, 3000, (1, channels, 7, 9), generator=generator).short()
    x = x.contiguous(memory_format=torch.channels_last)
    gamma = (torch.rand(channels, channels, generator=generator) * 2 ** (2 * power) / 2).int()
    beta = (torch.rand(channels, generator=generator) * 2 ** (2 * (power - exponent))).long()
    shift = torch.full((channels,), power - exponent, dtype=torch.int32)
    found = integer_gdn(x, beta, gamma, shift, inverse, 32).double() * 2.0**exponent
    floats = x.double() * 2.0**exponent, beta * 2.0 ** (2 * (exponent - power)), gamma.double() * 2.0 ** (-2 * power)
    with use_backend("reference"):
        expected = gdn(*floats, inverse)
    assert float(((found - expected).abs() - expected.abs() * 2.0**-18).max()) <= 2.0 ** (exponent - 1)


@pytest.mark.parametrize("case", OURS, ids=lambda case: case.id)
def test_bits_do_not_depend_on_the_instruction_set(case, instruction_sets, monkeypatch):
    expected = case.spec.reference(**case.arguments(torch.int16))
    for isa in instruction_sets:
        monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
        assert torch.equal(run_eager(case, "cpu", torch.int16)[0], expected), isa
        assert torch.equal(run_planned(case, "cpu", torch.int16)[0], expected), isa


def test_bits_do_not_depend_on_threads():
    arguments = next(case for case in OURS if case.id == "task-and-one").arguments(torch.int16)
    with torch.no_grad(), use_backend("cpu"):
        run = bind(INTEGER_GDN, **arguments).run
    x = arguments["x"].repeat(1, 1, 5, 3).contiguous(memory_format=torch.channels_last)
    expected, threads = run(x=x), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(run(x=x), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_refuses_what_it_cannot_compute(backend):
    x = torch.zeros(1, 2, 2, 2, dtype=torch.int16).contiguous(memory_format=torch.channels_last)
    beta, gamma, shift = torch.ones(2).long(), torch.ones(2, 2).int(), torch.ones(2).int()
    error = UsageError if backend == "reference" else ValueError
    with use_backend(backend):
        integer_gdn(x, beta, gamma, shift, True)
        for bad in (-beta, beta + NORM_LIMIT - 2**31):
            with pytest.raises(error, match="needs|not in"):
                integer_gdn(x, bad, gamma, shift, True)
        with pytest.raises(error, match="not in"):
            integer_gdn(x, beta, -gamma, shift, True)
        with pytest.raises(error, match="needs 1 to 48"):
            integer_gdn(x, beta, gamma, shift * 0, True)
        with pytest.raises(error, match="needs 0 to 35"):
            integer_gdn(x, beta, gamma, shift * 36)
        with pytest.raises((UsageError, NoBackendError), match="shape"):
            integer_gdn(x, beta, gamma[:1], shift)
    if backend == "cpu":
        with use_backend("cpu"), pytest.raises(NoBackendError, match="beta.dtype=int32"):
            integer_gdn(x, beta.int(), gamma, shift)
