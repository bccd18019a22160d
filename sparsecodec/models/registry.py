"""Codecs by name."""

from __future__ import annotations

from torch import nn

from sparsecodec.errors import UsageError
from sparsecodec.models.evc import EVC, EVC_WIDTHS
from sparsecodec.models.scalable import ScalableEVC

SCALABLE = {"scale-evc-tiny": ("tiny-s", "tiny"), "scale-evc-ss": ("s", "s"), "scale-evc-sl": ("s", "l")}


def names() -> list[str]:
    """What `create` takes.

    ``evc-XY``, encoder X and decoder Y out of l, m, s; presets of ours, as ``evc-tiny``; ``scale-evc-...`` with several
    encoders.
    """
    published = [size for size in EVC_WIDTHS if len(size) == 1]
    ours = [f"evc-{size}" for size in EVC_WIDTHS if len(size) > 1]
    return [*ours, *(f"evc-{e}{d}" for e in published for d in published), *SCALABLE]


def create(name: str) -> nn.Module:
    """A codec with random weights.

    Args:
        name: one of `names()`, for example ``"evc-ll"``.

    Raises:
        UsageError: no such name.
    """
    if name not in names():
        raise UsageError(f"model {name!r} does not exist; there are {', '.join(names())}")
    if name in SCALABLE:
        return ScalableEVC(*SCALABLE[name])
    size = name.removeprefix("evc-")
    return EVC(size, size) if size in EVC_WIDTHS else EVC(size[0], size[1])
