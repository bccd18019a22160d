"""A compiled integer network: every step one call of an integer op, bound to one implementation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.ops import bind
from sparsecodec.ops.integer_conv2d import INTEGER_CONV2D
from sparsecodec.ops.integer_scale import INTEGER_SCALE
from sparsecodec.runtime.integer_lowering import integer_program, scale_constants
from sparsecodec.runtime.report import Row
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.runtime.turns import Turns
from sparsecodec.runtime.video_networks import dense_share
from sparsecodec.sparsity.macs import count


class IntegerNetwork(CompiledTransform):
    """Runs networks of frozen dyadic layers, one behind the other, on integers only (docs/portable.md).

    The result of a call lives in a buffer of the plan and is overwritten by the next call with the same shape.

    Args:
        networks: path in the model -> module; not modified.
        strict: as for `CompiledTransform`.
        source, result: exponents of the input and of an int16 result, as for `integer_program`.

    Attributes:
        exponent: of the input: its integers v stand for ``v 2^exponent``.
        shape: of the first input; None before it.

    Raises:
        UsageError: a layer is not frozen to dyadic integers.
        GraphError: integers have no rule for a structure, or an accumulator could overflow.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        strict: bool = True,
        source: int | None = None,
        result: int | None = None,
    ) -> None:
        self.name = "+".join(networks)
        self.dtype = torch.int16
        self.strict = strict
        self._program, self.exponent = integer_program(networks, source, result)
        self._bound = {}
        self._plans = OrderedDict()
        self._index = {step: index for index, step in enumerate(self._program.steps)}
        self._turns = Turns()
        self._networks = dict(networks)
        self.shape: torch.Size | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` int16 in units of ``2^exponent`` -> int32 in units of 2^-16, or `result`; channels_last."""
        self.shape = self.shape or x.shape
        return super().__call__(x)

    def rows(self, pixels: int, shapes: dict[str, Any]) -> list[Row]:
        """As `CompiledTransform.rows`; of the steps that one layer takes, its first convolution has its MACs."""
        rows, seen = [], set()
        for row in super().rows(pixels, shapes):
            first = row.op == INTEGER_CONV2D.name and not seen.issuperset(row.paths)
            rows.append(row if first else replace(row, macs=0.0, dense_macs=0.0))
            if first:
                seen.update(row.paths)
        return rows

    def report_rows(self, pixels: int) -> list[Row]:
        """Rows of the report, of a frame with that many pixels: the one that the network ran on first."""
        macs: dict[str, tuple[float, float]] = {}
        if self.shape is not None:
            # torch wants no dots in the names of children
            chain = nn.Sequential(OrderedDict((path.replace(".", "/"), m) for path, m in self._networks.items()))
            for layer in count(chain, {"": self.shape}).layers:
                share = dense_share(chain.get_submodule(layer.name), layer)
                macs[layer.name.replace("/", ".")] = layer.macs, layer.macs * share
        return self.rows(pixels, macs)


class IntegerScale:
    """Multiplies each channel by a factor that depends on the quality, on integers only.

    Args:
        factors: ``[Q, C, 1, 1]`` float32, of `integer_lowering.scale_constants`' kind.
        source, result: exponents of the input and of the int16 result.
        name: of the factors in the model, for messages.
    """

    def __init__(self, factors: Tensor, source: int, result: int, name: str) -> None:
        self._factors = factors.detach().flatten(1)
        self._source, self._result, self._name = source, result, name
        self._bound: dict[int, Callable[..., Tensor]] = {}

    def __call__(self, x: Tensor, quality: int) -> Tensor:
        """``[N, C, H, W]`` int16, channels_last -> the same of exponent `result`; quality: 0 to Q - 1."""
        run = self._bound.get(quality)
        if run is None:
            factors = self._factors[quality]
            constants = scale_constants(factors, self._source, self._result, 16, self._name)
            multiplier = constants["multiplier"] * torch.where(factors < 0, -1, 1).int()
            bound = bind(INTEGER_SCALE, x, multiplier, constants["shift"])
            run = self._bound[quality] = partial(bound.run, multiplier=multiplier)
        return run(x)
