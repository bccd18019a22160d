"""Which implementation runs an op, and why not the others.

An op is declared once, by an `OpSpec`: its schema, its reference and its implementations, best first. Implementations
are named by strings and imported on first use, so this module imports torch and nothing of the backends.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecodec.errors import NoBackendError, UsageError

BACKENDS = ("cuda", "triton", "cpu", "reference")
# Of a GPU for the Triton kernels: below it they spill and have no matrix instructions for bfloat16.
LEAST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Impl:
    """One implementation of an op.

    Attributes:
        backend: one of `BACKENDS`.
        target: ``"module:function"``; the function takes the schema's arguments by name, in its order, and returns
            what the reference returns.
        rejects: the schema's arguments -> sentences that say why this implementation refuses them; empty = accepts.
        plan: ``"module:factory"``, optional; takes the op's constants by name and ``dtype=``, that of the
            activations, packs them once and returns a callable of the remaining arguments that also takes ``out=None``.
    """

    backend: str
    target: str
    rejects: Callable[..., list[str]]
    plan: str | None = None


@dataclass(frozen=True)
class OpSpec:
    """An op: the truth about it, independent of how it is implemented.

    Attributes:
        name: noun of the field, snake_case.
        schema: torch schema string without the name.
        reference: plain torch, any device, differentiable; its signature is the signature of the op.
        impls: best first.
        constants: names of the arguments that are weights, fixed when a codec is compiled.
        exact: True if every implementation gives the reference's bits.
        check: optional, takes the constants by name and raises a UsageError for values that no implementation takes.
            The reference leaves that to it: reading values waits for the device, once when constants are fixed and not
            in every call, which a CUDA graph might be capturing.
        scratch: optional, takes the arguments by name and returns about how many bytes a call on a GPU allocates beside
            its result, for its launches to hand features on.
    """

    name: str
    schema: str
    reference: Callable[..., Any]
    impls: tuple[Impl, ...]
    constants: tuple[str, ...] = ()
    exact: bool = False
    check: Callable[..., None] | None = None
    scratch: Callable[..., int] | None = None


_SPECS: dict[str, OpSpec] = {}
_forced: ContextVar[str | None] = ContextVar("sparsecodec_backend", default=None)


def register(spec: OpSpec) -> OpSpec:
    """Adds `spec` to the registry and returns it."""
    if spec.name in _SPECS:
        raise UsageError(f"op {spec.name!r} is registered twice")
    _SPECS[spec.name] = spec
    return spec


def specs() -> dict[str, OpSpec]:
    """All registered ops by name."""
    return dict(_SPECS)


@functools.cache
def why_unavailable(backend: str) -> str | None:
    """None if `backend` can be used in this process, else one sentence that says why not."""
    module = {"cpu": "sparsecodec._C", "triton": "triton", "cuda": "sparsecodec._cuda"}.get(backend)
    if backend not in BACKENDS:
        return f"unknown backend (one of {', '.join(BACKENDS)})"
    if module is None:
        return None
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        return f"{module} cannot be imported: {error}"
    if backend == "cuda":
        return found.why_unavailable()
    if backend == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
        return _why_no_gpu()
    return None


def _why_no_gpu() -> str | None:
    """What Triton's kernels lack."""
    if not torch.cuda.is_available():
        return "no CUDA device, and TRITON_INTERPRET=1 is not set"
    newest = max(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())))
    if newest < LEAST_CAPABILITY:
        found, needed = (".".join(map(str, version)) for version in (newest, LEAST_CAPABILITY))
        return f"the newest CUDA device has compute capability {found} (needs {needed})"
    return None


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within the block every op runs on `backend` or raises `NoBackendError`. For tests and for bisection."""
    if backend not in BACKENDS:
        raise UsageError(f"backend={backend!r} (one of {', '.join(BACKENDS)})")
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)


def forced_backend() -> str | None:
    """The backend demanded by `use_backend` or by the variable SPARSECODEC_BACKEND, if any.

    Raises:
        UsageError: the variable names none.
    """
    backend = _forced.get() or os.environ.get("SPARSECODEC_BACKEND") or None
    if backend not in (None, *BACKENDS):
        raise UsageError(f"SPARSECODEC_BACKEND={backend} (one of {', '.join(BACKENDS)})")
    return backend


@functools.cache
def resolve(target: str) -> Callable[..., Any]:
    """Imports ``"module:attribute"``."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def reasons_against(impl: Impl, arguments: dict[str, Any]) -> list[str]:
    """Why `impl` does not take these arguments; empty = it does."""
    missing = why_unavailable(impl.backend)
    if missing is not None:
        return [missing]
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    reasons = []
    if len({tensor.device for tensor in tensors}) > 1:
        reasons.append("mixed devices " + ", ".join(sorted({str(tensor.device) for tensor in tensors})))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        reasons.append("an input requires grad (kernels are inference-only; use torch.no_grad())")
    return reasons or impl.rejects(**arguments)


def bind_arguments(spec: OpSpec, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one call by name, defaults filled in."""
    bound = inspect.signature(spec.reference).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _choose(spec: OpSpec, arguments: dict[str, Any]) -> tuple[Impl | None, tuple[str, ...]]:
    """As `select`, with one line per implementation that was refused on the way."""
    forced = forced_backend()
    if forced == "reference":
        return None, ()
    refused = []
    for impl in spec.impls:
        if forced is not None and impl.backend != forced:
            continue
        interpreted = impl.backend == "triton" and not torch.cuda.is_available()
        if forced is None and interpreted and why_unavailable(impl.backend) is None:
            reasons = ["Triton's interpreter is for checking kernels and runs on demand only"]
        else:
            reasons = reasons_against(impl, arguments)
        if not reasons:
            return impl, tuple(refused)
        refused.append(f"  {impl.backend}: {'; '.join(reasons)}")
    if forced is None:
        return None, tuple(refused)
    raise NoBackendError("\n".join([f"no backend for {spec.name}", *(refused or [f"  {forced}: not implemented"])]))


def select(spec: OpSpec, arguments: dict[str, Any]) -> Impl | None:
    """The implementation that takes `arguments`; None stands for the reference.

    Raises:
        NoBackendError: a backend is forced and refuses; the message gives its reasons.
    """
    return _choose(spec, arguments)[0]


def call(spec: OpSpec, *args: Any, **kwargs: Any) -> Any:
    """Runs the op once, on the best backend that accepts the arguments."""
    arguments = bind_arguments(spec, args, kwargs)
    impl = select(spec, arguments)
    if impl is not None:
        return resolve(impl.target)(**arguments)
    _check(spec, arguments)
    return spec.reference(**arguments)


def _check(spec: OpSpec, arguments: dict[str, Any]) -> None:
    if spec.check is not None:
        spec.check(**{name: arguments[name] for name in spec.constants})


@dataclass(frozen=True)
class Bound:
    """An op whose constants are fixed and, where the implementation can, packed.

    Attributes:
        backend: what runs it.
        run: takes the op's other arguments in the schema's order or by name, and ``out=None``.
        refused: one line for each better implementation that refused the sample, with its reasons.
    """

    backend: str
    run: Callable[..., Any]
    refused: tuple[str, ...]


def bind(spec: OpSpec, *args: Any, **kwargs: Any) -> Bound:
    """Chooses the implementation for arguments like these and fixes the constants among them.

    Later calls of `run` must keep device, dtype and layout of the sample; sizes may change.
    """
    arguments = bind_arguments(spec, args, kwargs)
    impl, refused = _choose(spec, arguments)
    if impl is None:
        _check(spec, arguments)
    constants = {name: arguments.pop(name) for name in spec.constants}
    if impl is not None and impl.plan is not None:
        dtype = next(value.dtype for value in arguments.values() if isinstance(value, Tensor))
        return Bound(impl.backend, resolve(impl.plan)(**constants, dtype=dtype), refused)
    target = spec.reference if impl is None else resolve(impl.target)
    names = tuple(arguments)

    def run(*args: Any, out: Any = None, **kwargs: Any) -> Any:
        result = target(**dict(zip(names, args, strict=False)), **kwargs, **constants)
        if out is None:
            return result
        pairs = zip(out, result, strict=True) if isinstance(result, tuple) else ((out, result),)
        for to, value in pairs:
            to.copy_(value)
        return out

    return Bound("reference" if impl is None else impl.backend, run, refused)


def deferred(spec: OpSpec, **constants: Any) -> Callable[..., Any]:
    """The op with these constants, bound at its first call, to arguments like those of that call."""
    bound: Bound | None = None

    def run(*args: Any, out: Any = None, **kwargs: Any) -> Any:
        nonlocal bound
        if bound is None:
            bound = bind(spec, *args, **kwargs, **constants)
        return bound.run(*args, **kwargs, out=out)

    return run
