"""Quality of pictures, and what one codec saves against another."""

from sparsecodec.metrics.anchors import ANCHORS, Anchor
from sparsecodec.metrics.bjontegaard_delta import bd_psnr, bd_rate
from sparsecodec.metrics.evaluation import evaluate
from sparsecodec.metrics.quality import MS_SSIM_MIN_SIDE, ms_ssim, psnr, why_no_ms_ssim

__all__ = [
    "ANCHORS",
    "MS_SSIM_MIN_SIDE",
    "Anchor",
    "bd_psnr",
    "bd_rate",
    "evaluate",
    "ms_ssim",
    "psnr",
    "why_no_ms_ssim",
]
