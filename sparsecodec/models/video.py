"""A video codec: one model for the frames that stand alone, one for those that are predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """As torch's, each half by its own method: CompressAI's makes room for coding tables first."""
        options = {"strict": strict} | ({"assign": True} if assign else {})  # CompressAI's takes no `assign`
        missing, unexpected = [], []
        for name, half in self.named_children():
            prefix = f"{name}."
            own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
            result = half.load_state_dict(own, **options)
            missing += [f"{name}.{key}" for key in result.missing_keys]
            unexpected += [f"{name}.{key}" for key in result.unexpected_keys]
        foreign = [key for key in state_dict if key.partition(".")[0] not in dict(self.named_children())]
        if strict and foreign:
            raise RuntimeError(f"Unexpected key(s) in state_dict: {', '.join(foreign)}")
        return type(result)(missing, unexpected + foreign)
