"""FEDS (arXiv 2503.06399): feature alignment, then channels weighted by entropy, then fine-tuning; see `FEDS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsecodec.distill.feds import ENTROPY_LOSSES, FEDS
from sparsecodec.errors import UsageError
from sparsecodec.training.families import family_of, trained_transforms
from sparsecodec.training.fields import check_numbers
from sparsecodec.training.method import Method
from sparsecodec.training.recipe import Recipe
from sparsecodec.training.trainer import Data, Trainer, phase

COMMAND = "distill"
FEATURES_LATER = 0.1  # share of the feature loss that stays while channels are distilled
PARAMETERS = ("y_prior_fusion", "y_spatial_prior", "auto_regressive", "context_prediction", "entropy_parameters")


@dataclass(frozen=True)
class Settings:
    """Three phases. The recipe's ``steps`` and ``learning_rate`` are those of the first.

    Attributes:
        teacher: zoo name or path of the codec to learn from; of the student's family, with as many latent channels or
            more.
        channel_steps, finetune_steps: of the second and of the third phase; 0 leaves it out.
        a: weight of the feature loss, 0 or more; a tenth of it in the second phase.
        b: weight of the channel loss, 0 or more.
        entropy_loss: "mse" of the paired channels, or "kl" between their Gaussians.
        calibration_batches: batches of the data from which the teacher's channel entropies are taken.
        channel_learning_rate: peak of the second phase; None for that of the first.
        finetune_learning_rate: peak of the third phase.
        adapter_learning_rate: peak of the adapters' optimiser, Adam.
    """

    teacher: str
    channel_steps: int
    finetune_steps: int
    a: float = 1.0
    b: float = 0.1
    entropy_loss: str = "mse"
    calibration_batches: int = 16
    channel_learning_rate: float | None = None
    finetune_learning_rate: float = 1e-3
    adapter_learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        check_numbers(
            self,
            positive=("channel_learning_rate", "finetune_learning_rate", "adapter_learning_rate"),
            from_zero=("channel_steps", "finetune_steps", "a", "b"),
        )
        if self.calibration_batches < 1:
            raise UsageError(f"calibration_batches={self.calibration_batches} (needs at least 1)")
        if self.entropy_loss not in ENTROPY_LOSSES:
            raise UsageError(f"entropy_loss={self.entropy_loss!r} (needs one of {', '.join(ENTROPY_LOSSES)})")


class Distillation(Method):
    """One of the two phases beside the teacher.

    Args:
        feds: student and teacher; shared by the phases, so that adapters and pairing go on.
        a: weight of the feature loss; 0 leaves it out.
        b: weight of the channel loss; 0 leaves it out.
        learning_rate: peak of the adapters.
    """

    def __init__(self, feds: FEDS, a: float, b: float, learning_rate: float) -> None:
        super().__init__()
        self.feds = feds
        self.a, self.b, self.learning_rate = a, b, learning_rate
        self._record: dict[str, float] = {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.feds.adapters.parameters()), "lr": self.learning_rate}] if self.a else []

    def forward(self, model: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return self.feds(model, x)

    def loss(self, out: dict[str, Tensor], x: Tensor) -> Tensor | None:
        weighted = [
            (name, weight, distance())
            for name, weight, distance in (
                ("feature_loss", self.a, self.feds.feature_loss),
                ("channel_loss", self.b, self.feds.channel_loss),
            )
            if weight
        ]
        self._record = {name: distance.item() for name, _, distance in weighted}
        return sum(weight * distance for _, weight, distance in weighted) if weighted else None

    def record(self) -> dict[str, float]:
        return self._record


def aligned_transforms(model: nn.Module, trains: Sequence[str] | None) -> tuple[str, ...]:
    """Paths of the trained transforms of `model` but those that only predict distributions; `trains` as of `Recipe`."""
    return tuple(
        path for path in trained_transforms(model, "all", trains) if not any(name in path for name in PARAMETERS)
    )


def run(
    recipe: Recipe,
    settings: Settings,
    model: nn.Module,
    data: Data,
    folder: Path,
    load: Callable[[str], nn.Module],
) -> nn.Module:
    """Trains the student `model` in three phases, in the folders ``features``, ``channels`` and ``finetune``.

    Each phase starts from the average of the one before. The third is plain training.

    Raises:
        UsageError: teacher and student do not fit; see `FEDS`.
    """
    device = next(model.parameters()).device
    teacher = load(settings.teacher).to(device)
    batches = [data.batch(step, recipe.batch).to(device) for step in range(settings.calibration_batches)]
    transforms = aligned_transforms(model, recipe.trains)
    feds = FEDS(model, teacher, family_of(model).forward, transforms, batches, settings.entropy_loss)
    a, b, adapter_lr = settings.a, settings.b, settings.adapter_learning_rate

    averaged = Trainer(recipe, model, data, folder / "features", Distillation(feds, a, 0.0, adapter_lr)).run()
    if settings.channel_steps:
        rate = settings.channel_learning_rate or recipe.learning_rate
        second = phase(recipe, steps=settings.channel_steps, learning_rate=rate, seed=recipe.seed + 1)
        method = Distillation(feds, FEATURES_LATER * a, b, adapter_lr)
        averaged = Trainer(second, _trainable(averaged), data, folder / "channels", method, recipe.steps).run()
    if settings.finetune_steps:
        rate = settings.finetune_learning_rate
        third = phase(recipe, steps=settings.finetune_steps, learning_rate=rate, seed=recipe.seed + 2)
        behind = recipe.steps + settings.channel_steps
        averaged = Trainer(third, _trainable(averaged), data, folder / "finetune", behind=behind).run()
    return averaged


def _trainable(model: nn.Module) -> nn.Module:
    return model.train().requires_grad_(True)
