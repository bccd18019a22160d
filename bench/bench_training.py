"""What a training step costs by method, interleaved: evc-tiny, batch 4, crops of 128, float32.

That masked equals compact and a resumed run an uninterrupted one is tested in tests/; here each step's loss has to be
finite before it is timed.
"""

from __future__ import annotations

import math

import pytest
import torch

from sparsecodec.models import create
from sparsecodec.training import Recipe, Trainer
from sparsecodec.training.methods import module_of

BATCH, CROP, ROUNDS = 4, 128, 10
BASE = {"model": "evc-tiny", "steps": 1000, "batch": BATCH, "crop": CROP, "warmup": 1}


class _Noise:
    def batch(self, step: int, size: int, start: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        return torch.rand(size, 3, CROP, CROP, generator=generator)


def _trainer(kind: str, folder) -> Trainer:
    torch.manual_seed(0)
    model = create("evc-tiny")
    if kind in ("plain", "adam", "bfloat16"):
        changes = {"adam": {"optimizer": "adam"}, "bfloat16": {"bfloat16": True}}.get(kind, {})
        return Trainer(Recipe.from_dict({**BASE, **changes}), model, _Noise(), folder)
    weight = 1.0 if kind == "gradient_decay" else 0.0
    table = {"mac_reduction": 0.65, "distillation_weight": weight}
    recipe = Recipe.from_dict({**BASE, "gradient_decay": table})
    method = module_of("gradient_decay").LearntMasks(model, recipe.settings, recipe.steps)
    return Trainer(recipe, model, _Noise(), folder, method)


@pytest.mark.parametrize("kind", ["adam", "bfloat16", "gradient_decay", "gradient_decay, no distillation"])
def bench_training_step(kind, benchmark, bench_row, tmp_path):
    """A step of `kind` beside a plain float32 step of Muon."""
    plain, other = _trainer("plain", tmp_path / "plain"), _trainer(kind, tmp_path / "other")
    times: list[float] = []
    for trainer in (plain, other):
        trainer.model.train()
        assert math.isfinite(trainer.train_step()["loss"])

    def time_plain() -> None:
        start = benchmark._timer()
        plain.train_step()
        times.append(benchmark._timer() - start)

    benchmark.pedantic(other.train_step, setup=time_plain, rounds=ROUNDS)
    plain_us = 1e6 * sorted(times)[len(times) // 2]
    bench_row(
        op="training_step", case=f"evc-tiny, {BATCH} x {CROP}", backend=kind, passed=True, plain_t_us_p50=plain_us
    )
