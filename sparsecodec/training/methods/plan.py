"""One-shot pruning by a plan, then fine-tuning: a searched plan, or the baselines of the same target."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from tqdm import tqdm

from sparsecodec.errors import UsageError
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.sparsity import trace_model
from sparsecodec.sparsity.plans import Plan
from sparsecodec.sparsity.search import TOLERANCE, global_threshold, uniform
from sparsecodec.training import distributed
from sparsecodec.training.compaction import compacted
from sparsecodec.training.families import check_trained
from sparsecodec.training.methods.search import (
    calibration_set,
    check,
    cost_of,
    graph_of,
    loss_of,
    plan_in,
    ranking_of,
)
from sparsecodec.training.recipe import Recipe
from sparsecodec.training.trainer import Data, Trainer, calibration_pictures

COMMAND = "prune"
BASELINES = {"uniform": uniform, "global": global_threshold}


@dataclass(frozen=True)
class Settings:
    """Which channels stay. The codec is compacted at once; the recipe's steps are those of the fine-tuning.

    Attributes:
        plan: path of a ``plan.json``, from which everything else follows, channels included: it fits the weights that
            it was made from; or "uniform", one ratio for all channel groups; or "global", one threshold for the scores
            of all channels, each divided by its group's mean.
        reduction, target, transforms, side, round_to, criterion, tolerance, latency_table: of the two baselines, as in
            the settings of a search; the recipe's first batch is the calibration set of "energy".
    """

    plan: str
    reduction: float | None = None
    target: str = "macs"
    transforms: str = "decoder"
    side: int = 256
    round_to: int = 16
    criterion: str = "energy"
    tolerance: float = TOLERANCE
    latency_table: str | None = None

    def __post_init__(self) -> None:
        if (self.plan in BASELINES) == (self.reduction is None):
            raise UsageError(
                f"plan={self.plan!r}, reduction={self.reduction} (needs a reduction for {', '.join(BASELINES)}, "
                "and none for the path of a plan)"
            )
        if self.reduction is not None:
            check(self)


def run(
    recipe: Recipe,
    settings: Settings,
    model: nn.Module,
    data: Data,
    folder: Path,
    load: Callable[[str], nn.Module],
) -> nn.Module:
    """Compacts the codec and fine-tunes it (``finetune/``)."""
    if settings.plan in BASELINES:
        graph = graph_of(recipe, model, settings)

        def make() -> Plan:
            # First, for it refuses what cannot be timed.
            cost = cost_of(recipe, model, graph, settings, folder)
            return BASELINES[settings.plan](
                graph,
                ranking_of(model, graph, settings, loss_of(recipe, model, data)),
                cost,
                settings.reduction,
                round_to=settings.round_to,
                tolerance=settings.tolerance,
            )

        plan = plan_in(folder, model, settings, calibration_set(recipe), make)
    else:
        plan = Plan.load(settings.plan)
        weights = model_hash(model).hex()
        if plan.made_by.get("model", weights) != weights and distributed.rank() == 0:
            tqdm.write(f"{settings.plan} ranked the channels of other weights than these", file=sys.stderr)
        check_trained(plan.transforms, recipe.trains, settings.plan)
        graph = trace_model(model, plan.transforms)
    small = compacted(model, plan.masks(graph), graph, calibration_pictures(recipe, model, data))
    return Trainer(recipe, small.train().requires_grad_(True), data, folder / "finetune").run()
