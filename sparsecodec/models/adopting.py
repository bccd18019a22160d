"""Coding tables of an object of the published software, in the place of those of the weights."""

from __future__ import annotations

import numpy as np
from torch import nn

from sparsecodec.entropy import EntropyTables


class Adopting:
    """What models have in common that take over a foreign model's tables.

    Attributes:
        TABLES: the foreign model's parts that have tables, in the order of `tables`.
    """

    TABLES: tuple[str, ...]
    _adopted: tuple[EntropyTables, ...] | None = None

    def adopt(self, foreign: nn.Module) -> None:
        """Takes over the tables that a model of the published software has computed, if it has.

        It computes them in the arithmetic of its machine, where an exponential may have moved a value by one; its
        streams need just these.
        """
        tables = [_computed(getattr(foreign, name, None)) for name in self.TABLES]
        self._adopted = None if None in tables else tuple(tables)

    def update(self, force: bool = False) -> None:
        """Drops adopted tables. Others need no update: they follow the weights at every call."""
        self._adopted = None


def _computed(part: object) -> EntropyTables | None:
    """The tables that a part keeps, itself (EVC) or in a helper (DCVC-HEM); None before it has computed any."""
    helper = getattr(part, "cdf_helper", part)
    info = helper.get_cdf_info() if hasattr(helper, "get_cdf_info") else (None,)
    if any(values is None for values in info):
        return None
    return EntropyTables(*(np.asarray(values, np.int32) for values in info))
