"""Calibration against the loss that counts: R + lambda D of the whole codec, one scale at a time (RDO-PTQ's idea)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sparsecodec.quant.calibration import correct_biases, observe, set_scales
from sparsecodec.quant.model import quantize_layers, quantized_layers
from sparsecodec.quant.precision import Precision

Loss = Callable[[nn.Module], float]  # R + lambda D on the calibration pictures; no gradient
MARGIN = 1e-5  # a candidate must beat the best loss by this share: less is chance
INPUT_STEP, WEIGHT_STEP = 0.25, 0.1  # in log2 of the scale
MOVES = 3  # in one direction


def _silent(items: Iterable[Any]) -> Iterable[Any]:
    return items


def post_training(
    model: nn.Module,
    precisions: Mapping[str, Precision],
    loss: Loss,
    rule: str = "rd",
    progress: Callable[[Sequence[Any]], Iterable[Any]] = _silent,
) -> nn.Module:
    """Quantises a codec without training it.

    Args:
        model: float, dense or compact; not modified.
        precisions: path of a convolution -> its bits.
        loss: maps a model of this architecture to its loss on about ten calibration crops.
        rule: ``"max"``; ``"mse"`` (see `set_scales`) with biases that make up for the rounding, if that lowers the
            loss; or ``"rd"``: from there each scale is moved while the loss falls.
        progress: wraps the list of layers, for example ``tqdm``.

    Returns:
        A quantised copy in eval mode that can still be trained; `freeze` makes it small.

    Raises:
        UsageError: a layer reads something that is not finite, or never runs; or an unknown rule.
        GraphError: a path does not exist.
    """
    reference = copy.deepcopy(model).eval()
    small = quantize_layers(reference, precisions)
    set_scales(small, observe(reference, list(precisions), loss), "mse" if rule == "rd" else rule)
    if rule != "max":
        small = _corrected(small, reference, loss)
    if rule == "rd":
        refine(small, loss, progress)
    return small


def _corrected(small: nn.Module, reference: nn.Module, loss: Loss) -> nn.Module:
    corrected = copy.deepcopy(small)
    correct_biases(corrected, reference, loss)
    return corrected if loss(corrected) < loss(small) else small


@torch.no_grad()
def refine(
    model: nn.Module, loss: Loss, progress: Callable[[Sequence[Any]], Iterable[Any]] = _silent
) -> tuple[float, float]:
    """Moves the input scale, then the weight scales together, of each layer while the loss falls; in place.

    The integer range of an input stays, so both of its ends move by the same factor. A layer that would be no better
    in float has nothing to gain and costs one look.

    Args:
        model: quantised, with scales, not frozen.
        loss: as for `post_training`.
        progress: as for `post_training`.

    Returns:
        The loss before and after; the latter is never the larger.
    """
    before = best = loss(model)
    for layer in progress(list(quantized_layers(model).values())):
        layer.active = False
        unreachable = loss(model)
        layer.active = True
        if not unreachable < best * (1 - MARGIN):
            continue
        if layer.activation_bits == 8:
            best = _descend(layer.input_log2, 1.0 if layer.precision.dyadic else INPUT_STEP, lambda: loss(model), best)
        best = _descend(layer.weight_log2, WEIGHT_STEP, lambda: loss(model), best)
    return before, best


def _descend(scale_log2: torch.Tensor, step: float, loss: Callable[[], float], best: float) -> float:
    """Moves `scale_log2` down, or else up, by steps while the loss falls; returns the loss where it stays."""
    for direction in (-step, step):
        moved = False
        for _ in range(MOVES):
            kept = scale_log2.clone()
            scale_log2.add_(direction)
            new = loss()
            if not new < best * (1 - MARGIN):
                scale_log2.copy_(kept)
                break
            best, moved = new, True
        if moved:
            break
    return best
