"""A video codec: one model for the frames that stand alone, one for those that are predicted."""

from __future__ import annotations

from torch import nn


class VideoCodec(nn.Module):
    """Both models of a video codec, so that they are saved, hashed and compiled as one.

    Args:
        intra: codes a frame alone, as ``dcvc-rt-image``.
        inter: codes a frame from what it knows of those before it, as ``dcvc-rt-video``.
    """

    family = "video"

    def __init__(self, intra: nn.Module, inter: nn.Module) -> None:
        super().__init__()
        self.intra = intra
        self.inter = inter
