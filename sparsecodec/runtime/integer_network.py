"""A compiled integer network: every step one call of `integer_conv2d`, bound to one implementation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsecodec.runtime.integer_lowering import integer_program
from sparsecodec.runtime.transform import CompiledTransform


class IntegerNetwork(CompiledTransform):
    """Runs networks of frozen dyadic layers, one behind the other, on integers only (docs/portable.md).

    The result of a call lives in a buffer of the plan and is overwritten by the next call with the same shape.

    Args:
        networks: path in the model -> module; not modified.
        strict: as for `CompiledTransform`.

    Attributes:
        exponent: of the input: its integers v stand for ``v 2^exponent``.

    Raises:
        UsageError: a layer is not frozen to dyadic integers.
        GraphError: integers have no rule for a structure, or an accumulator could overflow.
    """

    def __init__(self, networks: Mapping[str, nn.Module], *, strict: bool = True) -> None:
        self.name = "+".join(networks)
        self.dtype = torch.int16
        self.strict = strict
        self._program, self.exponent = integer_program(networks)
        self._bound = {}
        self._plans = OrderedDict()
        self._index = {step: index for index, step in enumerate(self._program.steps)}

    def __call__(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` int16 in units of ``2^exponent`` -> int32 in units of 2^-16, channels_last."""
        return super().__call__(x)
