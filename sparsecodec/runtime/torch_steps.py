"""Steps that torch computes, in forms of its functions that write into a given tensor or run fast on channels_last."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.runtime.lowering import PLAIN, Program, Step

Writer = Callable[..., Tensor]  # the step's arguments, and the tensor to write to as `out`


def max_pool2(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Max pooling of 2 x 2, of any dtype: `torch.nn.functional.max_pool2d` has no int16 for large pictures.

    Args:
        x: ``[N, C, H, W]``; an odd last row or column is left out.
    """
    height, width = (side // 2 * 2 for side in x.shape[2:])
    rows = torch.maximum(x[:, :, 0:height:2, :width], x[:, :, 1:height:2, :width])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2], out=out)


_WRITERS: dict[Any, Writer] = {operator.add: torch.add, operator.mul: torch.mul}
_WRITERS |= {function: function for function in (torch.cat, torch.sigmoid, max_pool2)}
_PLANE = ((-1, -2), (-2, -1), (2, 3), (3, 2))


def writer(step: Step) -> Writer | None:
    """What computes a plain step into a planned tensor, None if it allocates.

    A new tensor of a whole picture costs its page faults: 64 channels of 512x256 in bf16, one core of a busy Zen 4
    machine, 2026-11: `torch.cat` 20.3 -> 4.0 ms.
    """
    if step.op != PLAIN or step.kwargs:
        return None
    if type(step.function) is nn.LeakyReLU:
        return _leaky_relu(step.function.negative_slope)
    if step.function is torch.cat or (step.args and isinstance(step.args[0], Step)):
        return _WRITERS.get(step.target if not isinstance(step.function, nn.Module) else None)
    return None


def _leaky_relu(slope: float) -> Writer:
    return lambda x, out: torch._C._nn.leaky_relu(x, slope, out=out)


def plane_means(program: Program, step: Step) -> None:
    """x.mean((-1, -2)) -> the same by average pooling."""
    if step.op == PLAIN and step.target == "mean" and not step.kwargs and step.args[1:] and is_plane(step.args[1]):
        function, reason = _means, "means over the picture, by torch"
        program.merge([step], Step(PLAIN, function=function, args=step.args[:1], paths=step.paths, reason=reason))


def is_plane(axes: Any) -> bool:
    """Whether these are the axes of a picture's height and width."""
    return isinstance(axes, tuple | list) and tuple(axes) in _PLANE


def _means(x: Tensor) -> Tensor:
    """``[N, C, H, W] -> [N, C]``: 64 channels of 512x256, bf16, as above: 23.2 ms by `Tensor.mean`, 0.8 ms so.

    Of CPU tensors one thread adds each mean, pixel after pixel in float32, so the bits are those of any thread count.
    """
    if x.device.type != "cpu" or x.dim() != 4:
        return x.mean((-1, -2))
    return F.avg_pool2d(x, x.shape[2:]).flatten(1)
