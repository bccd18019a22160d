"""Checkpoints of a run as safetensors: tensors under prefixed names, no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sparsecodec._files import replacing
from sparsecodec.errors import UsageError


def save(path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes all state of a run to `path`; the file appears whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for group, module in modules.items():
        tensors |= {f"{group}.{key}": value for key, value in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    with replacing(path) as partial:
        save_file({key: value.contiguous() for key, value in tensors.items()}, partial, metadata={"step": str(step)})


def load(path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Restores what `save` wrote, in place, and returns the step.

    Raises:
        UsageError: not a checkpoint, or of another architecture or method.
    """
    try:
        with safe_open(path, "pt") as file:
            step = int(file.metadata()["step"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a training checkpoint: {error}") from error
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in (*modules, "optimizer")}
    for key, value in tensors.items():
        group, _, name = key.partition(".")
        if group not in groups:
            raise UsageError(f"{path} holds {group!r}, which this run has no use for; is the recipe another one?")
        groups[group][name] = value
    for group, module in modules.items():
        module.load_state_dict(groups[group])
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in groups["optimizer"].items():
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return step
