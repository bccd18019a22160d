"""DCVC-RT's scale table as its published software computes it: on the machine at hand, in whose roundings it differs.

Our own streams never use it: `stored_tables` has the rows as integers.
"""

from __future__ import annotations

import math

import torch
from torch.distributions import Normal

from sparsecodec.entropy.stored_tables import RT_LEVELS, RT_SCALE_RANGE
from sparsecodec.entropy.tables import EntropyTables, tables_from_pmf

_REACH = 8  # of the plain symbols, at most
_INSIDE = 0.9999  # probability below the last plain symbol


def computed_gaussian16_tables() -> EntropyTables:
    """The 128 normal distributions of `dcvc_gaussian16_tables` by the erf and exp of this machine and torch.

    Exactness: the stored rows, or off by one where an exponential or erf rounds otherwise.
    """
    scales = torch.exp(torch.linspace(*map(math.log, RT_SCALE_RANGE), RT_LEVELS, dtype=torch.float32))[:, None]
    law = Normal(torch.zeros_like(scales), scales)
    reached = law.cdf(torch.arange(2.0, _REACH, dtype=torch.float32)) > _INSIDE
    reach = torch.where(reached.any(1), 2 + reached.int().argmax(1), _REACH)
    symbols = torch.arange(2 * _REACH + 1) - reach[:, None]
    below, above = law.cdf(symbols - 0.5), law.cdf(symbols + 0.5)
    return tables_from_pmf(above - below, 2 * below[:, 0], 2 * reach + 1, -reach)
