"""Repairs of foreign checkpoints, shared by all models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecodec.errors import UsageError, reason

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


def read_checkpoint(path: str | Path, *needed: str) -> dict[str, Any]:
    """The plain state dict in a file that ``torch.save`` wrote. Nothing but tensors and containers is unpickled.

    Args:
        path: of the file.
        needed: keys that must be there.

    Raises:
        UsageError: the file is missing, holds other objects, or lacks a key.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from error
    except Exception as error:  # of a file that is none, torch's reader raises what its bytes make of it: KeyError, ...
        # torch's own words advise to run whatever code the file holds.
        raise UsageError(f"{path} is no checkpoint of plain tensors (needs a whole file of torch.save's)") from error
    if not isinstance(checkpoint, Mapping):
        raise UsageError(f"{path} holds a {type(checkpoint).__name__} (needs a dict of tensors)")
    state_dict = unwrap_state_dict(checkpoint)
    for key in needed:
        if not isinstance(state_dict.get(key), Tensor):
            raise UsageError(f"{path} has no tensor {key!r}: a checkpoint of another family")
    return state_dict
