"""Codecs of the DCVC family that are not ours (DCVC-DC, DCVC-FM, DCVC-UF): the object as it is, its networks compiled.

The object's own Python code goes on deciding what is coded when; wherever it calls a network (any submodule with
convolutions), fused kernels run in its place. A network that cannot be traced runs as its own code, and what it calls
inside is compiled. What its code needs a GPU for is replaced by kinds of `ForeignCodec`, in `adapters`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.runtime.foreign_methods import casting, with_our_warp, without_cuda
from sparsecodec.runtime.foreign_network import ForeignNetwork, Twin, has_convolutions
from sparsecodec.runtime.precision import KeepsPrecision
from sparsecodec.runtime.report import Report, Row

CALLS = ("compress", "decompress")
TAKE_PICTURES = (*CALLS, "encode", "encode_decode", "forward", "forward_one_frame")
PRIOR = "bit_estimator_z"
NOTES = (
    "streams open where both ends are compiled; floating point differs from that of the object's own layers",
    "MACs are per position of the largest tensor that a network was given; their sum is over all that ran",
)
_PLAIN_TYPES = (Tensor, type, str, bytes, int, float, bool, tuple, type(None), torch.device, torch.dtype)


class ForeignCodec(KeepsPrecision):
    """What a compiled foreign object has beside its own calls; mixed into its class, in front of it.

    It computes as it was compiled, whatever ``half()`` says and whatever it is given, so that all its ends compute
    alike; what its networks return is float32.

    Attributes:
        NEEDS: what the state dict of an object of this kind holds: tensors, and networks by the names that their keys
            begin with.
        LAYOUT: of what its networks return.
        TWINS: of its networks that cannot be traced.
        TRANSFORMS: networks, or parts of them, that compute in the dtype that an object is compiled for. All others,
            among them whatever motion and the coding tables' rows are made of, and the last layer of a picture of
            8 bits, compute in float32. Empty: not known of this kind, which is compiled for float32 only.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ()
    LAYOUT: ClassVar[torch.memory_format] = torch.contiguous_format
    TWINS: ClassVar[tuple[Twin, ...]] = ()
    TRANSFORMS: ClassVar[tuple[str, ...]] = ()

    _dtype: torch.dtype = torch.float32
    _original: nn.Module | None = None  # with its own layers, if those here are compiled

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether the model has the calls of a codec, networks to compile, and the factorised prior of the family.

        Models of other families that resemble a known one are refused rather than compiled worse than that.
        """
        calls = all(callable(getattr(model, name, None)) for name in CALLS)
        return calls and hasattr(model, PRIOR) and has_convolutions(model)

    def set_up(self) -> None:
        """Called once, when the object is ready."""

    @property
    def report(self) -> Report:
        """Each layer with its op, backend and MACs, and each network that runs as its own code, with the reason."""
        if self._original is None:
            return Report((), ("original: every layer is the object's own, in float32",), (), 0)
        networks = [module for module in self.modules() if isinstance(module, ForeignNetwork)]
        ran = [network for network in networks if network.transform is not None]
        shapes = {network.path: network.shapes for network in ran}
        positions = [shape[-2] * shape[-1] for given in shapes.values() for shape in given]
        pixels = max([*positions, *(network.own_positions for network in networks)], default=0) or 1
        macs = {name: (value, value) for network in ran for name, value in network.macs().items()}
        rows = [row for network in ran for row in network.transform.rows(pixels, macs)]
        left = [n for n in networks if n.own_macs or (n.reason and n.transform is None)]
        for network in left:
            kind, own = type(network).__name__, network.own_macs / pixels
            rows.append(Row(network.path, (network.path,), kind, "torch", "float32", own, own, network.reason))
        precision = "all of them run in float32"
        if self._dtype != torch.float32:
            precision = f"{', '.join(self.TRANSFORMS)} in {self._dtype}, all others in float32"
        notes = f"foreign object: its own code calls the networks; {precision}", *NOTES
        share = f"{_share_on_kernels(rows):.1%} of the multiply-accumulates of what ran are on kernels"
        bytes_held = sum(network.transform.buffer_bytes for network in ran)
        return Report(tuple(rows), (*notes, share), (*shapes, *(network.path for network in left)), bytes_held)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """As the object's own.

        Raises:
            UsageError: networks are compiled already, and would not see the weights.
        """
        if any(isinstance(module, ForeignNetwork) and module.transform is not None for module in self.modules()):
            raise UsageError(
                f"this {type(self).__name__} is compiled with other weights: load them into the model and compile that"
            )
        return super().load_state_dict(*args, **options)


def compile_object(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype | None,
    kind: type[ForeignCodec] = ForeignCodec,
    original: bool = False,
) -> ForeignCodec:
    """A copy of a foreign codec with its networks compiled.

    Args:
        model: answers `CALLS`. Not modified: weights are copied, and what it keeps in lists, tables and objects is.
        device: where to run.
        dtype: of the kind's `TRANSFORMS`; None: float32.
        kind: what it is.
        original: compile nothing: its own layers run, in float32.

    Returns:
        An object of a class derived from the model's, with its state dict and its calls, and with ``report``. Networks
        are compiled when they are first called.

    Raises:
        UsageError: a dtype that objects of this kind, or their own layers, do not run in, or something that objects of
            this kind have is missing.
    """
    dtype = dtype or torch.float32
    if dtype != torch.float32 and original:
        raise UsageError(f"dtype={dtype}: original=True runs the object's own layers (needs float32)")
    if dtype != torch.float32 and not kind.TRANSFORMS:
        name = type(model).__name__
        raise UsageError(f"dtype={dtype}: nothing says which networks of a {name} may compute in it (needs float32)")
    _check(model, kind)
    made = _copied(model, {}).eval().requires_grad_(False).to(device).float()
    name, published = type(model).__name__, type(model)
    if not original:
        published = with_our_warp(published)
        plain, made = made, _inside(made, "", kind, dtype)
        made.__dict__.update(_original=plain, _dtype=dtype)
    if device.type != "cuda":
        published = without_cuda(published)
    made.__class__ = type(name, (kind, casting(published, TAKE_PICTURES)), {})
    made.set_up()
    return made


def _check(model: nn.Module, kind: type[ForeignCodec]) -> None:
    state = model.state_dict()
    missing = [
        name for name in kind.NEEDS if name not in state and not any(key.startswith(f"{name}.") for key in state)
    ]
    if missing:
        raise UsageError(
            f"{type(model).__name__} is like a {kind.__name__}, but its state dict has no {', '.join(missing)}"
        )


def _share_on_kernels(rows: list[Row]) -> float:
    whole = sum(row.macs for row in rows)
    return sum(row.macs for row in rows if row.backend not in ("torch", "reference")) / whole if whole else 0.0


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


def _inside(original: nn.Module, path: str, kind: type[ForeignCodec], dtype: torch.dtype) -> nn.Module:
    """`original` with a `ForeignNetwork` in the place of every descendant with convolutions; shares its tensors."""
    new = copy.copy(original)
    new.__dict__["_modules"] = children = dict(original._modules)
    for name, child in _with_convolutions(original):
        inner = f"{path}.{name}".lstrip(".")
        network = children[name] = _inside(child, inner, kind, dtype)
        network.__class__ = type(type(child).__name__, (ForeignNetwork, with_our_warp(type(child))), {})
        network.__dict__.update(original=child, path=inner, layout=kind.LAYOUT, twins=kind.TWINS)
        if any(f"{inner}.".startswith(f"{transform}.") for transform in kind.TRANSFORMS):
            network.dtype = dtype
        elif dtype != torch.float32 and any(name.startswith(f"{inner}.") for name in kind.TRANSFORMS):
            network.__dict__.update(split=True, reason=f"only a part of it is in {dtype}")
    return new


def _with_convolutions(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, child) for name, child in module.named_children() if has_convolutions(child))
