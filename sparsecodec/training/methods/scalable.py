"""Residual representation learning: further encoders for a trained EVC (arXiv 2302.05071), one stage for each.

Stage k adds encoder e_k and trains it alone, through ``y_k = (sum_{i<k} e_i(x) + e_k(x)) / (k + 1)`` and the codec
behind it. Decoder, entropy networks and steps rest, and so do the encoders before: otherwise the prefixes that are
trained already would lose what they learnt, and older files would need another decoder. The paper's own order of
training is not known to us.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sparsecodec.errors import UsageError
from sparsecodec.models import ScalableEVC
from sparsecodec.training.fields import check_numbers
from sparsecodec.training.recipe import Recipe
from sparsecodec.training.trainer import Data, Trainer, phase

COMMAND = "train"


@dataclass(frozen=True)
class Settings:
    """Which encoders there will be, and how long each is trained.

    Attributes:
        encoders: how many in the end.
        encoder: width preset of the encoders. The first one then starts from random weights and is trained for the
            recipe's steps. None: they are as the encoder of the codec that the run starts from, which is the first one
            as it is.
        stage_steps: for each encoder behind the first.
        stage_learning_rate: peak of those steps.
    """

    encoders: int = 4
    encoder: str | None = None
    stage_steps: int = 2000
    stage_learning_rate: float = 0.004

    def __post_init__(self) -> None:
        if self.encoders < 2:
            raise UsageError(f"encoders={self.encoders} (needs at least 2)")
        check_numbers(self, positive=("stage_steps", "stage_learning_rate"))


def run(
    recipe: Recipe,
    settings: Settings,
    model: nn.Module,
    data: Data,
    folder: Path,
    load: Callable[[str], nn.Module],
) -> ScalableEVC:
    """Trains encoder after encoder (``encoder-0/``, ``encoder-1/``, ...).

    Raises:
        UsageError: `model` is no EVC with one encoder, or the preset does not fit it.
    """
    torch.manual_seed(recipe.seed)
    codec = ScalableEVC.from_evc(model, encoder=settings.encoder).to(next(model.parameters()).device)
    behind = 0
    if settings.encoder is not None:
        codec = _last_trained(recipe, codec, data, folder / "encoder-0")
        behind = recipe.steps
    for k in range(1, settings.encoders):
        stage = phase(
            recipe, steps=settings.stage_steps, learning_rate=settings.stage_learning_rate, seed=recipe.seed + k
        )
        codec = _last_trained(stage, codec.extended(), data, folder / f"encoder-{k}", behind)
        behind += settings.stage_steps
    return codec.eval()


def _last_trained(recipe: Recipe, codec: ScalableEVC, data: Data, folder: Path, behind: int = 0) -> ScalableEVC:
    codec.train().requires_grad_(False)
    codec.encs[-1].requires_grad_(True)
    return Trainer(recipe, codec, data, folder, behind=behind).run()
