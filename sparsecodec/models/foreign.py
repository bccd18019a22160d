"""Models of other packages as ours: recognised by the keys and shapes of their state dicts, and by nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc import DCVC
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo
from sparsecodec.models.dcvc_rt_image import DCVCRTImage
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo
from sparsecodec.models.evc import EVC
from sparsecodec.models.scalable import ScalableEVC
from sparsecodec.models.video import VideoCodec


class Family(Protocol):
    """A class of ours that stands for foreign models.

    Attributes:
        family: its name.
        SIGNATURE: keys that every model of the family has, and no model of another one has all of.
    """

    family: str
    SIGNATURE: tuple[str, ...]

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> nn.Module:
        """A model of the widths and with the weights of `state`, in eval mode."""

    def adopt(self, foreign: nn.Module) -> None:
        """Takes over what decides about streams and is not in a state dict."""


FAMILIES: tuple[type[Family], ...] = (DCVCRTImage, DCVCRTVideo, DCVCHEMImage, DCVCHEMVideo, DCVC, EVC, ScalableEVC)


def is_foreign(module: nn.Module) -> bool:
    """Whether `from_foreign` would make another model of this one."""
    if isinstance(module, VideoCodec):
        return is_foreign(module.intra) or is_foreign(module.inter)
    return not isinstance(module, FAMILIES) and recognised(module.state_dict()) is not None


def from_foreign(module: nn.Module) -> nn.Module:
    """A model of ours that computes what `module` computes and reads and writes its streams.

    Args:
        module: an object of the family's published software (or of a copy of it), whole or pruned; one that is ours
            already is returned as it is, a `VideoCodec` with those of its models converted that are not. Not changed;
            weights are copied, and so are the settings that streams depend on: thresholds, and coding tables if it has
            computed them.

    Returns:
        In eval mode, in the dtype and on the device of the weights.

    Raises:
        UsageError: its keys belong to no family that is known here, or its shapes do not fit together.
    """
    if isinstance(module, FAMILIES):
        return module
    if isinstance(module, VideoCodec):
        return VideoCodec(*(from_foreign(half) if is_foreign(half) else half for half in (module.intra, module.inter)))
    state = module.state_dict()
    family = recognised(state)
    if family is None:
        known = ", ".join(cls.family for cls in FAMILIES)
        raise UsageError(
            f"{type(module).__name__} with {len(state)} keys ({', '.join(list(state)[:3])}, ...) belongs to no known "
            f"family ({known})"
        )
    model = family.from_state_dict(state)
    model.adopt(module)
    return model


def recognised(state: Mapping[str, Tensor]) -> type[Family] | None:
    """The class of ours for models with the keys of `state`; None if there is none."""
    return next((family for family in FAMILIES if all(key in state for key in family.SIGNATURE)), None)
