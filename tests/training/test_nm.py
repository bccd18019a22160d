"""N:M as a recipe: the pattern stands at the end, resumed runs equal whole ones, and nothing is promised."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from sparsecodec.data import RandomCrops
from sparsecodec.errors import GraphError, UsageError
from sparsecodec.models import create
from sparsecodec.sparsity import NM, NMTraining, pack_nm
from sparsecodec.training import Recipe, Trainer, family_of, run
from sparsecodec.training.methods.nm import Settings, SparseLayers

SHORT = {"model": "evc-nano", "steps": 4, "batch": 1, "crop": 64, "warmup": 1, "log_every": 1, "save_every": 2}
SPARSE = {"min_channels": 48, "start": 0.25, "end": 0.75}


def _recipe(**settings) -> Recipe:
    return Recipe.from_dict({**SHORT, "nm": {**SPARSE, **settings}})


def _run(recipe: Recipe, pictures: list[Path], folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    return run(recipe, create(recipe.model), RandomCrops(pictures, recipe.crop), folder)


def _log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def masked(pictures, tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """The codec of a run without fine-tuning, and its folder."""
    folder = tmp_path_factory.mktemp("masked")
    return _run(_recipe(), pictures, folder), folder


def _sparse_layers(model: torch.nn.Module) -> set[str]:
    """Convolutions half of whose weights are 0; those of the others are not."""
    sparse = set()
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            zeros = (layer.weight == 0).double().mean()
            assert zeros == 0.5 or zeros < 0.01, name
            if zeros == 0.5:
                pack_nm(layer.weight, NM(2, 4))  # raises unless each group has at most 2
                sparse.add(name)
    return sparse


def test_result_has_the_pattern_in_wide_1x1_convolutions_of_the_decoder_and_nowhere_else(masked):
    model = masked[0]
    decoder = tuple(family_of(model).transforms(model, "decoder"))
    expected = {
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Conv2d) and name.startswith(decoder) and layer.kernel_size == (1, 1)
        if min(layer.weight.shape[:2]) >= 48
    }
    assert _sparse_layers(model) == expected and len(expected) > 10


def test_what_stays_dense_is_told_in_one_line(pictures, tmp_path, capsys):
    recipe = dataclasses.replace(_recipe(), steps=1)
    model = _run(recipe, pictures, tmp_path)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "stay dense" in line]
    assert re.match(rf"{len(_sparse_layers(model))} layers become 2:4, \d+ stay dense \(\d+: ", line), line
    assert "kernel of 3 x 3 (max_kernel=1)" in line and "channels (min_channels=48)" in line


def test_log_follows_the_schedule(masked):
    log = _log(masked[1] / "masks")
    assert [record["kappa"] for record in log] == [1, 1, 0.5, 0]
    assert log[-1]["nm_sparsity"] == 0.5


def test_finetuning_moves_what_is_left_and_keeps_the_zeros(masked, pictures, tmp_path):
    shutil.copytree(masked[1], tmp_path / "run")
    tuned = _run(_recipe(finetune_steps=1), pictures, tmp_path / "run")
    moved = 0  # the networks behind a hyper-latent of zeros have no gradient yet
    for name in _sparse_layers(masked[0]):
        before, after = (model.get_submodule(name).weight for model in (masked[0], tuned))
        assert torch.equal(before == 0, after == 0), name
        moved += not torch.equal(before, after)
    assert moved > 10
    assert [record["kappa"] for record in _log(tmp_path / "run" / "finetune")] == [0]


def test_masked_weights_rest_once_frozen_whatever_muon_does(pictures, tmp_path):
    recipe, model, layer = _recipe(), create("evc-nano"), "dec.0.block.0.conv1.0"
    sparse = NMTraining(model, [layer], Settings().config(4))
    sparse.set_step(4)
    keep = sparse.masks()[layer]
    trainer = Trainer(recipe, model, RandomCrops(pictures, recipe.crop), tmp_path, SparseLayers(sparse))
    before = model.get_submodule(layer).weight.detach().clone()
    trainer.train_step()
    after = model.get_submodule(layer).weight
    assert not after.grad[~keep].any() and after.grad[keep].any(), "the step was not taken through the masks"
    assert torch.equal(after[~keep], before[~keep]) and not torch.equal(after[keep], before[keep])


def test_a_schedule_that_ends_with_the_run_leaves_the_pattern(pictures, tmp_path):
    recipe = dataclasses.replace(_recipe(start=0.0, end=1.0, variant="sdgf_geometric", min_channels=64), steps=1)
    assert _sparse_layers(_run(recipe, pictures, tmp_path))


def test_resumed_run_equals_an_uninterrupted_one(pictures, tmp_path, monkeypatch):
    """Cut after 2 of 4 steps of the masks, and again after 1 of 2 of the fine-tuning."""
    recipe = dataclasses.replace(_recipe(variant="gradient_decay", finetune_steps=2), save_every=1)
    whole = _run(recipe, pictures, tmp_path / "whole")
    step = Trainer.train_step
    for cut in (2, 3):
        left = iter(range(cut))
        monkeypatch.setattr(Trainer, "train_step", lambda self, left=left: (next(left), step(self))[1])
        with pytest.raises(StopIteration):
            _run(recipe, pictures, tmp_path / "parts")
    monkeypatch.setattr(Trainer, "train_step", step)
    parts = _run(recipe, pictures, tmp_path / "parts")
    assert len(_log(tmp_path / "parts" / "finetune")) == 2
    for (name, ours), theirs in zip(parts.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_model_without_wide_layers_is_refused_with_its_widths(pictures, tmp_path):
    with pytest.raises(GraphError, match=r"can be 2:4.*channels \(min_channels=1000\)"):
        _run(_recipe(min_channels=1000), pictures, tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 3, "m": 2}, "pattern 3:2"),
        ({"variant": "ste"}, "variant='ste'.*sr_ste"),
        ({"start": 0.8, "end": 0.7}, "start=0.8, end=0.7"),
        ({"end": 1.5}, "end=1.5"),
        ({"min_channels": 0}, "min_channels=0"),
        ({"finetune_steps": -1}, "finetune_steps=-1"),
        ({"factor": -1.0}, "factor=-1.0"),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Settings(**values)


def test_settings_are_those_of_the_schedule():
    config = Settings(n=1, m=8, variant="sr_ste", start=0.2, end=0.6, factor=0.1).config(50)
    assert dataclasses.asdict(config) == {
        **{"n": 1, "m": 8, "t0": 10, "t1": 30, "variant": "sr_ste", "factor": 0.1, "apply_to": "update"}
    }
