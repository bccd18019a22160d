"""What codecs accept: whatever they cannot code rightly is refused, with the reason, before anything is computed."""

from __future__ import annotations

import math
import operator
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.entropy import DEFAULT_MAX_PIXELS
from sparsecodec.errors import ResourceLimitError, UsageError

Shape = tuple[int | None, ...]  # None: any


def check_picture(x: Tensor, stride: int, batch: int | None = None) -> None:
    """Raises a UsageError for what is no padded picture ``[N, 3, H, W]``, or, with `batch`, not that many of them."""
    if not isinstance(x, Tensor):
        raise UsageError(f"picture is a {type(x).__name__} (needs a tensor [N, 3, H, W])")
    if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point() or 0 in x.shape:
        raise UsageError(f"picture {tuple(x.shape)} {x.dtype} (needs [N, 3, H, W] floating point, not empty)")
    if x.shape[2] % stride or x.shape[3] % stride:
        raise UsageError(f"picture is {x.shape[2]} x {x.shape[3]} (needs multiples of {stride}; pad it)")
    if batch is not None and x.shape[0] != batch:
        raise UsageError(f"batch of {x.shape[0]} pictures (a payload holds {batch})")


def check_coded(x: Tensor, stride: int, layer: nn.Module) -> None:
    """As `check_picture` for one picture that is about to be coded: NaN would become some symbol, and no error.

    Args:
        layer: reads the picture; see `check_reads`.
    """
    check_picture(x, stride, batch=1)
    check_finite(x, "picture")
    check_reads(layer, x, "picture")


def check_kind(state: Any, kind: type) -> None:
    """Raises a UsageError unless `state` is of the class that this family keeps between frames."""
    if not isinstance(state, kind):
        raise UsageError(f"state is a {type(state).__name__} (needs one of {kind.__name__}: see start)")


def input_channels(layer: nn.Module) -> int | None:
    """Channels that a network reads, also of a pruned one; None for a compiled one, which does not say."""
    return next((module.in_channels for module in layer.modules() if isinstance(module, nn.Conv2d)), None)


def check_state(
    values: dict[str, tuple[Tensor | None, tuple[int | None, ...]]], layer: nn.Module | None = None
) -> None:
    """Raises a UsageError unless what the frames before left is of this model and of the frame at hand.

    Args:
        values: name -> what is there, and its shape; None is let pass, also for a side.
        layer: reads them, and they are about to be coded; see `check_reads`. Then NaN is refused as well, which waits
            for the device. None: they are not coded, or they are a session's own.
    """
    for name, (value, shape) in values.items():
        if value is None:
            continue
        fits = isinstance(value, Tensor) and value.ndim == len(shape) and value.is_floating_point()
        if not fits or any(side not in (None, found) for side, found in zip(shape, value.shape, strict=True)):
            kind = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"{name}: {kind} (this model and size of frame need {shape}, floating point)")
        if layer is not None:
            check_reads(layer, value, name)
            check_finite(value, name)


def check_reads(layer: nn.Module, value: Tensor, name: str) -> None:
    """Raises a UsageError where `value` has another dtype or device than the weights of `layer`.

    Compiled networks, which have no weights, convert what they are given.
    """
    weight = next(layer.parameters(), None)
    if weight is not None and (weight.dtype, weight.device) != (value.dtype, value.device):
        raise UsageError(
            f"{name} is {value.dtype} on {value.device} (the model is {weight.dtype} on {weight.device}; convert it)"
        )


def check_float32(layer: nn.Module) -> None:
    """Raises a UsageError where weights have another dtype: the family's entropy model is defined in float32 alone."""
    weight = next(layer.parameters(), None)
    if weight is not None and weight.dtype != torch.float32:
        raise UsageError(f"the model is {weight.dtype} (this family codes in torch.float32: call float())")


def check_finite(value: Tensor, name: str) -> None:
    """Raises a UsageError for NaN and infinity."""
    low, high = (float(bound) for bound in torch.aminmax(value.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UsageError(f"{name} holds values in [{low:g}, {high:g}] (needs finite ones)")


def check_size(height: int, width: int) -> None:
    """Raises unless there can be a picture of that size before padding.

    Raises:
        UsageError: no whole number, or below 1.
        ResourceLimitError: more than 2^28 pixels. Nothing was allocated for them.
    """
    if not all(isinstance(side, Integral) and not isinstance(side, bool) and side >= 1 for side in (height, width)):
        raise UsageError(f"picture of {height!r} x {width!r} (needs at least 1 x 1, whole numbers)")
    if height * width > DEFAULT_MAX_PIXELS:
        raise ResourceLimitError(f"picture of {height} x {width} (limit: {DEFAULT_MAX_PIXELS} pixels)")


def check_quality(quality: float | None) -> float:
    """The quality of a codec of variable rate as a number, 50 for None.

    Raises:
        UsageError: no number from 0 to 100; a bool is none.
    """
    value = 50.0 if quality is None else quality
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 100:
        raise UsageError(f"quality={quality!r} (needs a number from 0 to 100)")
    return float(value)


def whole(value: Any, name: str, limit: int) -> int:
    """`value` as an int in 0 .. limit - 1.

    Raises:
        UsageError: another one, or a bool, a float or anything else that is no whole number.
    """
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < limit:
        raise UsageError(f"{name}={value!r} (needs 0 .. {limit - 1}, a whole number)")
    return number
