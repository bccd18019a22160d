"""Repairs of foreign checkpoints, shared by all models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WRAPPERS = ("state_dict", "model_state_dict", "network", "net")


def unwrap_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The plain state dict inside a checkpoint: wrappers opened, ``module.`` prefixes removed.

    Args:
        checkpoint: a state dict, or a dict that holds one under ``state_dict``, ``model_state_dict``, ``network`` or
            ``net``, also nested.
    """
    for wrapper in _WRAPPERS:
        inner = checkpoint.get(wrapper)
        if isinstance(inner, Mapping):
            return unwrap_state_dict(inner)
    return {key.removeprefix("module."): value for key, value in checkpoint.items()}
