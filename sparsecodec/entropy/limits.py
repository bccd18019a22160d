"""Limits that a reader sets before it trusts a header."""

from __future__ import annotations

import math
from typing import Any

from sparsecodec.errors import UsageError

DEFAULT_MAX_PIXELS = 1 << 28  # 16384 x 16384


def check_limit(value: Any, name: str) -> None:
    """Raises a UsageError unless `value` can be compared with a size: a positive, finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 < value < math.inf):  # also false for NaN
        raise UsageError(f"{name}={value!r} (needs a positive, finite number)")
