"""A recipe from start to finish."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from sparsecodec.data import RandomCrops
from sparsecodec.training.recipe import Recipe
from sparsecodec.training.trainer import Trainer


def run(
    recipe: Recipe, model: nn.Module, crops: RandomCrops, folder: str | Path
) -> tuple[nn.Module, dict[str, Any] | None]:
    """Trains `model` as the recipe says; a run that was cut off goes on where it was.

    A pruning recipe learns the masks first, then compacts the codec and fine-tunes the small one.

    Args:
        recipe: what to do.
        model: the codec to start from; it is trained in place.
        crops: where batches come from.
        folder: for checkpoints and logs.

    Returns:
        The averaged codec in eval mode, and the configuration of its compaction, None for a dense one.
    """
    folder = Path(folder)
    if recipe.pruning is None:
        return Trainer(recipe, model, crops, folder).run(), None
    masking = Trainer(recipe, model, crops, folder / "masks")
    averaged = masking.run()
    masking.pruning.decay.set_step(recipe.steps)  # a resumed run may have nothing left to do
    small, config = masking.pruning.compacted(averaged)
    finetuning = dataclasses.replace(
        recipe,
        pruning=None,
        steps=recipe.pruning.finetune_steps,
        learning_rate=recipe.pruning.finetune_learning_rate,
        adam_learning_rate=recipe.adam_learning_rate * recipe.pruning.finetune_learning_rate / recipe.learning_rate,
        seed=recipe.seed + 1,
    )
    if not finetuning.steps:
        return small, config
    return Trainer(finetuning, small.train().requires_grad_(True), crops, folder / "finetune").run(), config
