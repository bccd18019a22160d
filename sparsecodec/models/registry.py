"""Codecs by name."""

from __future__ import annotations

from torch import nn

from sparsecodec.errors import UsageError
from sparsecodec.models.evc import EVC, EVC_WIDTHS


def names() -> list[str]:
    """What `create` takes: ``evc-tiny`` and ``evc-XY``, encoder X and decoder Y out of l, m, s."""
    sizes = [size for size in EVC_WIDTHS if size != "tiny"]
    return ["evc-tiny"] + [f"evc-{encoder}{decoder}" for encoder in sizes for decoder in sizes]


def create(name: str) -> nn.Module:
    """A codec with random weights.

    Args:
        name: one of `names()`, for example ``"evc-ll"``.

    Raises:
        UsageError: no such name.
    """
    if name not in names():
        raise UsageError(f"model {name!r} does not exist; there are {', '.join(names())}")
    size = name.removeprefix("evc-")
    return EVC("tiny", "tiny") if size == "tiny" else EVC(size[0], size[1])
