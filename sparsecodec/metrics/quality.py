"""How close two pictures are, on the 8-bit values that a file would hold."""

from __future__ import annotations

import importlib.util
import math

from torch import Tensor

from sparsecodec.errors import UsageError

MS_SSIM_MIN_SIDE = 161  # five scales of an 11-pixel window


def why_no_ms_ssim(x: Tensor) -> str | None:
    """None if `ms_ssim` can measure pictures like `x`, else the sentence that says why not."""
    if importlib.util.find_spec("pytorch_msssim") is None:
        return "MS-SSIM needs the extra sparsecodec[metrics]"
    if min(x.shape[2:]) < MS_SSIM_MIN_SIDE:
        height, width = x.shape[2:]
        return f"MS-SSIM of a picture of {height} x {width} (needs {MS_SSIM_MIN_SIDE} at least)"
    return None


def psnr(x: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio over all samples, dB; infinite for equal pictures.

    Args:
        x: ``[N, 3, H, W]`` floating point in [0, 1].
        reference: same shape.
    """
    x, reference = _eight_bits(x, reference)
    mse = (x - reference).double().square().mean().item()
    return math.inf if mse == 0 else 20 * math.log10(255) - 10 * math.log10(mse)


def ms_ssim(x: Tensor, reference: Tensor) -> float:
    """Multi-scale structural similarity, the mean over the pictures, in [0, 1].

    Args:
        x: ``[N, 3, H, W]`` floating point in [0, 1], H and W at least `MS_SSIM_MIN_SIDE`.
        reference: same shape.

    Raises:
        UsageError: too small, or the extra ``[metrics]`` is not installed.
    """
    x, reference = _eight_bits(x, reference)
    reason = why_no_ms_ssim(x)
    if reason is not None:
        raise UsageError(reason)
    from pytorch_msssim import ms_ssim as measure  # optional

    return measure(x, reference, data_range=255).item()


def _eight_bits(*pictures: Tensor) -> list[Tensor]:
    shapes = [tuple(picture.shape) for picture in pictures]
    if len(set(shapes)) != 1 or len(shapes[0]) != 4:
        raise UsageError(f"pictures {shapes[0]} and {shapes[1]} (need one shape [N, 3, H, W])")
    return [picture.float().mul(255).round().clamp(0, 255) for picture in pictures]
