"""Claims of `integer_conv2d` beside conformance: one result whatever computes it, exact arithmetic, refusals."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import pixel_shuffle

from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.ops import bind, integer_conv2d, use_backend, why_unavailable
from sparsecodec.ops.integer_conv2d import INTEGER_CONV2D
from sparsecodec.testing import CASES, run_eager, run_planned

OURS = [case for case in CASES if case.op == "integer_conv2d" and not case.bench]
ALL = pytest.mark.parametrize("case", OURS, ids=lambda case: case.id)
FIXED = 2**30


def _case(id):
    return next(case for case in OURS if case.id == id)


def _bound(arguments):
    """The op on the CPU with packed constants, and its other arguments."""
    with torch.no_grad(), use_backend("cpu"):
        run = bind(INTEGER_CONV2D, **arguments).run
    return run, {name: value for name, value in arguments.items() if name not in INTEGER_CONV2D.constants}


def _layer(x, weight=1, bias=0, factors=(1, 1), shift=1, **options):
    """A 1x1 layer of one channel on the integers `x`; the result as a list."""
    values = torch.tensor(x, dtype=torch.int16).view(1, 1, 1, -1)
    with use_backend("cpu"):
        y = integer_conv2d(
            values,
            torch.full((1, 1, 1, 1), weight, dtype=torch.int16),
            torch.tensor([bias], dtype=torch.int32),
            torch.tensor(factors, dtype=torch.int32).view(2, 1),
            torch.tensor([shift], dtype=torch.int32),
            **options,
        )
    return y.flatten().tolist()


@ALL
def test_bits_do_not_depend_on_the_instruction_set(case, instruction_sets, monkeypatch):
    expected = case.spec.reference(**case.arguments(torch.int16))
    for isa in instruction_sets:
        monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
        assert torch.equal(run_eager(case, "cpu", torch.int16)[0], expected), isa
        assert torch.equal(run_planned(case, "cpu", torch.int16)[0], expected), isa


@pytest.mark.parametrize(
    "case",
    [case for case in OURS if not case.id.startswith("extreme") and case.id != "living-none"],
    ids=lambda case: case.id,
)
def test_results_of_cases_are_not_all_clipped(case):
    """A residual aside; or a wrong product would not be seen."""
    result = INTEGER_CONV2D.reference(**case.arguments(torch.int16) | {"residual": None})
    assert result.unique().numel() >= min(result.numel(), 200) / 2


@pytest.mark.parametrize(
    "id",
    [
        "task-and-remainder",
        "batch",
        "shuffle-residual",
        "depthwise-tasks",
        "odd",
        "slice-residual",
        "empty-batch",
        "narrowed-tasks",
        "narrowed-k3",
        "stride-2-tasks",
        "stride-2-depthwise-tasks",
    ],
)
def test_bits_do_not_depend_on_threads(id):
    case, threads = _case(id), torch.get_num_threads()
    run, free = _bound(case.arguments(torch.int16))
    expected = run(**free)
    try:
        for count in range(1, 9):
            torch.set_num_threads(count)
            assert torch.equal(run(**free), expected), count
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("id", ["tiles-and-one", "odd", "residual-16", "shuffle-3", "depthwise-k5", "stride-2-7x13"])
def test_bits_do_not_depend_on_the_batch(id):
    run, free = _bound(_case(id).arguments(torch.int16))
    free = {name: value for name, value in free.items() if value is not None}
    single = run(**free)
    for batch in (4, 16):
        many = {  # the neighbours differ: ~v is -1 - v
            name: torch.cat([value if i % 3 == 0 else ~value for i in range(batch)]).contiguous(
                memory_format=torch.channels_last
            )
            for name, value in free.items()
        }
        result = run(**many)
        assert all(torch.equal(result[i : i + 1], single) for i in range(0, batch, 3))
        assert not torch.equal(result[1:2], single)


def _formula(acc, factors, shift, residual=None, left=0, bits=16):
    """The documented formula in Python's integers, which have no width."""

    def clip(v, bits):
        return max(-(2**bits), min(v, 2**bits - 1))

    y = clip((acc * factors[acc < 0] + 2 ** (shift - 1)) >> shift, 30)
    if residual is not None:
        y += clip(residual * 2**left if left >= 0 else (residual + 2 ** (-left - 1)) >> -left, 30)
    return clip(y, bits - 1)


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("stride", "kernel", "padding"), [(2, 3, 1), (2, 1, 0), (3, 5, 2), (2, 2, 0), (9, 3, 1)])
def test_strides_are_the_documented_formula(stride, kernel, padding, groups, backend, instruction_sets, monkeypatch):
    """Sides of 1 to 7, whose last windows end before, at and behind the last input."""
    if backend == "triton":
        if why_unavailable("triton") is not None or torch.cuda.is_available():
            pytest.skip("needs Triton's interpreter, as these tensors are on the CPU")
        instruction_sets = instruction_sets[:1]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**15), 2**15, (1, 3, 7, 7), generator=generator).short()
    weight = torch.randint(-127, 128, (3, 3 // groups, kernel, kernel), generator=generator).to(torch.int8)
    bias = torch.randint(-(2**20), 2**20, (3,), generator=generator).int()
    for h, w in ((1, 1), (1, 6), (5, 2), (6, 7), (7, 6)):
        if min(h, w) + 2 * padding < kernel:
            continue
        image = x[:, :, :h, :w].contiguous(memory_format=torch.channels_last)
        q, k, reach = image[0].tolist(), weight.tolist(), range(kernel)
        expected = [
            [
                [
                    _formula(
                        bias[o].item()
                        + sum(
                            k[o][i][a][b] * q[o if groups > 1 else i][row + a][column + b]
                            for i in range(3 // groups)
                            for a in reach
                            for b in reach
                            if 0 <= row + a < h and 0 <= column + b < w
                        ),
                        (2**29, 2**28),
                        40,
                    )
                    for column in range(-padding, w + padding - kernel + 1, stride)
                ]
                for row in range(-padding, h + padding - kernel + 1, stride)
            ]
            for o in range(3)
        ]
        factors = torch.tensor([[2**29], [2**28]], dtype=torch.int32).expand(2, 3).contiguous()
        for isa in instruction_sets:
            monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
            with use_backend(backend):
                y = integer_conv2d(
                    image, weight, bias, factors, torch.full((3,), 40, dtype=torch.int32),
                    padding=padding, stride=stride, groups=groups,
                )  # fmt: skip
            assert y[0].tolist() == expected, (isa, h, w)


@ALL
def test_a_plan_that_asks_for_the_shape_alone_gets_it(case):
    arguments = case.arguments(torch.int16)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = arguments | {"x": mode.from_tensor(arguments["x"])}
        planned = INTEGER_CONV2D.reference(**fake)
    result = INTEGER_CONV2D.reference(**arguments)
    assert (planned.shape, planned.dtype) == (result.shape, result.dtype)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("shift", [1, 2, 29, 31, 32, 33, 47, 61, 62])
def test_accumulators_at_the_ends_of_int32(shift, bits, instruction_sets, monkeypatch):
    x, largest = [-(2**15), 2**15 - 1, -1, 0, 1, 2, -3], 2**30 - 1
    for weight, bias in ((32767, -(2**30)), (-32768, 2**30 - 1), (1, 2**31 - 2**15 - 1), (1, -(2**31) + 2**15)):
        for factors in ((largest, largest), (largest, 0), (0, largest), (1, 3)):
            expected = [_formula(weight * v + bias, factors, shift, bits=bits) for v in x]
            for isa in instruction_sets:
                monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
                assert _layer(x, weight, bias, factors, shift, bits=bits) == expected, (isa, weight, bias, factors)


@pytest.mark.parametrize("left", [-30, -29, -16, -1, 0, 1, 15, 29, 30])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_residuals_at_the_ends_of_their_type(left, dtype, instruction_sets, monkeypatch):
    top = torch.iinfo(dtype).max
    near = {n + d for k in (0, 1, 13, 15, 16, 28, 29, 30) for n in (2**k, -(2**k)) for d in (-1, 0, 1)}
    residual = sorted(v for v in near | {0, top, -top, top - 1, top // 2, top // 2 + 1} if -top <= v <= top)
    x = [(-1) ** i * (i % 7) for i in range(len(residual))]
    given = torch.tensor(residual, dtype=dtype).view(1, 1, 1, -1)
    for factor in (1, 2**30 - 1):
        expected = [_formula(v * 2**14, (factor, factor), 1, r, left, 32) for v, r in zip(x, residual, strict=True)]
        for isa in instruction_sets:
            monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
            options = {"residual": given, "residual_shift": left, "bits": 32}
            assert _layer(x, 2**14, factors=(factor, factor), **options) == expected, (isa, factor)


@pytest.mark.parametrize("shift", [-15, -9, -8, -7, -1, 0, 1, 2, 7, 8, 14, 15])
@pytest.mark.parametrize("low", [-255, -128, -1, 0])
def test_every_input_is_narrowed_to_the_nearest_byte(shift, low, instruction_sets, monkeypatch):
    """All of int16; weights of 1 show what is read, in the row and in the padding above and below it: zeros."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    wide = x.long()
    moved = (wide + (1 << shift >> 1)) >> shift if shift > 0 else wide << -shift
    expected = moved.clamp(low, low + 255).tolist()
    for isa in instruction_sets:
        monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
        with use_backend("cpu"):
            y = integer_conv2d(
                x.view(1, 1, 1, -1),
                torch.tensor([0, 1, 0] * 3, dtype=torch.int8).view(1, 1, 3, 3),
                torch.zeros(1, dtype=torch.int32),
                torch.full((2, 1), 2, dtype=torch.int32),
                torch.ones(1, dtype=torch.int32),
                padding=1,
                input_shift=shift,
                input_low=low,
            )
        assert y.flatten().tolist() == expected, isa


def test_halves_are_rounded_upwards_and_the_sign_chooses_the_factor():
    x = [-5, -4, -3, -2, -1, 0, 1, 2, 3, 5]
    assert _layer(x) == [-2, -2, -1, -1, 0, 0, 1, 1, 2, 3]
    assert _layer(x, factors=(2, 2)) == x
    assert _layer(x, factors=(2, 0)) == [0, 0, 0, 0, 0, 0, 1, 2, 3, 5]
    assert _layer([-40, 40], factors=(2**29, 2**27), shift=29) == [-10, 40]
    assert _layer([-(2**15), 2**15 - 1], 3, factors=(2, 2)) == [-(2**15), 2**15 - 1]


@pytest.mark.parametrize("channel", [0, 17, 31, 32])
def test_one_channel_is_enough_for_the_general_path(channel, instruction_sets, monkeypatch):
    """Kernels take short cuts where all shifts of a block are high and all factors come in equal pairs."""
    arguments = _case("tiles-and-one").arguments(torch.int16)
    arguments["multiplier"][1] = arguments["multiplier"][0]
    unequal = arguments | {"multiplier": arguments["multiplier"].clone(), "bits": 32}
    unequal["multiplier"][1, channel] //= 3
    low = arguments | {"shift": arguments["shift"].clone(), "bits": 32}
    low["shift"][channel] = 7
    for changed in (unequal, low):
        expected = INTEGER_CONV2D.reference(**changed)
        for isa in instruction_sets:
            monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
            with use_backend("cpu"):
                assert torch.equal(integer_conv2d(**changed), expected), isa


def test_the_shuffle_comes_before_the_residual():
    case = _case("shuffle-residual")
    arguments = case.arguments(torch.int16)
    with use_backend("cpu"):
        plain = integer_conv2d(**arguments | {"residual": None, "shuffle": 1, "bits": 32})
        result = integer_conv2d(**arguments)
    y = pixel_shuffle(plain.long(), 2) + arguments["residual"]
    assert torch.equal(result, y.clamp(-(2**15), 2**15 - 1).short())


@pytest.mark.parametrize("id", ["residual-16", "shuffle-3", "depthwise-odd", "stride-2-tasks"])
def test_the_residual_may_be_the_result(id):
    run, free = _bound(_case(id).arguments(torch.int16))
    expected = run(**free)
    inplace = free["residual"].clone(memory_format=torch.channels_last)
    assert run(x=free["x"], residual=inplace, out=inplace) is inplace
    assert torch.equal(inplace, expected)


@pytest.mark.parametrize("id", ["odd", "shuffle", "depthwise", "stride-2-7x13", "stride-2-depthwise"])
def test_the_result_may_be_a_slice(id):
    run, free = _bound(_case(id).arguments(torch.int16))
    expected = run(**free)
    n, c, h, w = expected.shape
    wide = torch.full((n, c + 5, h, w), 77, dtype=torch.int16).contiguous(memory_format=torch.channels_last)
    run(**free, out=wide[:, 2 : 2 + c])
    assert torch.equal(wide[:, 2 : 2 + c], expected)
    assert bool((wide[:, :2] == 77).all() and (wide[:, 2 + c :] == 77).all())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"x": torch.zeros(1, 24, 5, 6)}, "x.dtype=float32 .needs int16"),
        ({"x": torch.zeros(1, 24, 5, 6, dtype=torch.int16)}, "x.stride=.*channels innermost"),
        ({"weight": torch.zeros(40, 24, 3, 3)}, "weight.dtype=float32 .needs int8 or int16"),
        ({"bias": torch.zeros(40)}, "bias.dtype=float32 .needs int32"),
        ({"residual": torch.zeros(1, 40, 5, 6).to(memory_format=torch.channels_last)}, "residual.dtype=float32"),
        ({"groups": 2}, "groups=2 of weight.shape=.40, 24, 3, 3. .needs 1, or depthwise"),
    ],
)
def test_refusals(changes, reason):
    with use_backend("cpu"), pytest.raises(NoBackendError, match=reason):
        integer_conv2d(**_case("bits-32").arguments(torch.int16) | changes)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"input_low": -256}, "input_low=-256 .needs -255 to 0"),
        ({"input_low": 1}, "input_low=1 .needs -255 to 0"),
        ({"input_low": 0, "input_shift": 16}, "input_shift=16 .needs -15 to 15"),
        ({"input_shift": 1}, "input_shift=1 .needs 0 where input_low is None"),
        ({"stride": 0}, "stride=0 .needs stride >= 1"),
        ({"stride": -1}, "stride=-1 .needs stride >= 1"),
    ],
)
def test_narrowings_and_strides_out_of_range(changes, reason, backend):
    with use_backend(backend), pytest.raises(UsageError, match=reason):
        integer_conv2d(**_case("bits-32").arguments(torch.int16) | changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bits": 8}, "bits=8 .one of 16, 32"),
        ({"shuffle": 3}, "shuffle=3 with C_out=40"),
        ({"padding": -1}, "padding=-1"),
        ({"residual_shift": 31}, "residual_shift=31 .needs -30 to 30"),
        ({"shift": torch.full((40,), 63, dtype=torch.int32)}, "shift holds 63 .needs 1 to 62"),
        ({"shift": torch.zeros(40, dtype=torch.int32)}, "shift holds 0"),
        ({"shift": torch.ones(39, dtype=torch.int32)}, "shift: 39 values .needs 40"),
        ({"multiplier": torch.full((2, 40), FIXED, dtype=torch.int32)}, "multiplier holds 1073741824"),
        ({"multiplier": torch.full((2, 40), -1, dtype=torch.int32)}, "multiplier holds -1"),
        ({"multiplier": torch.ones(40, dtype=torch.int32)}, "multiplier: 40 values .needs 80"),
        ({"bias": torch.zeros(41, dtype=torch.int32)}, "bias: 41 values .needs 40"),
        ({"x": torch.zeros(1, 23, 5, 6, dtype=torch.int16)}, "x: 23 channels .needs 24"),
        ({"x": torch.zeros(1, 24, 5, 0, dtype=torch.int16)}, "x is smaller than the kernel"),
        ({"residual": torch.zeros(1, 40, 5, 7, dtype=torch.int32)}, "residual: shape .1, 40, 5, 7.*1, 40, 5, 6"),
    ],
)
def test_arguments_out_of_range(changes, reason):
    changes = {k: v.to(memory_format=torch.channels_last) if k in ("x", "residual") else v for k, v in changes.items()}
    with use_backend("cpu"), pytest.raises(UsageError, match=reason):
        integer_conv2d(**_case("bits-32").arguments(torch.int16) | changes)
