"""Gradient decay as a method of a run: its thresholds reach the target themselves, and the log tells what did not."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import sparsecodec.training.masking
from sparsecodec._compat import import_compressai
from sparsecodec.data import RandomCrops
from sparsecodec.distill import LayerwiseDistillation
from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.sparsity.rules import is_conv
from sparsecodec.training import Recipe, Trainer, calibration_loss, run
from sparsecodec.training.logs import read_log
from sparsecodec.training.methods.gradient_decay import LearntMasks

SHORT = {
    "model": "mbt2018-mean",
    "lambdas": [0.013],
    "steps": 30,
    "batch": 1,
    "crop": 64,
    "warmup": 3,
    "log_every": 1,
    "save_every": 100,
}
PRUNING = {"mac_reduction": 0.5, "decay_start": 0.2, "decay_end": 0.8, "round_to": 2, "distillation_weight": 0.0}


def _trainer(pictures, folder, steps=30, pace=1.0, **changes) -> Trainer:
    recipe = Recipe.from_dict({**SHORT, "steps": steps, "gradient_decay": {**PRUNING, **changes}})
    torch.manual_seed(0)
    model = import_compressai().models.MeanScaleHyperprior(16, 24)
    with torch.no_grad():
        for layer in filter(is_conv, model.modules()):  # filters of different norms, as in a trained codec
            layer.weight.mul_(torch.rand(layer.weight.shape[:2]).add(0.2)[..., None, None])
    data = RandomCrops(pictures, recipe.crop)
    x = data.batch(0, 1)
    method = LearntMasks(model, recipe.settings, steps, None, partial(calibration_loss, model, x, recipe.lambdas))
    method.learning_rate *= pace
    return Trainer(recipe, model, data, folder, method)


@pytest.mark.parametrize("criterion", ["l2", "energy"])
def test_thresholds_reach_the_target_before_the_freeze(criterion, pictures, tmp_path):
    """In thirty steps as in thousands: how far they must travel and the steps that they have set their pace."""
    trainer = _trainer(pictures, tmp_path, criterion=criterion)
    decay = trainer.method.decay
    start = decay.theta.detach().clone()
    trainer.run()
    log = read_log(tmp_path / "log.jsonl")
    assert log[0]["mac_reduction"] == 0  # at first nothing is asked for, and nothing goes
    assert (decay.theta > start).all()
    frozen = next(record["step"] for record in log if record["beta"] == 0)
    assert frozen == 24 and 0.45 < log[frozen - 1]["mac_reduction"] < 0.6
    assert {record["forced_channels"] for record in log[:frozen]} == {0}
    assert {record["forced_channels"] for record in log[frozen:]} == {int(decay.forced)}
    assert decay.forced < 0.02 * len(decay.keep)


def test_what_thresholds_did_not_reach_is_forced_and_told(pictures, tmp_path, caplog):
    trainer = _trainer(pictures, tmp_path, steps=4, pace=0.0, decay_end=0.75)
    with caplog.at_level("WARNING"):
        trainer.run()
    dropped = int((~trainer.method.decay.keep).sum())
    assert [record["forced_channels"] for record in read_log(tmp_path / "log.jsonl")] == [0, 0, 0, dropped]
    assert dropped > 20 and "step 3: the thresholds removed 0.000 of the MACs of 0.500" in caplog.text


def test_a_stage_distils_its_own_transforms_alone():
    recipe = Recipe.from_dict({**SHORT, "model": "evc-tiny", "gradient_decay": {**PRUNING, "distillation_weight": 1.0}})
    model = create("evc-tiny")
    stage = ("y_spatial_prior", "hyper_dec")
    method = LearntMasks(model, recipe.settings, recipe.steps, stage)
    assert {layer.split(".")[0] for layer in method.distillation.layers} == set(stage)
    assert set(method.graph.transforms) == set(stage)


def test_every_stage_is_held_to_the_codec_that_the_run_began_with(pictures, tmp_path, monkeypatch):
    """Stages move all weights. A run that goes on in the second has the same teacher, and ends with the same bits."""
    stages = [["y_spatial_prior"], ["dec"]]
    settings = {**PRUNING, "mac_reduction": 0.3, "distillation_weight": 1.0, "stages": stages}
    values = {**SHORT, "model": "evc-nano", "steps": 3, "save_every": 1, "gradient_decay": settings}
    del values["lambdas"]  # EVC has its own
    recipe = Recipe.from_dict(values)
    torch.manual_seed(0)
    dense, data = create("evc-nano").state_dict(), RandomCrops(pictures, recipe.crop)
    teachers, distances, step = [], [], Trainer.train_step

    def watched(student, teacher, layers):
        teachers.append(teacher)
        distances.append(LayerwiseDistillation(student, teacher, layers))
        return distances[-1]

    def trained(folder):
        model = create("evc-nano")
        model.load_state_dict(dense)
        return run(recipe, model, data, folder)

    monkeypatch.setattr(sparsecodec.training.masking, "LayerwiseDistillation", watched)
    whole = trained(tmp_path / "whole").state_dict()
    assert (distances[1].average > 0).all()
    left = iter(range(4))  # the first stage, and a step of the second
    monkeypatch.setattr(Trainer, "train_step", lambda self: (next(left), step(self))[1])
    with pytest.raises(StopIteration):
        trained(tmp_path / "parts")
    monkeypatch.setattr(Trainer, "train_step", step)
    parts = trained(tmp_path / "parts").state_dict()
    assert len(teachers) == 6
    for teacher in teachers:
        assert all(torch.equal(value, dense[key]) for key, value in teacher.state_dict().items())
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize(
    ("stages", "changes", "message"),
    [
        ([["dec"], ["y_spatial_piror"]], {}, "no transform 'y_spatial_piror' .there are"),
        ([["hyper_dec"], ["dec"]], {"round_to": 16, "mac_reduction": 0.8}, r"sparsity=0\.8: .* only 0\.7"),
    ],
)
def test_a_later_stage_is_refused_before_the_first_is_trained(stages, changes, message, pictures, tmp_path):
    settings = {**PRUNING, **changes, "stages": stages}
    recipe = Recipe.from_dict({"model": "evc-nano", "steps": 4, "batch": 1, "crop": 64, "gradient_decay": settings})
    with pytest.raises(UsageError, match=message):
        run(recipe, create("evc-nano"), RandomCrops(pictures, 64), tmp_path)
    assert not list(tmp_path.iterdir())
