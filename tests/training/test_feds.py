"""FEDS as a method: its phases resume, the last one is plain training, the student is saved without its adapters."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsecodec import zoo
from sparsecodec.data import RandomCrops
from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.training import Recipe, Trainer, run
from sparsecodec.training.methods import feds
from sparsecodec.training.methods.feds import Settings

PHASES = ("features", "channels", "finetune")
FEDS = {"teacher": "teacher", "channel_steps": 4, "finetune_steps": 4, "calibration_batches": 2}
RECIPE = {"model": "evc-nano", "steps": 4, "batch": 1, "crop": 64, "warmup": 2, "save_every": 2, "log_every": 1}


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(9)
    return create("evc-tiny")


def _student() -> nn.Module:
    torch.manual_seed(0)
    return create("evc-nano")


def _recipe(**feds) -> Recipe:
    return Recipe.from_dict({**RECIPE, "feds": {**FEDS, **feds}})


def _log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Interrupted(Exception):
    pass


class CutOff:
    """Data that ends the run at a step; the calibration reads whole batches of it before."""

    def __init__(self, data: RandomCrops, batches: int) -> None:
        self.data = data
        self.left = batches

    def batch(self, step: int, size: int, start: int = 0) -> Tensor:
        if not self.left:
            raise Interrupted
        self.left -= 1
        return self.data.batch(step, size, start)


@pytest.fixture(scope="module")
def data(pictures: list[Path]) -> RandomCrops:
    return RandomCrops(pictures, 64, 0)


@pytest.fixture(scope="module")
def whole(data: RandomCrops, teacher: nn.Module, tmp_path_factory) -> tuple[nn.Module, Path]:
    """A run without interruption, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return run(_recipe(), _student(), data, folder, lambda name: teacher), folder


def test_run_cut_off_in_every_phase_ends_with_the_same_bits(
    whole: tuple[nn.Module, Path], data: RandomCrops, teacher: nn.Module, tmp_path: Path
):
    # two batches of calibration; what the last cut left of a phase; two steps to the next checkpoint, and one lost
    for phase, batches in zip(PHASES, (2 + 3, 2 + 2 + 3, 2 + 2 + 3), strict=True):
        with pytest.raises(Interrupted):
            run(_recipe(), _student(), CutOff(data, batches), tmp_path, lambda name: teacher)
        assert (tmp_path / phase / "checkpoint.safetensors").exists()
        torch.manual_seed(123)
    student = run(_recipe(), _student(), data, tmp_path, lambda name: teacher)
    expected, folder = whole
    for key, value in expected.state_dict().items():
        assert torch.equal(student.state_dict()[key], value), key
    for phase in PHASES:
        theirs = load_file(folder / phase / "checkpoint.safetensors")
        ours = load_file(tmp_path / phase / "checkpoint.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), phase


def test_last_phase_is_plain_training_bit_for_bit(whole: tuple[nn.Module, Path], data: RandomCrops, tmp_path: Path):
    expected, folder = whole
    start = _student()
    stored = load_file(folder / "channels" / "checkpoint.safetensors")
    start.load_state_dict({key[8:]: value for key, value in stored.items() if key.startswith("average.")})
    rates = {"learning_rate": 1e-3, "adam_learning_rate": 2e-3 * 1e-3 / 0.01}
    recipe = dataclasses.replace(Recipe.from_dict(RECIPE), seed=2, **rates)
    plain = Trainer(recipe, start, data, tmp_path, behind=8).run()
    for key, value in expected.state_dict().items():
        assert torch.equal(plain.state_dict()[key], value), key


def test_second_phase_starts_from_the_average_of_the_first(data: RandomCrops, teacher: nn.Module, tmp_path: Path):
    still = {"channel_learning_rate": 1e-12, "channel_steps": 1, "finetune_steps": 0}
    run(dataclasses.replace(_recipe(**still), steps=2), _student(), data, tmp_path, lambda name: teacher)
    first, second = (load_file(tmp_path / phase / "checkpoint.safetensors") for phase in PHASES[:2])
    key = "dec.6.block.0.conv1.0.weight"
    assert (first[f"model.{key}"] - first[f"average.{key}"]).abs().max() > 1e-4
    torch.testing.assert_close(second[f"model.{key}"], first[f"average.{key}"], rtol=0, atol=1e-8)


def test_student_is_saved_without_adapters(whole: tuple[nn.Module, Path], tmp_path: Path):
    student, folder = whole
    zoo.save(student, tmp_path / "student")
    loaded = zoo.load(tmp_path / "student")
    assert loaded.state_dict().keys() == create("evc-nano").state_dict().keys()
    assert not any(module._forward_hooks for module in student.modules())
    stored = load_file(folder / "channels" / "checkpoint.safetensors")
    groups = {key.partition(".")[0] for key in stored}
    assert groups == {"model", "average", "method", "optimizer"}
    assert sum(key.startswith("method.feds.adapters.") for key in stored) == 2 * 14
    assert not any("teacher." in key for key in stored)


def test_phases_log_what_they_distil(whole: tuple[nn.Module, Path]):
    _, folder = whole
    for phase, losses in zip(PHASES, ({"feature_loss"}, {"feature_loss", "channel_loss"}, set()), strict=True):
        records = _log(folder / phase)
        assert len(records) == 4
        assert all({key for key in record if key.endswith("_loss")} == losses for record in records)


def test_adapters_move_and_the_pairing_does_not(whole: tuple[nn.Module, Path]):
    _, folder = whole
    first, second = (load_file(folder / phase / "checkpoint.safetensors") for phase in PHASES[:2])
    assert torch.equal(first["method.feds.channels.y.pairing"], second["method.feds.channels.y.pairing"])
    adapters = [key for key in first if key.startswith("method.feds.adapters.")]
    assert not any(torch.equal(first[key], second[key]) for key in adapters)


def test_features_come_closer(data: RandomCrops, teacher: nn.Module, tmp_path: Path):
    recipe = dataclasses.replace(_recipe(channel_steps=0, finetune_steps=0, a=10.0), steps=12)
    run(recipe, _student(), data, tmp_path, lambda name: teacher)
    losses = [record["feature_loss"] for record in _log(tmp_path / "features")]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert {path.name for path in tmp_path.iterdir()} == {"features"}


def test_weights_of_zero_leave_plain_training(data: RandomCrops, teacher: nn.Module, tmp_path: Path):
    recipe = dataclasses.replace(_recipe(channel_steps=0, finetune_steps=0, a=0.0), steps=2)
    student = run(recipe, _student(), data, tmp_path / "feds", lambda name: teacher)
    plain = Trainer(dataclasses.replace(Recipe.from_dict(RECIPE), steps=2), _student(), data, tmp_path / "plain").run()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in student.state_dict().items())


def test_each_phase_has_its_own_losses_rate_seed_and_crops(data: RandomCrops, tmp_path: Path, monkeypatch):
    phases = {}

    class Phase:
        def __init__(self, recipe, model, data, folder, method=None, behind=0) -> None:
            weights = None if method is None else (method.a, method.b)
            phases[folder.name] = (recipe.steps, recipe.learning_rate, recipe.seed, weights, behind)
            self.run = lambda: model

    monkeypatch.setattr(feds, "Trainer", Phase)
    monkeypatch.setattr(feds, "FEDS", lambda *arguments: nn.Module())
    rates = {"channel_learning_rate": 0.002, "finetune_learning_rate": 0.001}
    recipe = _recipe(a=2.0, b=0.3, channel_steps=5, finetune_steps=6, **rates)
    feds.run(recipe, recipe.settings, _student(), data, tmp_path, lambda name: _student())
    assert phases == {
        "features": (4, 0.01, 0, (2.0, 0.0), 0),
        "channels": (5, 0.002, 1, (0.2, 0.3), 4),
        "finetune": (6, 0.001, 2, None, 9),
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": -0.5}, r"a=-0\.5 \(needs 0 or more\)"),
        ({"b": float("nan")}, "b=nan"),
        ({"channel_steps": -1}, "channel_steps=-1"),
        ({"finetune_learning_rate": 0.0}, "finetune_learning_rate=0.0"),
        ({"adapter_learning_rate": -1.0}, "adapter_learning_rate=-1.0"),
        ({"calibration_batches": 0}, "calibration_batches=0"),
        ({"entropy_loss": "l1"}, "'l1'.*mse, kl"),
    ],
)
def test_settings_out_of_range_are_named(values: dict, message: str):
    with pytest.raises(UsageError, match=message):
        Settings(**{**FEDS, **values})


def test_teacher_that_is_narrower_is_refused_before_anything_is_written(data: RandomCrops, tmp_path: Path):
    with pytest.raises(UsageError, match="96 latent channels, its teacher 64"):
        run(_recipe(), create("evc-tiny"), data, tmp_path / "run", lambda name: create("evc-nano"))
    assert not (tmp_path / "run").exists()


def test_shipped_recipes_are_a_teacher_and_its_student():
    recipes = Path(__file__).parents[2] / "recipes"
    student, teacher = Recipe.load(recipes / "feds-student.toml"), Recipe.load(recipes / "feds-teacher.toml")
    assert (student.command, teacher.command) == ("distill", "train")
    assert student.settings.teacher == "feds-teacher"  # what a run of the teacher's recipe is called
    assert (teacher.model, teacher.backbone) == ("evc-tiny-swin", "evc-tiny")
