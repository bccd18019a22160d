"""Gradient decay with adaptive layer-wise distillation (arXiv 2312.02605), then fine-tuning of the compact codec."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sparsecodec.errors import UsageError
from sparsecodec.sparsity import DecayConfig, GradientDecay, count, trace_model
from sparsecodec.sparsity.energy import channel_energies
from sparsecodec.sparsity.wiring import LOCKED, STATES
from sparsecodec.training.compaction import compacted
from sparsecodec.training.families import calibration_loss, check_trained, family_of, trained_transforms
from sparsecodec.training.fields import check_numbers
from sparsecodec.training.masking import Masking, finetuned
from sparsecodec.training.recipe import Recipe
from sparsecodec.training.trainer import Data, Trainer, calibration_pictures, phase

COMMAND = "prune"
THETA_TRAVEL = 5.0
"""How far the thresholds could come until the freeze at their peak learning rate, in units of how far they must."""


@dataclass(frozen=True)
class Settings:
    """What is pruned, how far, and when.

    Attributes:
        mac_reduction: target fraction of the counted MACs to remove, in (0, 1).
        transforms: "decoder", "encoder" or "all".
        stages: paths of transforms that are pruned one group after the other, such as
            ``[["hyper_dec", "y_prior_fusion", "y_spatial_prior"], ["dec"]]`` (a video codec: motion, then residual).
            Each stage runs for the recipe's steps, reaches the target on its own transforms, and distils its own layers
            alone. Default: `transforms` at once.
        branches: whether the last layer of a residual branch may be pruned alone, its channels scattered into the sum.
            Blocks that are fused as a whole run faster without.
        state: "locked", what transforms hand on to each other keeps its width, or "coupled": features and contexts
            shrink as well, alike at every frame, where one stage names all that makes and reads them.
        criterion: what scores the channels: "l2", the norms of their filters, as published, or "energy", what they say
            to the layers that read them, measured on the recipe's first batch.
        method: "gradient_decay", or one of the baselines that `sparsecodec.sparsity.Method` lists.
        decay_start, decay_end: fractions of the run between which the gradient of masked filters goes from 1 to 0.
        finetune_steps: of plain rate-distortion training on the compacted codec, after the masks are frozen.
        finetune_learning_rate: peak of those steps.
        distillation_weight: of the layer-wise feature distance to the dense codec; 0 for none.
        round_to: kept widths are multiples of this.
    """

    mac_reduction: float
    transforms: str = "decoder"
    stages: tuple[tuple[str, ...], ...] = ()
    branches: bool = True
    state: str = LOCKED
    criterion: str = "l2"
    method: str = "gradient_decay"
    decay_start: float = 0.1
    decay_end: float = 0.9
    finetune_steps: int = 0
    finetune_learning_rate: float = 0.004
    distillation_weight: float = 1.0
    round_to: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.mac_reduction < 1:
            raise UsageError(f"mac_reduction={self.mac_reduction} (needs a fraction in (0, 1))")
        if not 0 <= self.decay_start < self.decay_end <= 1:
            raise UsageError(
                f"decay_start={self.decay_start}, decay_end={self.decay_end} (needs 0 <= start < end <= 1)"
            )
        if self.state not in STATES:
            raise UsageError(f"state={self.state!r} (needs one of {', '.join(STATES)})")
        if self.criterion not in ("l2", "energy"):
            raise UsageError(f"criterion={self.criterion!r} (needs one of l2, energy)")
        paths = [path for stage in self.stages for path in stage]
        if len(set(paths)) < len(paths) or not all(self.stages):
            raise UsageError(f"stages={self.stages} (needs groups of transforms, each transform in one of them)")
        check_numbers(
            self,
            positive=("finetune_learning_rate", "round_to"),
            from_zero=("finetune_steps", "distillation_weight"),
        )


class LearntMasks(Masking):
    """Learns which channels to drop, and holds the rest close to the dense codec, block by block.

    Args:
        model: the codec that is trained; dense in the transforms that are pruned.
        settings: of the method.
        steps: of the phase.
        paths: of the transforms that are pruned; default: those of `settings`.
        run: forwards of the model on calibration data, for the criterion "energy".
        teacher: as of `Masking`.

    Raises:
        UsageError: the model has no such transform.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Settings,
        steps: int,
        paths: tuple[str, ...] | None = None,
        run: Callable[[], object] | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        shapes = family_of(model).transforms(model, settings.transforms if paths is None else "all")
        if paths is not None:
            if unknown := [path for path in paths if path not in shapes]:
                raise UsageError(f"stage {list(paths)}: no transform {unknown[0]!r} (there are {', '.join(shapes)})")
            shapes = {path: shapes[path] for path in paths}
        graph = trace_model(model, list(shapes), settings.state)
        if not settings.branches:
            graph = graph.without_branches()
        config = DecayConfig(
            sparsity=settings.mac_reduction,
            t0=int(settings.decay_start * steps),
            t1=int(settings.decay_end * steps),
            ramp=int(settings.decay_start * steps),
            round_to=settings.round_to,
            method=settings.method,
        )
        energies = channel_energies(model, graph, run) if settings.criterion == "energy" else None
        decay = GradientDecay(model, graph, count(model, shapes), config, energies)
        super().__init__(model, decay, list(shapes), settings.distillation_weight, teacher)
        self.graph = graph
        self.learning_rate = THETA_TRAVEL * decay.distance() / config.t1

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [self.decay.parameter_group(self.learning_rate)]

    def record(self) -> dict[str, float]:
        decay = self.decay
        reduction = float(decay.mac_reduction)
        return {"beta": decay.beta, "mac_reduction": reduction, "forced_channels": int(decay.forced)}


def run(
    recipe: Recipe,
    settings: Settings,
    model: nn.Module,
    data: Data,
    folder: Path,
    load: Callable[[str], nn.Module],
) -> nn.Module:
    """Learns the masks (``masks-1/``, a folder a stage), compacts the codec, and fine-tunes it (``finetune/``).

    Raises:
        GraphError: nothing of a stage can be pruned.
        UsageError: a stage names what there is not or what rests, or cannot reach the target; before any is trained.
    """
    stages = settings.stages or (tuple(trained_transforms(model, settings.transforms, recipe.trains)),)
    check_trained([path for stage in stages for path in stage], recipe.trains, "stages")
    x = calibration_pictures(recipe, model, data)
    # A later stage's name or target must not be refused after hours of an earlier one. What stages prune are other
    # channels, so the codec as it is tells what the compacted one will.
    probed = dataclasses.replace(settings, criterion="l2", distillation_weight=0.0)
    for paths in stages[1:]:
        LearntMasks(model, probed, recipe.steps, paths)
    dense = copy.deepcopy(model) if settings.distillation_weight else None  # stages move all weights, not theirs alone
    configs = []
    for number, paths in enumerate(stages):
        calibrating = partial(calibration_loss, model, x, recipe.lambdas)
        method = LearntMasks(model, settings, recipe.steps, paths, calibrating, dense)
        learning = phase(recipe, seed=recipe.seed + 1000 * number)
        behind = number * recipe.steps
        averaged = Trainer(learning, model, data, folder / f"masks-{number + 1}", method, behind).run()
        method.decay.set_step(recipe.steps)  # a resumed run may have nothing left to do
        model = compacted(averaged, method.decay.masks(), method.graph, x)
        configs.append(model.compact_config)
        model.compact_config = _joined(configs)
        model.train().requires_grad_(True)
    return finetuned(recipe, model, data, folder, settings, behind=len(stages) * recipe.steps)


def _joined(configs: list[dict[str, Any]]) -> dict[str, Any]:
    """One `compact_config` of those of all stages, which prune different transforms of one codec.

    Coupled, the channels of a transform depend on what is traced with it: such stages are rebuilt one after the other.
    """
    if len(configs) == 1:
        return configs[0]
    if any(config["state"] != LOCKED for config in configs):
        return {"format": configs[0]["format"], "stages": configs}
    transforms = [path for config in configs for path in config["transforms"]]
    return {**configs[0], "transforms": transforms, "kept": {k: v for c in configs for k, v in c["kept"].items()}}
