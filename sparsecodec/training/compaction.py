"""From a masked codec to the compact one, which is the same function."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparsecodec.errors import GraphError
from sparsecodec.sparsity import ChannelGraph, ChannelMasks, compact, compact_config, masked
from sparsecodec.training import distributed
from sparsecodec.training.families import family_of

# Relative. Sums in another order change 1e-6; a latent that then rounds to the other side moves on through the frames
# of a video codec, which made 0.07 of one cut at random; another channel than the masked one, 0.5 to 1.6.
TOLERANCE = 0.2


@torch.no_grad()
def compacted(model: nn.Module, masks: ChannelMasks, graph: ChannelGraph, x: Tensor) -> nn.Module:
    """`model` without the channels that `masks` drop, after it was seen to code `x` as the masked one does.

    Args:
        model: that `graph` was traced from; not modified.
        x: calibration pictures, ``[N, 3, H, W]``, or clips, ``[N, T, 3, H, W]``, float32 in [0, 1].

    Returns:
        The compact codec, with its ``compact_config`` as an attribute.

    Raises:
        GraphError: it codes them otherwise: the channel graph reads this codec wrongly.
    """
    with masked(model, masks, graph):
        expected = _coded(model, x)
    small = compact(model, masks, graph)
    small.compact_config = compact_config(masks, graph)
    errors = [_distance(*pair) for pair in zip(_coded(small, x), expected, strict=True)]
    if any(error > TOLERANCE for error in errors):
        raise GraphError(
            f"the compact codec is not the masked one: pictures differ by {errors[0]:.2g}, rates by {errors[1]:.2g} "
            f"(needs at most {TOLERANCE}): the channel graph reads {type(model).__name__} wrongly"
        )
    if distributed.rank() == 0:
        tqdm.write("compact and masked codec: pictures differ by {:.1e}, rates by {:.1e}".format(*errors), sys.stderr)
    return small


def _coded(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures less their mean, and bits per pixel, at the middle rate; the training mode of `model` is restored."""
    family, training = family_of(model), model.training
    model.eval()
    try:
        out, _ = family.forward(model, x, len(family.lambdas or (0,)) // 2)
    finally:
        model.train(training)
    return out["x_hat"] - out["x_hat"].mean(), out["bpp"]


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-6))  # NaN where both overflow
