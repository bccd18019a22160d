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
    if not (math.isfinite(step) and step > 0):
        raise UsageError(f"q_scale={step} (needs a positive finite number)")
    return round(min(max(step, STEP_RANGE[0]), STEP_RANGE[1]) * 100) / 100


def spaced_steps(anchors: Tensor, count: int) -> list[float]:
    """`count` steps from the lowest to the highest rate, log-spaced between the outer anchors.

    Each is rounded to 1/100, the precision of a stream. ``count=4`` does not give the inner anchors in general.
    """
    logs = anchors.detach().flatten().log()
    if count == 1:
        return [round_step(float(logs.mean().exp()))]
    return [round_step(float(step)) for step in torch.linspace(logs[0], logs[-1], count).exp()]


def steps_of(anchors: Tensor, rate: int | Tensor) -> Tensor:
    """The global step of each picture.

    Args:
        anchors: ``[A, 1, 1, 1]``.
        rate: index of an anchor, for all pictures or ``[N]`` integer; or ``[N]`` or ``[1]`` floating point, steps.

    Returns:
        ``[N or 1, 1, 1, 1]``.

    Raises:
        UsageError: an index without an anchor, or neither index nor tensor.
    """
    if isinstance(rate, Tensor):
        return rate.view(-1, 1, 1, 1) if rate.is_floating_point() else anchors[rate.flatten()]
    if isinstance(rate, bool) or not isinstance(rate, int) or not 0 <= rate < len(anchors):
        raise UsageError(f"rate={rate!r} (needs an index 0 to {len(anchors) - 1}, or a tensor of indexes or steps)")
    return anchors[rate : rate + 1]
