"""Mask decay as a recipe: a narrow codec comes out, the same one after an interruption, and it is what was trained."""

from __future__ import annotations

import pytest
import torch

import sparsecodec
from sparsecodec._compat import import_compressai
from sparsecodec.data import RandomCrops
from sparsecodec.errors import GraphError, UsageError
from sparsecodec.models import create
from sparsecodec.sparsity import apply_compact_config, count
from sparsecodec.training import Recipe, Trainer, family_of, run
from sparsecodec.training.methods.mask_decay import DecayingMasks, Settings

from .conftest import resumed

SHORT = {"model": "evc-tiny", "steps": 4, "batch": 1, "crop": 64, "warmup": 1, "save_every": 2, "log_every": 1}
STUDENT = {"student": "evc-tiny-s", "decay_end": 0.75, "mask_travel": 2.0}


def _recipe(steps: int = 4, **settings) -> Recipe:
    return Recipe.from_dict({**SHORT, "steps": steps, "mask_decay": settings})


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    return create("evc-tiny")


def _trainer(recipe: Recipe, pictures, folder) -> Trainer:
    model = _model()
    method = DecayingMasks(model, recipe.settings, recipe.steps)
    return Trainer(recipe, model, RandomCrops(pictures, recipe.crop), folder, method)


def test_resumed_run_equals_an_uninterrupted_one(pictures, tmp_path):
    recipe = _recipe(**STUDENT, distillation_weight=0.5)
    decay = resumed(lambda folder: _trainer(recipe, pictures, folder), tmp_path).method.decay
    assert bool(decay.frozen) and decay.forced < 100  # of 896: the loss did it


def test_the_result_is_a_plain_student_that_saves_and_reloads(pictures, tmp_path):
    recipe = _recipe(**STUDENT, finetune_steps=2)
    codec = run(recipe, _model(), RandomCrops(pictures, recipe.crop), tmp_path)
    assert codec.config == create("evc-tiny-s").config and getattr(codec, "compact_config", None) is None
    sparsecodec.save(codec, tmp_path / "small")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(sparsecodec.load(tmp_path / "small")(x, 1.0)["x_hat"], codec(x, 1.0)["x_hat"])
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"masks", "finetune"}
    again = run(recipe, _model(), RandomCrops(pictures, recipe.crop), tmp_path)  # all phases are done
    assert all(torch.equal(a, b) for a, b in zip(codec.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("decay_end", [0.5, 1.0])
def test_the_student_computes_what_the_masked_average_did(decay_end, pictures, tmp_path):
    recipe = _recipe(2, **{**STUDENT, "decay_end": decay_end, "mask_travel": 0.1})  # all by force
    student = run(recipe, _model(), RandomCrops(pictures, recipe.crop), tmp_path)
    trainer = _trainer(recipe, pictures, tmp_path / "masks")  # resumes at the end
    averaged = trainer.run()
    trainer.method.decay.set_step(recipe.steps)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad(), trainer.method.decay.applied(averaged):
        expected = averaged(x, 1.0)["x_hat"]
    with torch.no_grad():
        torch.testing.assert_close(student(x, 1.0)["x_hat"], expected, rtol=1e-4, atol=1e-4)


def test_a_mac_reduction_gives_a_compact_codec_that_rebuilds_from_json(pictures, tmp_path):
    recipe = _recipe(2, mac_reduction=0.6, transforms="decoder", decay_end=0.5)
    model = _model()
    shapes = family_of(model).transforms(model, "decoder")
    dense = count(model, shapes).macs
    small = run(recipe, model, RandomCrops(pictures, recipe.crop), tmp_path)
    assert 0.3 < count(small, shapes).macs / dense <= 0.4
    rebuilt = apply_compact_config(create("evc-tiny"), small.compact_config).eval()
    rebuilt.load_state_dict(small.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(rebuilt(x, 1.0)["x_hat"], small(x, 1.0)["x_hat"])


def test_a_codec_of_compressai_is_narrowed(pictures, tmp_path):
    torch.manual_seed(0)
    model = import_compressai().models.MeanScaleHyperprior(8, 12)
    shapes = family_of(model).transforms(model, "all")
    dense = count(model, shapes).macs
    values = {**SHORT, "model": "mbt2018-mean", "lambdas": [0.01]}
    recipe = Recipe.from_dict({**values, "mask_decay": {"mac_reduction": 0.4, "round_to": 2, "decay_end": 0.5}})
    small = run(recipe, model, RandomCrops(pictures, recipe.crop), tmp_path)
    assert 0.3 < count(small, shapes).macs / dense <= 0.6
    assert small(torch.rand(1, 3, 64, 64))["x_hat"].isfinite().all()


def test_distillation_starts_at_nothing_and_ends_with_the_decay(pictures):
    model = _model()
    settings = Settings(student="evc-tiny-s", penalty_weight=1e-9, distillation_weight=2.0, decay_end=0.5)
    method = DecayingMasks(model, settings, 4)
    x = RandomCrops(pictures, 64).batch(0, 1)
    with method.applied(0):
        out, _ = method.forward(model, x)
    assert method.loss(out, x) == method.decay.penalty() > 0  # the teacher is the student
    with torch.no_grad():
        model.dec[1].conv.weight *= -1
    with method.applied(1):
        out, _ = method.forward(model, x)
    found = torch.stack([torch.stack(values).mean() for values in method.distillation._distances.values()])
    distance = method.loss(out, x) - method.decay.penalty()
    weighed = (method.distillation.weights() * found).sum()
    assert distance.item() == pytest.approx(2 * weighed.item(), rel=1e-3) and distance > 0
    with method.applied(2):
        out, _ = method.forward(model, x)
    assert method.loss(out, x) == 0
    assert method.record()["live_channels"] == 1120 and method.record()["forced_channels"] == 896


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "student=None, mac_reduction=None .needs exactly one"),
        ({"student": "evc-tiny-s", "mac_reduction": 0.5}, "needs exactly one"),
        ({"mac_reduction": 1.0}, "mac_reduction=1.0"),
        ({"mac_reduction": 0.5, "transforms": "dec"}, "transforms='dec' .needs one of decoder, encoder, all"),
        ({"mac_reduction": 0.5, "decay_end": 0.0}, "decay_end=0.0"),
        ({"mac_reduction": 0.5, "mask_travel": 0.0}, "mask_travel=0.0"),
        ({"mac_reduction": 0.5, "penalty": "l0"}, "penalty='l0'"),
        ({"mac_reduction": 0.5, "penalty_weight": -1.0}, "weight=-1.0"),
        ({"mac_reduction": 0.5, "finetune_steps": -1}, "finetune_steps=-1"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UsageError, match=message):
        _recipe(**settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"student": "evc-tiny-s", "transforms": "decoder"}, GraphError, "cannot be cut from the model: enc.0"),
        ({"student": "evc-huge"}, UsageError, "evc-huge"),
        ({"mac_reduction": 0.999}, UsageError, "reduction=0.999: at most"),
    ],
)
def test_what_cannot_be_reached_is_named_before_training(settings, error, message):
    with pytest.raises(error, match=message):
        DecayingMasks(_model(), Settings(**settings), 4)
