"""Quality of pictures, and what one codec saves against another."""

from sparsecodec.metrics.anchors import ANCHORS, Anchor
from sparsecodec.metrics.bjontegaard_delta import bd_psnr, bd_rate
from sparsecodec.metrics.clip_anchors import CLIP_ANCHORS, ClipAnchor
from sparsecodec.metrics.clips import evaluate_clips, yuv_psnr
from sparsecodec.metrics.evaluation import evaluate
from sparsecodec.metrics.quality import MS_SSIM_MIN_SIDE, ms_ssim, psnr, why_no_ms_ssim

__all__ = [
    "ANCHORS",
    "CLIP_ANCHORS",
    "MS_SSIM_MIN_SIDE",
    "Anchor",
    "ClipAnchor",
    "bd_psnr",
    "bd_rate",
    "evaluate",
    "evaluate_clips",
    "ms_ssim",
    "psnr",
    "why_no_ms_ssim",
    "yuv_psnr",
]
