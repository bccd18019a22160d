"""What oneDNN must not be given in training: see `sparsecodec.training.layout`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsecodec.training.layout import channels_last, planar_inputs


class Layouts(TorchDispatchMode):
    """Strides of pictures and weights that convolutions of a stride of two are given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default and args[4] == [2, 2]:
            self.seen.append((args[1].stride(), args[2].stride()))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("width", [2, 3, 8, 12])
def test_narrow_strided_pointwise_convs_lie_plane_by_plane(width):
    model = nn.Sequential(nn.Conv2d(4, width, 3, padding=1), nn.Conv2d(width, 24, 1, 2), nn.Conv2d(24, 20, 1, 2))
    model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    expected = model(x)
    channels_last(model)
    with Layouts() as layouts, planar_inputs(model):
        out = model(x)
        out.sum().backward()
    assert torch.allclose(out, expected, atol=1e-6)
    wide, narrow = layouts.seen
    assert narrow == ((width * 64, 64, 8, 1), (width, 1, 1, 1))
    assert wide[1] == (24, 1, 24, 24)
    assert not any(module._forward_pre_hooks for module in model)
