"""Nodes of a traced graph that write to what they read: found, and replaced by ones that do not."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsecodec.errors import GraphError

_WITHOUT = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_SPLITS = {torch.chunk, torch.split, torch.unbind, "chunk", "split", "unbind"}
_VIEWS = _SPLITS | {
    *(operator.getitem, torch.narrow, torch.reshape, torch.permute, torch.transpose, torch.flatten, torch.squeeze),
    *(torch.unsqueeze, torch.select, torch.detach),
    *("narrow", "view", "reshape", "permute", "transpose", "flatten", "squeeze", "unsqueeze", "select", "expand"),
    *("detach", "contiguous", "to", "float", "view_as", "expand_as", "unflatten", "movedim", "swapaxes", "t"),
}


def written(root: nn.Module, node: fx.Node) -> fx.Node | None:
    """The node whose tensor `node` changes, if it changes one."""
    if node.op == "call_module":
        changes = getattr(root.get_submodule(node.target), "inplace", False)
    elif node.op == "call_method":
        changes = _ends_in_one_underscore(node.target)
    elif node.op == "call_function":
        if isinstance(node.kwargs.get("out"), fx.Node):
            return node.kwargs["out"]
        named = _ends_in_one_underscore(getattr(node.target, "__name__", ""))
        changes = node.target in _WITHOUT or named or _arguments(node).get("inplace", False)
    else:
        return None
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if changes and isinstance(first, fx.Node) else None


def check_views(name: str, node: fx.Node, changed: fx.Node) -> None:
    """That nobody reads a tensor behind `node` of which it changed a part, or that shares memory with what it changed.

    Raises:
        GraphError: somebody does; `name` says of which transform.
    """
    place = {other: at for at, other in enumerate(node.graph.nodes)}
    base = changed
    while (of := _viewed(base)) is not None:
        base = of
    for other in (base, *_views_of(base)):
        if other is changed or place[other] > place[node] or _apart(other, changed):
            continue
        readers = [user.name for user in other.users if place[user] > place[node] and not _apart(user, changed)]
        if readers:
            raise GraphError(
                f"{name}: {node.name} changes {changed.name} in place, which shares memory with {other.name}, and "
                f"{readers[0]} reads that later (compute it without inplace)"
            )


def without_writing(node: fx.Node, target: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, tuple, dict]:
    """A function, module or name of a method that gives what that of `node`, which writes, gives, and its arguments."""
    if isinstance(target, nn.Module):
        target = copy.copy(target)
        target.inplace = False
        return target, args, kwargs
    if target in _WITHOUT:
        return _WITHOUT[target], args, kwargs
    if "out" in kwargs:
        return target, args, {key: value for key, value in kwargs.items() if key != "out"}
    if "inplace" in (given := _arguments(node)):
        kept = args[: list(given).index("inplace")]  # it may be given by its place
        return target, kept, {**kwargs, "inplace": False}
    name = target if isinstance(target, str) else target.__name__
    homes = (Tensor,) if isinstance(target, str) else (torch, F)
    for home in homes:
        if plain := getattr(home, name.removesuffix("_"), None):
            return name.removesuffix("_") if isinstance(target, str) else plain, args, kwargs
    return partial(_on_a_copy, target), args, kwargs


def _on_a_copy(target: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return (getattr(Tensor, target) if isinstance(target, str) else target)(x.clone(), *args, **kwargs)


def _ends_in_one_underscore(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Of a Python function by name; of built-in ones only those that were given so."""
    try:
        return dict(inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments)
    except (TypeError, ValueError):
        return dict(node.kwargs)


def _viewed(node: fx.Node) -> fx.Node | None:
    """The tensor that `node` is a view of, or may be."""
    first = node.args[0] if node.args else None
    return first if node.target in _VIEWS and isinstance(first, fx.Node) else None


def _views_of(base: fx.Node) -> Iterator[fx.Node]:
    for user in base.users:
        if _viewed(user) is base:
            yield user
            yield from _views_of(user)


def _apart(one: fx.Node, other: fx.Node) -> bool:
    """Whether they are, or are views of, different parts that one `chunk` or `split` gave."""
    parts, others = _parts(one), _parts(other)
    return any(parts[of] != others[of] for of in parts.keys() & others.keys())


def _parts(node: fx.Node) -> dict[fx.Node, int]:
    found = {}
    while (of := _viewed(node)) is not None:
        if of.target in _SPLITS and node.target is operator.getitem and isinstance(node.args[1], int):
            found[of] = node.args[1]
        node = of
    return found
