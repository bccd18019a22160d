"""Residual representation learning as a recipe: one encoder learns at a time, and nothing that was there changes."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sparsecodec
from sparsecodec.data import RandomCrops
from sparsecodec.errors import UsageError
from sparsecodec.models import EVC, ScalableEVC, create
from sparsecodec.sparsity import ChannelMasks, compact, compact_config, trace_model
from sparsecodec.training import Recipe, Trainer, calibration_loss, run
from sparsecodec.training.methods.scalable import Settings

SHORT = {"model": "evc-nano", "steps": 1, "batch": 1, "crop": 64, "warmup": 1, "log_every": 1, "save_every": 2}


def _recipe(**settings) -> Recipe:
    return Recipe.from_dict({**SHORT, "scalable": {"encoders": 3, "stage_steps": 2, **settings}})


def _run(recipe: Recipe, model: torch.nn.Module, pictures: list[Path], folder: Path) -> ScalableEVC:
    return run(recipe, copy.deepcopy(model), RandomCrops(pictures, recipe.crop), folder)


@pytest.fixture(scope="module")
def evc() -> EVC:
    torch.manual_seed(0)
    return create("evc-nano").eval()


@pytest.fixture(scope="module")
def trained(evc: EVC, pictures, tmp_path_factory) -> tuple[ScalableEVC, Path]:
    """Three encoders, and the folder of their run."""
    folder = tmp_path_factory.mktemp("scalable")
    return _run(_recipe(), evc, pictures, folder), folder


def _differing(a: torch.nn.Module, b: torch.nn.Module) -> set[str]:
    """Transforms that differ in at least one weight."""
    pairs = zip(a.named_parameters(), b.parameters(), strict=True)
    return {name.partition(".")[0] for (name, mine), other in pairs if not torch.equal(mine, other)}


def test_every_encoder_behind_the_first_learnt_and_nothing_else_moved(evc: EVC, trained):
    codec = trained[0]
    assert isinstance(codec, ScalableEVC) and len(codec.encs) == 3 and not codec.training
    before = ScalableEVC.from_evc(evc, 3)
    for key, value in codec.state_dict().items():
        same = torch.equal(value, before.state_dict()[key])
        assert same or key.startswith(("encs.1.", "encs.2.")), f"{key} moved"
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert _differing(codec.encs[i], codec.encs[j]) == set("0123456")


def test_first_prefix_codes_as_before(evc: EVC, trained, photo: Tensor):
    x = photo[:, :, :64, :64]
    assert trained[0].compress(x, 1.0, prefix=0)["bit_stream"] == evc.compress(x, 1.0)["bit_stream"]


def test_each_stage_has_its_folder(trained):
    assert sorted(path.name for path in trained[1].iterdir()) == ["encoder-1", "encoder-2"]


def test_a_new_first_encoder_is_trained_for_the_recipes_steps(evc: EVC, pictures, tmp_path):
    codec = _run(_recipe(encoders=2, encoder="nano"), evc, pictures, tmp_path)
    rest = {key: value for key, value in evc.state_dict().items() if not key.startswith("enc.")}
    assert all(torch.equal(value, codec.state_dict()[key]) for key, value in rest.items())
    assert _differing(codec.encs[0], evc.enc) == set("0123456")
    torch.manual_seed(_recipe().seed)
    fresh = ScalableEVC.from_evc(evc, encoder="nano").encs[0]
    assert _differing(codec.encs[0], fresh) == set("0123456"), "it did not learn"
    weights = codec.encs[0][6].weight.flatten(), fresh[6].weight.flatten()
    assert torch.cosine_similarity(*weights, dim=0) > 0.9, "it did not begin with the recipe's seed"
    steps = [len((tmp_path / f"encoder-{k}" / "log.jsonl").read_text().splitlines()) for k in (0, 1)]
    assert steps == [1, 2]


def test_no_stage_draws_what_an_earlier_one_drew(evc: EVC, pictures, tmp_path):
    class Watched(RandomCrops):
        steps = ()

        def batch(self, step, size, start=0):
            self.steps += (step,)
            return super().batch(step, size, start)

    for encoder, steps in ((None, 4), ("nano", 5)):
        data = Watched(pictures, 64)
        run(_recipe(encoder=encoder), copy.deepcopy(evc), data, tmp_path / str(encoder))
        assert data.steps == tuple(range(steps))


def test_the_second_encoder_repairs_what_the_first_one_does_wrong(photo: Tensor, picture_path: Path, tmp_path):
    """The shipped codec with a disturbed encoder."""
    evc = sparsecodec.load("evc-tiny")
    with torch.no_grad():
        evc.enc[6].weight *= 0.6
    recipe = dataclasses.replace(_recipe(encoders=2, stage_steps=6, stage_learning_rate=0.01), ema=0.8)
    codec = _run(recipe, evc, [picture_path], tmp_path)
    x = photo[:, :, :64, :64]
    assert calibration_loss(codec, x) < 0.8 * calibration_loss(evc, x)


def test_resumed_run_equals_an_uninterrupted_one(evc: EVC, trained, pictures, tmp_path, monkeypatch):
    """Cut in the middle of the first stage, and again in the second."""
    step = Trainer.train_step
    recipe = dataclasses.replace(_recipe(), save_every=1)
    for cut in (1, 2):
        left = iter(range(cut))
        monkeypatch.setattr(Trainer, "train_step", lambda self, left=left: (next(left), step(self))[1])
        with pytest.raises(StopIteration):
            _run(recipe, evc, pictures, tmp_path)
    monkeypatch.setattr(Trainer, "train_step", step)
    parts = _run(recipe, evc, pictures, tmp_path)
    for key, value in trained[0].state_dict().items():
        assert torch.equal(value, parts.state_dict()[key]), key


def test_a_pruned_encoder_stays_pruned_and_can_be_saved(evc: EVC, pictures, tmp_path, photo: Tensor):
    graph = trace_model(evc, ["enc"])
    masks = ChannelMasks.random(graph, sparsity=0.5, seed=0, round_to=8)
    small = compact(evc, masks, graph)
    small.compact_config = compact_config(masks, graph)
    codec = _run(_recipe(encoders=2, stage_steps=1), small, pictures, tmp_path / "run")
    sparsecodec.save(codec, tmp_path / "codec")
    loaded = sparsecodec.load(tmp_path / "codec")
    assert loaded.encs[1][1].block[0].conv1[0].weight.shape == small.enc[1].block[0].conv1[0].weight.shape
    x = photo[:, :, :64, :64]
    with torch.no_grad():
        assert torch.equal(loaded(x, 1.0)["x_hat"], codec(x, 1.0)["x_hat"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoders": 1}, "encoders=1"),
        ({"stage_steps": 0}, "stage_steps=0"),
        ({"stage_learning_rate": 0.0}, "stage_learning_rate=0.0"),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Settings(**values)


def test_other_models_and_presets_that_do_not_fit_are_refused(evc: EVC, pictures, tmp_path):
    with pytest.raises(UsageError, match="ScalableEVC.*one encoder"):
        _run(_recipe(), ScalableEVC.from_evc(evc, 2), pictures, tmp_path)
    with pytest.raises(UsageError, match="Conv2d is no codec"):
        _run(_recipe(), torch.nn.Conv2d(1, 1, 1), pictures, tmp_path)
    with pytest.raises(UsageError, match="'tiny-s'.*96 latent channels.*64"):
        _run(_recipe(encoder="tiny-s"), evc, pictures, tmp_path)
    with pytest.raises(UsageError, match="'huge' does not exist"):
        _run(_recipe(encoder="huge"), evc, pictures, tmp_path)
