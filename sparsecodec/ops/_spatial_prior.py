"""The passes of spatial priors: which channels are coded at which position. As in ``csrc/common/spatial_prior.h``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsecodec.errors import UsageError

# Pass -> which of its groups of channels is coded, by cell 2 * (row % 2) + column % 2. A pass has as many groups as
# it names. even, odd: EVC, DCVC-HEM; quarter0 .. 3: DCVC-DC, DCVC-FM.
PARTS: dict[str, tuple[int, int, int, int]] = {
    "all": (0, 0, 0, 0),
    "even": (0, 1, 1, 0),
    "odd": (1, 0, 0, 1),
    "quarter0": (0, 1, 2, 3),
    "quarter1": (3, 2, 1, 0),
    "quarter2": (2, 3, 0, 1),
    "quarter3": (1, 0, 3, 2),
}


def groups_of(part: str) -> int:
    """How many runs the channels are cut into: 1, 2 or 4."""
    if part not in PARTS:
        raise UsageError(f"part={part!r} (one of {', '.join(PARTS)})")
    return max(PARTS[part]) + 1


def split_groups(x: Tensor, part: str, name: str) -> Tensor:
    """``[N, C, H, W]`` or ``[N, G, C/G, H, W]`` -> the latter, a view."""
    groups = groups_of(part)
    if x.dim() == 5 and x.shape[1] == groups:
        return x
    if x.dim() != 4 or x.shape[1] % groups:
        accepted = f"[N, C, H, W] with C a multiple of {groups}, or [N, {groups}, C/{groups}, H, W]"
        raise UsageError(f"{name}: shape {list(x.shape)} (needs {accepted})")
    return x.unflatten(1, (groups, x.shape[1] // groups))


def active_group(part: str, height: int, width: int, device: torch.device) -> Tensor:
    """The coded group at each position, ``[H, W]`` int64."""
    cell = torch.arange(height, device=device)[:, None] % 2 * 2 + torch.arange(width, device=device) % 2
    # Not a lookup: the table would be copied from the host, which a CUDA graph cannot hold.
    return sum(group * (cell == at) for at, group in enumerate(PARTS[part]))


def take_active(x: Tensor, part: str) -> Tensor:
    """The coded channels, ``[N, G, C/G, H, W] -> [N, C/G, H, W]``."""
    if x.numel() == 0:
        return x[:, 0]
    n, _, channels, height, width = x.shape
    active = active_group(part, height, width, x.device)
    return torch.take_along_dim(x, active.expand(n, 1, channels, height, width), dim=1).squeeze(1)


def coded_only(values: Tensor, part: str) -> Tensor:
    """``[N, G, C/G, H, W]`` -> ``[N, C, H, W]`` channels_last, zero where the pass does not code; in place."""
    groups, (height, width) = groups_of(part), values.shape[-2:]
    here = active_group(part, height, width, values.device) == torch.arange(groups, device=values.device).view(-1, 1, 1)
    values = values.mul_(here.view(1, groups, 1, height, width))
    return values.flatten(1, 2).contiguous(memory_format=torch.channels_last)


def sizes_that_differ(shape: Sequence[int], part: str, **tensors: Tensor | None) -> list[str]:
    """Which of these tensors, given by their names, do not fit a latent whose pass is ``[N, C/G, H, W]``."""
    groups = groups_of(part)
    apart = [shape[0], groups, *shape[1:]]
    whole = [shape[0], groups * shape[1], *shape[2:]]
    return [
        f"{name}.shape={list(value.shape)} (needs {whole} or {apart})"
        for name, value in tensors.items()
        if value is not None and list(value.shape) not in (whole, apart)
    ]


def cpu_rejects_grouped(**tensors: Tensor | None) -> list[str]:
    """Why the CPU kernels do not take these float tensors, given by their names."""
    reasons = []
    for name, value in tensors.items():
        if value is None:
            continue
        if value.device.type != "cpu":
            reasons.append(f"{name}.device={value.device.type} (needs cpu)")
        if value.dtype != torch.float32:
            reasons.append(f"{name}.dtype={str(value.dtype).removeprefix('torch.')} (needs float32)")
        channels = value.dim() - 3
        if channels not in (1, 2):
            reasons.append(f"{name}.shape={list(value.shape)} (needs 4 or 5 dimensions)")
        elif value.shape[channels] > 1 and value.stride(channels) != 1 and value.numel() > 0:
            reasons.append(f"{name}.stride={value.stride()} (needs channels innermost, torch.channels_last)")
    return reasons
