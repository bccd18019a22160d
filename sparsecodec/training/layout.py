"""How the weights lie in memory while a codec is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 16  # input channels that oneDNN's kernels take at once


def channels_last(model: nn.Module) -> nn.Module:
    """Moves conv weights to channels_last, in place, except those of narrow strided 1x1 convs.

    torch 2.13's CPU backward of those writes past a workspace where picture or weights are channels_last
    (uxlfoundation/oneDNN issue 6035): heap corruption on one thread, wrong gradients on more. `planar_inputs` does the
    other half.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            if _narrow_strided_pointwise(module):
                # Strides of sides of length one are kept by `contiguous`, and oneDNN reads the layout off them.
                module.weight.data = module.weight.data.reshape(-1).view(module.weight.shape)
            else:
                module.to(memory_format=torch.channels_last)
    return model


@contextlib.contextmanager
def planar_inputs(model: nn.Module) -> Iterator[None]:
    """Within it, narrow strided 1x1 convs read tensors ``[N, C, H, W]`` that lie so in memory. Same values."""
    handles = [
        module.register_forward_pre_hook(_planar)
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and _narrow_strided_pointwise(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _narrow_strided_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.stride != (1, 1) and conv.in_channels < BLOCK


def _planar(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in inputs)
