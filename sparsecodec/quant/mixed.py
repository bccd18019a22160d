"""Bits per layer: the lowest whose cost in rate-distortion loss stays below a threshold (FMPQ, arXiv 2506.01221)."""

from __future__ import annotations

import copy
import dataclasses
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsecodec.errors import UsageError
from sparsecodec.quant.calibration import observe, set_scales
from sparsecodec.quant.model import quantize_layers, quantized_layers
from sparsecodec.quant.precision import Precision
from sparsecodec.quant.refine import Loss

BITS = (4, 8, 16)  # 4: W4A8, 8: W8A8, 16: W8A16, the most precise that a layer gets


def precision_of(bits: int, like: Precision) -> Precision:
    """What a bit choice means for a layer whose kind of scales is that of `like`.

    Raises:
        UsageError: not one of `BITS`.
    """
    if bits not in BITS:
        raise UsageError(f"bits={bits!r} (needs one of {', '.join(map(str, BITS))})")
    weight_bits, activation_bits = {4: (4, 8), 8: (8, 8), 16: (8, 16)}[bits]
    return dataclasses.replace(like, weight_bits=weight_bits, activation_bits=activation_bits)


@dataclass(frozen=True)
class Sensitivities:
    """What each layer alone costs.

    Attributes:
        loss: of the float model on the calibration pictures.
        zeta: path -> bits -> ``(RD_n(b) - RD) / RD`` with only layer n quantised, made monotone: never below that of
            more bits. Infinite where the model breaks down.
        weights: path -> number of weights.
        precisions: path -> what a choice of bits replaces the bits of.
    """

    loss: float
    zeta: dict[str, dict[int, float]]
    weights: dict[str, int]
    precisions: dict[str, Precision]

    def choose(self, threshold: float) -> dict[str, int]:
        """Path -> the lowest bits with ``zeta <= threshold``; the most precise where none is."""
        return {
            name: next((bits for bits in sorted(costs) if costs[bits] <= threshold), max(costs))
            for name, costs in self.zeta.items()
        }

    def bytes(self, choice: Mapping[str, int]) -> float:
        """Of the weights alone, as stored."""
        return sum(self.weights[name] * self._weight_bits(name, bits) / 8 for name, bits in choice.items())

    def to_precisions(self, choice: Mapping[str, int]) -> dict[str, Precision]:
        """For `quantize_layers`."""
        return {name: precision_of(bits, self.precisions[name]) for name, bits in choice.items()}

    def _weight_bits(self, name: str, bits: int) -> int:
        return precision_of(bits, self.precisions[name]).weight_bits


@torch.no_grad()
def sensitivities(
    model: nn.Module,
    precisions: Mapping[str, Precision],
    loss: Loss,
    bits: Sequence[int] = BITS,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = lambda items: items,
) -> Sensitivities:
    """Quantises one layer at a time, with the clipping of the least squared error, and measures the loss.

    Args:
        model: float; not modified.
        precisions: the layers to search, with their kind of scales.
        loss: as for `post_training`.
        bits: candidates out of `BITS`.
        progress: wraps the list of (bits, path) pairs, for example ``tqdm``.

    Raises:
        UsageError: unknown bits, or none.
    """
    if not bits:
        raise UsageError(f"bits={list(bits)} (needs at least one of {', '.join(map(str, BITS))})")
    model = copy.deepcopy(model).eval()
    reference = loss(model)
    seen = observe(model, list(precisions), loss)
    candidates = {}
    for b in sorted(set(bits)):
        candidates[b] = quantize_layers(model, {name: precision_of(b, p) for name, p in precisions.items()}).eval()
        set_scales(candidates[b], seen)
        for layer in quantized_layers(candidates[b]).values():
            layer.active = False
    zeta: dict[str, dict[int, float]] = {name: {} for name in precisions}
    for b, name in progress([(b, name) for b in candidates for name in precisions]):
        layer = candidates[b].get_submodule(name)
        layer.active = True
        alone = loss(candidates[b])
        zeta[name][b] = alone / reference - 1 if math.isfinite(alone) else math.inf
        layer.active = False
    for costs in zeta.values():
        worst = -float("inf")
        for b in sorted(costs, reverse=True):
            worst = costs[b] = max(worst, costs[b])
    weights = {name: model.get_submodule(name).weight.numel() for name in precisions}
    return Sensitivities(reference, zeta, weights, dict(precisions))


def bytes_where_cheap(
    model: nn.Module,
    precisions: Mapping[str, Precision],
    loss: Loss,
    threshold: float,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = lambda items: items,
) -> dict[str, Precision]:
    """Inputs of 8 bits for the layers that alone cost at most `threshold` with them, of those that gain from it.

    Args:
        model: float; not modified.
        precisions: of layers with inputs of 16 bits.
        loss, progress: as for `sensitivities`.
        threshold: on zeta.

    Returns:
        Path -> precision of all but depthwise layers, whose time their few products are not.
    """
    products = {name: p for name, p in precisions.items() if getattr(model.get_submodule(name), "groups", 1) == 1}
    found = sensitivities(model, products, loss, (8, 16), progress)
    return found.to_precisions(found.choose(threshold))


@dataclass(frozen=True)
class MixedPlan:
    """A choice of bits, and how it was found; JSON-able with `dataclasses.asdict`.

    Attributes:
        bits: path -> bits.
        threshold: on zeta.
        weight_bytes: of the quantised weights.
        expected: sum of the layers' zeta; the joint cost is to be measured, layers are not independent.
        note: why the target was not met exactly; empty if it was.
    """

    bits: dict[str, int]
    threshold: float
    weight_bytes: float
    expected: float
    note: str = ""


def plan_for_threshold(found: Sensitivities, threshold: float, note: str = "") -> MixedPlan:
    """The plan of one threshold on zeta."""
    choice = found.choose(threshold)
    expected = sum(found.zeta[name][bits] for name, bits in choice.items())
    return MixedPlan(choice, threshold, found.bytes(choice), expected, note)


def plan_for_bytes(found: Sensitivities, weight_bytes: float) -> MixedPlan:
    """The plan of the smallest threshold whose weights fit into `weight_bytes`.

    The size is a staircase of the threshold, so the plan may be smaller than asked; its note says by how much.

    Raises:
        UsageError: even the lowest bits everywhere do not fit.
    """
    steps = sorted({value for costs in found.zeta.values() for value in costs.values()})

    def size(threshold: float) -> float:
        return found.bytes(found.choose(threshold))

    if size(steps[-1]) > weight_bytes:
        raise UsageError(f"weight_bytes={weight_bytes:.0f}: the lowest bits everywhere need {size(steps[-1]):.0f}")
    below = min(steps[0], 0.0) - 1.0
    if size(below) <= weight_bytes:
        return plan_for_threshold(found, below, "the target does not bind: every layer keeps its highest bits")
    threshold = steps[bisect_left(steps, True, key=lambda step: size(step) <= weight_bytes)]
    spare = weight_bytes - size(threshold)
    return plan_for_threshold(found, threshold, f"{spare:.0f} bytes below the target" if spare else "")
