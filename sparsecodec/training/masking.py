"""What the methods that learn masks share: masked forwards, the distance to the dense codec, and fine-tuning after."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.distill import LayerwiseDistillation, blocks_of
from sparsecodec.sparsity import GradientDecay, MaskDecay
from sparsecodec.training import distributed
from sparsecodec.training.method import Method
from sparsecodec.training.recipe import Recipe
from sparsecodec.training.trainer import Data, Trainer, phase


class Masking(Method):
    """Trains a codec under masks that are learnt, its blocks held close to those of the dense codec.

    Args:
        model: the codec that is trained.
        decay: learns the masks of `model`.
        paths: of the transforms whose blocks are distilled.
        distillation_weight: of the layer-wise feature distance, until the masks are frozen; 0 for none.
        teacher: the dense codec; put into eval mode, without gradients. None: a copy of `model` as it is now.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: GradientDecay | MaskDecay,
        paths: Sequence[str],
        distillation_weight: float,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.distillation_weight = distillation_weight
        self.distillation = None
        if distillation_weight:
            teacher = copy.deepcopy(model) if teacher is None else teacher
            teacher.eval().requires_grad_(False)
            self.distillation = LayerwiseDistillation(model, teacher, blocks_of(model, list(paths)))

    @contextlib.contextmanager
    def applied(self, step: int) -> Iterator[None]:
        """Within the context the model computes with its masks, and its blocks are compared with the teacher's."""
        self.decay.set_step(step)
        watching = self.distillation.watching() if self.distilling else contextlib.nullcontext()
        with self.decay.applied(), watching:
            yield

    @property
    def distilling(self) -> bool:
        """Until the masks are frozen; what follows is plain fine-tuning."""
        return self.distillation is not None and not bool(self.decay.frozen)

    def loss(self, out: dict[str, Tensor], x: Tensor) -> Tensor:
        penalty = self.decay.penalty()
        return penalty + self.distillation_weight * self.distillation.loss() if self.distilling else penalty

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        if self.distilling:
            distributed.average([self.distillation.average])  # one checkpoint holds it for all processes
        self.decay.step(optimizer)


def finetuned(recipe: Recipe, small: nn.Module, data: Data, folder: Path, settings: Any, *, behind: int) -> nn.Module:
    """Plain training of a compact codec for ``settings.finetune_steps`` at ``settings.finetune_learning_rate``.

    `behind`: as of `Trainer`.
    """
    if not settings.finetune_steps:
        return small.eval()
    tuning = phase(
        recipe, steps=settings.finetune_steps, learning_rate=settings.finetune_learning_rate, seed=recipe.seed + 1
    )
    return Trainer(tuning, small.train().requires_grad_(True), data, folder / "finetune", behind=behind).run()
