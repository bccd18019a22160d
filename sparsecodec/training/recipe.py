"""A training run, written down: a TOML file that names everything the result depends on."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsecodec.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Pruning:
    """Gradient decay (arXiv 2312.02605) on the decoder; see `sparsecodec.sparsity.gradient_decay`.

    Attributes:
        mac_reduction: target fraction of the decoder's MACs to remove, in (0, 1).
        decay_start, decay_end: fractions of the run between which the gradient of masked filters goes from 1 to 0.
        finetune_steps: of plain rate-distortion training on the compacted codec, after the masks are frozen.
        finetune_learning_rate: peak of those steps.
        sparsity_weight: of the penalty on the missing reduction.
        distillation_weight: of the layer-wise feature distance to the dense codec.
        round_to: kept widths are multiples of this.
    """

    mac_reduction: float
    decay_start: float = 0.1
    decay_end: float = 0.9
    finetune_steps: int = 0
    finetune_learning_rate: float = 0.004
    sparsity_weight: float = 10.0
    distillation_weight: float = 1.0
    round_to: int = 8


@dataclass(frozen=True)
class Recipe:
    """One run.

    Attributes:
        model: name for `sparsecodec.models.create`.
        steps: optimiser steps.
        batch, crop: crops a step, and their side in pixels.
        learning_rate, adam_learning_rate: peaks of the two parts of `Muon`; linear warm-up, then cosine to a hundredth.
        warmup: steps.
        gradient_clip: largest norm of the gradient.
        ema: decay of the weight average that is saved as the result.
        bfloat16: run the networks under autocast.
        seed: of weights, crops and noise.
        log_every, save_every: steps.
        start_from: safetensors file with the weights to start from (the dense codec, when pruning).
        pruning: absent for a dense run.
    """

    model: str
    steps: int
    batch: int = 8
    crop: int = 128
    learning_rate: float = 0.01
    adam_learning_rate: float = 2e-3
    warmup: int = 200
    gradient_clip: float = 1.0
    ema: float = 0.999
    bfloat16: bool = False
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    start_from: str | None = None
    pruning: Pruning | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Builds a recipe from plain values.

        Raises:
            UsageError: a key is unknown, a required one is missing, or a value is out of range.
        """
        values = dict(values)
        pruning = values.pop("pruning", None)
        try:
            recipe = cls(**values, pruning=None if pruning is None else Pruning(**pruning))
        except TypeError as error:
            known = ", ".join(field.name for field in dataclasses.fields(cls))
            raise UsageError(f"recipe: {error} (keys are {known})") from error
        for name in ("steps", "batch", "crop", "log_every", "save_every"):
            if getattr(recipe, name) < 1:
                raise UsageError(f"recipe: {name}={getattr(recipe, name)} (needs at least 1)")
        if recipe.pruning and not 0 < recipe.pruning.mac_reduction < 1:
            raise UsageError(f"recipe: mac_reduction={recipe.pruning.mac_reduction} (needs a fraction in (0, 1))")
        return recipe

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Reads a TOML file; raises `UsageError` as `from_dict` does."""
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text()))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"recipe {path} cannot be read: {error}") from error
