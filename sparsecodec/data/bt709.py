"""Y'CbCr of ITU-R BT.709 in full range, as codecs of the DCVC family take it: 4:4:4 in [0, 1], chroma around 0.5."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

OF_RED, OF_BLUE = 0.2126, 0.0722
PLANE_WEIGHTS = (6 / 8, 1 / 8, 1 / 8)  # of Y, Cb, Cr in what is called PSNR-YUV 6:1:1


def rgb_to_ycbcr(x: Tensor) -> Tensor:
    """R'G'B' -> Y'CbCr.

    Args:
        x: ``[..., 3, H, W]`` floating point in [0, 1].

    Returns:
        same shape and dtype: Y in [0, 1], Cb and Cr in [0, 1] with 0.5 for grey.
    """
    red, green, blue = x.unbind(-3)
    luma = OF_RED * red + (1 - OF_RED - OF_BLUE) * green + OF_BLUE * blue
    return torch.stack([luma, (blue - luma) / (2 - 2 * OF_BLUE) + 0.5, (red - luma) / (2 - 2 * OF_RED) + 0.5], -3)


def ycbcr_to_rgb(x: Tensor) -> Tensor:
    """The inverse of `rgb_to_ycbcr`; not clipped."""
    luma, cb, cr = x.unbind(-3)
    red, blue = luma + (2 - 2 * OF_RED) * (cr - 0.5), luma + (2 - 2 * OF_BLUE) * (cb - 0.5)
    return torch.stack([red, (luma - OF_RED * red - OF_BLUE * blue) / (1 - OF_RED - OF_BLUE), blue], -3)


def halved_chroma(x: Tensor) -> Tensor:
    """Y'CbCr with the chroma of 4:2:0: each 2 x 2 block of Cb and of Cr becomes its mean.

    Args:
        x: ``[N, 3, H, W]``, H and W even.
    """
    chroma = F.avg_pool2d(x[:, 1:], 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
    return torch.cat([x[:, :1], chroma], 1)


def yuv_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """``[N]`` mean squared error of ``[N, 3, H, W]`` Y'CbCr, planes weighted 6:1:1."""
    weights = torch.tensor(PLANE_WEIGHTS, device=x.device, dtype=x.dtype)
    return ((x_hat - x).square().mean((2, 3)) * weights).sum(1)
