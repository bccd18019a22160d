"""Structured-sparse learned image codecs that decode as fast as their MACs promise.

The names below are imported on first use, so ``import sparsecodec`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparsecodec.errors import (
    BitstreamError,
    GraphError,
    ModelMismatchError,
    NoBackendError,
    ResourceLimitError,
    SparseCodecError,
    UsageError,
)

if TYPE_CHECKING:
    from sparsecodec.metrics import evaluate
    from sparsecodec.runtime import CompiledCodec, compile_codec
    from sparsecodec.sparsity import compact
    from sparsecodec.zoo import load, save

__version__ = "0.1.0"

__all__ = [
    "BitstreamError",
    "CompiledCodec",
    "GraphError",
    "ModelMismatchError",
    "NoBackendError",
    "ResourceLimitError",
    "SparseCodecError",
    "UsageError",
    "compact",
    "compile_codec",
    "evaluate",
    "load",
    "save",
]

_LAZY = {
    "CompiledCodec": "sparsecodec.runtime",
    "compact": "sparsecodec.sparsity",
    "compile_codec": "sparsecodec.runtime",
    "evaluate": "sparsecodec.metrics",
    "load": "sparsecodec.zoo",
    "save": "sparsecodec.zoo",
}
_SUBPACKAGES = ("data", "info", "metrics", "models", "runtime", "sparsity", "training", "zoo")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"sparsecodec.{name}")
    raise AttributeError(f"module 'sparsecodec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES, "__version__"])
