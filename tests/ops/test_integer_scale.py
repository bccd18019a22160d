"""Claims of `integer_scale` beside conformance: the documented formula, one result whatever computes it, refusals."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.ops import bind, integer_conv2d, integer_scale, use_backend
from sparsecodec.ops.integer_scale import INTEGER_SCALE
from sparsecodec.testing import CASES, run_eager, run_planned

OURS = [case for case in CASES if case.op == "integer_scale" and not case.bench]
RUNS = [pytest.param(case, dtype, id=f"{case.id}-{dtype}"[:-2]) for case in OURS for dtype in case.dtypes]
FIXED = 2**30
DTYPES = pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=["int16", "int32"])


def _arguments(id, dtype=torch.int32):
    return next(case for case in OURS if case.id == id).arguments(dtype)


def _bound(arguments):
    """The op on the CPU with its constants, and its other arguments."""
    with torch.no_grad(), use_backend("cpu"):
        run = bind(INTEGER_SCALE, **arguments).run
    return run, {name: value for name, value in arguments.items() if name not in INTEGER_SCALE.constants}


def _formula(x, factors, shift, residual=None, left=0, bits=16):
    """The documented formula in Python's integers, which have no width."""

    def clip(v, bits):
        return max(-(2**bits), min(v, 2**bits - 1))

    y = clip((x * factors[x < 0] + 2 ** (shift - 1)) >> shift, 30)
    if residual is not None:
        y += clip(residual * 2**left if left >= 0 else (residual + 2 ** (-left - 1)) >> -left, 30)
    return clip(y, bits - 1)


def _scaled(x, factors, shift, dtype=torch.int32, **options):
    """One channel of the integers `x`; the result as a list."""
    values = torch.tensor(x, dtype=dtype).view(1, 1, 1, -1)
    multiplier = torch.tensor(factors, dtype=torch.int32).view(2, 1)
    return integer_scale(values, multiplier, torch.tensor([shift], dtype=torch.int32), **options).flatten().tolist()


@pytest.mark.parametrize(("case", "dtype"), RUNS)
def test_bits_do_not_depend_on_the_instruction_set(case, dtype, instruction_sets, monkeypatch):
    expected = case.spec.reference(**case.arguments(dtype))
    for isa in instruction_sets:
        monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
        assert torch.equal(run_eager(case, "cpu", dtype)[0], expected), isa
        assert torch.equal(run_planned(case, "cpu", dtype)[0], expected), isa


@pytest.mark.parametrize("id", ["tasks", "slices", "batch", "empty-batch"])
@DTYPES
def test_bits_do_not_depend_on_threads(id, dtype):
    run, free = _bound(_arguments(id, dtype))
    expected, threads = run(**free), torch.get_num_threads()
    try:
        for count in range(1, 9):
            torch.set_num_threads(count)
            assert torch.equal(run(**free), expected), count
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("shift", [1, 2, 14, 16, 17, 29, 31, 32, 33, 45, 46, 47, 61, 62])
@DTYPES
def test_the_formula_at_the_ends_of_all_types(dtype, shift, bits, instruction_sets, monkeypatch):
    limits, largest = torch.iinfo(dtype), FIXED - 1
    near = {n + d for k in (0, 1, 5, 13, 15) for n in (2**k, -(2**k)) for d in (-1, 0, 1)} | {limits.min, limits.max}
    x = sorted(v for v in near | {limits.min + 1, limits.max - 1} if limits.min <= v <= limits.max)
    pairs = ((largest, largest), (-largest, -largest), (largest, -largest), (-largest, largest), (1, -3), (0, -1))
    for factors in (*pairs, (2**14 + 1, -(2**14) - 1), (largest, 0), (2**29, 2**28)):
        expected = [_formula(v, factors, shift, bits=bits) for v in x]
        for backend, isas in (("reference", ["scalar"]), ("cpu", instruction_sets)):
            for isa in isas:
                monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
                with use_backend(backend):
                    assert _scaled(x, factors, shift, dtype, bits=bits) == expected, (backend, isa, factors)


@pytest.mark.parametrize("left", [-30, -29, -16, -1, 0, 1, 15, 29, 30])
@DTYPES
def test_residuals_at_the_ends_of_their_type(left, dtype, instruction_sets, monkeypatch):
    limits = torch.iinfo(dtype)
    near = {n + d for k in (0, 1, 13, 15, 16, 28, 29, 30) for n in (2**k, -(2**k)) for d in (-1, 0, 1)}
    residual = sorted(v for v in near | {0, limits.max, limits.min} if limits.min <= v <= limits.max)
    x = [(-1) ** i * (i % 7) * 2**28 for i in range(len(residual))]
    given = torch.tensor(residual, dtype=dtype).view(1, 1, 1, -1)
    for factor, bits in ((FIXED - 1, 32), (1 - FIXED, 32), (1, 32), (1, 16)):
        expected = [_formula(v, (factor, factor), 1, r, left, bits) for v, r in zip(x, residual, strict=True)]
        for isa in instruction_sets:
            monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
            with use_backend("cpu"):
                found = _scaled(x, (factor, factor), 1, residual=given, residual_shift=left, bits=bits)
            assert found == expected, (isa, factor)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_halves_are_rounded_upwards_and_the_sign_chooses_the_factor(backend):
    x = [-5, -4, -3, -2, -1, 0, 1, 2, 3, 5]
    with use_backend(backend):
        assert _scaled(x, (1, 1), 1) == [-2, -2, -1, -1, 0, 0, 1, 1, 2, 3]
        assert _scaled(x, (-1, -1), 1) == [3, 2, 2, 1, 1, 0, 0, -1, -1, -2]
        assert _scaled(x, (2, 2), 1) == x
        assert _scaled(x, (2, 0), 1) == [0, 0, 0, 0, 0, 0, 1, 2, 3, 5]
        assert _scaled(x, (2, -2), 1) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 5]
        assert _scaled([-40, 40], (2**29, 2**27), 29) == [-10, 40]
        assert _scaled([-70000, 70000], (2, 2), 1) == [-(2**15), 2**15 - 1]


@pytest.mark.parametrize("id", ["tiles-and-one", "batch", "slices"])
def test_it_is_a_depthwise_convolution_of_ones(id):
    """The requantisation of `integer_conv2d`, whose weight of -1 is a negative factor here."""
    arguments = _arguments(id, torch.int16)
    flip = arguments["multiplier"].prod(0) < 0  # a convolution's factors have one sign
    arguments["multiplier"][1, flip] = 7
    arguments["multiplier"][0, flip] = 5
    negative = (arguments["multiplier"] < 0).any(0)
    factors = arguments["multiplier"].abs()
    factors[:, negative] = factors[:, negative].flip(0)
    weight = torch.where(negative, -1, 1).to(torch.int8).view(-1, 1, 1, 1)
    others = arguments | {"weight": weight, "bias": torch.zeros(len(weight), dtype=torch.int32)}
    for backend in ("reference", "cpu"):
        with use_backend(backend):
            expected = integer_conv2d(**others | {"multiplier": factors, "groups": len(weight)})
            assert torch.equal(integer_scale(**arguments), expected)


@pytest.mark.parametrize("aliased", ["x", "residual"])
def test_the_result_may_be_an_argument(aliased):
    arguments = _arguments("tasks", torch.int16) | {"bits": 16, "residual_shift": 0}
    arguments["residual"] = arguments["x"].roll(1, 3).contiguous(memory_format=torch.channels_last)
    run, free = _bound(arguments)
    expected = run(**free)
    inplace = free[aliased].clone(memory_format=torch.channels_last)
    assert run(**free | {aliased: inplace}, out=inplace) is inplace
    assert torch.equal(inplace, expected)


@DTYPES
def test_the_result_may_be_a_slice(dtype):
    run, free = _bound(_arguments("tiles-and-one", dtype))
    expected = run(**free)
    n, c, h, w = expected.shape
    wide = torch.full((n, c + 5, h, w), 77, dtype=torch.int16).contiguous(memory_format=torch.channels_last)
    run(**free, out=wide[:, 2 : 2 + c])
    assert torch.equal(wide[:, 2 : 2 + c], expected)
    assert bool((wide[:, :2] == 77).all() and (wide[:, 2 + c :] == 77).all())


def test_one_plan_takes_other_factors_and_sizes():
    arguments = _arguments("tiles-and-one")
    run, free = _bound(arguments)
    for multiplier in (free["multiplier"].flip(1).contiguous(), torch.zeros(2, 33, dtype=torch.int32)):
        changed = arguments | {"multiplier": multiplier, "x": arguments["x"][:, :, :3, :7]}
        expected = INTEGER_SCALE.reference(**changed)
        assert torch.equal(run(changed["x"], multiplier), expected)


def test_a_plan_may_ask_for_the_shape_alone():
    arguments = _arguments("slices")
    with FakeTensorMode() as mode:
        fake = {n: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
        result = INTEGER_SCALE.reference(**fake)
    assert result.shape == (2, 17, 6, 5) and result.dtype == torch.int32
    assert result.is_contiguous(memory_format=torch.channels_last)


def _nhwc(*shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype).to(memory_format=torch.channels_last)


SIZES = [
    ({"x": torch.zeros(33, 5, dtype=torch.int32)}, "x.shape=.33, 5. .needs .N, C, H, W"),
    ({"x": _nhwc(1, 32, 5, 13)}, "multiplier.shape=.2, 33. .needs .2, 32.*shift.shape=.33. .needs .32"),
    ({"multiplier": torch.ones(33, dtype=torch.int32)}, "multiplier.shape=.33. .needs .2, 33"),
    ({"residual": _nhwc(1, 33, 5, 12)}, "residual.shape=.1, 33, 5, 12. .needs .1, 33, 5, 13"),
]
NUMBERS = [
    ({"bits": 8}, "bits=8 .needs one of 16, 32"),
    ({"residual_shift": 31}, "residual_shift=31 .needs -30 to 30"),
    ({"residual_shift": -31}, "residual_shift=-31 .needs -30 to 30"),
]
KERNELS = [
    ({"x": _nhwc(1, 33, 5, 13, dtype=torch.float32)}, "x.dtype=float32 .needs int16 or int32"),
    ({"x": torch.zeros(1, 33, 5, 13, dtype=torch.int32)}, "x.stride=.*channels innermost"),
    ({"residual": _nhwc(1, 33, 5, 13, dtype=torch.int8)}, "residual.dtype=int8 .needs int16 or int32"),
    ({"residual": torch.zeros(1, 33, 5, 13, dtype=torch.int16)}, "residual.stride=.*channels innermost"),
    ({"multiplier": torch.ones(2, 33, dtype=torch.int64)}, "multiplier.dtype=int64 .needs int32"),
    ({"multiplier": torch.ones(33, 2, dtype=torch.int32).T}, "multiplier.stride=.1, 2. .needs contiguous"),
    ({"shift": torch.ones(33, dtype=torch.int16)}, "shift.dtype=int16 .needs int32"),
    ({"shift": torch.ones(66, dtype=torch.int32)[::2]}, "shift.stride=.2,. .needs contiguous"),
]


@pytest.mark.parametrize(("changes", "reason"), SIZES + NUMBERS + KERNELS)
def test_refusals(changes, reason):
    with use_backend("cpu"), pytest.raises(NoBackendError, match=reason):
        integer_scale(**_arguments("tiles-and-one") | changes)


@pytest.mark.parametrize(("changes", "reason"), SIZES + NUMBERS)
def test_the_reference_refuses_what_has_no_meaning(changes, reason):
    with use_backend("reference"), pytest.raises(UsageError, match=reason):
        integer_scale(**_arguments("tiles-and-one") | changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shift": torch.full((33,), 63, dtype=torch.int32)}, "shift holds 63 .needs 1 to 62"),
        ({"shift": torch.zeros(33, dtype=torch.int32)}, "shift holds 0"),
        ({"multiplier": torch.full((2, 33), FIXED, dtype=torch.int32)}, "multiplier holds 1073741824"),
        ({"multiplier": torch.full((2, 33), -FIXED, dtype=torch.int32)}, "multiplier holds -1073741824"),
    ],
)
def test_numbers_out_of_range(changes, reason):
    with use_backend("cpu"), pytest.raises(UsageError, match=reason):
        integer_scale(**_arguments("tiles-and-one") | changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"x": _nhwc(1, 32, 5, 13)}, "x: 32 channels .needs 33, one for each shift"),
        ({"x": _nhwc(1, 33, 5, 13, dtype=torch.float32)}, "x: dtype torch.float32"),
        ({"multiplier": torch.ones(2, 32, dtype=torch.int32)}, "multiplier: shape .2, 32. .needs .2, 33"),
        ({"multiplier": torch.ones(33, 2, dtype=torch.int32).T}, "multiplier: strides .1, 2. .needs contiguous"),
        ({"multiplier": torch.full((2, 33), FIXED, dtype=torch.int32)}, "multiplier holds 1073741824"),
        ({"residual": _nhwc(1, 33, 5, 12)}, "residual: shape .1, 33, 5, 12.*1, 33, 5, 13"),
        ({"out": _nhwc(1, 33, 5, 13)}, "out: dtype torch.int32 .needs torch.int16"),
        ({"out": _nhwc(1, 33, 5, 12, dtype=torch.int16)}, "out: shape .1, 33, 5, 12"),
    ],
)
def test_a_plan_checks_each_call(changes, reason):
    run, free = _bound(_arguments("tiles-and-one"))
    with pytest.raises(UsageError, match=reason):
        run(**free | changes)
