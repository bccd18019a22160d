"""Alignment by diverse offsets (DCVC-DC, arXiv 2302.14402, and DCVC-FM) as one deformable convolution."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.nn.fvc_layers import DeformableConv2d

TOLERANCE = 1e-3  # of the largest value: sums in other orders, tanh by a sigmoid


class _Fusion(DeformableConv2d):
    """A 1x1 convolution in groups whose tap is moved within the picture.

    Args:
        layer: whose weights.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias, self.groups = layer.weight, layer.bias, layer.groups

    def constants(self) -> dict[str, Any]:
        whole = torch.block_diag(*self.weight.detach().flatten(1).chunk(self.groups))
        return {"weight": whole[:, :, None, None], "bias": self.bias, "border": True}


class Alignment(nn.Module):
    """Features read at positions that a flow and learnt offsets have moved, weighed, and mixed.

    With (o, m) from `conv_offset` at half the size, upsampled, the flow v in pixels, and G groups, each with two of o:

        y = fusion(sigmoid(m_g) * x_g(position + v + reach * tanh(o_g)), all g)

    where x is repeated as often as G groups need. `fusion` is 1x1, so this is a deformable convolution of one tap; as
    tanh(o) = 2 sigmoid(2 o) - 1, one pass makes offsets and mask.

    Args:
        network: with `conv_offset`, `fusion` and `max_residue_magnitude`; not modified.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.reach = float(network.max_residue_magnitude)
        self.conv_offset = copy.deepcopy(network.conv_offset)
        last, mix = self.conv_offset[-1], network.fusion
        self.groups = last.out_channels // 3
        self.repeats = self.groups // mix.groups
        pairs = torch.arange(2 * self.groups).view(-1, 2).flip(1).flatten()  # rows first, as the op has them
        order = torch.cat([pairs, torch.arange(2 * self.groups, 3 * self.groups)])
        twice = torch.where(order < 2 * self.groups, 2.0, 1.0).to(last.weight)
        last.weight.copy_(last.weight[order] * twice.view(-1, 1, 1, 1))
        last.bias.copy_(last.bias[order] * twice)
        self.fusion = _Fusion(mix)

    def forward(self, x: Tensor, around: Tensor, flow: Tensor) -> Tensor:
        """Features ``[N, C, H, W]``, what offsets are made of, and ``[N, 2, H, W]``: columns, then rows, in pixels."""
        moves = torch.sigmoid(F.interpolate(self.conv_offset(around), scale_factor=2.0, mode="bilinear"))
        by = moves[:, : 2 * self.groups].unflatten(1, (self.groups, 2))
        offset = torch.add((flow.flip(1) - self.reach).unsqueeze(1), by, alpha=2 * self.reach).flatten(1, 2)
        return self.fusion(torch.cat([x] * self.repeats, 1), offset, moves[:, 2 * self.groups :])


@torch.no_grad()
def alignment(network: nn.Module) -> nn.Module | None:
    """An `Alignment` that computes what `network` does; None if there is none."""
    try:
        twin = Alignment(network)
        generator = torch.Generator().manual_seed(0)
        channels = (network.fusion.in_channels // twin.repeats, network.conv_offset[0].in_channels, 2)
        given = [torch.randn(1, c, 6, 8, generator=generator).to(twin.fusion.weight) for c in channels]
        expected = network(*given)
        torch.testing.assert_close(twin(*given), expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
    except Exception:  # the network may be anything, and its code may raise anything
        return None
    return twin
