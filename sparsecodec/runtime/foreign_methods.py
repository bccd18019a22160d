"""Methods of foreign classes as compiled objects need them: none waits for a missing GPU, pictures come as float32."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

WAITS = ("synchronize",)


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
    replaced: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, types.FunctionType):
                if {"cuda", *WAITS} <= set(value.__code__.co_names):
                    replaced[name] = _rebound(value)
                else:
                    replaced.pop(name, None)
    return type(cls.__name__, (cls,), replaced)


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


def _rebound(function: types.FunctionType) -> types.FunctionType:
    names = {name: _Torch() if value is torch else value for name, value in function.__globals__.items()}
    new = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    new.__kwdefaults__ = function.__kwdefaults__
    new.__doc__ = function.__doc__
    return new
