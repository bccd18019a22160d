"""What the Triton kernels ask of their inputs."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from sparsecodec.ops._epilogue import channels_innermost
from sparsecodec.ops._spatial_prior import groups_of

INTERPRETER_LIMIT = 2**16  # elements of one tensor; a program of the interpreter takes milliseconds
PIXEL_LIMIT = 2**31 - 1024  # pixels are numbered in int32, the last tile included


def triton_rejects(dtypes: tuple[torch.dtype, ...], **activations: Tensor | None) -> list[str]:
    """Why the Triton kernels do not take these activations, given by their names.

    Tensors on the CPU need TRITON_INTERPRET=1, set before the kernels are imported. The interpreter is for checking
    kernels, so it takes small tensors only, and none of a GPU: it would fetch them, and take hours for a picture.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    given = {name: value for name, value in activations.items() if value is not None}
    reasons = []
    found = {value.dtype for value in given.values()}
    if len(found) > 1 or not found <= set(dtypes):
        named, accepted = (", ".join(sorted(str(t).removeprefix("torch.") for t in ts)) for ts in (found, dtypes))
        reasons.append(f"dtype={named} (needs one of {accepted} for all activations)")
    for name, value in given.items():
        if value.device.type != ("cpu" if interpreted else "cuda"):
            needed = "cpu with TRITON_INTERPRET=1" if interpreted else "cuda, or cpu with TRITON_INTERPRET=1"
            reasons.append(f"{name}.device={value.device.type} (needs {needed})")
        elif interpreted and value.numel() > INTERPRETER_LIMIT:
            reasons.append(f"{name}.shape={list(value.shape)} (the interpreter takes {INTERPRETER_LIMIT} elements)")
        if value.dim() >= 3 and value.shape[0] * value.shape[-2] * value.shape[-1] > PIXEL_LIMIT:
            reasons.append(f"{name}.shape={list(value.shape)} (needs N * H * W <= {PIXEL_LIMIT})")
    return reasons


def triton_rejects_grouped(part: str, **tensors: Tensor | None) -> list[str]:
    """`triton_rejects` of a kernel that runs one pass of a spatial prior on float32 tensors of any layout."""
    reasons = triton_rejects((torch.float32,), **tensors)
    groups = groups_of(part)
    for name, value in tensors.items():
        if value is None or (value.dim() == 5 and value.shape[1] == groups):
            continue
        if value.dim() != 4 or value.shape[1] % groups:
            accepted = f"[N, C, H, W] with C a multiple of {groups}, or [N, {groups}, C/{groups}, H, W]"
            reasons.append(f"{name}.shape={list(value.shape)} (needs {accepted})")
    return reasons


def triton_rejects_dense(
    out_index: Tensor | None = None,
    shuffle: int = 1,
    chunks: int = 1,
    scale: Tensor | None = None,
    **activations: Tensor | None,
) -> list[str]:
    """`triton_rejects` of a kernel that multiplies with weights and may end in `_epilogue.finish`."""
    reasons = triton_rejects((torch.float16, torch.bfloat16, torch.float32), **activations)
    if out_index is not None and (activations["residual"] is None or shuffle != 1 or chunks != 1):
        reasons.append(f"out_index with shuffle={shuffle}, chunks={chunks} (needs a residual, shuffle=1 and chunks=1)")
    if chunks != 1 and shuffle != 1:
        reasons.append(f"chunks={chunks} with shuffle={shuffle} (needs 1)")
    if scale is not None and (scale.dtype != torch.float32 or not scale.is_contiguous()):
        reasons.append(f"scale.dtype={scale.dtype}, stride={scale.stride()} (needs contiguous float32)")
    for name, value in activations.items():
        if value is None:
            continue
        if value.dim() != 4:
            reasons.append(f"{name}.shape={list(value.shape)} (needs [N, C, H, W])")
        elif not channels_innermost(value):
            reasons.append(f"{name}.stride={value.stride()} (needs channels innermost, torch.channels_last)")
    return reasons
