"""Blocks of DCVC (arXiv 2109.15047), with the attribute names of its published checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.nn.layers import lower_bound

PEDESTAL = 2.0**-36  # under the squares, so that their gradients do not vanish at zero
BETA_MIN = 1e-6


class PlainGDN(nn.Module):
    """Divisive normalisation over channels whose parameters are square roots: ``[N, C, H, W]``.

    Unlike CompressAI's layer it has no buffers: keys ``beta`` ``[C]`` and ``gamma`` ``[C, C]``.

    Args:
        channels: C.
        inverse: multiply by the norm instead of dividing.
    """

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter((torch.ones(channels) + PEDESTAL).sqrt())
        self.gamma = nn.Parameter((0.1 * torch.eye(channels) + PEDESTAL).sqrt())

    @staticmethod
    def beta_reparam(beta: Tensor) -> Tensor:
        """The parameter -> what the norm uses, ``[C]``."""
        return lower_bound(beta, (BETA_MIN + PEDESTAL) ** 0.5) ** 2 - PEDESTAL

    @staticmethod
    def gamma_reparam(gamma: Tensor) -> Tensor:
        """The parameter -> what the norm uses, ``[C, C]``."""
        return lower_bound(gamma, PEDESTAL**0.5) ** 2 - PEDESTAL

    def forward(self, x: Tensor) -> Tensor:
        beta, gamma = self.beta_reparam(self.beta), self.gamma_reparam(self.gamma)
        norm = F.conv2d(x**2, gamma[:, :, None, None], beta).sqrt()
        return x * norm if self.inverse else x / norm


class ReluBlock(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, plus the input: ``[N, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu2(self.conv1(self.relu1(x))))


class LeakyBlock(nn.Module):
    """3x3 and LeakyReLU(0.1), twice, plus the input: ``[N, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class MaskedConv2d(nn.Conv2d):
    """Convolution over what precedes a position row by row, its centre excluded (PixelCNN, arXiv 1606.05328).

    The buffer ``mask`` ``[C_out, C_in, K, K]`` belongs to the published state dicts. The published layer masks its
    weight when it is called and not before; here the weight is masked from the start.

    Args:
        c_in, c_out: channels.
        size: K, odd.
    """

    def __init__(self, c_in: int, c_out: int, size: int) -> None:
        super().__init__(c_in, c_out, size, padding=size // 2)
        if size % 2 == 0:
            raise UsageError(f"masked kernel of size {size} (needs an odd number)")
        mask = torch.zeros(size * size)
        mask[: size * size // 2] = 1
        self.register_buffer("mask", mask.view(size, size).expand_as(self.weight).clone())
        self.hide()

    @torch.no_grad()
    def hide(self) -> None:
        """Zeroes what the mask hides; needed after the weight was set from outside."""
        self.weight.mul_(self.mask.to(self.weight))  # integers, too

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W] -> [N, C_out, H, W]``."""
        return self._conv_forward(x, self.weight * self.mask, self.bias)
