"""DCVC-DC and DCVC-FM: their own code on compiled networks and on our coder (arXiv 2302.14402, 2402.17414)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from sparsecodec.entropy import dropin
from sparsecodec.errors import UsageError
from sparsecodec.runtime.adapters.alignment import alignment
from sparsecodec.runtime.foreign_object import CALLS, ForeignCodec

_INTRA_NETWORKS = ("enc", "hyper_enc", "hyper_dec", "y_prior_fusion", "y_spatial_prior", "dec", "refine")
_INTER_NETWORKS = (
    *("optic_flow", "align", "mv_encoder", "mv_decoder", "feature_extractor", "context_fusion_net"),
    *("contextual_encoder", "contextual_decoder", "temporal_prior_encoder", "recon_generation_net"),
    *("bit_estimator_z_mv", "mv_y_prior_fusion", "mv_y_spatial_prior", "y_prior_fusion", "y_spatial_prior"),
)
_INTRA_TRANSFORMS = ("enc", "hyper_enc", "dec", "refine.0")
_INTER_TRANSFORMS = (
    *("mv_encoder", "mv_hyper_prior_encoder", "feature_adaptor_I", "feature_adaptor", "feature_extractor"),
    *("context_fusion_net", "contextual_encoder", "contextual_hyper_prior_encoder", "contextual_decoder"),
    *(f"recon_generation_net.{part}" for part in ("first_conv", "unet_1", "unet_2")),
)


class _OnOurCoder(ForeignCodec):
    """An object whose class imports a compiled coder: it gets ours.

    Attributes:
        FAMILY: of `dropin.FAMILIES`.
        SIGNATURE: keys that tell it from the other families.
    """

    FAMILY: ClassVar[str]
    SIGNATURE: ClassVar[tuple[str, ...]]
    LAYOUT: ClassVar = torch.channels_last

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        state = model.state_dict()
        if "bit_estimator_z.f1.h" not in state or not all(key in state for key in cls.SIGNATURE):
            return False
        lacking = [name for name in (*CALLS, "update") if not callable(getattr(model, name, None))]
        if lacking:
            raise UsageError(f"{type(model).__name__} is like a {cls.__name__}, but has no method {', '.join(lacking)}")
        return True

    def update(self, *args: Any, **options: Any) -> Any:
        """As the object's own: computes the coding tables; on our coder, whether another is installed or none."""
        module = type(self.gaussian_encoder).__module__  # their coder is imported beside the tables' class
        with dropin.standing_in(self.FAMILY, module.rpartition(".")[0]):
            return super().update(*args, **options)


class DCImageObject(_OnOurCoder):
    """DCVC-DC's image model (there `IntraNoAR`)."""

    FAMILY = "dc"
    SIGNATURE = ("q_basic_enc", "q_scale_enc", "y_spatial_prior_adaptor_3.weight")
    NEEDS = ("q_basic_dec", "q_scale_dec", *_INTRA_NETWORKS)
    TRANSFORMS = _INTRA_TRANSFORMS


class DCVideoObject(_OnOurCoder):
    """DCVC-DC's video model (there `DMC`)."""

    FAMILY = "dc"
    TWINS = (alignment,)
    SIGNATURE = ("y_q_basic_enc", "mv_y_q_basic_enc")
    NEEDS = ("y_q_basic_dec", "mv_y_q_basic_dec", *_INTER_NETWORKS)
    TRANSFORMS = _INTER_TRANSFORMS


class FMImageObject(_OnOurCoder):
    """DCVC-FM's image model (there `DMCI`)."""

    FAMILY = "fm"
    SIGNATURE = ("q_scale_enc", "y_spatial_prior_reduction.weight", "refine.0.down1.weight")
    NEEDS = ("q_scale_dec", *_INTRA_NETWORKS)
    TRANSFORMS = _INTRA_TRANSFORMS


class FMVideoObject(_OnOurCoder):
    """DCVC-FM's video model (there `DMC`)."""

    FAMILY = "fm"
    TWINS = (alignment,)
    SIGNATURE = ("y_q_enc", "mv_y_q_enc")
    NEEDS = ("y_q_dec", "mv_y_q_dec", *_INTER_NETWORKS)
    TRANSFORMS = _INTER_TRANSFORMS
