"""What DCVC-RT keeps from one frame to the next."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsecodec.errors import UsageError

# What networks read and make of each other's, for `sparsecodec.sparsity.wiring`.
RT_WIRES = {
    "feature_adaptor_i": ((None,), ("adapted",)),
    "feature_adaptor_p": (("feature",), ("adapted",)),
    "feature_extractor": (("adapted",), ("context", "temporal")),
    "temporal_prior_encoder": (("temporal",), (None,)),
    "encoder": ((None, "context"), (None,)),
    "decoder": ((None, "context"), ("feature",)),
    "recon_generation_net": (("feature",), (None,)),
}


@dataclass(frozen=True)
class RTState:
    """The reference of the next predicted frame: exactly one of the two.

    Attributes:
        frame: ``[N, 3, H, W]`` float in [0, 1]. Picture, after a frame that stands alone or a reset.
        feature: ``[N, C, H/8, W/8]`` float. After a predicted frame: the decoder's feature, before `q_recon`.

    Raises:
        UsageError: both are given, or none.
    """

    frame: Tensor | None = None
    feature: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.frame is None) == (self.feature is None):
            raise UsageError("a state of DCVC-RT is a frame or a feature, and not both")

    def tensors(self) -> tuple[Tensor, ...]:
        """What a fingerprint is taken over."""
        return (self.reference,)

    @property
    def fields(self) -> tuple[Tensor | None, Tensor | None]:
        """Both."""
        return self.frame, self.feature

    @property
    def reference(self) -> Tensor:
        """The one that is there."""
        return self.frame if self.feature is None else self.feature

    def detach(self) -> RTState:
        """The same values without their gradients."""
        return RTState(*(None if value is None else value.detach() for value in (self.frame, self.feature)))


@dataclass
class ReferenceFrame:
    """An entry of the decoded-picture buffer, as the published scripts see it.

    Attributes:
        frame: ``[1, 3, H, W]`` in [0, 1], or None: an encoder makes no pictures.
        feature: ``[1, C, H/8, W/8]``, or None.
        poc: number of the frame.
    """

    frame: Tensor | None
    feature: Tensor | None
    poc: int
