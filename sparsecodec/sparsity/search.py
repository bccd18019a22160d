"""Ratio search on the rate-distortion loss (arXiv 2506.01229, 2506.01221), and its two baselines.

All three are staircases with one parameter along which widths never grow. A bisection finds the two steps around the
target and takes the nearer one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.sparsity.channel_graph import ChannelGraph
from sparsecodec.sparsity.compact import masked
from sparsecodec.sparsity.masks import ChannelMasks, rounded
from sparsecodec.sparsity.plans import Cost, Plan, best_of, kept_widths
from sparsecodec.sparsity.ranking import Ranking
from sparsecodec.sparsity.sensitivity import Loss, Sensitivity

RULES = ("slope", "threshold")
TOLERANCE = 0.005
_DENSE = -1.0  # a threshold below the smallest zeta, which is 0
_RATIO_STEPS = 1000  # of the uniform baseline, on [0, 1)


def search(
    model: nn.Module,
    graph: ChannelGraph,
    ranking: Ranking,
    sensitivity: Sensitivity,
    loss: Loss,
    cost: Cost,
    reduction: float,
    *,
    rule: str = "slope",
    tolerance: float = TOLERANCE,
) -> Plan:
    """Widths of all groups as a function of one alpha, which is found for the target by bisection.

    Rule "threshold", the published one: every group takes ``p_n(alpha) = max {p : zeta_n(p) <= alpha}``. Rule "slope":
    every group goes down the lower convex hull of zeta_n over what the group alone saves as long as a step costs at
    most alpha of zeta for each saved fraction of the cost, so that a group that saves little is not pruned for little.
    Loss of evc-tiny with 65 % of its decoder's MACs removed, before fine-tuning, channels ranked by energy: +25 % by
    slope, +36 % by threshold, +374 % with one threshold and +513 % with one ratio for all groups (by L2 norms: +266 %,
    +391 %, +15,900 %, +15,600 %; 8 crops of 128 pixels, 2026-11).

    The joint model is evaluated once, at the end.

    Args:
        model: dense, the one `sensitivity` was measured on; left as it is.
        graph: the one `sensitivity` was measured on.
        ranking: as given to `measure_sensitivity`.
        sensitivity: from `measure_sensitivity`.
        loss: as given to `measure_sensitivity`.
        cost: what is counted, over everything that shall count.
        reduction: fraction of it to remove, in (0, 1).
        rule: one of `RULES`.
        tolerance: on that fraction; the bisection ends when it is met, or when no step is left between its two ends.

    Raises:
        GraphError: `ranking` or `sensitivity` is of another graph.
        UsageError: the two are by different criteria, a value is out of range, or more is to be removed than the groups
            hold: the message says how far it got, and which channels are locked or at their smallest width.
    """
    if rule not in RULES:
        raise UsageError(f"rule={rule!r} (one of {', '.join(RULES)})")
    measured = {name: curve[0][0] for name, curve in sensitivity.zeta.items()}
    there = {name: space.width for name, space in graph.prunable.items()}
    if measured != there:
        odd = min(name for name, _ in measured.items() ^ there.items())
        was, now = measured.get(odd, "no"), there.get(odd, "no")
        raise GraphError(f"the sensitivity is of another graph: {odd!r} had {was} channels there, it has {now} here")
    if sensitivity.criterion != ranking.criterion:
        raise UsageError(f"channels ranked by {ranking.criterion!r}, but measured by {sensitivity.criterion!r}")
    steps = _slopes(graph, ranking, sensitivity, cost) if rule == "slope" else _thresholds(sensitivity)
    stairs = _Staircase(graph, ranking, cost, lambda i: steps[i][1])
    index = stairs.nearest(len(steps) - 1, reduction, tolerance)
    alpha, widths = steps[index]
    masks = stairs.masks(index)
    joint = 0.0
    if masks:
        with masked(model, masks, graph):
            joint = (loss(model) - sensitivity.loss) / sensitivity.loss
    found = {
        "sensitivity": sensitivity,
        "zeta_joint": joint if math.isfinite(joint) else math.inf,
        "zeta_sum": sensitivity.damage(widths),
    }
    return stairs.plan(f"search by {rule}", index, reduction, alpha, **found)


def _thresholds(sensitivity: Sensitivity) -> list[tuple[float, dict[str, int]]]:
    """(alpha, widths) of every step of the rule "threshold", from the dense model on."""
    return [(alpha, sensitivity.widths(alpha)) for alpha in (_DENSE, *sensitivity.alphas)]


def _slopes(
    graph: ChannelGraph, ranking: Ranking, sensitivity: Sensitivity, cost: Cost
) -> list[tuple[float, dict[str, int]]]:
    """(alpha, widths) of every step of the rule "slope"; widths between two corners of a hull are steps too."""
    full = {name: curve[0][0] for name, curve in sensitivity.zeta.items()}
    dense = cost.of({})
    falls = []
    for name in sensitivity.zeta:
        curve = sensitivity.monotone(name)
        saved = [1 - cost.of(best_of(graph, ranking.scores, {**full, name: kept})) / dense for kept, _ in curve]
        corner = 0
        while later := [i for i in range(corner + 1, len(curve)) if saved[i] > saved[corner]]:
            slope = {i: (curve[i][1] - curve[corner][1]) / (saved[i] - saved[corner]) for i in later}
            following = min(later, key=lambda i: (slope[i], -saved[i]))
            falls += [(slope[following], name, curve[i][0]) for i in range(corner + 1, following + 1)]
            corner = following
    falls.sort(key=lambda fall: fall[0])  # stable: the steps of a group stay in order
    steps = [(_DENSE, full)]
    for alpha, name, kept in falls:
        steps.append((alpha, {**steps[-1][1], name: kept}))
    return steps


def uniform(
    graph: ChannelGraph,
    ranking: Ranking,
    cost: Cost,
    reduction: float,
    *,
    round_to: int = 16,
    tolerance: float = TOLERANCE,
) -> Plan:
    """One ratio for all groups, the one nearest to the target; arguments and errors as for `search`."""

    def widths(index: int) -> dict[str, int]:
        left = 1 - index / _RATIO_STEPS
        return {name: rounded(space.width * left, space.width, round_to) for name, space in graph.prunable.items()}

    stairs = _Staircase(graph, ranking, cost, widths)
    index = stairs.nearest(_RATIO_STEPS - 1, reduction, tolerance)
    return stairs.plan("uniform", index, reduction, index / _RATIO_STEPS)


def global_threshold(
    graph: ChannelGraph,
    ranking: Ranking,
    cost: Cost,
    reduction: float,
    *,
    round_to: int = 16,
    tolerance: float = TOLERANCE,
) -> Plan:
    """One threshold for the scores of all groups; arguments and errors as for `search`.

    Scores of different groups do not compare, neither norms of filters of different sizes nor energies that are read
    by different layers, so the scores of a group are divided by their mean first.
    """
    scores = {
        name: score / score.mean().clamp(min=torch.finfo(score.dtype).tiny) for name, score in ranking.scores.items()
    }
    levels = torch.cat([torch.full((1,), -1.0), *scores.values()]).unique()  # ascending; the first drops nothing

    def widths(index: int) -> dict[str, int]:
        above = {name: int((score > levels[index]).sum()) for name, score in scores.items()}
        return {name: rounded(kept, len(scores[name]), round_to) for name, kept in above.items()}

    stairs = _Staircase(graph, ranking, cost, widths)
    index = stairs.nearest(len(levels) - 1, reduction, tolerance)
    return stairs.plan("global", index, reduction, float(levels[index]))


class _Staircase:
    """Removed cost as a function of a step number along which kept widths never grow; step 0 is the dense model."""

    def __init__(
        self, graph: ChannelGraph, ranking: Ranking, cost: Cost, widths: Callable[[int], Mapping[str, int]]
    ) -> None:
        ranking.validate(graph)
        self.graph = graph
        self.cost = cost
        self.criterion = ranking.criterion
        self.dense = cost.of({})
        self.masks: Callable[[int], ChannelMasks] = cache(lambda index: best_of(graph, ranking.scores, widths(index)))
        self.removed: Callable[[int], float] = cache(lambda index: 1 - cost.of(self.masks(index)) / self.dense)

    def nearest(self, last: int, reduction: float, tolerance: float) -> int:
        """The step, up to `last`, whose removed fraction is nearest to `reduction`; the cheaper one of two."""
        if not 0 < reduction < 1:
            raise UsageError(f"reduction={reduction} (needs a fraction in (0, 1))")
        if not 0 <= tolerance < 1:
            raise UsageError(f"tolerance={tolerance} (needs 0 <= tolerance < 1)")
        if self.removed(last) < reduction - tolerance:
            raise self._out_of_reach(last, reduction)
        low, high = 0, last
        while high - low > 1:
            middle = (low + high) // 2
            if abs(self.removed(middle) - reduction) <= tolerance:
                return middle
            low, high = (middle, high) if self.removed(middle) < reduction else (low, middle)
        return min((high, low), key=lambda index: abs(self.removed(index) - reduction))

    def plan(self, method: str, index: int, reduction: float, alpha: float, **found: Any) -> Plan:
        return Plan(
            method=method,
            transforms=self.graph.transforms,
            widths=kept_widths(self.graph, self.masks(index)),
            kept=self.masks(index).to_json(),
            criterion=self.criterion,
            target=self.cost.kind,
            reduction=reduction,
            reached=self.removed(index),
            alpha=alpha,
            device=self.cost.device,
            **found,
        )

    def _out_of_reach(self, last: int, reduction: float) -> UsageError:
        floors = [f"{name} ({k} of {w})" for name, (k, w) in kept_widths(self.graph, self.masks(last)).items()]
        return UsageError(
            f"reduction={reduction} of {self.cost.kind} cannot be met: at most {self.removed(last):.4f} can be "
            f"removed. At their smallest width: {', '.join(floors) or 'none'}; {self.graph.locks}"
        )
