"""Convolution of integers, scaled back to integers: what computes the entropy networks of portable streams."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._registry import OpSpec, call, register

LIMIT = 1 << 30  # the two terms of a sum stay below it, so that the sum is an int32
DTYPES = {16: torch.int16, 32: torch.int32}  # of the result, by its bits


def shifted(x: Tensor, left: int) -> Tensor:
    """``x * 2^left`` rounded to the nearest integer, halves upwards, clipped to ``[-2^30, 2^30)``.

    Args:
        x: any shape, int64, magnitude below 2^31.
        left: -30 to 30.
    """
    x = x << left if left >= 0 else (x + (1 << (-left - 1))) >> -left
    return x.clamp(-LIMIT, LIMIT - 1)


def integer_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    residual_shift: int = 0,
    padding: int = 0,
    groups: int = 1,
    bits: int = 16,
    shuffle: int = 1,
) -> Tensor:
    """`integer_conv2d` in plain torch."""
    if bits not in DTYPES:
        raise UsageError(f"bits={bits} (one of {', '.join(map(str, DTYPES))})")
    # float64 holds every partial sum exactly
    acc = F.conv2d(x.double(), weight.double(), bias.double(), 1, padding, 1, groups).round().long()
    shift = shift.long().view(-1, 1, 1)
    factor = torch.where(acc < 0, multiplier[1].long().view(-1, 1, 1), multiplier[0].long().view(-1, 1, 1))
    y = ((acc * factor + (1 << (shift - 1))) >> shift).clamp(-LIMIT, LIMIT - 1)
    if shuffle != 1:
        y = F.pixel_shuffle(y, shuffle)
    if residual is not None:
        y = y + shifted(residual.long(), residual_shift)
    top = (1 << (bits - 1)) - 1
    return y.clamp(-top - 1, top).to(DTYPES[bits])


INTEGER_CONV2D = register(
    OpSpec(
        name="integer_conv2d",
        schema=(
            "(Tensor x, Tensor weight, Tensor bias, Tensor multiplier, Tensor shift, Tensor? residual=None, "
            "int residual_shift=0, int padding=0, int groups=1, int bits=16, int shuffle=1) -> Tensor"
        ),
        reference=integer_conv2d_reference,
        impls=(),
        constants=(
            "weight", "bias", "multiplier", "shift", "residual_shift", "padding", "groups", "bits", "shuffle",
        ),
        exact=True,
    )
)  # fmt: skip


def integer_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    residual_shift: int = 0,
    padding: int = 0,
    groups: int = 1,
    bits: int = 16,
    shuffle: int = 1,
) -> Tensor:
    """A convolution in int32, requantised channel by channel; the same bits on every backend.

    ::

        acc = bias[o] + sum weight[o,i,k,l] x[n,i,h+k-p,w+l-p]                 zeros outside
        f   = multiplier[0,o] if acc >= 0 else multiplier[1,o]
        v   = clip((acc f + 2^(shift[o]-1)) >> shift[o], -2^30, 2^30 - 1)     arithmetic shift of a 64-bit product
        y   = pixel_shuffle(v) + clip(residual 2^residual_shift)              halves upwards, to the same range
        out = clip(y, -2^(bits-1), 2^(bits-1) - 1)

    Two factors make activations free: equal ones are the identity, a second one of 0 is a ReLU, of ``slope * f`` a
    LeakyReLU.

    Args:
        x: ``[N, C_in, H, W]`` int16; channels_last for the kernels.
        weight: ``[C_out, C_in / groups, Kh, Kw]`` int8|int16.
        bias: ``[C_out]`` int32, in units of the accumulator.
        multiplier: ``[2, C_out]`` int32, 0 to 2^30 - 1.
        shift: ``[C_out]`` int32, 1 to 62.
        residual: shape of the result, int16|int32, or None.
        residual_shift: -30 to 30; negative ones round.
        padding: zeros on all four sides; the stride is 1.
        groups: 1, or C_in = C_out (depthwise).
        bits: 16 or 32, of the result.
        shuffle: r of `torch.nn.PixelShuffle`; C_out is a multiple of r^2.

    The caller proves that no partial sum leaves int32: ``|bias[o]| + 2^15 sum |weight[o]| < 2^31``.

    Returns:
        ``[N, C_out / r^2, H' r, W' r]`` int16 or int32.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: other bits.

    Exactness: exact.
    Gradients: none.
    """
    return call(
        INTEGER_CONV2D, x, weight, bias, multiplier, shift, residual, residual_shift, padding, groups, bits, shuffle
    )
