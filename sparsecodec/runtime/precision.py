"""A compiled model computes in the precision that it was compiled for, whatever is asked of it later."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class KeepsPrecision(nn.Module):
    """A model whose precision `compile_codec` chose once: ``half()`` and ``to(dtype)`` leave its values.

    Programs of the published software call ``half()`` on what they have loaded. The networks do not listen, and steps
    in another precision than theirs would be other steps: neither end could open what an untouched one wrote.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeepsPrecision:
        def moved(value: Tensor) -> Tensor:
            result = fn(value)
            return result if result.dtype == value.dtype else value.to(result.device)

        return super()._apply(moved, recurse)
