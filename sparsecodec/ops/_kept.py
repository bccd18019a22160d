"""What the kernels of `compact_symbols` and `expand_symbols` ask of their inputs."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 2**31 - 1  # positions and counts are int32


def rejects_flat(device: str, **tensors: tuple[Tensor | None, torch.dtype]) -> list[str]:
    """Why kernels on `device` do not take these tensors, each given by its name with the dtype it must have."""
    reasons = []
    for name, (value, dtype) in tensors.items():
        if value is None:
            continue
        if value.device.type != device:
            reasons.append(f"{name}.device={value.device.type} (needs {device})")
        if value.dtype != dtype:
            found, needed = (str(t).removeprefix("torch.") for t in (value.dtype, dtype))
            reasons.append(f"{name}.dtype={found} (needs {needed})")
        if not value.is_contiguous():
            reasons.append(f"{name}.stride={value.stride()} (needs contiguous)")
        if value.numel() > LIMIT:
            reasons.append(f"{name}.shape={list(value.shape)} (needs fewer than 2^31 elements)")
    return reasons
