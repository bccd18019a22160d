"""Packing N:M weights gives the same weights back, in as few bytes as it says."""

from __future__ import annotations

import math

import pytest
import torch

from sparsecodec.errors import UsageError
from sparsecodec.sparsity import NM, nm_mask, pack_nm, unpack_nm

PATTERNS = [NM(2, 4), NM(1, 4), NM(3, 4), NM(1, 2), NM(4, 4), NM(1, 1), NM(3, 8), NM(1, 8), NM(2, 16)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dim", [0, 1])
def test_packing_is_an_exact_round_trip(pattern: NM, dim: int, dtype: torch.dtype):
    shape = (32, 5, 3, 3) if dim == 0 else (5, 32, 1, 1)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = weight * nm_mask(weight, pattern, dim)
    packed = pack_nm(weight, pattern, dim)
    again = unpack_nm(packed)
    assert again.dtype == dtype and torch.equal(again, weight)
    kept = weight.numel() * pattern.n // pattern.m
    assert len(packed.values) == kept
    assert packed.nbytes == kept * weight.element_size() + math.ceil(kept * math.ceil(math.log2(pattern.m)) / 8)


def test_2_4_in_half_precision_takes_9_sixteenths():
    weight = torch.ones(64, 64, 1, 1, dtype=torch.bfloat16) * torch.tensor([1.0, 0, 0, 1]).repeat(16).view(1, 64, 1, 1)
    assert pack_nm(weight.bfloat16(), NM(2, 4)).nbytes / (64 * 64 * 2) == 9 / 16


def test_groups_with_zeros_among_the_kept_survive():
    weight = torch.tensor([[0.0, 0, 0, 3], [0, 0, 0, 0], [0, -1, 2, 0]])
    assert torch.equal(unpack_nm(pack_nm(weight, NM(2, 4))), weight)


def test_weights_without_the_pattern_are_not_packed():
    with pytest.raises(UsageError, match="1 of 2 groups hold more than 2 weights"):
        pack_nm(torch.tensor([[1.0, 2, 3, 0], [1, 2, 0, 0]]), NM(2, 4))
