"""What is particular to integer_deform_columns."""

from __future__ import annotations

import pytest
import torch

from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.ops import bind, integer_deform_columns, use_backend, why_unavailable
from sparsecodec.ops.deform_conv2d import deform_conv2d_reference
from sparsecodec.ops.integer_deform_columns import INTEGER_DEFORM_COLUMNS, TAPS
from sparsecodec.testing import CASES

PIXEL = 2**16
TRITON = pytest.param(
    "triton",
    marks=[
        pytest.mark.skipif(why_unavailable("triton") is not None, reason=str(why_unavailable("triton"))),
        pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter"),
    ],
)
BACKENDS = ["reference", "cpu", TRITON]
CPU_CASES = [case for case in CASES if case.op == "integer_deform_columns" and not case.bench]
SMALL = [case for case in CPU_CASES if case.arguments(torch.int16)["x"].numel() < 1000]


def _defined(x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The definition on Python's integers, which have no width."""
    (n, channels, height, width), pixels, moved = x.shape, x.tolist(), offset.tolist()
    groups = offset.shape[1] // (2 * TAPS)
    out = torch.empty((n, TAPS * channels, height, width), dtype=torch.int16)
    for place in torch.cartesian_prod(*map(torch.arange, (n, TAPS, channels, height, width))).tolist():
        image, t, c, h, w = place
        k = c * groups // channels * TAPS + t
        row = 2**16 * (h + t // 3 - 1) + moved[image][2 * k][h][w]
        col = 2**16 * (w + t % 3 - 1) + moved[image][2 * k + 1][h][w]
        (r, b), (s, a) = ((at // 2**16, (at % 2**16 + 2) // 4) for at in (row, col))

        def read(y: int, z: int) -> int:
            return pixels[image][c][y][z] if 0 <= y < height and 0 <= z < width else 0  # noqa: B023

        top, bottom = ((read(y, s) * (2**14 - a) + read(y, s + 1) * a + 2**13) // 2**14 for y in (r, r + 1))
        value = (top * (2**14 - b) + bottom * b + 2**13) // 2**14
        if mask is not None:
            value = (value * int(mask[image, k, h, w]) + 2**13) // 2**14
        out[image, t * channels + c, h, w] = min(max(value, -(2**15)), 2**15 - 1)
    return out


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_the_reference_is_the_definition(case):
    arguments = case.arguments(torch.int16)
    with use_backend("reference"):
        assert torch.equal(integer_deform_columns(**arguments), _defined(**arguments))


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    """A row of 10, 20, 31: its taps, a half across the end, and what saturates."""
    x = torch.tensor([10, 20, 31], dtype=torch.int16).view(1, 1, 1, 3)
    offset = torch.zeros(1, 18, 1, 3, dtype=torch.int32)
    with use_backend(backend):
        taps = integer_deform_columns(x, offset)[0, :, 0].tolist()
        assert taps == [[0] * 3] * 3 + [[0, 10, 20], [10, 20, 31], [20, 31, 0]] + [[0] * 3] * 3
        offset[0, 9] = torch.tensor([-PIXEL // 2, PIXEL // 2, PIXEL // 2])  # columns of the tap in the middle
        assert integer_deform_columns(x, offset)[0, 4, 0].tolist() == [5, 26, 16]  # 25.5 and 15.5 go up
        offset[0, 8] = -PIXEL // 4  # its rows: a quarter is outside
        assert integer_deform_columns(x, offset)[0, 4, 0].tolist() == [4, 20, 12]
        offset[0, 8:10] = torch.tensor([[-(2**31)], [2**31 - 1]])[:, :, None]
        assert integer_deform_columns(x, offset)[0, 4, 0].tolist() == [0, 0, 0]
        mask = torch.full((1, 9, 1, 3), 2**15 - 1, dtype=torch.int16)
        large = torch.full_like(x, -(2**15))
        assert integer_deform_columns(large, offset * 0, mask)[0, 4, 0].tolist() == [-(2**15)] * 3
        assert integer_deform_columns(x, offset * 0, mask // 2)[0, 4, 0].tolist() == [10, 20, 31]
        assert integer_deform_columns(x, offset * 0, -mask)[0, 4, 0].tolist() == [-20, -40, -62]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
def test_with_a_product_it_is_the_float_layer_but_for_rounding(backend, masked):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**12), 2**12, (2, 12, 7, 9), generator=generator).to(torch.int16)
    offset = torch.randint(-4 * PIXEL, 4 * PIXEL, (2, 36, 7, 9), generator=generator).to(torch.int32)
    mask = torch.randint(0, 2**15, (2, 18, 7, 9), generator=generator).to(torch.int16) if masked else None
    weight = torch.randn((5, 12, 3, 3), generator=generator, dtype=torch.float64)
    with use_backend(backend):
        columns = integer_deform_columns(x.to(memory_format=torch.channels_last), offset, mask)
    product = torch.einsum("ok,nkhw->nohw", weight.permute(0, 2, 3, 1).flatten(1), columns.double())
    factors = None if mask is None else mask.double() / 2**14
    expected = deform_conv2d_reference(x.double(), offset.double() / PIXEL, weight, None, factors)
    # Three roundings to integers, of which a factor below 2 doubles the first two, and weights that are off by 2^-15.
    bound = (1 + 2**14 * 2.0**-15) * 2 + 0.5
    assert float((product - expected).abs().max()) <= bound * float(weight.abs().flatten(1).sum(1).max())


@pytest.mark.parametrize("case", CPU_CASES, ids=lambda case: case.id)
def test_instruction_sets_give_the_same_bits(case, instruction_sets, monkeypatch):
    arguments = case.arguments(torch.int16)
    expected = INTEGER_DEFORM_COLUMNS.reference(**arguments)
    for isa in instruction_sets:
        monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
        with use_backend("cpu"):
            assert torch.equal(integer_deform_columns(**arguments), expected), isa


def test_bits_do_not_depend_on_threads():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**15), 2**15, (2, 24, 33, 29), generator=generator).to(torch.int16)
    x = x.contiguous(memory_format=torch.channels_last)
    offset = torch.randint(-3 * PIXEL, 3 * PIXEL, (2, 72, 33, 29), generator=generator).to(torch.int32)
    with use_backend("cpu"):
        run = bind(INTEGER_DEFORM_COLUMNS, x=x, offset=offset).run
    expected, threads = run(x=x, offset=offset), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(run(x=x, offset=offset), expected)
    finally:
        torch.set_num_threads(threads)


def test_refuses_what_does_not_fit():
    x, offset = torch.zeros(1, 4, 4, 5, dtype=torch.int16), torch.zeros(1, 36, 4, 5, dtype=torch.int32)
    mask = torch.zeros(1, 18, 4, 5, dtype=torch.int16)
    with use_backend("reference"):
        for wrong, message in (
            ((x, offset[..., 1:]), r"offset.shape=\[1, 36, 4, 4\]"),
            ((x[:, :3], offset), r"G a divisor of 3"),
            ((x, offset[:, :17]), r"offset.shape=\[1, 17, 4, 5\]"),
            ((x[0], offset), r"x.shape=\[4, 4, 5\]"),
            ((x, offset, mask[:, 1:]), r"mask.shape=\[1, 17, 4, 5\]"),
            ((x.int(), offset), r"x.dtype=int32 \(needs int16\)"),
            ((x, offset.float()), r"offset.dtype=float32 \(needs int32\)"),
            ((x, offset, mask.int()), r"mask.dtype=int32 \(needs int16\)"),
        ):
            with pytest.raises(UsageError, match=message):
                integer_deform_columns(*wrong)
    with use_backend("cpu"), pytest.raises(NoBackendError, match="channels innermost"):
        integer_deform_columns(x, offset)
