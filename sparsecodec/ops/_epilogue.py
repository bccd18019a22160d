"""What the dense ops do after the product, and what their CPU kernels ask of their inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec.errors import UsageError

ACTIVATIONS = ("none", "relu", "leaky_relu", "sigmoid_gate")


def activate(y: Tensor, activation: str, slope: float) -> Tensor:
    """none: y; relu: max(y, 0); leaky_relu: y or slope * y where y < 0; sigmoid_gate: y * sigmoid(4 y)."""
    if activation == "none":
        return y
    if activation == "relu":
        return F.relu(y)
    if activation == "leaky_relu":
        return F.leaky_relu(y, slope)
    if activation == "sigmoid_gate":
        return y * torch.sigmoid(4 * y)
    raise UsageError(f"activation={activation!r} (one of {', '.join(ACTIVATIONS)})")


def add_chunks(y: Tensor, chunks: int, interleaved: bool) -> Tensor:
    """Sums of `chunks` channels each, in float32 or wider, ascending: ``[N, C, H, W] -> [N, C / chunks, H, W]``.

    Runs of C / chunks channels are added to each other (DCVC-RT adds halves), or, `interleaved`, each `chunks`
    neighbours (DCVC-UF adds fours).
    """
    if chunks < 1 or y.shape[1] % chunks:
        raise UsageError(f"chunks={chunks} of {y.shape[1]} channels (needs a divisor)")
    if chunks == 1:
        return y
    shape = (-1, chunks) if interleaved else (chunks, -1)
    parts = y.to(torch.promote_types(y.dtype, torch.float32)).unflatten(1, shape).unbind(2 if interleaved else 1)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.to(y.dtype)


def scale_channels(y: Tensor, scale: Tensor | None) -> Tensor:
    """``[N, C, H, W]`` times ``[C]``, rounded once to the dtype of `y`."""
    return y if scale is None else (y * scale.view(1, -1, 1, 1)).to(y.dtype)


def finish(
    y: Tensor, out_index: Tensor | None, residual: Tensor | None, activation: str, slope: float, shuffle: int
) -> Tensor:
    """Activation, pixel shuffle, then the residual, into its channels `out_index` where given.

    Args:
        y: ``[N, C_out, H, W]``. Product plus bias.
        out_index: ``[C_out]`` int or None. Distinct channels of `residual`.
        residual: ``[N, C_full, H*r, W*r]`` or None.
        activation: one of `ACTIVATIONS`.
        slope: factor of leaky_relu.
        shuffle: r of `torch.nn.PixelShuffle`; 1 = none.
    """
    y = activate(y, activation, slope)
    if out_index is not None:
        if residual is None:
            raise UsageError("out_index without residual")
        if shuffle != 1:
            raise UsageError(f"out_index with shuffle={shuffle} (needs 1)")
        return residual.clone().index_add_(1, out_index, y)
    if shuffle != 1:
        y = F.pixel_shuffle(y, shuffle)
    return y if residual is None else residual + y


def channels_innermost(x: Tensor) -> bool:
    """Whether the channels of one pixel lie next to each other: torch.channels_last, or a slice of such a tensor."""
    return x.shape[1] <= 1 or x.stride(1) == 1 or x.numel() == 0


def select_channels(x: Tensor, index: Tensor | None) -> Tensor:
    """Channels `index` of x ``[N, C, H, W]``, all if None; keeps the memory format."""
    if index is None:
        return x
    chosen = x.index_select(1, index)
    return chosen.contiguous(memory_format=torch.channels_last) if channels_innermost(x) else chosen


def cpu_rejects(**activations: Tensor | None) -> list[str]:
    """Why the CPU kernels do not take these activations, given by their names."""
    reasons = []
    dtypes = {value.dtype for value in activations.values() if value is not None}
    if not dtypes <= {torch.float32, torch.bfloat16} or len(dtypes) > 1:
        named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        reasons.append(f"dtype={named} (needs one of float32, bfloat16 for all activations)")
    for name, value in activations.items():
        if value is None:
            continue
        if value.device.type != "cpu":
            reasons.append(f"{name}.device={value.device.type} (needs cpu)")
        if value.dim() != 4:
            reasons.append(f"{name}.shape={list(value.shape)} (needs [N, C, H, W])")
        elif not channels_innermost(value):
            reasons.append(f"{name}.stride={value.stride()} (needs channels innermost, torch.channels_last)")
    return reasons
