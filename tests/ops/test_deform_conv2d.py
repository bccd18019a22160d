"""What is particular to deform_conv2d."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.ops import deform_conv2d, use_backend, why_unavailable
from sparsecodec.ops.deform_conv2d import DEFORM_CONV2D, deform_conv2d_reference

TRITON = pytest.param(
    "triton",
    marks=[
        pytest.mark.skipif(why_unavailable("triton") is not None, reason=str(why_unavailable("triton"))),
        pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter"),
    ],
)


def _inputs(groups: int = 2, reach: float = 1.5, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    return {
        "x": values(2, 4, 5, 6).to(memory_format=torch.channels_last),
        "offset": values(2, 18 * groups, 5, 6) * reach,
        "weight": values(3, 4, 3, 3),
        "bias": values(3),
        "mask": values(2, 9 * groups, 5, 6),
    }


def test_is_grid_sample_tap_by_tap():
    """Against torch's own bilinear sampling with zeros outside, tap by tap and group by group."""
    given = _inputs()
    x, offset, mask = given["x"], given["offset"].unflatten(1, (2, 9, 2)), given["mask"].unflatten(1, (2, 9))
    expected = given["bias"].view(1, 3, 1, 1).expand(2, 3, 5, 6).clone()
    for group in range(2):
        for tap in range(9):
            rows = torch.arange(5).view(5, 1) + tap // 3 - 1 + offset[:, group, tap, 0]
            columns = torch.arange(6) + tap % 3 - 1 + offset[:, group, tap, 1]
            grid = torch.stack([(2 * columns + 1) / 6 - 1, (2 * rows + 1) / 5 - 1], -1)
            sample = F.grid_sample(x[:, 2 * group : 2 * group + 2], grid, align_corners=False)
            kernel = given["weight"][:, 2 * group : 2 * group + 2, tap // 3, tap % 3, None, None]
            expected += F.conv2d(sample * mask[:, group, tap, None], kernel)
    torch.testing.assert_close(deform_conv2d_reference(**given), expected)


def test_still_offsets_are_a_convolution():
    given = _inputs(reach=0.0)
    expected = F.conv2d(given["x"], given["weight"], given["bias"], padding=1)
    torch.testing.assert_close(deform_conv2d_reference(**given | {"mask": None}), expected)


def test_gradients():
    given = {name: value.requires_grad_() for name, value in _inputs().items()}
    assert torch.autograd.gradcheck(lambda *values: deform_conv2d_reference(*values), tuple(given.values()))


@pytest.mark.parametrize("backend", ["reference", "cpu", TRITON])
def test_by_hand(backend):
    """Two groups of one channel and one tap: up half a row; right by one, half of it outside."""
    x = torch.tensor([[2.0, 4.0], [6.0, 8.0], [10.0, 20.0], [30.0, 40.0]]).view(1, 2, 2, 2)
    x = x.to(memory_format=torch.channels_last)
    offset = torch.zeros(1, 4, 2, 2)
    offset[0, 0], offset[0, 3] = -0.5, 1.0
    mask = torch.ones(1, 2, 2, 2)
    mask[0, 1, 1] = 0.5
    with use_backend(backend):
        first = deform_conv2d(x, offset, torch.tensor([[1.0, 0.0]]).view(1, 2, 1, 1), mask=mask)
        second = deform_conv2d(x, offset, torch.tensor([[0.0, 1.0]]).view(1, 2, 1, 1), torch.ones(1), mask)
    assert first.flatten().tolist() == [1, 2, 4, 6]
    assert second.flatten().tolist() == [21, 1, 21, 1]


@pytest.mark.parametrize("backend", ["reference", "cpu", TRITON])
def test_nan_stays_where_it_is(backend):
    x = torch.ones(1, 4, 3, 4).to(memory_format=torch.channels_last)
    offset = torch.zeros(1, 18, 3, 4)
    offset[0, 0, 0, 1] = offset[0, 17, 2, 3] = math.nan
    with use_backend(backend):
        y = deform_conv2d(x, offset, torch.ones(5, 4, 3, 3))
    assert torch.equal(y.isnan(), offset.isnan().any(1, keepdim=True).expand_as(y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_have_the_same_bits_on_all_instruction_sets(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 38, 11, 13, generator=generator).to(dtype).to(memory_format=torch.channels_last)
    offset, mask = torch.randn(1, 36, 11, 13, generator=generator), torch.rand(1, 18, 11, 13, generator=generator)
    weight = torch.randn(40, 38, 3, 3, generator=generator)
    if dtype == torch.bfloat16:  # whose sums are not pinned: one product each
        weight = torch.eye(38).view(38, 38, 1, 1) * torch.tensor([0.0] * 4 + [0.7] + [0.0] * 4).view(3, 3)
    with use_backend("cpu"):
        best = deform_conv2d(x, offset, weight, mask=mask)
        monkeypatch.setenv("SPARSECODEC_CPU_ISA", "scalar")
        assert torch.equal(deform_conv2d(x, offset, weight, mask=mask), best)


def test_bits_do_not_depend_on_the_batch():
    given = {name: value.float() for name, value in _inputs().items()}
    alone = {name: value[1:] if name in ("x", "offset", "mask") else value for name, value in given.items()}
    with use_backend("cpu"):
        assert torch.equal(deform_conv2d(**given)[1:], deform_conv2d(**alone))


def test_refuses_what_does_not_fit():
    x, offset, weight = torch.zeros(1, 4, 4, 5), torch.zeros(1, 36, 4, 5), torch.zeros(2, 4, 3, 3)
    with pytest.raises(UsageError, match=r"offset.shape=\[1, 35, 4, 5\].*2 \* G \* 9"):
        deform_conv2d(x, offset[:, 1:], weight)
    with pytest.raises(UsageError, match=r"G a divisor of 4"):
        deform_conv2d(x, torch.zeros(1, 54, 4, 5), weight)
    with pytest.raises(UsageError, match="Kh and Kw odd"):
        deform_conv2d(x, offset, weight[:, :, 1:])
    with pytest.raises(UsageError, match=r"mask.shape=\[1, 36, 4, 5\] \(needs \[1, 18, 4, 5\]\)"):
        deform_conv2d(x, offset, weight, mask=offset)
    with use_backend("cpu"), pytest.raises(NoBackendError, match="channels innermost"):
        deform_conv2d(x, offset, weight)
    for impl in DEFORM_CONV2D.impls:
        assert "offset.dtype=float64 (needs float32)" in impl.rejects(x, offset.double(), weight, None, None)


def test_offsets_of_16_bits_move_by_what_they_say():
    x, offset = torch.rand(1, 2, 3, 200), torch.full((1, 18, 3, 200), 0.25)
    weight = torch.rand(2, 2, 3, 3)
    expected = deform_conv2d(x, offset, weight)
    torch.testing.assert_close(deform_conv2d(x, offset.bfloat16(), weight), expected, atol=1e-5, rtol=0)
