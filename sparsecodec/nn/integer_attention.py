"""Attention to a patch on integers: what `sparsecodec.nn.fvc_layers.PatchAttention` computes in floats."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from sparsecodec.nn.integer_functions import exponential_table

WEIGHT_BITS = 15  # of a weight's fraction
SCORE_EXPONENT = -11  # of differences of scores; those of 32 and more weigh nothing


@functools.lru_cache(maxsize=8)
def _exponentials(device: torch.device) -> Tensor:
    return exponential_table(SCORE_EXPONENT).to(device)


def attended(source: Tensor, scores: Tensor, size: int) -> Tensor:
    """The sum of the patch around each position, weighed by a softmax of its scores (docs/portable.md, section 8).

    Args:
        source: ``[1, C, H, W]`` int16, H and W not 0; repeated at the borders.
        scores: ``[1, 1, H, W]`` fixed-point, of each of its positions.
        size: side of the patch, odd.

    Returns:
        As `source`, of its exponent, channels_last.
    """
    height, width = source.shape[2:]
    rows, columns = (
        (torch.arange(side + size - 1, device=source.device) - size // 2).clamp(0, side - 1) for side in (height, width)
    )
    places = [(slice(i, i + height), slice(j, j + width)) for i in range(size) for j in range(size)]
    around = scores.long()[:, :, rows][..., columns]
    near = torch.cat([around[:, :, i, j] for i, j in places], 1)
    shift = 16 + SCORE_EXPONENT
    below = (near.amax(1, keepdim=True) - near + (1 << (shift - 1))) >> shift
    parts = _exponentials(source.device)[below.clamp_(max=2**16 - 1)]
    total = parts.sum(1, keepdim=True)
    weights = torch.div((parts << (WEIGHT_BITS + 1)) + total, 2 * total, rounding_mode="floor").to(torch.int32)
    padded = source.to(torch.int32)[:, :, rows][..., columns].contiguous(memory_format=torch.channels_last)
    result = torch.full_like(padded[:, :, :height, :width], 1 << (WEIGHT_BITS - 1))
    for k, (i, j) in enumerate(places):
        result.addcmul_(padded[:, :, i, j], weights[:, k : k + 1])
    result = (result >> WEIGHT_BITS).clamp_(-(2**15), 2**15 - 1)
    return result.to(torch.int16).contiguous(memory_format=torch.channels_last)
