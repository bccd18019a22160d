"""N:M weights without their zeros: the kept values, and where in its group each of them stood."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.sparsity.nm import NM, grouped, nm_mask


@dataclass(frozen=True)
class PackedNM:
    """A packed weight.

    Attributes:
        values: ``[numel * n / m]`` in the weight's dtype: input channels innermost, groups in order, ascending position
            within a group.
        indexes: uint8 ``[ceil(len(values) * bits / 8)]``: the position of each value in its group, in
            ``bits = ceil(log2 m)`` bits each, least significant first.
        shape: of the weight.
        pattern: n of m.
        dim: of the input channels.
    """

    values: Tensor
    indexes: Tensor
    shape: tuple[int, ...]
    pattern: NM
    dim: int

    @property
    def nbytes(self) -> int:
        """Of values and indexes."""
        return self.values.nbytes + self.indexes.nbytes


def pack_nm(weight: Tensor, pattern: NM, dim: int = 1) -> PackedNM:
    """Packs a weight that has the pattern already; `unpack_nm` gives the same values back.

    Args:
        weight, pattern, dim: as for `nm_mask`.

    Raises:
        UsageError: a group has more than n weights that are not 0; or as `nm_mask`.
    """
    weight = weight.detach()
    groups = grouped(weight, pattern, dim)
    keep = grouped(nm_mask(weight, pattern, dim), pattern, dim)
    surplus = int(((groups != 0) & ~keep).any(-1).sum())
    if surplus:
        raise UsageError(
            f"{surplus} of {groups[..., 0].numel()} groups hold more than {pattern.n} weights: not {pattern}"
        )
    positions = torch.arange(pattern.m, device=weight.device).expand(groups.shape)[keep]
    bits = (positions[:, None] >> torch.arange(_bits(pattern), device=weight.device)) & 1
    bits = torch.nn.functional.pad(bits.flatten(), (0, -bits.numel() % 8)).view(-1, 8)
    indexes = (bits << torch.arange(8, device=weight.device)).sum(1).to(torch.uint8)
    return PackedNM(groups[keep].clone(), indexes, tuple(weight.shape), pattern, dim)


def unpack_nm(packed: PackedNM) -> Tensor:
    """The weight that was packed, zeros in their places."""
    pattern, device = packed.pattern, packed.values.device
    bits = ((packed.indexes[:, None].long() >> torch.arange(8, device=device)) & 1).flatten()
    bits = bits[: len(packed.values) * _bits(pattern)].view(len(packed.values), _bits(pattern))
    positions = (bits << torch.arange(_bits(pattern), device=device)).sum(1)
    moved = torch.empty(packed.shape, device="meta").movedim(packed.dim, -1).shape
    groups = packed.values.new_zeros(len(packed.values) // pattern.n, pattern.m)
    groups.scatter_(1, positions.view(-1, pattern.n), packed.values.view(-1, pattern.n))
    return groups.view(moved).movedim(-1, packed.dim).contiguous()


def _bits(pattern: NM) -> int:
    return (pattern.m - 1).bit_length()
