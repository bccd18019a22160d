"""Which networks `quantize` counts among those that choose entropy tables, and when it refuses a portable codec."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import nn

from sparsecodec._compat import import_compressai
from sparsecodec.data import RandomClips, RandomCrops
from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.models.video import VideoCodec
from sparsecodec.quant import is_portable, portable, quantized_layers
from sparsecodec.quant.portable import inexact_layers
from sparsecodec.runtime.adapters.dcvc import CompiledDCVC
from sparsecodec.runtime.adapters.dcvc_hem import CompiledHEMImage, CompiledHEMVideo
from sparsecodec.runtime.adapters.dcvc_rt import CompiledRTImage, CompiledRTVideo
from sparsecodec.training import Recipe, family_of, run
from sparsecodec.training.methods import quantize

STAYS = "the entropy networks stay float"


def _rt() -> VideoCodec:
    torch.manual_seed(0)
    intra = DCVCRTImage(RTImageWidths(16, 8, 16, 1, 1, 1, 1))
    return VideoCodec(intra, DCVCRTVideo(RTVideoWidths(16, 8, 24, 16, 1, 1, 1)))


def _compressai(name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(import_compressai().models, name)(8, 12)


def _clip_codec(name: str) -> nn.Module:
    return _rt() if name == "dcvc-rt-tiny" else create(name)


def _recipe(model: nn.Module, trains: list[str] | None = None, **settings) -> Recipe:
    table = {"rule": "max", "calibration_crops": 1, "transforms": "all", **settings}
    values = {"model": "small", "steps": 0, "frames": 3, "crop": 64, "batch": 1, "quantize": table}
    values |= {"trains": trains} if trains else {}
    return Recipe.from_dict(values if family_of(model).lambdas else {**values, "lambdas": [0.01]})


def _run(recipe: Recipe, model: nn.Module, pictures, folder) -> nn.Module:
    clips = isinstance(model, VideoCodec)
    data = RandomClips(pictures, 64, recipe.frames) if clips else RandomCrops(pictures, 64)
    return run(recipe, model, data, folder)


ENTROPY = {  # of the inter models; written out, as compiled codecs that keep these in float32 have them
    "dcvc-rt-tiny": set(CompiledRTVideo.ENTROPY),
    "dcvc-hem-tiny": set(CompiledHEMVideo.ENTROPY),
    "dcvc-tiny": {
        *CompiledDCVC.ENTROPY,
        *(f"{network}{latent}" for network in ("auto_regressive", "entropy_parameters") for latent in ("", "_mv")),
    },
    "fvc-tiny": {"motion_codec.hyper_synthesis", "residual_codec.hyper_synthesis"},
}
INTRA = {"dcvc-rt-tiny": CompiledRTImage.ENTROPY, "dcvc-hem-tiny": CompiledHEMImage.ENTROPY}


@pytest.mark.parametrize("name", ENTROPY)
def test_entropy_networks_of_clips_are_those_of_the_compiled_codec(name):
    model = _clip_codec(name)
    intra = INTRA.get(name, ("hyper_dec", "y_prior_fusion", "y_spatial_prior"))
    expected = {f"inter.{path}" for path in ENTROPY[name]} | {f"intra.{path}" for path in intra}
    assert set(family_of(model).entropy) == expected <= family_of(model).transforms(model, "decoder").keys()
    assert set(family_of(model.inter).entropy) == ENTROPY[name] and set(family_of(model.intra).entropy) == set(intra)


@pytest.mark.parametrize(
    "name", ["evc-nano", "FactorizedPrior", "ScaleHyperprior", "MeanScaleHyperprior", "MeanScaleHyperpriorVbr"]
)
def test_entropy_networks_of_pictures_are_those_that_a_portable_codec_has_on_integers(name):
    model = create(name) if name == "evc-nano" else _compressai(name)
    assert set(family_of(model).entropy) == {layer.split(".")[0] for layer in inexact_layers(model)}


@pytest.mark.parametrize("name", ["ScaleHyperpriorVbr", "MeanScaleHyperpriorVbr"])
def test_a_codec_with_a_gain_per_rate_becomes_portable(name, pictures, tmp_path):
    model = _compressai(name)
    done = _run(_recipe(model, transforms="decoder", entropy_bits=16), model, pictures, tmp_path)
    assert is_portable(done) and done.portable.thresholds.shape == (len(model.Gain), 63)


def test_entropy_networks_of_a_video_codec_stay_float_and_are_named(pictures, tmp_path):
    model = _run(_recipe(_rt(), trains=["inter"]), _rt(), pictures, tmp_path)
    paths = {name.split(".")[1] for name in quantized_layers(model)}
    assert {"encoder", "decoder", "feature_extractor", "hyper_encoder"} <= paths
    assert paths.isdisjoint(ENTROPY["dcvc-rt-tiny"])
    left = json.loads((tmp_path / "quantized.json").read_text())["float"]
    assert {path: left.get(f"inter.{path}") for path in ENTROPY["dcvc-rt-tiny"]} == dict.fromkeys(
        ENTROPY["dcvc-rt-tiny"], STAYS
    )


@pytest.mark.parametrize("name", ["dcvc-hem-tiny", "dcvc-tiny", "fvc-tiny"])
def test_no_entropy_network_of_a_video_codec_is_calibrated(name, pictures, tmp_path, monkeypatch):
    """Both models; what is to be calibrated is looked at, not calibrated."""
    seen = []
    monkeypatch.setattr(quantize, "_loss", lambda *args, **kwargs: 1.0)
    monkeypatch.setattr(quantize, "post_training", lambda model, precisions, *args: [seen.extend(precisions), 1 / 0])
    model = create(name)
    with pytest.raises(ZeroDivisionError):
        _run(_recipe(model), model, pictures, tmp_path)
    entropy = tuple(f"{path}." for path in family_of(model).entropy)
    assert {layer.split(".")[0] for layer in seen} == {"inter", "intra"}
    assert not [layer for layer in seen if f"{layer}.".startswith(entropy)]


@pytest.mark.parametrize("transforms", ["all", "decoder", "encoder", "entropy"])
@pytest.mark.parametrize("trains", [["inter"], None], ids=str)
@pytest.mark.parametrize(
    "make",
    [_rt, *(partial(create, name) for name in ("dcvc-hem-tiny", "dcvc-tiny", "fvc-tiny"))],
    ids=["rt", "hem", "dcvc", "fvc"],
)
def test_portable_video_codec_is_refused_and_the_way_to_it_named(make, transforms, trains, pictures, tmp_path):
    model = make()
    recipe = _recipe(model, trains=trains, transforms=transforms, entropy_bits=16)
    with pytest.raises(UsageError, match=r"whole decoder on integers.* encode --stream portable .*quant\.portable"):
        _run(recipe, model, pictures, tmp_path)
    assert not list(tmp_path.iterdir())


def test_video_codec_with_an_encoder_on_integers_becomes_portable(pictures, tmp_path):
    """The way that the refusal names stays open behind a recipe."""
    model = _run(_recipe(_rt(), transforms="encoder"), _rt(), pictures, tmp_path)
    done = portable(model, torch.rand(1, 3, 3, 64, 64))
    layers = quantized_layers(done)
    assert {layers[name].precision.dyadic for name in quantized_layers(model)} == {False}
    assert {layer.precision.dyadic for name, layer in layers.items() if name not in quantized_layers(model)} == {True}


@pytest.mark.parametrize(
    "name",
    [
        "JointAutoregressiveHierarchicalPriors",
        "JointAutoregressiveHierarchicalPriorsVbr",
        "rt-intra",
        "hem-intra",
    ],
)
def test_portable_codec_of_a_family_without_one_is_refused(name, pictures, tmp_path):
    made = {
        **{f"JointAutoregressiveHierarchicalPriors{of}": lambda: _compressai(name) for of in ("", "Vbr")},
        "rt-intra": lambda: _rt().intra,
        "hem-intra": lambda: create("dcvc-hem-tiny").intra,
    }
    model = made.get(name, lambda: create(name))()
    with pytest.raises(UsageError, match="entropy_bits=16: .* no portable stream .*without entropy_bits"):
        _run(_recipe(model, entropy_bits=16), model, pictures, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match=f"nothing to quantise .*{STAYS}"):
        _run(_recipe(model, transforms="entropy"), model, pictures, tmp_path)


@pytest.mark.parametrize(
    ("settings", "trains", "left_out"),
    [
        ({"transforms": "encoder"}, None, "hyper_dec, y_prior_fusion, y_spatial_prior on"),
        ({"transforms": "all"}, ["enc", "hyper_dec"], "y_prior_fusion, y_spatial_prior on"),
        ({"transforms": "entropy", "exact": True}, ["hyper_dec", "y_prior_fusion", "y_spatial_prior"], "dec on"),
    ],
    ids=str,
)
def test_recipe_that_leaves_out_what_a_portable_codec_needs_is_refused(settings, trains, left_out, pictures, tmp_path):
    model = create("evc-nano")
    with pytest.raises(UsageError, match=f"needs {left_out}"):
        _run(_recipe(model, trains, **settings, entropy_bits=16), model, pictures, tmp_path)


def test_exact_pictures_of_another_codec_than_evc_are_refused(pictures, tmp_path):
    model = _compressai("MeanScaleHyperprior")
    with pytest.raises(UsageError, match="no form with exact pictures"):
        _run(_recipe(model, entropy_bits=16, exact=True), model, pictures, tmp_path)
