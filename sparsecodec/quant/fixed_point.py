"""The integers behind a quantised convolution: rounding, scales for integer hardware, and overflow bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecodec.nn.likelihood import round_ste

ACCUMULATOR_BITS = 32
MANTISSA_BITS = 15  # of a dyadic scale: times a 32-bit accumulator it stays below 2^53, exact in float64 and in int64


def quantize_ste(x: Tensor, scale: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """``clip(round(x / scale), low, high)``, half to even.

    The gradient of x passes within the range and is zero outside; that of the scale is LSQ's (arXiv 1902.08153), as the
    caller multiplies by the scale again.

    Args:
        x: any shape, float32.
        scale: broadcastable to `x`, float32, > 0.
        low, high: integers, broadcastable to `x`.

    Returns:
        Integers in float32, shape of `x`.
    """
    if not torch.is_grad_enabled():
        return torch.div(x, scale).clamp_(low, high).round_()
    return round_ste(torch.clamp(x / scale, low, high))


def dyadic(x: Tensor, bits: int = MANTISSA_BITS) -> Tensor:
    """The nearest ``m 2^k`` with an integer ``m < 2^bits``; with one bit a power of two. Gradient: the identity's.

    Args:
        x: any shape, float32, > 0.
        bits: of m, 1 to 24.
    """
    mantissa, exponent = torch.frexp(x.detach())
    snapped = torch.ldexp((mantissa * 2**bits).round(), exponent - bits)
    return x + (snapped - x).detach()


def accumulator_bound(weight: Tensor, bias: Tensor | None, low: int, high: int, out_dim: int = 0) -> Tensor:
    """The largest magnitude that any partial sum of a convolution can reach, in any order, for any input.

    ``sum_k |w[c,k]| max(|low|, |high|) + |b[c]|``; padding with zeros only leaves terms out.

    Args:
        weight: integers, any dtype; the other dimensions than `out_dim` are summed over.
        bias: ``[C_out]`` integers, any dtype, in units of the accumulator.
        low, high: range of the input's integers.
        out_dim: dimension of the output channels.

    Returns:
        ``[C_out]`` float64, integers, exact below 2^53.
    """
    sums = weight.double().abs().movedim(out_dim, 0).flatten(1).sum(1) * max(abs(low), abs(high))
    return sums if bias is None else sums + bias.double().abs()


def pack_nibbles(values: Tensor) -> Tensor:
    """Integers in [-8, 7], any shape, int8 -> ``[ceil(n / 2)]`` uint8: the first of a pair in the low half."""
    flat = (values.flatten().to(torch.int16) & 15).to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(flat.numel() % 2)]).view(-1, 2)
    return flat[:, 0] | (flat[:, 1] << 4)


def unpack_nibbles(packed: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `pack_nibbles`: int8 of that shape."""
    pairs = torch.stack([packed & 15, packed >> 4], 1).to(torch.int8).flatten()[: shape.numel()]
    return torch.where(pairs > 7, pairs - 16, pairs).view(shape)
