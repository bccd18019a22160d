"""One network of a foreign object: compiled when it is first called with tensors alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import GraphError
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.sparsity.macs import conv_macs, count
from sparsecodec.sparsity.rules import is_conv, is_multiply
from sparsecodec.sparsity.tracing import trace

MAX_TENSORS = 5
# Foreign layers are of any kind, and the report says which stayed torch's. Streams open where both ends are compiled:
# it is enough that both get the same bits, and those of fewer products are the same on every instruction set.
COMPILED = {"strict": False, "pinned": False}


Twin = Callable[[nn.Module], nn.Module | None]


class ForeignNetwork(nn.Module):
    """Mixed into the class of a network of a foreign object, in front of it.

    Attributes:
        original: the network as it was, all the way down.
        path: in the object.
        layout: of its results; contiguous where a network that cannot be traced calls it.
        dtype: in which it computes; what it is given and what it returns is float32.
        split: it runs as its own code, which takes either layout, because its parts compute in two precisions.
        twins: what makes of a network that cannot be traced one that computes the same and can, or None.
        transform: what runs.
        reason: why nothing does, or did when it was last called.
        counted: if not `original`, the network that runs, and whose products are counted.
        shapes: of the tensors that it was given first.
        own_macs: of its own convolution, if it is one and has run as its own code: when that first happened.
        own_positions: of the tensor that it was given then.
    """

    original: nn.Module
    path: str
    layout: torch.memory_format
    dtype: torch.dtype = torch.float32
    split: bool = False
    twins: tuple[Twin, ...] = ()
    transform: CompiledTransform | None = None
    reason: str = ""
    untraceable: bool = False
    counted: nn.Module | None = None
    shapes: tuple[torch.Size, ...] = ()
    own_macs: int = 0
    own_positions: int = 0

    def forward(self, *inputs: Any, **options: Any) -> Any:
        if self.split:
            return super().forward(*inputs, **options)
        if self.untraceable or (unfit := self._unfit(inputs, options)):
            if not self.untraceable:
                self.reason = unfit
            return self._as_it_is(*inputs, **options)
        if self.transform is None:
            try:
                self.transform = self._compiled(inputs)
            except GraphError as error:
                self.reason, self.untraceable = str(error), True
                return self._as_it_is(*inputs)
            self.shapes = tuple(x.shape for x in inputs)
        return _new(self.transform(*inputs), self.layout)

    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of a call with tensors of those shapes, by the layers' paths."""
        layers = count(self.counted or self.original, {"": self.shapes}).layers
        return {f"{self.path}.{layer.name}".rstrip("."): layer.macs for layer in layers}

    def _as_it_is(self, *inputs: Any, **options: Any) -> Any:
        for network in self.modules():
            if isinstance(network, ForeignNetwork) and network is not self:
                network.layout = torch.contiguous_format  # this code may take views of what they return
        result = super().forward(*inputs, **options)
        if is_conv(self) and not self.own_macs:
            x = next(value for value in (*inputs, *options.values()) if isinstance(value, Tensor))
            self.own_macs, self.own_positions = conv_macs(self, x, result), x.shape[-2] * x.shape[-1]
        return result

    def _unfit(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> str:
        """Why this call is not one of the compiled network; empty if it is."""
        if options:
            return f"called with {', '.join(options)}="
        for x in inputs:
            if not isinstance(x, Tensor):
                return f"called with a {type(x).__name__}"
            if x.dim() != 4 or x.dtype != torch.float32:
                return f"called with {x.dtype} {list(x.shape)} (compiled for float32 [N, C, H, W])"
        least, most = _accepted(self.original)
        if not least <= len(inputs) <= most or (self.shapes and len(inputs) != len(self.shapes)):
            return f"called with {len(inputs)} tensors"
        return ""

    def _compiled(self, inputs: tuple[Tensor, ...]) -> CompiledTransform:
        try:
            return self._traced(self.original, inputs)
        except GraphError:
            for twin in self.twins:
                if (other := twin(self.original)) is not None:
                    self.__dict__["counted"] = other
                    return self._traced(other, inputs)
            raise

    def _traced(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> CompiledTransform:
        if len(inputs) == 1 and _accepted(network)[1] < MAX_TENSORS:
            return CompiledTransform(network, self.path, self.dtype, **COMPILED)
        prefix, _, name = self.path.rpartition(".")
        whole = _ARITIES[len(inputs)](name, network)
        # One value per channel beside a larger tensor can only be a factor; one for all of them need not be.
        stepped = len(inputs) > 1 and inputs[-1].shape[2:] == (1, 1) != inputs[0].shape[2:] and inputs[-1].shape[1] > 1
        factors = ("last",) if stepped and _multiplies(whole, self.path) else ()
        return CompiledTransform(whole, self.path, self.dtype, **COMPILED, prefix=prefix, factors=factors)


class _One(nn.Module):
    """A network that is called with one tensor, as tracing needs to know.

    Args:
        name: last component of the network's path in the object.
        network: the network.
    """

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.add_module(name, network)

    @property
    def network(self) -> nn.Module:
        return next(self.children())

    def forward(self, first: Tensor) -> Any:
        return self.network(first)


class _Two(_One):
    def forward(self, first: Tensor, last: Tensor) -> Any:
        return self.network(first, last)


class _Three(_One):
    def forward(self, first: Tensor, second: Tensor, last: Tensor) -> Any:
        return self.network(first, second, last)


class _Four(_One):
    def forward(self, first: Tensor, second: Tensor, third: Tensor, last: Tensor) -> Any:
        return self.network(first, second, third, last)


class _Five(_One):
    def forward(self, first: Tensor, second: Tensor, third: Tensor, fourth: Tensor, last: Tensor) -> Any:
        return self.network(first, second, third, fourth, last)


_ARITIES = {1: _One, 2: _Two, 3: _Three, 4: _Four, 5: _Five}


def _multiplies(network: nn.Module, name: str) -> bool:
    """Whether the last argument is only multiplied by, and always with another tensor."""
    (last,) = (node for node in trace(network, name).nodes if node.op == "placeholder" and node.target == "last")
    return all(is_multiply(user.target) and len(user.all_input_nodes) == 2 for user in last.users)


def _accepted(network: nn.Module) -> tuple[int, int]:
    """How many tensors a call can have: at least, at most."""
    parameters = inspect.signature(network.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return 1, MAX_TENSORS
    places = [parameter for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    needed = sum(parameter.default is parameter.empty for parameter in places)
    # Other arguments may be flags; None in their place is what a tensor was left out for.
    optional = [parameter for parameter in places if parameter.default is None]
    return needed, min(needed + len(optional), MAX_TENSORS)


def _new(value: Any, layout: torch.memory_format) -> Any:
    """Copies, as foreign code expects them: a transform writes its next result over this one."""
    if isinstance(value, tuple):
        return tuple(_new(item, layout) for item in value)
    return value.to(torch.float32, memory_format=layout, copy=True)


def has_convolutions(module: nn.Module) -> bool:
    """Whether there is anything to compile in `module`."""
    return any(isinstance(part, nn.Conv2d | nn.ConvTranspose2d) for part in module.modules())
