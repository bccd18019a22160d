"""What a recipe refuses, and where a run may start: errors name the value and what would be right."""

from __future__ import annotations

import pytest
import torch

from sparsecodec.data import RandomCrops
from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.training import Recipe, distributed, initial_model, run
from sparsecodec.training.families import family_of
from sparsecodec.zoo import load, names


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model": "evc-tiny"}, "steps"),
        ({"model": "evc-tiny", "steps": 0}, "steps=0"),
        ({"model": "evc-tiny", "steps": 1, "colour": "red"}, "colour"),
        ({"model": "evc-tiny", "steps": 1, "gradient_decay": {"mac_reduction": 1.5}}, "mac_reduction=1.5"),
        ({"model": "evc-tiny", "steps": 1, "gradient_decay": {"mac": 0.5}}, "mac"),
        ({"model": "evc-tiny", "steps": 1, "optimizer": "sgd"}, "sgd.*muon, adam"),
        ({"model": "evc-tiny", "steps": 1, "learning_rate": 0.0}, "learning_rate=0.0"),
        ({"model": "evc-tiny", "steps": 1, "warmup": -1}, "warmup=-1"),
        ({"model": "evc-tiny", "steps": 1, "motion": -0.5}, "motion=-0.5"),
        ({"model": "evc-tiny", "steps": 1, "seed": -1}, "seed=-1"),
        ({"model": "evc-tiny", "steps": 1, "seed": 2**63}, r"seed=9223372036854775808 .needs less than 2\*\*63"),
        ({"model": "evc-tiny", "steps": 1, "ema": 1.0}, "ema=1.0"),
        ({"model": "evc-tiny", "steps": 1, "learning_rate": float("inf")}, "learning_rate=inf"),
        ({"model": "evc-tiny", "steps": 4.5}, r"steps=4\.5 \(needs a whole number"),
        ({"model": "evc-tiny", "steps": "100"}, "steps='100' .needs a whole number"),
        ({"model": "evc-tiny", "steps": 1, "bfloat16": "false"}, "bfloat16='false' .needs true or false"),
        ({"model": "evc-tiny", "steps": True}, "steps=True .needs a whole number"),
        ({"model": "evc-tiny", "steps": 1, "lambdas": ["a"]}, r"lambdas=\['a'\] .needs a list of numbers"),
        ({"model": "evc-tiny", "steps": 1, "lambdas": 0.01}, r"lambdas=0\.01 .needs a list of numbers"),
        ({"model": "evc-tiny", "steps": 1, "trains": "dec"}, "trains='dec' .needs a list of strings"),
        ({"model": "evc-tiny", "steps": 1, "trains": []}, r"trains=\[\] .needs at least one"),
        (
            {"model": "evc-tiny", "steps": 1, "method": "feds"},
            "no key 'method' .keys are model, steps.*tables are .*feds",
        ),
        ({"model": "evc-tiny", "steps": 1, "method": "foo"}, "no key 'method'"),
        ({"model": "evc-tiny", "steps": 1, "settings": 5}, "no key 'settings'"),
        (
            {"model": "evc-tiny", "steps": 1, "gradient_decay": 5},
            r"gradient_decay=5 \(needs a table, \[gradient_decay\]",
        ),
        (
            {"model": "evc-tiny", "steps": 1, "nm": {"mac": 1}},
            r"recipe, \[nm\]: no key 'mac' \(keys are n, m, variant, [a-z_, ]*\)$",
        ),
        ({"model": "evc-tiny", "steps": 1, "feds": {}}, r"recipe, \[feds\]: teacher is missing \(needs a string\)"),
        (
            {"model": "evc-tiny", "steps": 1, "gradient_decay": {"mac_reduction": 0.5, "stages": ["dec"]}},
            r"stages=\['dec'\] \(needs a list of lists of strings",
        ),
        (
            {"model": "evc-tiny", "steps": 1, "gradient_decay": {"mac_reduction": 0.5}, "nm": {}},
            "gradient_decay and nm",
        ),
        (
            {"model": "evc-tiny", "steps": 1, "gradient_decay": {"mac_reduction": 0.5, "sparsity_weight": 20.0}},
            "no key 'sparsity_weight'",
        ),
    ],
)
def test_wrong_recipe_is_named(values, message):
    with pytest.raises(UsageError, match=message):
        Recipe.from_dict(values)


REQUIRED = {
    "gradient_decay": {"mac_reduction": 0.5},
    "mask_decay": {"mac_reduction": 0.5},
    "feds": {"teacher": "a", "channel_steps": 1, "finetune_steps": 1},
}
RATES = {
    "gradient_decay": ["finetune_learning_rate"],
    "mask_decay": ["finetune_learning_rate", "mask_travel", "penalty_weight"],
    "nm": ["finetune_learning_rate"],
    "quantize": ["qat_learning_rate"],
    "scalable": ["stage_learning_rate"],
    "feds": ["channel_learning_rate", "finetune_learning_rate", "adapter_learning_rate"],
}
WEIGHTS = {
    "gradient_decay": ["distillation_weight"],
    "mask_decay": ["distillation_weight"],
    "nm": ["factor"],
    "quantize": ["entropy_threshold", "mixed_threshold"],
    "feds": ["a", "b"],
}


@pytest.mark.parametrize("value", [-1.0, 0.0, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(
    ("method", "name", "least"),
    [(method, name, least) for least, all_ in ((1, RATES), (0, WEIGHTS)) for method in all_ for name in all_[method]],
)
def test_settings_are_finite_numbers_in_their_range(method, name, least, value):
    settings = {
        **REQUIRED.get(method, {}),
        name: value,
        **({"entropy_bits": 16} if name == "entropy_threshold" else {}),
    }
    recipe = {"model": "evc-tiny", "steps": 1, method: settings}
    if value == 0 and least == 0:
        Recipe.from_dict(recipe)
        return
    with pytest.raises(UsageError, match=rf"{name}={value} .needs"):
        Recipe.from_dict(recipe)


@pytest.mark.parametrize("name", ["motion", "ema", "learning_rate", "adam_learning_rate", "gradient_clip"])
def test_no_number_is_none_of_a_recipe(name):
    with pytest.raises(UsageError, match=f"{name}=nan"):
        Recipe.from_dict({"model": "evc-tiny", "steps": 1, name: float("nan")})


def test_lists_of_a_file_become_tuples_and_whole_numbers_are_numbers():
    values = {"model": "evc-tiny", "steps": 1, "lambdas": [1, 0.5], "trains": ["dec"], "gradient_clip": 2}
    recipe = Recipe.from_dict({**values, "gradient_decay": {"mac_reduction": 0.5, "stages": [["dec"]]}})
    assert recipe.lambdas == (1, 0.5) and recipe.trains == ("dec",) and recipe.gradient_clip == 2
    assert recipe.method == "gradient_decay" and recipe.settings.stages == (("dec",),)


def test_what_a_phase_does_not_carry_as_its_own_is_decisive():
    """Adapters are trained by a learning rate of the settings, whatever that of the phase is."""
    values = {"model": "evc-tiny", "steps": 1}
    feds = {"teacher": "a", "channel_steps": 1, "finetune_steps": 1}

    def decisive(**changes) -> dict:
        return Recipe.from_dict({**values, "feds": {**feds, **changes}}).decisive()

    assert decisive(adapter_learning_rate=1e-3) != decisive(adapter_learning_rate=2e-3)
    later = {"channel_steps": 9, "channel_learning_rate": 1.0, "finetune_steps": 9, "finetune_learning_rate": 1.0}
    assert decisive(**later) == decisive()
    plain = Recipe.from_dict(values).decisive()
    assert "steps" in plain and not any("." in key for key in plain)


@pytest.mark.parametrize(
    ("name", "side", "stride"), [("evc-nano", 100, 64), ("evc-nano", 32, 64), ("dcvc-rt-tiny", 72, 16)]
)
def test_crop_that_the_codec_cannot_take_is_refused_at_the_start(name, side, stride, pictures, tmp_path):
    recipe = Recipe(name, steps=1, batch=1, crop=side)
    with pytest.raises(UsageError, match=rf"crop={side} \(needs a multiple of {stride} for {name}\)"):
        run(recipe, create(name), RandomCrops(pictures, side), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["evc-nano", "dcvc-rt-tiny"])
def test_codecs_take_multiples_of_their_stride(name):
    model = create(name).eval()
    x = torch.rand(1, 3, 2 * family_of(model).stride, family_of(model).stride)
    with torch.no_grad():
        assert family_of(model).forward(model, x, 0)[0]["x_hat"].shape == x.shape


def test_model_of_another_architecture_than_the_start_is_refused():
    with pytest.raises(
        UsageError, match="model='evc-tiny-s' is another architecture than start_from='evc-tiny-sparse'"
    ):
        initial_model(Recipe("evc-tiny-s", steps=1, start_from="evc-tiny-sparse"), load)
    for model, start in [("evc-tiny", "evc-tiny-sparse"), ("dcvc-rt-tiny", "dcvc-rt-tiny"), ("mine", "evc-tiny")]:
        assert start in names() and initial_model(Recipe(model, steps=1, start_from=start), load) is not None
    with pytest.raises(
        UsageError, match="mbt2018-mean.*no random weights.*evc-tiny.*converted and named by start_from"
    ):
        initial_model(Recipe("mbt2018-mean", steps=1), load)


@pytest.mark.parametrize("device", ["meta", "cuda:99", "abacus"])
def test_device_that_computes_nothing_is_refused(device):
    with pytest.raises(UsageError, match=f"--device {device}"):
        distributed.start(device)


def test_codec_of_clips_is_built_around_a_finished_intra_model():
    """Its inter model keeps the random weights of the seed; an intra model of other widths is named."""
    built, alone = (initial_model(Recipe("fvc-tiny", steps=1, backbone=name), load) for name in ("evc-tiny", None))
    finished = load("evc-tiny").state_dict()
    assert all(torch.equal(weight, finished[name]) for name, weight in built.intra.state_dict().items())
    weights = alone.inter.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in built.inter.state_dict().items())
    for name in ("evc-tiny-sparse", "dcvc-rt-tiny"):
        with pytest.raises(UsageError, match=f"backbone='{name}': layers or widths differ from those of fvc-tiny's"):
            initial_model(Recipe("fvc-tiny", steps=1, backbone=name), load)
    with pytest.raises(UsageError, match="dcvc-rt-image is neither a codec with attention nor one of clips"):
        initial_model(Recipe("dcvc-rt-image", steps=1, backbone="evc-tiny"), load)
