"""Codecs of the DCVC family that no adapter knows (DCVC-DC, DCVC-FM): the object as it is, its networks compiled.

The object's own Python code goes on deciding what is coded when; wherever it calls a network (any submodule with
convolutions), fused kernels run in its place. A network that cannot be traced runs as its own code, and what it calls
inside is compiled.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.runtime.report import Report, Row
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.sparsity.macs import count

CALLS = ("compress", "decompress")
PRIOR = "bit_estimator_z"
NOTES = (
    "foreign object: its own code calls the networks; all of them run in float32",
    "streams open where both ends are compiled; floating point differs from that of the object's own layers",
    "MACs are per position of the largest tensor that a network was given; their sum is over all that ran",
)
_PLAIN_TYPES = (Tensor, type, str, bytes, int, float, bool, tuple, type(None), torch.device, torch.dtype)


def is_codec(model: nn.Module) -> bool:
    """Whether the model has the calls of a codec, networks to compile, and the factorised prior of the DCVC family.

    Models of other families that resemble a known one are refused rather than compiled worse than that.
    """
    calls = all(callable(getattr(model, name, None)) for name in CALLS)
    return calls and hasattr(model, PRIOR) and _has_convolutions(model)


def compile_object(model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """A copy of a foreign codec with its networks compiled.

    Args:
        model: answers `CALLS`. Not modified: weights are copied, and what it keeps in lists, tables and objects is.
        device: where to run.
        dtype: None or float32: which networks the symbols depend on is not known of a foreign object.

    Returns:
        An object of a class derived from the model's, with its state dict and its calls, and with ``report``. Networks
        are compiled when they are first called; weights that are loaded later are not seen by those.

    Raises:
        UsageError: another dtype.
    """
    if dtype not in (None, torch.float32):
        raise UsageError(f"dtype={dtype} for a foreign {type(model).__name__} (needs float32)")
    original = _copied(model, {}).eval().requires_grad_(False).to(device)
    compiled = _inside(original, "")
    compiled.__class__ = type(type(model).__name__, (_ForeignCodec, type(model)), {})
    compiled.__dict__["_original"] = original
    return compiled


class _ForeignCodec(nn.Module):
    """What a compiled foreign object has beside its own calls."""

    @property
    def report(self) -> Report:
        """Each layer with its op, backend and MACs, and each network that runs as its own code, with the reason."""
        networks = [module for module in self.modules() if isinstance(module, _ForeignNetwork)]
        ran = [network for network in networks if network.transform is not None]
        shapes = {network.path: network.shapes for network in ran}
        pixels = max((shape[-2] * shape[-1] for given in shapes.values() for shape in given), default=1)
        macs = {layer.name: (layer.macs, layer.macs) for layer in count(self._original, shapes).layers}
        rows = [row for network in ran for row in network.transform.rows(pixels, macs)]
        for network in networks:
            if network.reason:
                kind = type(network).__name__
                rows.append(Row(network.path, (network.path,), kind, "torch", "float32", 0.0, 0.0, network.reason))
        bytes_held = sum(network.transform.buffer_bytes for network in ran)
        return Report(tuple(rows), NOTES, tuple(shapes), bytes_held)


class _ForeignNetwork(nn.Module):
    """Mixed into the class of a network of a foreign object: compiled when it is first called with tensors alone.

    Attributes:
        original: the network as it was, all the way down.
        path: in the object.
        transform: what runs.
        reason: why nothing does.
        shapes: of the tensors that it was given first.
    """

    original: nn.Module
    path: str
    transform: CompiledTransform | None = None
    reason: str = ""
    shapes: tuple[torch.Size, ...] = ()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        if self.reason or options or not self._fits(inputs):
            return super().forward(*inputs, **options)
        if self.transform is None:
            try:
                # Not strict: foreign layers are of any kind, and the report says which stayed torch's.
                self.transform = CompiledTransform(self.original, self.path, torch.float32, strict=False)
            except GraphError as error:
                self.reason = str(error)
                return super().forward(*inputs)
            self.shapes = tuple(x.shape for x in inputs)
        return _new(self.transform(*inputs))

    def _fits(self, inputs: tuple[Any, ...]) -> bool:
        tensors = all(isinstance(x, Tensor) and x.dim() == 4 and x.dtype == torch.float32 for x in inputs)
        return tensors and len(inputs) == _needed(self.original.forward)


def _needed(function: Callable[..., Any]) -> int:
    """How many arguments a call must have."""
    parameters = inspect.signature(function).parameters.values()
    return sum(parameter.default is parameter.empty for parameter in parameters)


def _new(value: Any) -> Any:
    """Copies, contiguous as foreign code expects: a transform writes its next result over this one."""
    if isinstance(value, tuple):
        return tuple(map(_new, value))
    return value.clone(memory_format=torch.contiguous_format)


def _has_convolutions(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d | nn.ConvTranspose2d) for part in module.modules())


def _copied(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    """A copy with parameters, buffers, children and containers of its own.

    `copy.deepcopy` would fail on the coders that such objects keep, which are native.
    """
    if id(module) in seen:
        return seen[id(module)]
    new = seen[id(module)] = copy.copy(module)
    for name, value in vars(module).items():
        if name == "_parameters":
            value = {key: None if p is None else nn.Parameter(p.detach().clone()) for key, p in value.items()}
        elif name == "_buffers":
            value = {key: None if b is None else b.detach().clone() for key, b in value.items()}
        elif name == "_modules":
            value = {key: None if child is None else _copied(child, seen) for key, child in value.items()}
        elif not isinstance(value, _PLAIN_TYPES) and not isinstance(value, nn.Module) and not callable(value):
            try:
                value = copy.copy(value)
            except TypeError:  # native objects are shared
                pass
        new.__dict__[name] = value
    return new


def _inside(original: nn.Module, path: str) -> nn.Module:
    """`original` with a `_ForeignNetwork` in the place of every descendant with convolutions; shares its tensors."""
    new = copy.copy(original)
    new.__dict__["_modules"] = children = dict(original._modules)
    for name, child in _with_convolutions(original):
        inner = f"{path}.{name}".lstrip(".")
        network = children[name] = _inside(child, inner)
        network.__class__ = type(type(child).__name__, (_ForeignNetwork, type(child)), {})
        network.__dict__.update(original=child, path=inner)
    return new


def _with_convolutions(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, child) for name, child in module.named_children() if _has_convolutions(child))
