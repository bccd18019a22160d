"""What training knows of each family: rates, transforms, and the loss of real coding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsecodec import compile_codec, load, save
from sparsecodec._compat import import_compressai
from sparsecodec.data import RandomCrops
from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.models.evc import LAMBDAS
from sparsecodec.models.video import VideoCodec
from sparsecodec.sparsity import count, trace_model
from sparsecodec.training import Recipe, Trainer, calibration_loss, family_of, rate_distortion, run
from sparsecodec.training.families import lambdas_for
from sparsecodec.training.optimizers import auxiliary_loss

COMPRESSAI = {
    "FactorizedPrior": (8, 12),
    "ScaleHyperprior": (8, 12),
    "MeanScaleHyperprior": (8, 12),
    "JointAutoregressiveHierarchicalPriors": (8, 12),
    "Cheng2020Anchor": (8,),
}


def _compressai(name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(import_compressai().models, name)(*COMPRESSAI[name])


@pytest.fixture
def codec(request):
    return create("evc-tiny") if request.param == "evc-tiny" else _compressai(request.param)


@pytest.mark.parametrize("codec", ["evc-tiny", *COMPRESSAI], indirect=True)
def test_transforms_take_their_shapes_and_can_be_traced(codec):
    family = family_of(codec)
    everything = family.transforms(codec, "all", side=128)
    assert everything == {**family.transforms(codec, "encoder", 128), **family.transforms(codec, "decoder", 128)}
    assert count(codec, everything).macs > count(codec, family.transforms(codec, "decoder", 128)).macs > 0
    assert trace_model(codec, list(everything)).prunable


@pytest.mark.parametrize("codec", ["evc-tiny", *COMPRESSAI], indirect=True)
def test_forward_gives_rate_and_picture_of_each_item(codec):
    x = torch.rand(3, 3, 64, 64)
    out, rates = family_of(codec).forward(codec.train(), x)
    assert out["x_hat"].shape == x.shape and out["bpp"].shape == (3,) and rates.shape == (3,)
    assert (out["bpp"] > 0).all()


def test_calibration_loss_is_the_mean_over_the_rates_of_rounded_coding():
    model = create("evc-tiny").train()
    x = torch.rand(2, 3, 64, 64)
    expected = 0.0
    with torch.no_grad():
        for rate, value in enumerate(LAMBDAS):
            out = model.eval()(x, model.q_scale[rate])
            expected += rate_distortion(out, x, torch.tensor([value, value]))[0].item() / len(LAMBDAS)
    model.train()
    assert calibration_loss(model, x) == pytest.approx(expected, rel=1e-6)
    assert model.training and calibration_loss(model, x) == calibration_loss(model, x)


def test_wrong_lambdas_are_named():
    with pytest.raises(UsageError, match="has one rate"):
        lambdas_for(_compressai("ScaleHyperprior"), None)
    with pytest.raises(UsageError, match=r"\[0\.01\] \(EVC has 4 rates\)"):
        lambdas_for(create("evc-tiny"), (0.01,))
    with pytest.raises(UsageError, match="positive"):
        lambdas_for(_compressai("ScaleHyperprior"), (-1.0,))
    with pytest.raises(UsageError, match="Linear is no codec"):
        family_of(nn.Linear(1, 1))
    with pytest.raises(UsageError, match="transforms='both'"):
        family_of(create("evc-tiny")).transforms(create("evc-tiny"), "both")


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_compressai_codec_learns_and_its_quantiles_follow_their_own_loss(optimizer, pictures, tmp_path):
    model = _compressai("MeanScaleHyperprior")
    recipe = Recipe(
        "mbt2018-mean", steps=20, batch=2, crop=64, warmup=1, log_every=1, lambdas=(0.01,), optimizer=optimizer
    )
    before = model.aux_loss().item()
    trainer = Trainer(recipe, model, RandomCrops(pictures, 64), tmp_path)
    first = trainer.train_step()["loss"]
    trained = trainer.run()
    x = RandomCrops(pictures, 64).batch(99, 4)
    assert model.aux_loss().item() < before
    assert calibration_loss(trained, x, (0.01,)) < first


def test_compressai_codec_is_pruned_by_the_same_recipe(pictures, tmp_path):
    values = {"model": "bmshj2018", "steps": 4, "batch": 2, "crop": 64, "warmup": 1, "lambdas": [0.01]}
    settings = {"mac_reduction": 0.4, "decay_start": 0.25, "decay_end": 0.75, "round_to": 2, "finetune_steps": 1}
    model = _compressai("ScaleHyperprior")
    shapes = family_of(model).transforms(model, "decoder")
    dense = count(model, shapes).macs
    recipe = Recipe.from_dict({**values, "gradient_decay": settings})
    small = run(recipe, model, RandomCrops(pictures, 64), tmp_path)
    assert count(small, shapes).macs <= 0.6 * dense
    x = torch.rand(1, 3, 64, 64)
    strings = small.compress(x)
    assert small.decompress(**strings)["x_hat"].shape == x.shape


RETRAINING = {
    "plain": {},
    "gradient_decay": {"mac_reduction": 0.3, "decay_start": 0.25, "decay_end": 0.75, "round_to": 2},
    "quantize": {"rule": "mse", "calibration_crops": 1, "entropy_bits": 16, "qat_steps": 24, "qat_learning_rate": 0.01},
}


@pytest.mark.parametrize("method", RETRAINING)
def test_retrained_codec_codes_by_the_tables_of_its_new_weights(method, pictures, tmp_path):
    """Files are as long as the likelihoods say, from a codec that came with tables of its old weights."""
    model = _compressai("FactorizedPrior")
    model.update()
    values = {"model": "bmshj2018", "steps": 24, "batch": 2, "crop": 64, "warmup": 1, "lambdas": [0.01], "ema": 0.5}
    values |= {"learning_rate": 0.01, "adam_learning_rate": 0.02, method: RETRAINING[method]}
    recipe = Recipe.from_dict({key: value for key, value in values.items() if key != "plain"})
    codec = run(recipe, model, RandomCrops(pictures, 64), tmp_path / "run")
    save(codec, tmp_path / "codec")
    codec = load(tmp_path / "codec")
    x = RandomCrops(pictures, 64).batch(99, 16)
    x = x.view(4, 4, 3, 64, 64).permute(2, 0, 3, 1, 4).reshape(1, 3, 256, 256)  # one picture: overhead of one
    with torch.no_grad():
        estimate = family_of(codec).forward(codec, x)[0]["bpp"].item() * 256**2 / 8
    coded = [len(compile_codec(codec).encode(x))]
    if method == "quantize":
        coded.append(len(compile_codec(codec, stream="portable").encode(x)))
    assert estimate > 500 and coded == pytest.approx([estimate] * len(coded), rel=0.05)


def test_a_video_codec_has_the_auxiliary_loss_of_its_intra_model():
    intra = import_compressai().models.ScaleHyperprior(8, 12)
    assert torch.equal(auxiliary_loss(VideoCodec(intra, create("dcvc-tiny").inter)), intra.aux_loss())
    assert auxiliary_loss(create("evc-nano")) is None
