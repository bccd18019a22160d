"""Entropy tables that CompressAI's codecs keep as buffers: training moves the weights and leaves the tables behind."""

from __future__ import annotations

import torch
from torch import nn

from sparsecodec.models.description import COMPRESSAI


@torch.no_grad()
def refresh_tables(model: nn.Module) -> None:
    """Makes the tables of every CompressAI codec in `model`, itself or an intra model, again from its weights.

    Those of Gaussians follow from their scales alone and stay. So does a portable codec, which codes by the integers
    that it stores.

    Args:
        model: any codec; changed in place.
    """
    for codec in model.modules():
        if type(codec).__name__ not in COMPRESSAI or not type(codec).__module__.startswith("compressai."):
            continue
        if not hasattr(codec, "portable"):
            codec.entropy_bottleneck.update(force=True)
            codec.update()  # of what has no tables yet
