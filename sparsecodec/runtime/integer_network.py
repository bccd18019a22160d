"""A compiled integer network: every step one call of an integer op, bound to one implementation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.ops._epilogue import channels_innermost
from sparsecodec.ops._registry import deferred
from sparsecodec.ops.integer_conv2d import INTEGER_CONV2D
from sparsecodec.ops.integer_gdn import INTEGER_GDN
from sparsecodec.ops.integer_scale import INTEGER_SCALE
from sparsecodec.runtime.integer_constants import scale_constants
from sparsecodec.runtime.integer_excitation import Excitation
from sparsecodec.runtime.integer_lowering import integer_program
from sparsecodec.runtime.lowering import Step
from sparsecodec.runtime.planning import footprint
from sparsecodec.runtime.report import Row
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.runtime.video_networks import dense_share
from sparsecodec.sparsity.macs import count

DTYPES = {16: torch.int16, 32: torch.int32}


class IntegerNetwork(CompiledTransform):
    """Runs a network of frozen dyadic layers, or several, one behind the other, on integers only (docs/portable.md).

    The result of a call lives in a buffer of the plan and is overwritten by the next call with the same shape.

    Args:
        networks: path in the model -> module; not modified.
        strict: as for `CompiledTransform`.
        sources, results: exponents of inputs and of int16 results, as for `integer_program`.

    Attributes:
        exponents: of the inputs: integers v stand for ``v 2^exponent``. None: int32 in units of 2^-16.
        result_exponents: of the results, likewise.
        shapes: of the first inputs; None before them.

    Raises:
        UsageError: a layer is not frozen to dyadic integers.
        GraphError: integers have no rule for a structure, or an accumulator could overflow.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        strict: bool = True,
        sources: Sequence[int | None] = (),
        results: Sequence[int | None] = (),
    ) -> None:
        self.name = "+".join(networks)
        self.dtype = torch.int16
        self.strict = strict
        self._program, exponents = integer_program(networks, sources, results)
        self.exponents = tuple(map(exponents.of_int16, exponents.inputs))
        self.result_exponents = tuple(map(exponents.of_int16, exponents.outputs))
        self._dtypes = {step: DTYPES[exponents.bits(step)] for step in exponents.inputs}
        self._begin()
        self._networks = dict(networks)
        self.shapes: tuple[torch.Size, ...] | None = None

    @property
    def exponent(self) -> int:
        """Of the first input."""
        return self.exponents[0]

    def __call__(self, *inputs: Tensor) -> Any:
        """``[N, C, H, W]`` int16 or int32, as `exponents` say -> the same, as `result_exponents`; channels_last."""
        self.shapes = self.shapes or tuple(x.shape for x in inputs)
        return super().__call__(*inputs)

    def _ready(self, step: Step, x: Tensor, converted: dict[Step, Tensor]) -> Tensor:
        if x.dtype != self._dtypes[step]:
            raise UsageError(f"{self.name}: an input of {x.dtype} (needs {self._dtypes[step]})")
        return x if channels_innermost(x) else x.contiguous(memory_format=torch.channels_last)

    def footprint(self, shape: tuple[int, ...], device: torch.device) -> int:
        (dtype,) = self._dtypes.values()
        return footprint(self._program, self.name, (shape,), dtype, device)

    def rows(self, pixels: int, shapes: dict[str, Any]) -> list[Row]:
        """As `CompiledTransform.rows`; of the steps that one layer takes, the first one with products has its MACs."""
        rows, seen = [], set()
        for row in super().rows(pixels, shapes):
            counts = row.op in (INTEGER_CONV2D.name, INTEGER_GDN.name, Excitation.__name__)
            first = counts and not seen.issuperset(row.paths)
            rows.append(row if first else replace(row, macs=0.0, dense_macs=0.0))
            if first:
                seen.update(row.paths)
        return rows

    def report_rows(self, pixels: int) -> list[Row]:
        """Rows of the report, of a frame with that many pixels: the one that the network ran on first."""
        macs: dict[str, tuple[float, float]] = {}
        if self.shapes is not None:
            # torch wants no dots in the names of children
            named = OrderedDict((path.replace(".", "/"), m) for path, m in self._networks.items())
            alone = len(named) == 1 and next(iter(named.values()))
            chain = alone or nn.Sequential(named)
            for layer in count(chain, {"": self.shapes}).layers:
                share = dense_share(chain.get_submodule(layer.name), layer)
                inside = f"{self.name}.{layer.name}".rstrip(".") if alone else layer.name.replace("/", ".")
                macs[inside] = layer.macs, layer.macs * share
        return self.rows(pixels, macs)


class IntegerScale:
    """Multiplies each channel by a factor that depends on the quality, on integers only.

    Args:
        factors: ``[Q, C, 1, 1]`` float32, each an integer of magnitude below 2^15 times a power of two.
        source, result: exponents of the input and of the int16 result.
        name: of the factors in the model, for messages.
    """

    def __init__(self, factors: Tensor, source: int, result: int, name: str) -> None:
        self._factors = factors.detach().flatten(1)
        self._gain, self._name = source - result, name
        self._bound: dict[int, Callable[..., Tensor]] = {}

    def __call__(self, x: Tensor, quality: int) -> Tensor:
        """``[N, C, H, W]`` int16, channels_last -> the same of exponent `result`; quality: 0 to Q - 1."""
        run = self._bound.get(quality)
        if run is None:
            constants = scale_constants(self._factors[quality], self._gain, 1.0, self._name)
            multiplier = constants.pop("multiplier")
            run = self._bound[quality] = partial(deferred(INTEGER_SCALE, **constants), multiplier=multiplier)
        return run(x)
