"""Integers in groups of 7 bits, least significant first, in the fewest bytes."""

from __future__ import annotations

from collections.abc import Callable


def pack_varint(value: int) -> bytes:
    """The bytes of an integer of at least 0."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def unpack_varint(take: Callable[[], int], limit: int) -> int:
    """Reads one.

    Args:
        take: gives the next byte.
        limit: the largest value there may be.

    Raises:
        ValueError: it is larger, or takes more bytes than it needs.
    """
    value = shift = 0
    while True:
        byte = take()
        value |= (byte & 0x7F) << shift
        shift += 7
        if value > limit or shift > max(limit.bit_length(), 1) + 6 or (byte == 0 and shift > 7):
            raise ValueError(f"no valid part of a number up to {limit}")
        if byte < 0x80:
            return value
