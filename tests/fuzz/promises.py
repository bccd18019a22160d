"""What a fuzz target is, and what it must not see."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod

from mutations import mutate

from sparsecodec.errors import BitstreamError, ModelMismatchError, ResourceLimitError


class Broken(AssertionError):
    """What no input may bring about."""


class Target(ABC):
    """One part of the package. `pool` holds valid inputs; `refusals` is all that a bad one may raise."""

    pool: list[bytes]
    refusals: tuple[type[Exception], ...] = (BitstreamError, ResourceLimitError, ModelMismatchError)

    def make(self, rng: random.Random) -> bytes:
        return mutate(rng.choice(self.pool), self.pool, rng)

    @abstractmethod
    def run(self, data: bytes) -> bool:
        """Whether it was accepted; may raise `refusals`, or `Broken`."""
