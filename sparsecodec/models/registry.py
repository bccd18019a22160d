"""Codecs by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc import DCVC
from sparsecodec.models.dcvc_hem_image import HEM_IMAGE_TINY, DCVCHEMImage
from sparsecodec.models.dcvc_hem_video import HEM_VIDEO_TINY, DCVCHEMVideo
from sparsecodec.models.dcvc_rt_image import RT_IMAGE_TINY, DCVCRTImage
from sparsecodec.models.dcvc_rt_video import RT_VIDEO_TINY, DCVCRTVideo
from sparsecodec.models.evc import EVC, EVC_WIDTHS
from sparsecodec.models.fvc import FVC
from sparsecodec.models.scalable import ScalableEVC
from sparsecodec.models.video import VideoCodec

_SIZES = [size for size in EVC_WIDTHS if len(size) == 1]
_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    **{f"evc-{size}": partial(EVC, size, size) for size in EVC_WIDTHS if len(size) > 1},
    **{f"evc-{e}{d}": partial(EVC, e, d) for e in _SIZES for d in _SIZES},
    "scale-evc-tiny": partial(ScalableEVC, "tiny-s", "tiny"),
    "scale-evc-ss": partial(ScalableEVC, "s", "s"),
    "scale-evc-sl": partial(ScalableEVC, "s", "l"),
    "dcvc": DCVC,
    "dcvc-tiny": lambda: VideoCodec(EVC("tiny", "tiny"), DCVC("tiny")),
    "fvc": FVC,
    "fvc-tiny": lambda: VideoCodec(EVC("tiny", "tiny"), FVC("tiny")),
    "dcvc-hem-image": DCVCHEMImage,
    "dcvc-hem-video": DCVCHEMVideo,
    "dcvc-hem-tiny": lambda: VideoCodec(DCVCHEMImage(HEM_IMAGE_TINY), DCVCHEMVideo(HEM_VIDEO_TINY)),
    "dcvc-rt-image": DCVCRTImage,
    "dcvc-rt-video": DCVCRTVideo,
    "dcvc-rt-tiny": lambda: VideoCodec(DCVCRTImage(RT_IMAGE_TINY), DCVCRTVideo(RT_VIDEO_TINY)),
}


def names() -> list[str]:
    """What `create` takes.

    ``evc-XY``, encoder X and decoder Y out of l, m, s; presets of ours, as ``evc-tiny``; ``scale-evc-...`` with several
    encoders; ``dcvc-rt-image`` and ``dcvc-rt-video`` with the published widths, ``dcvc-rt-tiny``, both of ours as one;
    the same three of ``dcvc-hem``; ``dcvc`` and ``fvc``, which have no intra model of their own, and
    ``dcvc-tiny`` and ``fvc-tiny`` with ``evc-tiny`` for one.
    """
    return list(_BUILDERS)


def create(name: str) -> nn.Module:
    """A codec with random weights.

    Args:
        name: one of `names()`, for example ``"evc-ll"``.

    Raises:
        UsageError: no such name.
    """
    if name not in _BUILDERS:
        raise UsageError(f"model {name!r} does not exist; there are {', '.join(names())}")
    return _BUILDERS[name]()
