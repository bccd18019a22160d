"""Blocks and networks of DCVC-HEM (arXiv 2207.05894), with the attribute names of its published checkpoints.

Every network is a plain function of its inputs: warping, coding and the state between frames stand outside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsecodec.nn.layers import ResidualBlockStride2, ResidualBlockUpsample, subpel_conv1x1

UNET_WIDTHS = (32, 64, 128)  # at full, half and quarter resolution of the net's input
SQUEEZE = 16  # channels per channel of a squeeze-and-excitation's middle


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1)


def subpel_conv3x3(c_in: int, c_out: int, factor: int) -> nn.Sequential:
    """3x3 conv to ``c_out * factor**2`` channels, then PixelShuffle: ``[N, c_in, H, W] -> [N, c_out, fH, fW]``."""
    return nn.Sequential(conv3x3(c_in, c_out * factor**2), nn.PixelShuffle(factor))


class ResidualBlock(nn.Module):
    """Two 3x3 convs, each followed by LeakyReLU(0.01), plus the input: ``[N, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.leaky_relu = nn.LeakyReLU(0.01)
        self.conv2 = conv3x3(channels, channels)
        self.leaky_relu2 = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leaky_relu2(self.conv2(self.leaky_relu(self.conv1(x))))


class ActivatedBlock(nn.Module):
    """LeakyReLU, 3x3 conv, LeakyReLU, 3x3 conv, plus the input: ``[N, C, H, W]``.

    Args:
        channels: C.
        slope: of both activations; 0 = ReLU.
    """

    def __init__(self, channels: int, slope: float = 0.01) -> None:
        super().__init__()
        self.before1 = nn.LeakyReLU(slope) if slope else nn.ReLU()
        self.conv1 = conv3x3(channels, channels)
        self.before2 = nn.LeakyReLU(slope) if slope else nn.ReLU()
        self.conv2 = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.before2(self.conv1(self.before1(x))))


class BottleneckBlock(nn.Module):
    """As `ActivatedBlock` with slope 0.1, C/2 channels in the middle and a third activation before the addition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before1 = nn.LeakyReLU(0.1)
        self.conv1 = conv3x3(channels, channels // 2)
        self.before2 = nn.LeakyReLU(0.1)
        self.conv2 = conv3x3(channels // 2, channels)
        self.after = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.after(self.conv2(self.before2(self.conv1(self.before1(x)))))


class SqueezeExcite(nn.Module):
    """Channels weighted by what the mean of all of them says: ``[N, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle = max(channels // SQUEEZE, 1)
        self.fc = nn.Sequential(
            nn.Linear(channels, middle, bias=False), nn.ReLU(), nn.Linear(middle, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((-1, -2)))[:, :, None, None]


class ExcitedBlock(nn.Module):
    """3x3, LeakyReLU(0.01), 3x3 and `SqueezeExcite` beside a 1x1 skip: ``[N, c_in, H, W] -> [N, c_out, H, W]``."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv3x3(c_in, c_out), nn.LeakyReLU(0.01), conv3x3(c_out, c_out), SqueezeExcite(c_out))
        self.up_dim = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up_dim(x) + self.conv(x)


class UNet(nn.Module):
    """Two levels down by max-pooling and up again by sub-pixel convs: ``[N, c_in, H, W] -> [N, c_out, H, W]``.

    Args:
        c_in, c_out: channels.
        widths: channels at 1/1, 1/2 and 1/4.
    """

    def __init__(self, c_in: int, c_out: int, widths: Sequence[int] = UNET_WIDTHS) -> None:
        super().__init__()
        a, b, c = widths
        self.max_pool = nn.MaxPool2d(2)
        self.conv1 = ExcitedBlock(c_in, a)
        self.conv2 = ExcitedBlock(a, b)
        self.conv3 = ExcitedBlock(b, c)
        self.context_refine = nn.Sequential(*(ActivatedBlock(c, 0) for _ in range(4)))
        self.up3 = subpel_conv1x1(c, b, 2)
        self.up_conv3 = ExcitedBlock(2 * b, b)
        self.up2 = subpel_conv1x1(b, a, 2)
        self.up_conv2 = ExcitedBlock(2 * a, c_out)

    def forward(self, x: Tensor) -> Tensor:
        full = self.conv1(x)
        half = self.conv2(self.max_pool(full))
        quarter = self.context_refine(self.conv3(self.max_pool(half)))
        half = self.up_conv3(torch.cat([half, self.up3(quarter)], 1))
        return self.up_conv2(torch.cat([full, self.up2(half)], 1))


# --- sequences ----------------------------------------------------------------------------------------------------


def strided_encoder(c_in: int, channels: int, c_out: int) -> nn.Sequential:
    """``[N, c_in, H, W] -> [N, c_out, H/16, W/16]``, C channels inside."""
    return nn.Sequential(
        ResidualBlockStride2(c_in, channels),
        ResidualBlock(channels),
        ResidualBlockStride2(channels, channels),
        ResidualBlock(channels),
        ResidualBlockStride2(channels, channels),
        ResidualBlock(channels),
        conv3x3(channels, c_out, 2),
    )


def subpel_decoder(c_in: int, channels: int, c_out: int) -> nn.Sequential:
    """``[N, c_in, H, W] -> [N, c_out, 16H, 16W]``, C channels inside."""
    return nn.Sequential(
        ResidualBlock(c_in),
        ResidualBlockUpsample(c_in, channels),
        ResidualBlock(channels),
        ResidualBlockUpsample(channels, channels),
        ResidualBlock(channels),
        ResidualBlockUpsample(channels, channels),
        ResidualBlock(channels),
        subpel_conv1x1(channels, c_out, 2),
    )


def hyper_encoder(c_in: int, channels: int) -> nn.Sequential:
    """Five convs: ``[N, c_in, H, W] -> [N, C, H/4, W/4]``."""
    return nn.Sequential(
        conv3x3(c_in, channels),
        nn.LeakyReLU(0.01),
        conv3x3(channels, channels),
        nn.LeakyReLU(0.01),
        conv3x3(channels, channels, 2),
        nn.LeakyReLU(0.01),
        conv3x3(channels, channels),
        nn.LeakyReLU(0.01),
        conv3x3(channels, channels, 2),
    )


def short_hyper_encoder(c_in: int, channels: int) -> nn.Sequential:
    """Three convs: ``[N, c_in, H, W] -> [N, C, H/4, W/4]``."""
    return nn.Sequential(
        conv3x3(c_in, channels),
        nn.LeakyReLU(0.01),
        conv3x3(channels, channels, 2),
        nn.LeakyReLU(0.01),
        conv3x3(channels, channels, 2),
    )


def hyper_decoder(c_in: int, channels: int) -> nn.Sequential:
    """``[N, c_in, H, W] -> [N, 2C, 4H, 4W]`` for a latent of C channels."""
    wide = channels * 3 // 2
    return nn.Sequential(
        conv3x3(c_in, channels),
        nn.LeakyReLU(0.01),
        subpel_conv1x1(channels, channels, 2),
        nn.LeakyReLU(0.01),
        conv3x3(channels, wide),
        nn.LeakyReLU(0.01),
        subpel_conv1x1(wide, wide, 2),
        nn.LeakyReLU(0.01),
        conv3x3(wide, 2 * channels),
    )


def prior_network(*channels: int) -> nn.Sequential:
    """Three 3x3 convs through these four numbers of channels, LeakyReLU(0.2) between."""
    a, b, c, d = channels
    return nn.Sequential(conv3x3(a, b), nn.LeakyReLU(0.2), conv3x3(b, c), nn.LeakyReLU(0.2), conv3x3(c, d))


# --- networks of predicted frames -----------------------------------------------------------------------------------


class FeatureExtractor(nn.Module):
    """``[N, C, H, W]`` -> features at 1/1, 1/2 and 1/4, C channels each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.res_block1 = ActivatedBlock(channels)
        self.conv2 = conv3x3(channels, channels, 2)
        self.res_block2 = ActivatedBlock(channels)
        self.conv3 = conv3x3(channels, channels, 2)
        self.res_block3 = ActivatedBlock(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        full = self.res_block1(self.conv1(x))
        half = self.res_block2(self.conv2(full))
        return full, half, self.res_block3(self.conv3(half))


class ContextFusion(nn.Module):
    """Warped features at three scales to contexts of the same shapes; coarse ones inform finer ones."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3_up = subpel_conv3x3(channels, channels, 2)
        self.res_block3_up = ActivatedBlock(channels)
        self.conv3_out = conv3x3(channels, channels)
        self.res_block3_out = ActivatedBlock(channels)
        self.conv2_up = subpel_conv3x3(2 * channels, channels, 2)
        self.res_block2_up = ActivatedBlock(channels)
        self.conv2_out = conv3x3(2 * channels, channels)
        self.res_block2_out = ActivatedBlock(channels)
        self.conv1_out = conv3x3(2 * channels, channels)
        self.res_block1_out = ActivatedBlock(channels)

    def forward(self, full: Tensor, half: Tensor, quarter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[N, C, H, W]``, ``[N, C, H/2, W/2]``, ``[N, C, H/4, W/4]`` -> the same."""
        up = torch.cat([self.res_block3_up(self.conv3_up(quarter)), half], 1)
        upper = torch.cat([self.res_block2_up(self.conv2_up(up)), full], 1)
        return (
            full + self.res_block1_out(self.conv1_out(upper)),
            half + self.res_block2_out(self.conv2_out(up)),
            quarter + self.res_block3_out(self.conv3_out(quarter)),
        )


class ContextualEncoder(nn.Module):
    """A frame and its contexts at 1/1, 1/2, 1/4 -> latent ``[N, M, H/16, W/16]``."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels + 3, channels, 2)
        self.res1 = BottleneckBlock(2 * channels)
        self.conv2 = conv3x3(2 * channels, channels, 2)
        self.res2 = BottleneckBlock(2 * channels)
        self.conv3 = conv3x3(2 * channels, channels, 2)
        self.conv4 = conv3x3(channels, latent, 2)

    def forward(self, x: Tensor, full: Tensor, half: Tensor, quarter: Tensor) -> Tensor:
        y = self.res1(torch.cat([self.conv1(torch.cat([x, full], 1)), half], 1))
        y = self.res2(torch.cat([self.conv2(y), quarter], 1))
        return self.conv4(self.conv3(y))


class ContextualDecoder(nn.Module):
    """A latent ``[N, M, H/16, W/16]`` and the contexts at 1/2, 1/4 -> features ``[N, c_out, H, W]``."""

    def __init__(self, channels: int, latent: int, c_out: int) -> None:
        super().__init__()
        self.up1 = subpel_conv3x3(latent, channels, 2)
        self.up2 = subpel_conv3x3(channels, channels, 2)
        self.res1 = BottleneckBlock(2 * channels)
        self.up3 = subpel_conv3x3(2 * channels, channels, 2)
        self.res2 = BottleneckBlock(2 * channels)
        self.up4 = subpel_conv3x3(2 * channels, c_out, 2)

    def forward(self, y_hat: Tensor, half: Tensor, quarter: Tensor) -> Tensor:
        x = self.res1(torch.cat([self.up2(self.up1(y_hat)), quarter], 1))
        x = self.res2(torch.cat([self.up3(x), half], 1))
        return self.up4(x)


class FrameGenerator(nn.Module):
    """Decoded features ``[N, c_in, H, W]`` and the context at 1/1 -> (feature for the next frame, frame).

    Args:
        c_in: channels of the decoded features.
        channels: of the context and of the feature.
        unet: widths of both `UNet`s.
    """

    def __init__(self, c_in: int, channels: int, unet: Sequence[int] = UNET_WIDTHS) -> None:
        super().__init__()
        self.first_conv = conv3x3(c_in + channels, channels)
        self.unet_1 = UNet(channels, channels, unet)
        self.unet_2 = UNet(channels, channels, unet)
        self.recon_conv = conv3x3(channels, 3)

    def forward(self, decoded: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
        feature = self.unet_2(self.unet_1(self.first_conv(torch.cat([decoded, full], 1))))
        return feature, self.recon_conv(feature)
