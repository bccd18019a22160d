"""Methods of foreign classes as compiled objects need them.

None waits for a missing GPU, pictures come as float32, and what warps features by a flow is our op.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sparsecodec.ops import warp

WAITS = ("synchronize",)
SAMPLES = "grid_sample"


class _Cuda:
    """`torch.cuda` where there is nothing to wait for."""

    def synchronize(self, *_: Any, **__: Any) -> None:
        """There is nothing to wait for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)


class _Torch:
    """`torch` with that."""

    cuda = _Cuda()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def without_cuda(cls: type) -> type:
    """A class derived from `cls`, whose methods do not wait for a GPU that is not there.

    Only methods that name such a wait are replaced, by the same code with another `torch`; `cls` stays as it is.
    """

    def idle(method: types.FunctionType) -> dict[str, Any]:
        if not {"cuda", *WAITS} <= set(method.__code__.co_names):
            return {}
        return {name: _Torch() for name, value in method.__globals__.items() if value is torch}

    return _seeing(cls, idle)


def with_our_warp(cls: type) -> type:
    """A class derived from `cls`, whose methods call `warp` where they called a function that computes the same."""

    def warps(method: types.FunctionType) -> dict[str, Any]:
        called = {name: method.__globals__.get(name) for name in method.__code__.co_names}
        return {name: _warp for name, function in called.items() if _is_warp(function)}

    return _seeing(cls, warps)


def _seeing(cls: type, others: Callable[[types.FunctionType], dict[str, Any]]) -> type:
    """A class derived from `cls`, whose methods see other globals where `others` names some for them."""
    replaced: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("torch."):  # nothing there is to be seen otherwise, and there is much
            continue
        for name, value in vars(base).items():
            if isinstance(value, types.FunctionType):
                if seen := others(value):
                    replaced[name] = _rebound(value, seen)
                else:
                    replaced.pop(name, None)
    return type(cls.__name__, (cls,), replaced) if replaced else cls


def _warp(x: Tensor, flow: Tensor) -> Tensor:
    return warp(x.contiguous(memory_format=torch.channels_last), flow)


def _is_warp(function: Any) -> bool:
    """Whether a function samples by torch, and computes what `warp` does. Those that call native code are not tried."""
    if not isinstance(function, types.FunctionType):
        return False
    parts = _calls(function, set())
    if any(isinstance(part, types.BuiltinFunctionType) for part in parts):
        return False
    if not any(SAMPLES in part.__code__.co_names for part in parts):
        return False
    x = torch.arange(24.0).view(1, 2, 3, 4)
    flow = torch.tensor([-9.0, 0.0, 0.25, 1.5, 9.0]).repeat(5)[:24].view(1, 2, 3, 4)
    try:
        return torch.allclose(function(x, flow), warp(x, flow), rtol=0, atol=1e-4)
    except Exception:  # it may be anything, for arguments of any kind
        return False


def _calls(function: Any, seen: set[Any]) -> set[Any]:
    """The function, and those that it calls by global names, and so on."""
    if function not in seen:
        seen.add(function)
        if isinstance(function, types.FunctionType):
            for called in map(function.__globals__.get, function.__code__.co_names):
                if isinstance(called, types.FunctionType | types.BuiltinFunctionType):
                    _calls(called, seen)
    return seen


def casting(cls: type, names: Iterable[str]) -> type:
    """A class derived from `cls`, whose methods of these names take tensors of any floating point, as float32.

    Tensors may also be entries of a dict, as references are; then it is a copy that is cast.
    """
    methods = {name: getattr(cls, name, None) for name in names}
    replaced = {name: _cast(method) for name, method in methods.items() if isinstance(method, types.FunctionType)}
    return type(cls.__name__, (cls,), replaced)


def _cast(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        return method(self, *map(_float32, args), **_float32(options))

    return call


def _float32(value: Any) -> Any:
    if isinstance(value, dict):
        cast = {key: _float32(item) for key, item in value.items()}
        return cast if any(cast[key] is not item for key, item in value.items()) else value
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _rebound(function: types.FunctionType, seen: dict[str, Any]) -> types.FunctionType:
    new = types.FunctionType(
        function.__code__,
        {**function.__globals__, **seen},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    new.__kwdefaults__ = function.__kwdefaults__
    new.__doc__ = function.__doc__
    return new
