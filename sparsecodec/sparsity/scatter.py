"""A convolution that makes only some of its output channels, in their places among zeros."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScatterConv2d(nn.Module):
    """``[N, C_in, H, W] -> [N, out_channels, H', W']``: channel ``out_index[i]`` is channel i of `conv`, others are 0.

    It ends a residual branch that was pruned alone: the sum keeps its width. A compiler may add the channels straight
    into the other operand.

    Attributes:
        conv: the convolution with the kept filters.
        out_index: ``[kept]`` int64, ascending. Not in the state dict: the kept indices travel as JSON.
        out_channels: full width.
    """

    out_index: Tensor

    def __init__(self, conv: nn.Module, out_index: Tensor, out_channels: int) -> None:
        super().__init__()
        self.conv = conv
        self.out_channels = out_channels
        self.register_buffer("out_index", out_index.to(conv.weight.device, torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.conv(x)
        n, _, h, w = kept.shape
        return kept.new_zeros((n, self.out_channels, h, w)).index_copy(1, self.out_index, kept)

    def extra_repr(self) -> str:
        return f"out_channels={self.out_channels}, kept={len(self.out_index)}"
