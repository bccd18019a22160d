"""Dataclasses from plain values, as TOML gives them; what does not fit is named with what would."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from sparsecodec.errors import UsageError

NOUNS = {  # type -> one, many
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
}


def checked(cls: type, values: Mapping[str, Any], where: str, tables: Sequence[str] = (), **more: Any) -> Any:
    """An instance of a dataclass whose fields have the types of TOML: `NOUNS`, lists of them, and None.

    Args:
        cls: of the instance.
        values: by field; lists become tuples.
        where: they come from, for messages.
        tables: what else the place may hold, for messages.
        more: fields that do not come from `values`, of any type.

    Raises:
        UsageError: a key is unknown or missing, or a value has another type; and what `cls` raises.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.name not in more}
    kinds = typing.get_type_hints(cls)
    given = dict(more)
    for key, value in values.items():
        if key not in fields:
            others = f"; tables are {', '.join(tables)}" if tables else ""
            raise UsageError(f"{where}: no key {key!r} (keys are {', '.join(fields)}{others})")
        kind = _present(kinds[key])
        if value is not None and not _fits(value, kind):
            raise UsageError(f"{where}: {key}={value!r} (needs {_noun(kind)[0]})")
        given[key] = _frozen(value)
    for key, field in fields.items():
        if key not in given and field.default is dataclasses.MISSING:
            raise UsageError(f"{where}: {key} is missing (needs {_noun(_present(kinds[key]))[0]})")
    return cls(**given)


def check_numbers(settings: Any, *, positive: Sequence[str] = (), from_zero: Sequence[str] = ()) -> None:
    """Refuses fields of `settings` that are out of range, infinite or no number; None, where a field may be it, passes.

    Args:
        settings: has the fields.
        positive: names of those that are more than 0.
        from_zero: names of those that are 0 or more.

    Raises:
        UsageError: one is not; the message names it.
    """
    for name in (*positive, *from_zero):
        value, noun = getattr(settings, name), "a positive number" if name in positive else "0 or more"
        if value is None or 0 < value < math.inf or (value == 0 and name in from_zero):
            continue
        raise UsageError(f"{name}={value} (needs {noun if -math.inf < value < math.inf else 'a finite number'})")


def _present(kind: Any) -> Any:
    """``X`` of ``X | None``."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
    return kind


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, typing.get_args(kind)[0]) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _noun(kind: Any) -> tuple[str, str]:
    if typing.get_origin(kind) is not tuple:
        return NOUNS[kind]
    many = _noun(typing.get_args(kind)[0])[1]
    return f"a list of {many}", f"lists of {many}"


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
