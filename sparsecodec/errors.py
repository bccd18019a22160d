"""Every error this package raises on purpose."""

from __future__ import annotations


class SparseCodecError(Exception):
    """Base of all errors of this package. `exit_code` is what the command line exits with."""

    exit_code = 1


class UsageError(SparseCodecError, ValueError):
    """An argument has the wrong value, shape, dtype or range; the message names the value and what would be right."""

    exit_code = 2


class BitstreamError(SparseCodecError):
    """Bytes are damaged, truncated, foreign or hostile. Nothing was decoded from them."""

    exit_code = 3


class ModelMismatchError(SparseCodecError):
    """A stream or checkpoint belongs to another model, or to other numerics, than the one at hand."""

    exit_code = 4


class ResourceLimitError(SparseCodecError):
    """Coding would exceed a limit that was set, and nothing was allocated; or there is not enough memory for it."""

    exit_code = 5


class NoBackendError(SparseCodecError):
    """No backend accepts these inputs; the message gives each backend's reasons."""


class GraphError(SparseCodecError):
    """A module cannot be traced, pruned or compacted as asked; the message names the layer or the channel space."""


def reason(error: Exception) -> str:
    """What `error` says; of an OSError without its number and path, since messages name the path the user gave."""
    return getattr(error, "strerror", None) or str(error)
