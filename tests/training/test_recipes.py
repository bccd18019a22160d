"""Every recipe that ships runs: some steps of it, all phases, to a codec that is saved, loaded and codes a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import sparsecodec
from sparsecodec.cli.latency import CompiledTimer
from sparsecodec.cli.main import main
from sparsecodec.data import RandomClips, RandomCrops
from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.models.video import VideoCodec
from sparsecodec.sparsity.latency import timed_by
from sparsecodec.training import Recipe, calibration_loss, family_of, initial_model, muon, run
from sparsecodec.zoo import names

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.toml"))
STEPS = 10
CHEAP = {  # what else takes long, by method
    "quantize": {"calibration_crops": 2, "rule": "mse"},
    "feds": {"calibration_batches": 2},
    "search": {"candidates": (0.0, 0.9), "side": 64},
}


def _shortened(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with `steps` steps over all of its phases, each in its share, on small crops."""
    settings = recipe.settings
    names_of = [field.name for field in dataclasses.fields(settings)] if settings else []
    lengths = {name: getattr(settings, name) for name in names_of if name.endswith("_steps")}
    stages = max(len(getattr(settings, "stages", ())), 1)  # each runs for the recipe's steps
    total = stages * recipe.steps + sum(lengths.values())
    share = {name: max(length * steps // total, 1) for name, length in lengths.items() if length}
    share |= CHEAP.get(recipe.method, {})
    return dataclasses.replace(
        recipe,
        steps=max(recipe.steps * steps // max(total, 1), 5 if recipe.steps else 0),  # decays begin at a fifth
        batch=1,
        crop=64,
        frames=min(recipe.frames, 3),
        warmup=2,
        log_every=1,
        bfloat16=False,  # slower on many CPUs; test_trainer has it
        settings=dataclasses.replace(settings, **share) if settings else None,
    )


def _load(name: str) -> torch.nn.Module:
    """Shipped weights, or random ones in the place of those that another recipe makes first."""
    if name in names():
        return sparsecodec.load(name)
    (made_by,) = [path for path in RECIPES if path.stem == name]
    recipe = Recipe.load(made_by)
    return create(getattr(recipe.settings, "student", None) or recipe.model)


class WeighingTimer(CompiledTimer):
    """Runs every block, and then tells its weights: a target in milliseconds must not depend on what else runs here."""

    def __init__(self, model, device) -> None:
        super().__init__(model, device, rounds=1)

    def __call__(self, blocks) -> list[float]:
        assert all(ms > 0 for ms in super().__call__(blocks))
        return [float(sum(p.numel() for p in block.module.parameters())) for block in blocks]


def test_there_are_recipes_of_every_command():
    commands = {Recipe.load(path).command for path in RECIPES}
    assert commands == {"train", "prune", "distill", "search", "quantize"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs_and_its_codec_codes(path, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(muon, "_ITERATIONS", 1)  # five take most of a step on so small a batch
    recipe = _shortened(Recipe.load(path), STEPS)
    model = initial_model(recipe, _load)
    if recipe.frames > 1:
        data = RandomClips(pictures, recipe.crop, recipe.frames, recipe.seed)
    else:
        data = RandomCrops(pictures, recipe.crop, recipe.seed)
    with timed_by(WeighingTimer):
        codec = run(recipe, model, data, tmp_path / "run", _load)

    sparsecodec.save(codec, tmp_path / path.stem)
    loaded = sparsecodec.load(tmp_path / path.stem)
    x = data.batch(1000, 1)
    expected = calibration_loss(codec.eval(), x, recipe.lambdas)
    assert calibration_loss(loaded, x, recipe.lambdas) == pytest.approx(expected, rel=1e-4)
    if isinstance(loaded, VideoCodec):
        assert family_of(loaded).forward(loaded, x)[0]["x_hat"].shape == x.shape  # coding: tests of the runtime
    else:
        compiled = sparsecodec.compile_codec(loaded)
        assert compiled.decode(compiled.encode(x)).shape == x.shape


def test_command_of_another_method_is_refused(tmp_path):
    path = next(path for path in RECIPES if Recipe.load(path).command == "prune")
    assert main(["train", str(path), "nowhere", "--out", str(tmp_path)]) == UsageError.exit_code
