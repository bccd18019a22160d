"""Quantisation as a recipe: calibrated, trained, resumed, and refused where it makes no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsecodec import zoo
from sparsecodec.data import RandomCrops
from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.quant import Sensitivities, apply_quantization, is_portable, quantized_layers, stored_bytes
from sparsecodec.training import Recipe, Trainer, calibration_loss, run
from sparsecodec.training.methods.quantize import CALIBRATION_STEP, Settings

SHORT = {"model": "evc-nano", "steps": 1, "batch": 1, "crop": 64, "warmup": 1, "log_every": 1, "save_every": 1}
QUICK = {"calibration_crops": 1, "rule": "mse", "transforms": "encoder"}


def _recipe(**settings) -> Recipe:
    return Recipe.from_dict({**SHORT, "quantize": {**QUICK, **settings}})


def _model() -> nn.Module:
    torch.manual_seed(0)
    return create("evc-nano")


def _run(recipe: Recipe, pictures: list[Path], folder: Path, model: nn.Module | None = None) -> nn.Module:
    return run(recipe, _model() if model is None else model, RandomCrops(pictures, recipe.crop), folder)


def _bits(model: nn.Module) -> set[tuple[str, int, int, bool]]:
    return {
        (name.split(".")[0], layer.weight_bits, layer.activation_bits, layer.precision.dyadic)
        for name, layer in quantized_layers(model).items()
    }


def test_entropy_networks_on_integers_are_left_alone_and_said_to_be_on_them(pictures, tmp_path):
    portable = _run(_recipe(transforms="decoder", entropy_bits=16), pictures, tmp_path / "a")
    model = _run(_recipe(transforms="all"), pictures, tmp_path / "b", portable)
    report = json.loads((tmp_path / "b" / "quantized.json").read_text())
    assert report["float"]["y_spatial_prior"] == "on integers already"
    assert {("y_spatial_prior", 8, 16, True), ("enc", 8, 8, False)} <= _bits(model)


def test_entropy_networks_are_float_or_for_integers_alone(pictures, tmp_path):
    plain = _run(_recipe(transforms="all"), pictures, tmp_path / "a")
    assert _bits(plain) == {(path, 8, 8, False) for path in ("enc", "hyper_enc", "dec")}
    report = json.loads((tmp_path / "a" / "quantized.json").read_text())
    assert report["float"]["y_spatial_prior"] == "the entropy networks stay float"
    assert report["largest_accumulator"] < 2**31 and report["bytes_quantized"] == stored_bytes(plain)
    exact = _run(_recipe(transforms="decoder", entropy_bits=16), pictures, tmp_path / "b")
    entropy = {(path, 8, 16, True) for path in ("hyper_dec", "y_prior_fusion", "y_spatial_prior")}
    assert _bits(exact) == {("dec", 8, 8, False)} | entropy
    assert is_portable(exact) and not is_portable(plain)
    alone = _run(_recipe(transforms="entropy", entropy_bits=16), pictures, tmp_path / "c")
    assert _bits(alone) == entropy and is_portable(alone)
    with pytest.raises(UsageError, match="nothing to quantise"):
        _run(_recipe(transforms="entropy"), pictures, tmp_path / "d")


def test_result_is_frozen_and_rebuilds_from_its_configuration(pictures, tmp_path):
    model = _run(_recipe(), pictures, tmp_path)
    assert all(layer.frozen for layer in quantized_layers(model).values()) and not model.training
    rebuilt = apply_quantization(create("evc-nano"), json.loads(json.dumps(model.quantization)))
    rebuilt.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(x, 1.0)["x_hat"], model(x, 1.0)["x_hat"])


def test_training_on_integers_repairs_four_bits(pictures, tmp_path):
    """On the codec that ships, where 4 bits hurt: a few steps win back a part of the loss, on crops of their own."""
    recipe = _recipe(weight_bits=4, qat_steps=12, qat_learning_rate=2e-3)
    start = zoo.load("evc-tiny-sparse")
    config = start.compact_config
    model = _run(recipe, pictures, tmp_path, start)
    assert model.compact_config == config
    report = json.loads((tmp_path / "quantized.json").read_text())
    assert report["loss"] < report["loss_quantized"] < 0.9 * report["loss_calibrated"]
    x = RandomCrops(pictures, 64).batch(CALIBRATION_STEP, 1)
    assert calibration_loss(model, x) == report["loss_quantized"]


def test_resumed_run_equals_an_uninterrupted_one(pictures, tmp_path, monkeypatch):
    """Cut after 2 of 4 steps on integers; the calibration is not repeated."""
    recipe = _recipe(qat_steps=4)
    whole = _run(recipe, pictures, tmp_path / "whole")
    step, left = Trainer.train_step, iter(range(2))
    monkeypatch.setattr(Trainer, "train_step", lambda self: (next(left), step(self))[1])
    with pytest.raises(StopIteration):
        _run(recipe, pictures, tmp_path / "cut")
    monkeypatch.setattr(Trainer, "train_step", step)
    calibrated = (tmp_path / "cut" / "calibrated.safetensors").stat().st_mtime_ns
    monkeypatch.setattr("sparsecodec.training.methods.quantize.post_training", lambda *args: pytest.fail("repeated"))
    resumed = _run(recipe, pictures, tmp_path / "cut").state_dict()
    assert calibrated == (tmp_path / "cut" / "calibrated.safetensors").stat().st_mtime_ns
    assert all(torch.equal(value, resumed[key]) for key, value in whole.state_dict().items())


def test_finished_calibration_is_taken_from_the_folder(pictures, tmp_path, monkeypatch):
    first = _run(_recipe(), pictures, tmp_path).state_dict()
    monkeypatch.setattr("sparsecodec.training.methods.quantize.post_training", lambda *args: pytest.fail("repeated"))
    again = _run(_recipe(), pictures, tmp_path).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())


def test_scales_and_weights_are_trained(pictures, tmp_path):
    calibrated = _run(_recipe(), pictures, tmp_path / "a").state_dict()
    trained = _run(_recipe(qat_steps=2), pictures, tmp_path / "b").state_dict()
    for key in ("enc.0.conv2.weight", "enc.0.conv2.weight_scale", "enc.0.conv2.input_scale", "enc.0.conv2.bias"):
        assert not torch.equal(calibrated[key], trained[key]), key


def _table(model, precisions, loss, bits, progress) -> Sensitivities:
    """In the place of the search: later layers cost more, 8 bits a tenth of 4, 16 nothing."""
    zeta = {name: {b: {4: 1.0, 8: 0.1, 16: 0.0}[b] * i for b in bits} for i, name in enumerate(precisions)}
    weights = {name: model.get_submodule(name).weight.numel() for name in precisions}
    return Sensitivities(1.0, zeta, weights, dict(precisions))


def test_mixed_bits_follow_the_threshold_and_the_target(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsecodec.training.methods.quantize.sensitivities", _table)
    model = _run(_recipe(mixed_threshold=1.5), pictures, tmp_path / "threshold")
    layers = list(quantized_layers(model).values())
    widths = [(layer.weight_bits, layer.activation_bits) for layer in layers]
    assert widths[:2] == [(4, 8)] * 2 and widths[2:16] == [(8, 8)] * 14 and set(widths[16:]) == {(8, 16)}

    weights = sum(layer.weight.numel() for layer in layers)
    sized = _run(_recipe(mixed_bits=[4, 8], mixed_bytes=int(0.8 * weights)), pictures, tmp_path / "target")
    size = sum(layer.weight.numel() * layer.weight_bits / 8 for layer in quantized_layers(sized).values())
    assert 0.7 * weights < size <= 0.8 * weights


def test_entropy_networks_keep_their_bits_in_a_mixed_plan(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsecodec.training.methods.quantize.sensitivities", _table)
    recipe = _recipe(transforms="decoder", entropy_bits=16, mixed_threshold=1e9)
    bits = _bits(_run(recipe, pictures, tmp_path))
    assert ("dec", 4, 8, False) in bits and ("y_spatial_prior", 8, 16, True) in bits and len(bits) == 4


def test_entropy_networks_have_a_threshold_of_their_own(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsecodec.quant.mixed.sensitivities", _table)
    model = _run(_recipe(transforms="decoder", entropy_bits=16, entropy_threshold=1.5), pictures, tmp_path)
    exact = [layer for layer in quantized_layers(model).values() if layer.precision.dyadic and layer.groups == 1]
    assert [layer.activation_bits for layer in exact] == [8] * 16 + [16] * (len(exact) - 16) and is_portable(model)


def test_folder_of_another_recipe_is_refused(pictures, tmp_path):
    _run(_recipe(), pictures, tmp_path)
    with pytest.raises(UsageError, match="another recipe"):
        _run(_recipe(weight_bits=4), pictures, tmp_path)
    (tmp_path / "calibrated.safetensors").write_bytes(b"damaged")
    with pytest.raises(UsageError, match="cannot be read"):
        _run(_recipe(), pictures, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_bits": 3}, "weight_bits=3"),
        ({"activation_bits": 4}, "activation_bits=4"),
        ({"entropy_bits": 8}, "entropy_bits=8"),
        ({"entropy_threshold": 0.1}, "needs entropy_bits=16"),
        ({"rule": "median"}, "rule='median'"),
        ({"calibration_crops": 0}, "calibration_crops=0"),
        ({"mixed_bits": [2]}, r"mixed_bits=\[2\]"),
        ({"mixed_bytes": 10, "mixed_threshold": 0.1}, "needs one"),
        ({"qat_steps": -1}, "qat_steps=-1"),
        ({"qat_learning_rate": 0.0}, "qat_learning_rate=0.0"),
        ({"colour": 1}, "colour"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        _recipe(**settings)


def test_unknown_transforms_are_refused(pictures, tmp_path):
    with pytest.raises(UsageError, match="transforms='middle'"):
        _run(_recipe(transforms="middle"), pictures, tmp_path)


def test_defaults_are_plain_int8():
    settings = Settings()
    assert (settings.weight_bits, settings.activation_bits, settings.qat_steps) == (8, 8, 0)
