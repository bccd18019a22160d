"""Mask decay (EVC, arXiv 2302.05071): from a wide codec to a narrow one, then fine-tuning of the narrow one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.sparsity import count, trace_model
from sparsecodec.sparsity.mask_decay import MaskDecay
from sparsecodec.sparsity.schedules import MaskDecayConfig, Penalty
from sparsecodec.sparsity.targets import student_targets, uniform_targets
from sparsecodec.training import distributed
from sparsecodec.training.compaction import compacted
from sparsecodec.training.families import PARTS, trained_transforms
from sparsecodec.training.fields import check_numbers
from sparsecodec.training.masking import Masking, finetuned
from sparsecodec.training.recipe import Recipe
from sparsecodec.training.trainer import Data, Trainer, calibration_pictures

COMMAND = "prune"


@dataclass(frozen=True)
class Settings:
    """What becomes how narrow, and when. Exactly one of `student` and `mac_reduction` is given.

    Attributes:
        student: name of the narrow architecture; the result is that codec.
        mac_reduction: fraction of the counted MACs to remove with one sparsity for all spaces, in (0, 1).
        transforms: "decoder", "encoder" or "all"; with `student`, what lies outside must be alike in both codecs.
        round_to: with `mac_reduction`, kept widths are multiples of this.
        penalty: "psi", or one of the baselines "l1", "l2" and "group_lasso".
        penalty_weight: at the end of the decay; it rises linearly from 0. It must outweigh the codec's loss in every
            space: of 896 channels from evc-tiny to evc-tiny-s in 120 steps, 0.001 left some 200 to be dropped by force,
            0.03 left 32 and 0.2 left 2; R + lambda D right after was 20, 11.5 and 2.6 (2026-11).
        mask_travel: peak learning rate of the masks times `Recipe.steps`. Adam moves a mask that is always pushed one
            way by the learning rate, so about half of this is how far it can come until `decay_end`: more than 1. In
            that setting 2.5, 3 and 5 left 9, 1 and 2 to be dropped by force; R + lambda D was 2.3, 2.2 and 2.6.
        decay_end: fraction of the run after which every space has its width, if need be by force.
        finetune_steps: of plain rate-distortion training on the narrow codec.
        finetune_learning_rate: peak of those steps.
        distillation_weight: of the layer-wise feature distance to the wide codec during the decay; 0 for none.
    """

    student: str | None = None
    mac_reduction: float | None = None
    transforms: str = "all"
    round_to: int = 8
    penalty: str = Penalty.PSI.value
    penalty_weight: float = 0.2
    mask_travel: float = 3.0
    decay_end: float = 0.8
    finetune_steps: int = 0
    finetune_learning_rate: float = 0.004
    distillation_weight: float = 0.0

    def __post_init__(self) -> None:
        if (self.student is None) == (self.mac_reduction is None):
            raise UsageError(
                f"student={self.student!r}, mac_reduction={self.mac_reduction} (needs exactly one of them)"
            )
        if self.mac_reduction is not None and not 0 < self.mac_reduction < 1:
            raise UsageError(f"mac_reduction={self.mac_reduction} (needs a fraction in (0, 1))")
        if self.transforms not in PARTS:
            raise UsageError(f"transforms={self.transforms!r} (needs one of {', '.join(PARTS)})")
        if not 0 < self.decay_end <= 1:
            raise UsageError(f"decay_end={self.decay_end} (needs a fraction in (0, 1])")
        check_numbers(
            self,
            positive=("round_to", "penalty_weight", "mask_travel", "finetune_learning_rate"),
            from_zero=("finetune_steps", "distillation_weight"),
        )
        self.config(1)

    def config(self, steps: int) -> MaskDecayConfig:
        """The schedule of a run of `steps` steps."""
        return MaskDecayConfig(max(int(self.decay_end * steps), 1), self.penalty_weight, self.penalty)


class DecayingMasks(Masking):
    """Narrows a codec while it trains.

    Args:
        model: the codec that is trained; starts from the wide codec's weights.
        settings: of the method.
        steps: of the phase.
        trains: as of `Recipe`; what it leaves out keeps its width.

    Raises:
        GraphError: the student cannot be cut from `model`.
        UsageError: nothing would become narrower, or the MAC reduction cannot be reached.
    """

    def __init__(self, model: nn.Module, settings: Settings, steps: int, trains: tuple[str, ...] | None = None) -> None:
        shapes = trained_transforms(model, settings.transforms, trains)
        graph = trace_model(model, list(shapes))
        if settings.student is not None:
            targets = student_targets(model, graph, create(settings.student))
        else:
            report = count(model, shapes)
            targets = uniform_targets(model, graph, report, settings.mac_reduction, settings.round_to)
        decay = MaskDecay(model, graph, targets, settings.config(steps))
        super().__init__(model, decay, list(shapes), settings.distillation_weight)
        self.graph = graph
        self.settings = settings
        self.learning_rate = settings.mask_travel / steps

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [self.decay.parameter_group(self.learning_rate)]

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        distributed.average([self.decay.energy])  # which channels go must be the same in every process
        super().update(optimizer)

    def record(self) -> dict[str, float]:
        return {"live_channels": self.decay.live, "forced_channels": int(self.decay.forced)}

    @torch.no_grad()
    def compacted(self, model: nn.Module, x: Tensor) -> nn.Module:
        """`model` with its masks folded in and without the dropped channels: the student, if there is one.

        Otherwise the result carries its ``compact_config``.

        Args:
            x: calibration pictures.
        """
        folded = copy.deepcopy(model)
        self.decay.fold(folded)
        small = compacted(folded, self.decay.masks(), self.graph, x)
        if self.settings.student is None:
            return small
        student = create(self.settings.student).to(next(small.parameters()).device)
        student.load_state_dict(small.state_dict())
        return student


def run(
    recipe: Recipe,
    settings: Settings,
    model: nn.Module,
    data: Data,
    folder: Path,
    load: Callable[[str], nn.Module],
) -> nn.Module:
    """Decays the masks (``masks/``), makes the codec narrow, and fine-tunes it (``finetune/``)."""
    method = DecayingMasks(model, settings, recipe.steps, recipe.trains)
    averaged = Trainer(recipe, model, data, folder / "masks", method).run()
    method.decay.set_step(recipe.steps)  # decay_end = 1: no step came after it
    small = method.compacted(averaged, calibration_pictures(recipe, model, data))
    return finetuned(recipe, small, data, folder, settings, behind=recipe.steps)
