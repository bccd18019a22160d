"""How a layer is quantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sparsecodec.errors import UsageError

WEIGHT_BITS = (4, 8, 16)
ACTIVATION_BITS = (8, 16)


@dataclass(frozen=True)
class Precision:
    """How one layer is quantised.

    Attributes:
        weight_bits: 4 or 8; 16 for dyadic layers only.
        activation_bits: of the layer's input, 8 or 16.
        dyadic: ``s_x`` is a power of two and ``s_w`` an integer below 2^15 times one, so that integers alone can
            compute the layer; for the networks that choose entropy tables.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    dyadic: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("weight_bits", WEIGHT_BITS), ("activation_bits", ACTIVATION_BITS)):
            if type(getattr(self, name)) is not int or getattr(self, name) not in allowed:
                raise UsageError(f"{name}={getattr(self, name)!r} (needs one of {', '.join(map(str, allowed))})")
        if type(self.dyadic) is not bool:
            raise UsageError(f"dyadic={self.dyadic!r} (needs true or false)")
        if self.weight_bits == 16 and not self.dyadic:
            raise UsageError("weight_bits=16 (is for dyadic layers: the networks that choose entropy tables)")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Precision:
        """The inverse of `to_json`; raises `UsageError` for anything else."""
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"precision {values!r}: {error}") from error

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
