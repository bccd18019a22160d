"""The training loop: it learns, it resumes bit for bit, and its pruned codec is what it trained."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sparsecodec.data import RandomCrops
from sparsecodec.errors import SparseCodecError, UsageError
from sparsecodec.models import create
from sparsecodec.sparsity import apply_compact_config, count
from sparsecodec.training import Recipe, Trainer, run
from sparsecodec.training.muon import orthogonalize
from sparsecodec.training.pruning import DECODER, decoder_shapes

PLAIN = {"model": "evc-tiny", "batch": 2, "crop": 64, "warmup": 2, "save_every": 2, "log_every": 1}
PRUNING = {"mac_reduction": 0.5, "decay_start": 0.25, "decay_end": 0.75, "round_to": 8, "finetune_steps": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    paths = []
    for i in range(3):
        smooth = Image.fromarray(draw.integers(0, 255, (12, 15, 3), np.uint8)).resize((150, 120), Image.BICUBIC)
        paths.append(folder / f"{i}.png")
        smooth.save(paths[-1])
    return paths


def _trainer(values, pictures, folder):
    recipe = Recipe.from_dict(values)
    torch.manual_seed(recipe.seed)
    return Trainer(recipe, create(recipe.model), RandomCrops(pictures, recipe.crop, recipe.seed), folder)


def _losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_loss_falls(pictures, tmp_path):
    _trainer({**PLAIN, "steps": 30, "save_every": 100}, pictures, tmp_path).run()
    losses = _losses(tmp_path)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.parametrize("pruning", [None, PRUNING], ids=["dense", "pruned"])
def test_resumed_run_equals_an_uninterrupted_one(pruning, pictures, tmp_path):
    values = {**PLAIN, "steps": 4, "pruning": pruning}
    whole = _trainer(values, pictures, tmp_path / "whole")
    whole.run()

    first = _trainer(values, pictures, tmp_path / "parts")
    for _ in range(2):
        first.train_step()
        first.step += 1
    first.save()
    torch.manual_seed(12345)
    second = _trainer(values, pictures, tmp_path / "parts")
    assert second.step == 2
    second.run()

    for name, module in whole._modules().items():
        resumed = second._modules()[name].state_dict()
        for key, value in module.state_dict().items():
            assert torch.equal(value, resumed[key]), f"{name}.{key}"


def test_pruning_meets_its_target_and_rebuilds_from_json(pictures, tmp_path):
    recipe = Recipe.from_dict({**PLAIN, "steps": 8, "pruning": PRUNING})
    model = create("evc-tiny")
    dense = count(model, decoder_shapes(model)).macs
    small, config = run(recipe, model, RandomCrops(pictures, recipe.crop), tmp_path)
    left = count(small, decoder_shapes(small)).macs / dense
    assert 0.4 < left <= 0.5
    assert set(config["transforms"]) == set(DECODER)
    rebuilt = apply_compact_config(create("evc-tiny"), json.loads(json.dumps(config))).eval()
    rebuilt.load_state_dict(small.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(rebuilt(x, 1.0)["x_hat"], small(x, 1.0)["x_hat"])


def test_loss_that_is_not_finite_stops_with_its_step(pictures, tmp_path):
    trainer = _trainer({**PLAIN, "steps": 4}, pictures, tmp_path)
    with torch.no_grad():
        trainer.model.dec[0].block[0].conv1[0].weight.fill_(float("nan"))
    with pytest.raises(SparseCodecError, match="step 0"):
        trainer.run()


def test_killed_while_saving_leaves_the_old_checkpoint(pictures, tmp_path, monkeypatch):
    trainer = _trainer({**PLAIN, "steps": 4}, pictures, tmp_path)
    trainer.save()
    before = trainer.checkpoint_path.read_bytes()
    monkeypatch.setattr("os.replace", _fail)
    trainer.train_step()
    with pytest.raises(OSError, match="disk"):
        trainer.save()
    assert trainer.checkpoint_path.read_bytes() == before


def _fail(*_):
    raise OSError("disk full")


def test_checkpoint_of_another_method_is_refused(pictures, tmp_path):
    _trainer({**PLAIN, "steps": 4, "pruning": PRUNING}, pictures, tmp_path).save()
    with pytest.raises(UsageError, match="decay"):
        _trainer({**PLAIN, "steps": 4}, pictures, tmp_path)


def test_damaged_checkpoint_is_refused(pictures, tmp_path):
    trainer = _trainer({**PLAIN, "steps": 4}, pictures, tmp_path)
    trainer.checkpoint_path.write_bytes(b"\x00" * 100)
    with pytest.raises(UsageError, match="not a training checkpoint"):
        trainer.resume()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model": "evc-tiny"}, "steps"),
        ({"model": "evc-tiny", "steps": 0}, "steps=0"),
        ({"model": "evc-tiny", "steps": 1, "colour": "red"}, "colour"),
        ({"model": "evc-tiny", "steps": 1, "pruning": {"mac_reduction": 1.5}}, "mac_reduction=1.5"),
    ],
)
def test_wrong_recipe_is_named(values, message):
    with pytest.raises(UsageError, match=message):
        Recipe.from_dict(values)


def test_shipped_recipes_load(pytestconfig):
    recipes = sorted((pytestconfig.rootpath / "recipes").glob("*.toml"))
    assert recipes
    for path in recipes:
        Recipe.load(path)


@pytest.mark.parametrize("shape", [(2, 16, 40), (1, 40, 16), (3, 8, 8)])
def test_orthogonalize_flattens_the_spectrum(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert values.min() > 0.4 and values.max() < 1.4


def test_small_and_unreadable_pictures_are_skipped(pictures, tmp_path, caplog):
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no picture")
    crops = RandomCrops([*pictures, tmp_path / "small.png", tmp_path / "text.png"], 64)
    assert len(crops.pictures) == 3
    assert "small.png" in caplog.text and "text.png" in caplog.text
    with pytest.raises(UsageError, match="none of 1"):
        RandomCrops([tmp_path / "small.png"], 64)


def test_batch_depends_on_seed_and_step_alone(pictures):
    a, b = RandomCrops(pictures, 64, seed=1), RandomCrops(pictures, 64, seed=1)
    a.batch(0, 4)
    assert torch.equal(a.batch(7, 4), b.batch(7, 4))
    assert not torch.equal(a.batch(7, 4), a.batch(8, 4))
    assert not torch.equal(a.batch(7, 4), RandomCrops(pictures, 64, seed=2).batch(7, 4))
