"""The state of torch that codecs are made for, whatever the caller's is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

Method = TypeVar("Method", bound=Callable[..., Any])


@contextmanager
def neutral() -> Iterator[None]:
    """No autocast, which would move what has to be exact, and new tensors on the CPU unless they say otherwise."""
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def settled(method: Method) -> Method:
    """Runs a public call in inference mode and `neutral`.

    Tensors that it returns, alone or in tuples, lists and dicts, are plain ones: they may be written to, and used where
    gradients are computed.
    """

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with neutral(), torch.inference_mode():
            result = method(*args, **kwargs)
        return _plain(result)

    return call


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_inference():
        same = torch.empty(0, dtype=value.dtype, device=value.device)
        return same.set_(value.untyped_storage(), value.storage_offset(), value.shape, value.stride())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    return value
