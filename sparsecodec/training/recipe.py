"""A training run, written down: a TOML file that names everything the result depends on."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsecodec.errors import UsageError, reason
from sparsecodec.training import methods
from sparsecodec.training.fields import checked

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OPTIMIZERS = ("muon", "adam")
SEEDS = 2**63  # torch takes up to 2**64, and later phases add to the seed
INCIDENTAL = ("log_every", "save_every", "tensorboard")  # may change between parts of a run


@dataclass(frozen=True)
class Recipe:
    """One run: plain rate-distortion training, or one of `sparsecodec.training.methods` with a table of its own.

    Attributes:
        model: name for `sparsecodec.models.create`; with `start_from` no more than a label of the run, but not the
            name of another architecture.
        steps: optimiser steps; of the method's first phase where its settings name others; 0 for a method that trains
            nothing, or nothing before its own phases.
        batch, crop: crops a step, over all processes, and their side in pixels.
        frames: of a crop; from 2 on a video codec is trained on clips, photos set in motion among them. Its intra model
            alone sees a crop of one frame.
        trains: paths of the modules that are trained, such as ``["inter"]``; the others stay as they are, unpruned and
            float, and compute as in decoding. Default: all.
        motion: weight of the error of the last frame moved by the decoded motion, beside that of the picture; for
            clips and codecs that code motion (DCVC-HEM, DCVC), whose flow network hardly learns without it.
        lambdas: of ``R + lambda * 255^2 * MSE``, one for each rate of the model; default: the family's own.
        optimizer: "muon" for convolution weights and Adam for the rest, or "adam" for all.
        learning_rate, adam_learning_rate: peaks of the two parts; linear warm-up, then cosine to a hundredth.
        warmup: steps.
        gradient_clip: largest norm of the gradient.
        ema: decay of the weight average that is saved as the result.
        bfloat16: run the networks under autocast.
        seed: of weights, crops and noise.
        log_every, save_every: steps.
        tensorboard: write TensorBoard events beside the log; needs the extra ``[train]``.
        start_from: name or safetensors file of the codec to start from.
        backbone: the same, of a finished codec that `model` is built around, the rest of it with random weights: the
            intra model of a codec of clips, or the codec without attention of one with
            (`sparsecodec.models.EVC.load_backbone`).
        method: name of the method, "plain" for none.
        settings: of the method.
    """

    model: str
    steps: int
    batch: int = 8
    crop: int = 128
    frames: int = 1
    trains: tuple[str, ...] | None = None
    motion: float = 0.0
    lambdas: tuple[float, ...] | None = None
    optimizer: str = "muon"
    learning_rate: float = 0.01
    adam_learning_rate: float = 2e-3
    warmup: int = 200
    gradient_clip: float = 1.0
    ema: float = 0.999
    bfloat16: bool = False
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    tensorboard: bool = False
    start_from: str | None = None
    backbone: str | None = None
    method: str = methods.PLAIN
    settings: Any = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop", "frames", "log_every", "save_every"):
            least = 0 if name == "steps" and self.command in methods.MAY_TRAIN_NOTHING else 1
            if getattr(self, name) < least:
                raise UsageError(f"recipe: {name}={getattr(self, name)} (needs at least {least})")
        for name in ("warmup", "motion", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"recipe: {name}={getattr(self, name)} (needs 0 or more)")
        if self.seed >= SEEDS:
            raise UsageError(f"recipe: seed={self.seed} (needs less than 2**63)")
        if not 0 <= self.ema < 1:
            raise UsageError(f"recipe: ema={self.ema} (needs 0 <= ema < 1)")
        for name in ("learning_rate", "adam_learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"recipe: {name}={getattr(self, name)} (needs a positive number)")
        if self.trains is not None and not self.trains:
            raise UsageError("recipe: trains=[] (needs at least one module; leave it out to train all)")
        if self.start_from and self.backbone:
            raise UsageError(f"recipe: start_from={self.start_from!r} and backbone={self.backbone!r} (needs one)")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"recipe: optimizer={self.optimizer!r} (needs one of {', '.join(OPTIMIZERS)})")

    @property
    def command(self) -> str:
        """The subcommand of ``sparsecodec`` that runs this recipe."""
        return methods.command_of(self.method)

    def decisive(self) -> dict[str, Any]:
        """The values that the steps of a phase depend on, JSON-able; those of the method under its name.

        Lengths of later phases in a method's settings, and the learning rates beside them, are left out: they reach a
        phase as its recipe's own, and a longer fine-tuning does not make the masks before it other ones.
        """
        values = dataclasses.asdict(self)
        settings = values.pop("settings") or {}
        kept = {key: value for key, value in values.items() if key not in INCIDENTAL}
        phases = [key.removesuffix("_steps") for key in settings if key.endswith("_steps")]
        carried = {f"{name}_{what}" for name in phases for what in ("steps", "learning_rate")}
        return kept | {f"{self.method}.{key}": value for key, value in settings.items() if key not in carried}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Builds a recipe from plain values, as TOML gives them.

        Raises:
            UsageError: a key is unknown, a required one is missing, there are two methods, or a value has a wrong type
                or is out of range.
        """
        values = dict(values)
        tables = [name for name in methods.NAMES if name in values]
        if len(tables) > 1:
            raise UsageError(f"recipe: methods {' and '.join(tables)} (needs one)")
        method, settings = methods.PLAIN, None
        if tables:
            method, table = tables[0], values.pop(tables[0])
            if not isinstance(table, dict):
                raise UsageError(f"recipe: {method}={table!r} (needs a table, [{method}])")
            settings = checked(methods.settings_of(method), table, f"recipe, [{method}]")
        return checked(cls, values, "recipe", methods.NAMES, method=method, settings=settings)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Reads a TOML file; raises `UsageError` as `from_dict` does."""
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text()))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"recipe {path} cannot be read: {reason(error)}") from error
