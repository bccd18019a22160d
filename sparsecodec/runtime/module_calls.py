"""What programs call on any model, answered by its compiled codec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.runtime.settled import settled
from sparsecodec.runtime.uncopied import KeepsWeights

Self = TypeVar("Self", bound="ModuleCalls")


class ModuleCalls(KeepsWeights):
    """Calls of `nn.Module`, and ``update``, that scripts of the families make before and between those of the codec.

    Weights, device and precision are those that were compiled: what would change them is refused or, where scripts do
    it by habit (``half()``, ``update(force=True)``), changes nothing.
    """

    device: torch.device
    _model: nn.Module

    @settled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own ``forward``, by its own layers in float32: estimates of rates, nothing is coded."""
        return self._model(*args, **kwargs)

    def eval(self: Self) -> Self:
        """Itself."""
        return self

    def train(self: Self, mode: bool = True) -> Self:
        """Itself; `mode` must be False."""
        if mode:
            raise UsageError(f"a {type(self).__name__} cannot be trained (train the model, and compile that)")
        return self

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Itself, if it is there already; a dtype changes nothing.

        Raises:
            UsageError: another device.
        """
        for value in (*args, *kwargs.values()):
            if not isinstance(value, str | int | torch.device | Tensor) or isinstance(value, bool):
                continue
            device = value.device if isinstance(value, Tensor) else torch.device(value)
            if device.type != self.device.type or (device.index or 0) != (self.device.index or 0):
                raise UsageError(
                    f"compiled for {self.device} (needs compile_codec(model, {str(device)!r}) for {device})"
                )
        return self

    def half(self: Self) -> Self:
        """Itself: the precision is what it was compiled for."""
        return self

    def float(self: Self) -> Self:
        """As `half`."""
        return self

    def update(self, *args: Any, **kwargs: Any) -> bool:
        """False: the tables are those of the weights that were compiled."""
        return False

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of the model that was compiled, in float32; kernels have copies of their own."""
        return self._model.parameters(recurse)
