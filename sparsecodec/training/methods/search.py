"""Ratio search (arXiv 2506.01229): widths per channel group by their own rate-distortion damage, for one target."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from sparsecodec._files import writing
from sparsecodec.errors import UsageError
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.sparsity import ChannelGraph, count, trace_model
from sparsecodec.sparsity.latency import LatencyTable, latency_cost, timer_for
from sparsecodec.sparsity.plans import Cost, Plan, mac_cost, parameter_cost
from sparsecodec.sparsity.ranking import CRITERIA, Ranking, rank_channels
from sparsecodec.sparsity.search import RULES, TOLERANCE, search
from sparsecodec.sparsity.sensitivity import RATIOS, Loss, measure_sensitivity
from sparsecodec.training import distributed
from sparsecodec.training.compaction import compacted
from sparsecodec.training.families import PARTS, calibration_loss, trained_transforms
from sparsecodec.training.recipe import Recipe
from sparsecodec.training.trainer import Data, calibration_pictures

COMMAND = "search"
TARGETS = ("macs", "params", "ms")


@dataclass(frozen=True)
class Settings:
    """What is pruned, how far, and how that is found. The calibration set is the recipe's first batch.

    Attributes:
        reduction: fraction of the target's cost to remove, in (0, 1).
        target: "macs", "params", or "ms" on the device of the run, block by block; not "ms" for video codecs.
        transforms: "decoder", "encoder" or "all".
        side: of the picture that is counted or timed, pixels.
        round_to: kept widths are multiples of this.
        rule: how widths follow from the damage, "slope" or "threshold"; see `sparsecodec.sparsity.search.search`.
        candidates: ratios that are tried for every group.
        criterion: what ranks the channels of a group: their "energy" on the calibration set, or the "l2" or "l1" norm
            of their filters.
        tolerance: on `reduction`.
        latency_table: JSON file that keeps measured times between runs; default: ``latency.json`` in the run's folder.
    """

    reduction: float
    target: str = "macs"
    transforms: str = "decoder"
    side: int = 256
    round_to: int = 16
    rule: str = "slope"
    candidates: tuple[float, ...] = RATIOS
    criterion: str = "energy"
    tolerance: float = TOLERANCE
    latency_table: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))  # TOML gives a list
        check(self)
        if self.rule not in RULES:
            raise UsageError(f"rule={self.rule!r} (needs one of {', '.join(RULES)})")
        if not self.candidates or not all(0 <= ratio < 1 for ratio in self.candidates):
            raise UsageError(f"candidates={list(self.candidates)} (needs ratios, 0 <= ratio < 1)")


def check(settings: Any) -> None:
    """Refuses values out of range that this method's settings and those of `plan` have in common.

    Raises:
        UsageError: one is.
    """
    if not 0 < settings.reduction < 1:
        raise UsageError(f"reduction={settings.reduction} (needs a fraction in (0, 1))")
    for name, known in (("target", TARGETS), ("transforms", PARTS), ("criterion", CRITERIA)):
        if getattr(settings, name) not in known:
            raise UsageError(f"{name}={getattr(settings, name)!r} (needs one of {', '.join(known)})")
    if settings.side < 64 or settings.side % 64:
        raise UsageError(f"side={settings.side} (needs a multiple of 64)")
    if settings.round_to < 1:
        raise UsageError(f"round_to={settings.round_to} (needs at least 1)")
    if not 0 <= settings.tolerance < 1:
        raise UsageError(f"tolerance={settings.tolerance} (needs 0 <= tolerance < 1)")


def run(
    recipe: Recipe,
    settings: Settings,
    model: nn.Module,
    data: Data,
    folder: Path,
    load: Callable[[str], nn.Module],
) -> nn.Module:
    """Writes ``plan.json`` and gives the codec that is compacted by it; nothing is trained."""
    graph = graph_of(recipe, model, settings)

    def make() -> Plan:
        # First, for it refuses what cannot be timed, before hours of measuring.
        cost = cost_of(recipe, model, graph, settings, folder)
        loss = loss_of(recipe, model, data)
        ranking = ranking_of(model, graph, settings, loss)
        sensitivity = measure_sensitivity(
            model,
            graph,
            ranking,
            loss,
            candidates=settings.candidates,
            round_to=settings.round_to,
            progress=partial(tqdm, desc="sensitivity", unit="width"),
        )
        how = {"rule": settings.rule, "tolerance": settings.tolerance}
        return search(model, graph, ranking, sensitivity, loss, cost, settings.reduction, **how)

    plan = plan_in(folder, model, settings, calibration_set(recipe), make)
    return compacted(model, plan.masks(graph), graph, calibration_pictures(recipe, model, data)).eval()


def graph_of(recipe: Recipe, model: nn.Module, settings: Any) -> ChannelGraph:
    """Of the transforms that `settings` names, as far as `recipe` trains them."""
    return trace_model(model, list(trained_transforms(model, settings.transforms, recipe.trains)))


def calibration_set(recipe: Recipe) -> dict[str, Any]:
    """What the calibration set and its loss follow from, and what is pruned, for the record."""
    values = {
        "seed": recipe.seed,
        "crops": recipe.batch,
        "crop": recipe.crop,
        "frames": recipe.frames,
        "lambdas": recipe.lambdas,
    }
    return values if recipe.trains is None else values | {"trains": recipe.trains}


def loss_of(recipe: Recipe, model: nn.Module, data: Data) -> Loss:
    """The rate-distortion loss on the calibration set, the recipe's first batch."""
    return partial(calibration_loss, x=calibration_pictures(recipe, model, data), lambdas=recipe.lambdas)


def ranking_of(model: nn.Module, graph: ChannelGraph, settings: Any, loss: Loss) -> Ranking:
    """By the criterion that `settings` names; energies are those of the forwards that `loss` takes."""
    return rank_channels(model, graph, settings.criterion, partial(loss, model))


def cost_of(recipe: Recipe, model: nn.Module, graph: ChannelGraph, settings: Any, folder: Path) -> Cost:
    """What `settings` counts or times, over the transforms of `graph_of`."""
    shapes = trained_transforms(model, settings.transforms, recipe.trains, settings.side)
    if settings.target == "ms":
        timer = timer_for(model, next(model.parameters()).device)
        return latency_cost(
            model, graph, LatencyTable(timer, settings.latency_table or folder / "latency.json"), shapes
        )
    report = count(model, shapes)
    return mac_cost(report, graph) if settings.target == "macs" else parameter_cost(model, report, graph)


def plan_in(
    folder: Path, model: nn.Module, settings: Any, made_by: Mapping[str, Any], make: Callable[[], Plan]
) -> Plan:
    """The plan in ``folder/plan.json``, which one process makes if it is not there yet.

    Raises:
        UsageError: the plan that is there was made from something else.
    """
    path = folder / "plan.json"
    made_by = {**made_by, **asdict(settings), "model": model_hash(model).hex()}
    made_by = {key: list(value) if isinstance(value, tuple) else value for key, value in made_by.items()}
    if distributed.rank() == 0 and not path.exists():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        plan = make()
        plan.made_by.update(made_by)
        plan.save(path)
    distributed.wait()
    plan = Plan.load(path)
    differing = [key for key in made_by if plan.made_by.get(key) != made_by[key]]
    if differing:
        was, now = plan.made_by.get(differing[0]), made_by[differing[0]]
        raise UsageError(f"{path} was made with {differing[0]}={was!r}, the recipe says {now!r} (use another folder)")
    if distributed.rank() == 0:
        tqdm.write(str(plan), file=sys.stderr)
    return plan
