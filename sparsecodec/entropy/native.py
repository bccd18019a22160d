"""The native coder, imported on first use: what needs no coding works without it."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from sparsecodec.errors import NoBackendError


@functools.cache
def native() -> ModuleType:
    """The extension ``sparsecodec._C``.

    Raises:
        NoBackendError: it is not built, or not for this Python; entropy coding has no other implementation.
    """
    try:
        return importlib.import_module("sparsecodec._C")
    except ImportError as error:
        raise NoBackendError(f"entropy coding needs sparsecodec._C (pip install . builds it): {error}") from error
