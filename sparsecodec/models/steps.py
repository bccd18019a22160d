"""Global quantisation steps: the rates of EVC, DCVC-HEM and their kin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsecodec.errors import UsageError

RATES = 4  # anchor steps in a checkpoint
STEP_RANGE = (0.01, 655.0)  # what a stream can carry, in steps of 1/100


def first_anchors() -> Tensor:
    """The steps that a new model starts from, the lowest rate first: ``[4, 1, 1, 1]``."""
    return torch.exp(torch.linspace(math.log(1.8), math.log(0.5), RATES)).view(RATES, 1, 1, 1)


def round_step(step: float) -> float:
    """The nearest global step that a stream can carry.

    Raises:
        UsageError: not a positive finite number.
    """
    try:
        number = math.nan if isinstance(step, str) else float(step)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UsageError(f"q_scale={step!r} (needs a positive finite number)")
    return round(min(max(number, STEP_RANGE[0]), STEP_RANGE[1]) * 100) / 100


def check_global_step(step: Tensor | float, batch: int) -> None:
    """Raises a UsageError for what is neither a positive finite number nor a tensor of one, or of one per picture."""
    if isinstance(step, Tensor):
        if step.numel() != 1 and tuple(step.shape) != (batch, 1, 1, 1):
            raise UsageError(f"q_scale {tuple(step.shape)} for {batch} pictures (needs one, or [{batch}, 1, 1, 1])")
    else:
        round_step(step)


def spaced_steps(anchors: Tensor, count: int) -> list[float]:
    """`count` steps from the lowest to the highest rate, log-spaced between the outer anchors.

    Each is rounded to 1/100, the precision of a stream. ``count=4`` does not give the inner anchors in general.
    """
    logs = anchors.detach().flatten().log()
    if count == 1:
        return [round_step(float(logs.mean().exp()))]
    return [round_step(float(step)) for step in torch.linspace(logs[0], logs[-1], count, dtype=logs.dtype).exp()]


def steps_of(anchors: Tensor, rate: int | Tensor, batch: int) -> Tensor:
    """The global step of each picture.

    Args:
        anchors: ``[A, 1, 1, 1]``.
        rate: index of an anchor, for all pictures or ``[N]`` integer; or ``[N]`` or ``[1]`` floating point, steps.
        batch: N.

    Returns:
        ``[N or 1, 1, 1, 1]``.

    Raises:
        UsageError: an index without an anchor, a step that is not positive, another number of them than pictures, or
            neither index nor tensor.
    """
    if isinstance(rate, Tensor):
        return _steps_of_each(anchors, rate.flatten(), batch)
    if isinstance(rate, bool) or not isinstance(rate, int) or not 0 <= rate < len(anchors):
        raise UsageError(f"rate={rate!r} (needs an index 0 to {len(anchors) - 1}, or a tensor of indexes or steps)")
    return anchors[rate : rate + 1]


def _steps_of_each(anchors: Tensor, rate: Tensor, batch: int) -> Tensor:
    known = rate.dtype != torch.bool and len(rate) in (1, batch)
    low, high = (float(bound) for bound in torch.aminmax(rate.detach())) if known else (math.nan, math.nan)
    if rate.is_floating_point():
        fits = 0 < low and high < math.inf  # also false for NaN
    else:
        fits = 0 <= low and high < len(anchors)
    if not fits:
        raise UsageError(
            f"rate={rate} for {batch} pictures (needs one or as many, of indexes 0 to {len(anchors) - 1} or steps > 0)"
        )
    return rate.view(-1, 1, 1, 1) if rate.is_floating_point() else anchors[rate.long()]
