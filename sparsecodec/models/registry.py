"""Codecs by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from sparsecodec.errors import UsageError
from sparsecodec.models.evc import EVC, EVC_WIDTHS
from sparsecodec.models.scalable import ScalableEVC

_SIZES = [size for size in EVC_WIDTHS if len(size) == 1]
_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    **{f"evc-{size}": partial(EVC, size, size) for size in EVC_WIDTHS if len(size) > 1},
    **{f"evc-{e}{d}": partial(EVC, e, d) for e in _SIZES for d in _SIZES},
    "scale-evc-tiny": partial(ScalableEVC, "tiny-s", "tiny"),
    "scale-evc-ss": partial(ScalableEVC, "s", "s"),
    "scale-evc-sl": partial(ScalableEVC, "s", "l"),
}


def names() -> list[str]:
    """What `create` takes.

    ``evc-XY``, encoder X and decoder Y out of l, m, s; presets of ours, as ``evc-tiny``; ``scale-evc-...`` with several
    encoders.
    """
    return list(_BUILDERS)


def create(name: str) -> nn.Module:
    """A codec with random weights.

    Args:
        name: one of `names()`, for example ``"evc-ll"``.

    Raises:
        UsageError: no such name.
    """
    if name not in _BUILDERS:
        raise UsageError(f"model {name!r} does not exist; there are {', '.join(names())}")
    return _BUILDERS[name]()
