"""Damage of bytes, deterministic for a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def mutate(data: bytes, pool: Sequence[bytes], rng: random.Random) -> bytes:
    """`data` with one to eight changes: bits, bytes, pieces cut, inserted, copied, swapped, the tail of another."""
    changed = bytearray(data)
    for _ in range(1 << rng.randrange(4)):
        kind = rng.randrange(10)
        if not changed or kind == 0:
            at = rng.randrange(len(changed) + 1)
            changed[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind <= 3:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        elif kind == 4:
            changed[rng.randrange(len(changed))] = rng.choice(EDGES)
        elif kind == 5:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        elif kind == 6:
            del changed[rng.randrange(len(changed)) :]
        elif kind == 7:
            at = rng.randrange(len(changed))
            del changed[at : at + rng.randrange(1, 9)]
        elif kind == 8:
            other = rng.choice(pool)
            del changed[rng.randrange(len(changed) + 1) :]
            changed += other[rng.randrange(len(other) + 1) :]
        else:
            a, b, size = rng.randrange(len(changed)), rng.randrange(len(changed)), rng.randrange(1, 17)
            piece = changed[a : a + size]
            changed[b : b + len(piece)] = piece
    return bytes(changed)
