"""Checkpoints of a run as safetensors: tensors under prefixed names, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from sparsecodec._files import replacing, writing
from sparsecodec.errors import UsageError


def save(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, step: int, made_by: dict[str, Any]
) -> None:
    """Writes all state of a run to `path`; the file appears whole or not at all.

    Args:
        path: of the file.
        modules: by group; their state dicts.
        optimizer: its state.
        step: number of steps taken.
        made_by: JSON-able settings that `load` will insist on.

    Raises:
        OSError: it cannot be written; what stood there before still does.
    """
    tensors: dict[str, Tensor] = {}
    for group, module in modules.items():
        tensors |= {f"{group}.{key}": value for key, value in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    metadata = {"step": str(step), "made_by": json.dumps(made_by)}
    write_tensors(path, {key: value.clone().contiguous() for key, value in tensors.items()}, metadata)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a file of tensors that appears whole or not at all.

    Raises:
        OSError: it cannot be written; what stood there before still does.
    """
    with writing(path), replacing(path) as partial:
        partial.write_bytes(serialize(tensors, metadata))  # save_file would make the file private


def load(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, made_by: dict[str, Any]
) -> int:
    """Restores what `save` wrote, in place, and returns the step.

    Raises:
        UsageError: not a checkpoint, of another architecture, or made by other settings; the message names them.
    """
    try:
        with safe_open(path, "pt") as file:
            step = int(file.metadata()["step"])
            theirs = json.loads(file.metadata()["made_by"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a training checkpoint: {error}") from error
    ours = json.loads(json.dumps(made_by))
    differing = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    if differing:
        what = "; ".join(f"{key}={theirs.get(key)!r}, now {ours.get(key)!r}" for key in differing)
        raise UsageError(f"{path} was made by another recipe ({what}): continue with that one, or in another folder")
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in (*modules, "optimizer")}
    for key, value in tensors.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, {})[name] = value
    for group, module in modules.items():
        try:
            module.load_state_dict(groups[group])
        except RuntimeError as error:
            raise UsageError(f"{path} does not fit: {error}") from error
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in groups["optimizer"].items():
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return step
