"""Attention to a patch on integers, from the integers that a frozen layer of scores stores."""

from __future__ import annotations

from torch import Tensor

from sparsecodec.nn.fvc_layers import PatchAttention
from sparsecodec.nn.integer_attention import attended
from sparsecodec.ops._registry import deferred
from sparsecodec.ops.integer_conv2d import INTEGER_CONV2D
from sparsecodec.runtime.integer_constants import conv_constants, wanted_exponent
from sparsecodec.runtime.integer_exponents import RESULT_EXPONENT
from sparsecodec.runtime.lowering import Step


class IntegerAttention:
    """A `PatchAttention` whose scores are a frozen dyadic layer.

    Args:
        layer: not modified.
        path: its path in the model, for messages.

    Attributes:
        exponent: that its scores ask for.
    """

    def __init__(self, layer: PatchAttention, path: str) -> None:
        self._score, self._size = layer.score, layer.size
        self._path = f"{path}.score"
        self.exponent = wanted_exponent(self._score)

    def bound(self, exponent: int) -> IntegerAttention:
        """Itself, for maps of that exponent, which is no smaller than its own."""
        step = Step("pointwise", paths=(self._path,), function=self._score)
        constants = conv_constants(step, exponent, RESULT_EXPONENT, 32, None)
        constants["weight"] = constants["weight"][:, self._score.in_channels // 2 :].contiguous()
        self._scores = deferred(INTEGER_CONV2D, **constants)
        return self

    def __call__(self, source: Tensor) -> Tensor:
        """``[1, C, H, W]`` int16 -> the same of the same exponent, channels_last."""
        return attended(source, self._scores(source), self._size)
