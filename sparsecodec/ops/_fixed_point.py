"""Fixed-point tensors, the values of portable streams: int32 in units of 2^-16, in [-2^30, 2^30) (docs/portable.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecodec.ops.integer_conv2d import LIMIT

FRACTION_BITS = 16
ONE = 1 << FRACTION_BITS
SYMBOL_LIMIT = LIMIT // ONE  # symbols count as those in [-limit, limit); encoders write none beyond +-(limit - 1)


def fixed_point(symbols: Tensor, means: Tensor | None = None) -> Tensor:
    """``symbols + means``, saturating.

    Args:
        symbols: int32, any value.
        means: fixed-point, broadcastable; None = 0.

    Returns:
        Fixed-point.
    """
    value = symbols.clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT - 1) << FRACTION_BITS
    return value if means is None else (value + means).clamp_(-LIMIT, LIMIT - 1)


def narrowed(values: Tensor, exponent: int) -> Tensor:
    """Fixed-point -> int16 in units of ``2^exponent``: to the nearest, halves upwards, saturating.

    Args:
        exponent: -45 to 14.
    """
    left = -FRACTION_BITS - exponent
    if left >= 0:
        limit = LIMIT >> left  # beyond it the result saturates anyway, and no product leaves 32 bits
        values = values.clamp(-limit, limit - 1) << left
    else:
        values = (values + (1 << (-left - 1))) >> -left
    return values.clamp_(-(2**15), 2**15 - 1).to(torch.int16)
