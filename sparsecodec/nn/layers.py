"""Blocks of the EVC family, with the attribute names of its published checkpoints.

Two families of depthwise blocks look alike and are not: those of the transforms (`DepthConvBlock`) have an activation
after every layer, those of the entropy networks (`PriorBlock`) do not activate the depthwise output nor the second
1x1, and have another FFN width and slope (EVC, arXiv 2302.05071).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _LowerBound(torch.autograd.Function):
    """max(x, bound) whose gradient passes where x is above the bound, or where it would raise x."""

    @staticmethod
    def forward(ctx, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.bound) | (grad < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound), elementwise; the gradient can lift values from below the bound.

    Args:
        x: any shape, floating point.
        bound: the least value of the result.
    """
    return _LowerBound.apply(x, bound)


def subpel_conv1x1(c_in: int, c_out: int, factor: int) -> nn.Sequential:
    """1x1 conv to ``c_out * factor**2`` channels, then PixelShuffle: ``[N, c_in, H, W] -> [N, c_out, fH, fW]``."""
    return nn.Sequential(nn.Conv2d(c_in, c_out * factor**2, 1), nn.PixelShuffle(factor))


class ResidualBlockStride2(nn.Module):
    """Two 3x3 convs, the first of stride 2, beside a strided 1x1 skip: ``[N, c_in, H, W] -> [N, c_out, H/2, W/2]``."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)
        self.leaky_relu = nn.LeakyReLU(0.01)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.leaky_relu2 = nn.LeakyReLU(0.1)
        self.downsample = nn.Conv2d(c_in, c_out, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.leaky_relu2(self.conv2(self.leaky_relu(self.conv1(x))))
        return out + self.downsample(x)


class ResidualBlockUpsample(nn.Module):
    """Sub-pixel 1x1 and a 3x3 conv beside a sub-pixel skip: ``[N, c_in, H, W] -> [N, c_out, 2H, 2W]``."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.subpel_conv = subpel_conv1x1(c_in, c_out, 2)
        self.leaky_relu = nn.LeakyReLU(0.01)
        self.conv = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.leaky_relu2 = nn.LeakyReLU(0.1)
        self.upsample = subpel_conv1x1(c_in, c_out, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.leaky_relu2(self.conv(self.leaky_relu(self.subpel_conv(x))))
        return out + self.upsample(x)


class DepthConv(nn.Module):
    """1x1, depthwise 3x3, 1x1, each followed by LeakyReLU(0.01), plus the input: ``[N, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.LeakyReLU(0.01))
        self.depth_conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.LeakyReLU(0.01)
        )
        self.conv2 = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.LeakyReLU(0.01))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.depth_conv(self.conv1(x)))


class ConvFFN(nn.Module):
    """1x1 to 4C, ReLU, 1x1 back to C, ReLU, plus the input: ``[N, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, 4 * channels, 1), nn.ReLU(), nn.Conv2d(4 * channels, channels, 1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class DepthConvBlock(nn.Module):
    """`DepthConv` then `ConvFFN`; the block of EVC's encoder and decoder: ``[N, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(DepthConv(channels), ConvFFN(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class PriorDepthConv(nn.Module):
    """1x1, LeakyReLU(0.01), depthwise 3x3, 1x1, plus the (adapted) input: ``[N, c_in, H, W] -> [N, c_out, H, W]``."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(c_in, c_in, 1), nn.LeakyReLU(0.01))
        self.depth_conv = nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in)
        self.conv2 = nn.Conv2d(c_in, c_out, 1)
        self.adaptor = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.adaptor is None else self.adaptor(x)
        return skip + self.conv2(self.depth_conv(self.conv1(x)))


class PriorFFN(nn.Module):
    """1x1 to ``max(min(4C, 1024), 2C)``, LeakyReLU(0.1), 1x1 back, LeakyReLU(0.1), plus the input: ``[N, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(min(4 * channels, 1024), 2 * channels)
        self.conv = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.LeakyReLU(0.1), nn.Conv2d(hidden, channels, 1), nn.LeakyReLU(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class PriorBlock(nn.Module):
    """`PriorDepthConv`, then `PriorFFN`: EVC's entropy networks. ``[N, c_in, H, W] -> [N, c_out, H, W]``."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(PriorDepthConv(c_in, c_out), PriorFFN(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class PriorBlockUp(nn.Module):
    """`PriorBlock`, then a sub-pixel 1x1: ``[N, C, H, W] -> [N, C, 2H, 2W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            PriorDepthConv(channels, channels),
            PriorFFN(channels),
            nn.Conv2d(channels, 4 * channels, 1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)
