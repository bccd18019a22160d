"""Codecs as plain `nn.Module`s: trainable, and able to code real bytes on their own."""

from sparsecodec.models.dcvc import DCVC, DCVC_WIDTHS
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.models.evc import EVC, EVC_WIDTHS
from sparsecodec.models.fvc import FVC, FVC_WIDTHS
from sparsecodec.models.registry import create, names
from sparsecodec.models.scalable import ScalableEVC
from sparsecodec.models.video import VideoCodec

__all__ = [
    "DCVC",
    "DCVC_WIDTHS",
    "DCVCHEMImage",
    "DCVCHEMVideo",
    "DCVCRTImage",
    "DCVCRTVideo",
    "EVC",
    "EVC_WIDTHS",
    "FVC",
    "FVC_WIDTHS",
    "RTImageWidths",
    "RTVideoWidths",
    "ScalableEVC",
    "VideoCodec",
    "create",
    "names",
]
