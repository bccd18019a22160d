"""Codecs as plain `nn.Module`s: trainable, and able to code real bytes on their own."""

from sparsecodec.models.evc import EVC, EVC_WIDTHS
from sparsecodec.models.registry import create, names
from sparsecodec.models.scalable import ScalableEVC
from sparsecodec.models.video import VideoCodec

__all__ = ["EVC", "EVC_WIDTHS", "ScalableEVC", "VideoCodec", "create", "names"]
