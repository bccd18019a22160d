"""What it takes to build a codec's architecture again, as JSON-able values: ours, and CompressAI's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sparsecodec._compat import import_compressai
from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc import DCVC
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo
from sparsecodec.models.dcvc_rt_image import DCVCRTImage
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo
from sparsecodec.models.evc import EVC
from sparsecodec.models.fvc import FVC
from sparsecodec.models.scalable import ScalableEVC
from sparsecodec.models.video import VideoCodec

_CODECS = (EVC, ScalableEVC, DCVCRTImage, DCVCRTVideo, DCVCHEMImage, DCVCHEMVideo, DCVC, FVC)
OURS = {cls.family: cls for cls in _CODECS}  # each has `config` and `from_config`
COMPRESSAI = {  # class -> the arguments of its constructor, which it keeps as attributes
    "FactorizedPrior": ("N", "M"),
    "FactorizedPriorReLU": ("N", "M"),
    "ScaleHyperprior": ("N", "M"),
    "MeanScaleHyperprior": ("N", "M"),
    "JointAutoregressiveHierarchicalPriors": ("N", "M"),
    "ScaleHyperpriorVbr": ("N", "M", "vr_entbttlnck"),
    "MeanScaleHyperpriorVbr": ("N", "M", "vr_entbttlnck"),
    "JointAutoregressiveHierarchicalPriorsVbr": ("N", "M"),
    "Cheng2020Anchor": ("N",),
    "Cheng2020Attention": ("N",),
}
FLAG = "no_quantoffset"  # of codecs of variable rate, set on the model: symbols are taken as they are


def describe(model: nn.Module) -> dict[str, Any]:
    """The architecture of a codec before any pruning.

    Raises:
        UsageError: the model belongs to no family that can be described.
    """
    if isinstance(model, VideoCodec):
        return {"family": "video", "intra": describe(model.intra), "inter": describe(model.inter)}
    if isinstance(model, tuple(OURS.values())):
        return model.config
    name = type(model).__name__
    if name in COMPRESSAI and type(model).__module__.startswith("compressai."):
        flags = {FLAG: True} if getattr(model, FLAG, False) else {}
        arguments = {key: getattr(model, key) for key in COMPRESSAI[name]}
        return {"family": "compressai", "class": name, **arguments, **flags}
    known = ", ".join((*(cls.__name__ for cls in OURS.values()), "VideoCodec"))
    raise UsageError(f"{name} is no codec that can be described ({known}, or CompressAI's {', '.join(COMPRESSAI)})")


def from_description(description: Mapping[str, Any]) -> nn.Module:
    """The architecture that `describe` saw, with random weights.

    Raises:
        UsageError: the description is incomplete or of an unknown family.
    """
    family = description.get("family")
    try:
        if family == "video":
            return VideoCodec(from_description(description["intra"]), from_description(description["inter"]))
        if family in OURS:
            return OURS[family].from_config(description)
        if family == "compressai":
            name = description["class"]
            arguments = {key: description[key] for key in COMPRESSAI[name]}
            model = getattr(import_compressai().models, name)(**arguments)
            if hasattr(model, FLAG):
                setattr(model, FLAG, bool(description.get(FLAG)))
            return model
    except (KeyError, TypeError) as error:
        raise UsageError(f"architecture {dict(description)} cannot be built: {error}") from error
    raise UsageError(f"architecture of family {family!r} (known: {', '.join((*OURS, 'video', 'compressai'))})")
