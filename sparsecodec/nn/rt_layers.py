"""Blocks of DCVC-RT (arXiv 2502.20762), with the attribute names of its published checkpoints.

Every network is convolutions, `WSiLU` and sums, mostly 1x1; what varies with the quality is multiplied in from outside,
as ``quant_step``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 8  # pixels that one position of the trunk stands for, per side
PATCH_CHANNELS = 3 * PATCH**2


class WSiLU(nn.Module):
    """x * sigmoid(4x), elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(4.0 * x)


class WSiLUChunkAdd(nn.Module):
    """`WSiLU`, then the sum of the two contiguous halves of the channels: ``[N, 2C, H, W] -> [N, C, H, W]``."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = WSiLU()

    def forward(self, x: Tensor) -> Tensor:
        halves = self.activation(x).chunk(2, 1)
        return halves[0] + halves[1]


class DCB(nn.Module):
    """Depthwise block with a gated feed-forward part: ``[N, c_in, H, W] -> [N, c_out, H, W]``.

    x = adaptor(x); o = x + dw(wsilu(x)); out = o + ffn(o), plus x if `shortcut`.

    Args:
        c_in, c_out: channels. Where they differ a 1x1 adaptor comes first.
        shortcut: add the adapted input to the result.
        force_adaptor: have the adaptor though the channels agree.
    """

    def __init__(self, c_in: int, c_out: int, *, shortcut: bool = False, force_adaptor: bool = False) -> None:
        super().__init__()
        self.adaptor = nn.Conv2d(c_in, c_out, 1) if c_in != c_out or force_adaptor else None
        self.shortcut = shortcut
        self.dc = nn.Sequential(
            nn.Conv2d(c_out, c_out, 1),
            WSiLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1, groups=c_out),
            nn.Conv2d(c_out, c_out, 1),
        )
        self.ffn = nn.Sequential(
            nn.Conv2d(c_out, 4 * c_out, 1),
            WSiLUChunkAdd(),
            nn.Conv2d(2 * c_out, c_out, 1),
        )

    def forward(
        self, x: Tensor, quant_step: Tensor | None = None, to_cat: Tensor | None = None, cat_at_front: bool = True
    ) -> Tensor:
        """The block, and what the published code lets it do on the way.

        Args:
            x: ``[N, c_in, H, W]`` float.
            quant_step: ``[1 or N, c_out, 1, 1]``, or None. Multiplies the result.
            to_cat: ``[N, K, H, W]``, or None. Concatenated with the result.
            cat_at_front: whether `to_cat` takes the first channels.

        Returns:
            ``[N, c_out (+ K), H, W]``.
        """
        if self.adaptor is not None:
            x = self.adaptor(x)
        out = self.dc(x) + x
        out = self.ffn(out) + out
        if self.shortcut:
            out = out + x
        return combined(out, quant_step, to_cat, cat_at_front)


def combined(out: Tensor, quant_step: Tensor | None, to_cat: Tensor | None, cat_at_front: bool) -> Tensor:
    """`out` times `quant_step`, then next to `to_cat`; arguments as for `DCB.forward`."""
    if quant_step is not None:
        out = out * quant_step
    if to_cat is not None:
        out = torch.cat((to_cat, out) if cat_at_front else (out, to_cat), 1)
    return out


class SubpelConv(nn.Module):
    """Conv to ``4 c_out`` channels, then PixelShuffle(2): ``[N, c_in, H, W] -> [N, c_out, 2H, 2W]``."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(c_in, 4 * c_out, kernel, padding=kernel // 2), nn.PixelShuffle(2))

    def forward(self, x: Tensor, to_cat: Tensor | None = None, cat_at_front: bool = True) -> Tensor:
        """`to_cat` and `cat_at_front` as in `DCB.forward`."""
        return combined(self.conv(x), None, to_cat, cat_at_front)


class Up(nn.Module):
    """`SubpelConv`, then a `DCB` with shortcut: ``[N, c_in, H, W] -> [N, c_out, 2H, 2W]``; keywords as `DCB`'s."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.up = SubpelConv(c_in, c_out)
        self.conv = DCB(c_out, c_out, shortcut=True)

    def forward(
        self, x: Tensor, quant_step: Tensor | None = None, to_cat: Tensor | None = None, cat_at_front: bool = True
    ) -> Tensor:
        return self.conv(self.up(x), quant_step, to_cat, cat_at_front)


class Down(nn.Module):
    """2x2 conv of stride 2, then a `DCB` with shortcut: ``[N, c_in, H, W] -> [N, c_out, H/2, W/2]``; even sizes."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(c_in, c_out, 2, stride=2)
        self.conv = DCB(c_out, c_out, shortcut=True)

    def forward(
        self, x: Tensor, quant_step: Tensor | None = None, to_cat: Tensor | None = None, cat_at_front: bool = True
    ) -> Tensor:
        return self.conv(self.down(x), quant_step, to_cat, cat_at_front)


class Stack(nn.Module):
    """Layers one after the other, under the key ``conv``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def to_patches(x: Tensor) -> Tensor:
    """``[N, C, H, W] -> [N, 64C, H/8, W/8]``, channel = 64 c + 8 dy + dx."""
    return F.pixel_unshuffle(x, PATCH)


def from_patches(x: Tensor) -> Tensor:
    """The inverse of `to_patches`."""
    return F.pixel_shuffle(x, PATCH)


def blocks(count: int, channels: int) -> list[nn.Module]:
    """`count` plain `DCB`s of `channels`."""
    return [DCB(channels, channels) for _ in range(count)]
