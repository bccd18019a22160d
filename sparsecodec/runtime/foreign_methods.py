"""Methods of foreign classes that wait for a GPU, for use without one."""

from __future__ import annotations

import types
from typing import Any

import torch

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


def _rebound(function: types.FunctionType) -> types.FunctionType:
    names = {name: _Torch() if value is torch else value for name, value in function.__globals__.items()}
    new = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    new.__kwdefaults__ = function.__kwdefaults__
    new.__doc__ = function.__doc__
    return new
