"""Functions of one variable as tables of integers, made with integers only: the same on every machine.

docs/portable.md, section 6, defines them. E(n) is exp(-4 n 2^t) in units of 2^-30, a product over the bits of n of
constants that are written down here.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

UNIT_BITS = 30
ONE = 1 << UNIT_BITS
# round(2^30 exp(-2^k)) for k = LEAST_POWER, ..., 4; exp(-32) is below half a unit.
LEAST_POWER = -30
# fmt: off
EXPONENTIALS = (
    1073741823, 1073741822, 1073741820, 1073741816, 1073741808, 1073741792, 1073741760, 1073741696, 1073741568,
    1073741312, 1073740800, 1073739776, 1073737728, 1073733632, 1073725440, 1073709056, 1073676290, 1073610760,
    1073479712, 1073217664, 1072693760, 1071646719, 1069555701, 1065385899, 1057095000, 1040706261, 1008687096,
    947573834, 836230973, 651257337, 395007542, 145315154, 19666268, 360200, 121,
)
# fmt: on


@functools.lru_cache(maxsize=64)
def gate_table(exponent: int) -> Tensor:
    """x sigmoid(4 x), DCVC-RT's WSiLU, of and in units of ``2^exponent``.

    Args:
        exponent: -30 to 0.

    Returns:
        ``[65536]`` int16: the values at -2^15, ..., 2^15 - 1. Shared: not to be written to.
    """
    n = torch.arange(2**15 + 1)
    tail = _decay(n, exponent + 2)  # sigmoid(-4 a) = E / (1 + E); a sigmoid(4 a) = a - a sigmoid(-4 a)
    lost = _quotient(n * tail, ONE + tail)
    return torch.cat([-lost.flip(0)[:-1], (n - lost)[:-1]]).to(torch.int16)


@functools.lru_cache(maxsize=64)
def sigmoid_table(exponent: int, bits: int = 15) -> Tensor:
    """sigmoid(x) of x in units of ``2^exponent``, in units of ``2^-bits``.

    Args:
        exponent: -28 to 2.
        bits: 1 to 15; values are at most ``2^15 - 1``.

    Returns:
        ``[65536]`` int16: the values at -2^15, ..., 2^15 - 1. Shared: not to be written to.
    """
    n = torch.arange(2**15 + 1)
    tail = _decay(n, exponent)
    below = _quotient(tail << bits, ONE + tail)  # sigmoid(-a)
    values = torch.cat([below.flip(0)[:-1], ((1 << bits) - below)[:-1]])
    return values.clamp(max=2**15 - 1).to(torch.int16)


@functools.lru_cache(maxsize=8)
def exponential_table(exponent: int) -> Tensor:
    """exp(-x) of x in units of ``2^exponent``, in units of 2^-30.

    Args:
        exponent: -30 to 4.

    Returns:
        ``[65536]`` int64: the values at 0, ..., 2^16 - 1. Shared: not to be written to.
    """
    return _decay(torch.arange(2**16), exponent)


def _decay(n: Tensor, power: int) -> Tensor:
    """``exp(-n 2^power)`` in units of 2^-30, int64, for n from 0 to 2^16 - 1."""
    result = torch.full_like(n, ONE)
    for bit in range(16):
        k = power + bit
        if k < LEAST_POWER:
            continue  # closer to 1 than a unit
        index = k - LEAST_POWER
        constant = EXPONENTIALS[index] if index < len(EXPONENTIALS) else 0
        result = torch.where((n >> bit & 1).bool(), (result * constant + ONE // 2) >> UNIT_BITS, result)
    return result


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """``a / b`` to the nearest integer, halves upwards, of integers 0 <= a < 2^61 and 0 < b."""
    return (2 * a + b) // (2 * b)
