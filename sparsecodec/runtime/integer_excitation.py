"""Squeeze-and-excitation on integers: the factors of channels, from their means over a picture (docs/portable.md)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from sparsecodec.errors import UsageError
from sparsecodec.nn.integer_functions import sigmoid_table
from sparsecodec.ops._fixed_point import narrowed
from sparsecodec.ops._registry import deferred
from sparsecodec.ops.integer_conv2d import INTEGER_CONV2D
from sparsecodec.ops.integer_gate import INTEGER_GATE
from sparsecodec.runtime.integer_constants import conv_constants, wanted_exponent
from sparsecodec.runtime.integer_exponents import RESULT_EXPONENT
from sparsecodec.runtime.lowering import Step

SIGMOID_BITS = 15  # a factor f stands for f 2^-15
SIGMOID_EXPONENT = -11  # of what the sigmoid reads: +- 16


class Excitation(nn.Module):
    """Means, a layer with a ReLU, a layer with a sigmoid.

    Args:
        down, up: frozen dyadic linear layers without biases, of 16-bit inputs.
        exponent: of what it reads, -46 to 14.
        paths: of both, for messages.
    """

    def __init__(self, down: nn.Linear, up: nn.Linear, exponent: int, paths: tuple[str, ...]) -> None:
        super().__init__()
        self.width = up.out_features
        self._left = exponent - RESULT_EXPONENT
        self._source = wanted_exponent(down)
        between = wanted_exponent(up)
        self._down = _layer(down, self._source, between, 0.0, paths[:1])
        self._up = _layer(up, between, SIGMOID_EXPONENT, 1.0, paths[1:])
        self._sigmoid = deferred(INTEGER_GATE, table=sigmoid_table(SIGMOID_EXPONENT, SIGMOID_BITS).to(up.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """``[1, C, H, W]`` int16 or int32 -> ``[2, C]`` int32, twice the same: the multiplier of `integer_scale`."""
        if isinstance(x, FakeTensor):  # a plan asks for the shape alone
            return torch.empty((2, self.width), dtype=torch.int32, device=x.device)
        if len(x) != 1:
            raise UsageError(f"{len(x)} pictures at once (means over a picture are of one)")
        positions = x.shape[2] * x.shape[3]
        sums, positions = plane_sums(x) << max(self._left, 0), positions << max(-self._left, 0)
        means = torch.div(2 * sums + positions, 2 * positions, rounding_mode="floor").to(torch.int32)
        q = narrowed(means.view(1, -1, 1, 1).contiguous(memory_format=torch.channels_last), self._source)
        return self._sigmoid(self._up(self._down(q))).int().view(1, -1).expand(2, -1).contiguous()


def _layer(layer: nn.Linear, source: int, result: int, slope: float, paths: tuple[str, ...]):
    step = Step("pointwise", constants={"slope": slope}, paths=paths, function=layer)
    return deferred(INTEGER_CONV2D, **conv_constants(step, source, result, 16, None))


def plane_sums(x: Tensor) -> Tensor:
    """``[1, C, H, W]`` int16 or int32 -> ``[C]`` int64 on its device."""
    rows = x[0].permute(1, 2, 0)  # [H, W, C]
    if x.device.type == "cpu":  # numpy takes a twentieth of the time
        return torch.from_numpy(rows.numpy().sum(0, dtype="int64").sum(0))
    return rows.sum((0, 1), dtype=torch.int64)
