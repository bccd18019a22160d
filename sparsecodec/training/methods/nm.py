"""N:M sparse training (arXiv 2402.04744, 2102.04010) of wide 1x1 convolutions.

The result is a dense architecture with N of every M weights left. It is not faster: compiled for a CPU it takes the
dense time. What it has is weights that pack into less (`sparsecodec.sparsity.pack_nm`), and, where a library's 2:4
kernels win, the layout that they ask for.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from sparsecodec.errors import UsageError
from sparsecodec.sparsity import NM, NMConfig, NMTraining, nm_layers
from sparsecodec.training import distributed
from sparsecodec.training.families import trained_transforms
from sparsecodec.training.fields import check_numbers
from sparsecodec.training.method import Method
from sparsecodec.training.recipe import Recipe
from sparsecodec.training.trainer import Data, Trainer, phase

COMMAND = "prune"


@dataclass(frozen=True)
class Settings:
    """The pattern, where it goes, and how a layer comes to it.

    Attributes:
        n, m: n of every m weights along the input channels are kept.
        variant: a value of `sparsecodec.sparsity.NMVariant`.
        transforms: "decoder", "encoder" or "all".
        min_channels: layers with fewer input or output channels stay dense.
        max_kernel: layers with larger kernels stay dense.
        start, end: fractions of the run between which the variant's schedule runs; then the masks are frozen.
        factor: of SR-STE's pull of masked weights towards 0.
        finetune_steps: of plain training with frozen masks, after the run.
        finetune_learning_rate: peak of those steps.
    """

    n: int = 2
    m: int = 4
    variant: str = "mdgf_linear"
    transforms: str = "decoder"
    min_channels: int = 256
    max_kernel: int = 1
    start: float = 0.1
    end: float = 0.7
    factor: float = 2e-4
    finetune_steps: int = 0
    finetune_learning_rate: float = 0.004

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise UsageError(f"start={self.start}, end={self.end} (needs 0 <= start < end <= 1)")
        check_numbers(
            self, positive=("min_channels", "max_kernel", "finetune_learning_rate"), from_zero=("finetune_steps",)
        )
        self.config(steps=1000)

    def config(self, steps: int) -> NMConfig:
        """The schedule of a run of `steps` steps.

        Raises:
            UsageError: the pattern or the variant does not exist.
        """
        t0 = int(self.start * steps)
        return NMConfig(self.n, self.m, t0, max(int(self.end * steps), t0 + 1), self.variant, self.factor)


class SparseLayers(Method):
    """Trains through the masks of an `NMTraining`, which is its whole state."""

    def __init__(self, sparse: NMTraining) -> None:
        super().__init__()
        self.sparse = sparse

    @contextlib.contextmanager
    def applied(self, step: int) -> Iterator[None]:
        self.sparse.set_step(step)
        with self.sparse.applied():
            yield

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        self.sparse.step(optimizer)

    def record(self) -> dict[str, float]:
        sparse = self.sparse
        return {"kappa": sparse.kappa, "beta": sparse.beta, "nm_sparsity": sparse.sparsity}


def run(
    recipe: Recipe,
    settings: Settings,
    model: nn.Module,
    data: Data,
    folder: Path,
    load: Callable[[str], nn.Module],
) -> nn.Module:
    """Comes to the pattern (``masks/``), then trains on with frozen masks (``finetune/``).

    Raises:
        GraphError: no layer can have the pattern; the message says why.
    """
    transforms = list(trained_transforms(model, settings.transforms, recipe.trains))
    pattern = NM(settings.n, settings.m)
    layers, dense = nm_layers(model, transforms, pattern, settings.min_channels, settings.max_kernel)
    if distributed.rank() == 0:
        tqdm.write(_told(layers, dense, pattern), file=sys.stderr)
    sparse = NMTraining(model, layers, settings.config(recipe.steps))
    averaged = Trainer(recipe, model, data, folder / "masks", SparseLayers(sparse)).run()
    sparse.set_step(recipe.steps)  # freezes them where the schedule ends with the run
    sparse.bake(averaged)
    if not settings.finetune_steps:
        return averaged.eval()
    tuning = phase(
        recipe, steps=settings.finetune_steps, learning_rate=settings.finetune_learning_rate, seed=recipe.seed + 1
    )
    tuned = averaged.train().requires_grad_(True)
    frozen = NMTraining(tuned, layers, sparse.config)
    frozen.load_state_dict(sparse.state_dict())
    averaged = Trainer(tuning, tuned, data, folder / "finetune", SparseLayers(frozen), recipe.steps).run()
    frozen.bake(averaged)
    return averaged


def _told(layers: list[str], dense: dict[str, str], pattern: NM) -> str:
    """One line: how many layers get the pattern, and how many do not, by reason."""
    told = f"{len(layers)} layers become {pattern}"
    if not dense:
        return told
    reasons = "; ".join(f"{count}: {reason}" for reason, count in Counter(dense.values()).most_common())
    return f"{told}, {len(dense)} stay dense ({reasons})"
