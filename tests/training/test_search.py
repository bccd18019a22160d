"""The methods `search` and `plan`: from a recipe to a plan, to a compact codec, to a fine-tuned one."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparsecodec.data import RandomCrops
from sparsecodec.errors import GraphError, UsageError
from sparsecodec.models import create
from sparsecodec.sparsity import apply_compact_config, count, trace_model
from sparsecodec.sparsity.latency import timed_by
from sparsecodec.sparsity.plans import Plan, best_of
from sparsecodec.sparsity.ranking import rank_channels
from sparsecodec.training import Recipe, calibration_loss, run
from sparsecodec.training.families import family_of
from sparsecodec.training.methods import plan as plan_method
from sparsecodec.training.methods import search as method

QUICK = {"candidates": [0.0, 0.5], "round_to": 16, "tolerance": 0.05}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return create("evc-nano").eval()


@pytest.fixture(scope="module")
def data(pictures) -> RandomCrops:
    return RandomCrops(pictures, 64, 0)


def _recipe(table: str, settings: dict, **changes) -> Recipe:
    common = {"model": "evc-nano", "steps": 2, "batch": 1, "crop": 64, "warmup": 1}
    return Recipe.from_dict({**common, **changes, table: settings})


def _macs(model: nn.Module) -> int:
    return count(model, family_of(model).transforms(model, "decoder")).macs


@pytest.fixture(scope="module")
def searched(model, data, tmp_path_factory):
    """(compact codec, folder) of one search."""
    folder = tmp_path_factory.mktemp("search")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    codec = run(_recipe("search", {"reduction": 0.4, **QUICK}), model, data, folder)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return codec, folder


def test_a_search_gives_the_codec_of_its_plan(searched, model, data) -> None:
    codec, folder = searched
    plan = Plan.load(folder / "plan.json")
    assert plan.method == "search by slope" and plan.target == "macs" and abs(plan.missed) < 0.1
    assert plan.reached == 1 - _macs(codec) / _macs(model)
    assert not codec.training
    rebuilt = apply_compact_config(create("evc-nano"), codec.compact_config)
    rebuilt.load_state_dict(codec.state_dict())
    x = data.batch(0, 1)
    joint = (calibration_loss(codec, x) - plan.sensitivity.loss) / plan.sensitivity.loss
    assert joint == pytest.approx(plan.zeta_joint, rel=1e-3)
    assert plan.sensitivity.loss == calibration_loss(model, x)


def test_a_search_that_is_done_is_not_repeated(searched, model, data, monkeypatch) -> None:
    codec, folder = searched
    monkeypatch.setattr(method, "measure_sensitivity", None)
    again = run(_recipe("search", {"reduction": 0.4, **QUICK}), model, data, folder)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in codec.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"reduction": 0.5}, {}, "reduction=0.4, the recipe says 0.5"),
        ({"reduction": 0.4, "criterion": "l1"}, {}, "criterion='energy'"),
        ({"reduction": 0.4}, {"seed": 3}, "seed=0"),
        ({"reduction": 0.4}, {"lambdas": [0.001, 0.002, 0.004, 0.008]}, "lambdas=None"),
    ],
)
def test_a_folder_with_another_plan_is_refused(searched, model, data, settings, changes, message) -> None:
    with pytest.raises(UsageError, match=message):
        run(_recipe("search", {**QUICK, **settings}, **changes), model, data, searched[1])


def test_a_folder_with_the_plan_of_another_model_is_refused(searched, data) -> None:
    torch.manual_seed(1)
    with pytest.raises(UsageError, match="was made with model="):
        run(_recipe("search", {"reduction": 0.4, **QUICK}), create("evc-nano"), data, searched[1])


def test_a_codec_is_pruned_by_a_plan_and_fine_tuned(searched, model, data, tmp_path) -> None:
    codec, folder = searched
    recipe = _recipe("plan", {"plan": str(folder / "plan.json")})
    tuned = run(recipe, model, data, tmp_path)
    assert tuned.compact_config == codec.compact_config
    assert _macs(tuned) == _macs(codec)
    changed = [name for name, value in tuned.state_dict().items() if not torch.equal(value, codec.state_dict()[name])]
    assert len(changed) > 50
    once_more = run(recipe, model, data, tmp_path)  # the checkpoint says it is done
    assert all(torch.equal(value, once_more.state_dict()[name]) for name, value in tuned.state_dict().items())


@pytest.mark.parametrize(("name", "criterion"), [("uniform", "energy"), ("global", "energy"), ("global", "l1")])
def test_baselines_remove_what_they_should_before_fine_tuning(name, criterion, model, data, tmp_path) -> None:
    settings = {"plan": name, "reduction": 0.5, "round_to": 8, "criterion": criterion}
    tuned = run(_recipe("plan", settings, steps=1), model, data, tmp_path)
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.method == name and plan.criterion == criterion and abs(plan.missed) < 0.05
    assert plan.reached == 1 - _macs(tuned) / _macs(model)


def test_channels_are_ranked_on_the_first_batch(searched, model, data, tmp_path) -> None:
    """A search and a baseline keep the best channels by the energies of that batch, at all rates of the codec."""
    graph = trace_model(model, list(family_of(model).transforms(model, "decoder")))
    x = data.batch(0, 1)
    by_energy = rank_channels(model, graph, "energy", lambda: calibration_loss(model, x))
    run(_recipe("plan", {"plan": "uniform", "reduction": 0.5, "round_to": 8}, steps=1), model, data, tmp_path)
    for folder in (searched[1], tmp_path):
        plan = Plan.load(folder / "plan.json")
        best = best_of(graph, by_energy.scores, {name: kept for name, (kept, _) in plan.widths.items()})
        assert best.to_json() == plan.kept
        assert {key: plan.made_by[key] for key in ("seed", "crops", "crop")} == {"seed": 0, "crops": 1, "crop": 64}


def test_a_plan_of_other_weights_is_noted(searched, model, data, tmp_path, capsys) -> None:
    recipe = _recipe("plan", {"plan": str(searched[1] / "plan.json")}, steps=1)
    torch.manual_seed(1)
    for codec, noted in ((model, False), (create("evc-nano"), True)):
        tuned = run(recipe, codec, data, tmp_path / str(noted))
        assert tuned.compact_config == searched[0].compact_config
        assert ("plan.json ranked the channels of other weights than these" in capsys.readouterr().err) == noted


def test_a_plan_of_another_architecture_is_refused(searched, data, tmp_path) -> None:
    recipe = _recipe("plan", {"plan": str(searched[1] / "plan.json")}, model="evc-tiny-s")
    with pytest.raises(GraphError, match="the plan"):
        run(recipe, create("evc-tiny-s"), data, tmp_path)


def test_milliseconds_are_those_of_the_timer_at_hand(model, data, tmp_path) -> None:
    class Timer:
        device = "a device"

        def __init__(self, model: nn.Module, device: torch.device) -> None:
            assert device == torch.device("cpu")

        def __call__(self, blocks) -> list[float]:
            return [float(sum(p.numel() for p in block.module.parameters())) for block in blocks]

    recipe = _recipe("plan", {"plan": "uniform", "reduction": 0.3, "target": "ms", "side": 64, "round_to": 8}, steps=1)
    with pytest.raises(UsageError, match="needs a timer"):
        run(recipe, model, data, tmp_path / "without")
    with timed_by(Timer):
        tuned = run(recipe, model, data, tmp_path / "with")
    plan = Plan.load(tmp_path / "with" / "plan.json")
    assert (plan.target, plan.device) == ("ms", "a device") and abs(plan.missed) < 0.05
    assert json.loads((tmp_path / "with" / "latency.json").read_text())["device"] == "a device"
    left, dense = (
        sum(p.numel() for path in plan.transforms for p in codec.get_submodule(path).parameters())
        for codec in (tuned, model)
    )
    assert plan.reached == pytest.approx(1 - left / dense)


@pytest.mark.parametrize(
    ("table", "settings"), [("search", {"reduction": 0.3, **QUICK}), ("plan", {"plan": "uniform", "reduction": 0.3})]
)
def test_what_cannot_be_timed_is_refused_before_anything_is_measured(
    model, data, tmp_path, monkeypatch, table: str, settings: dict
) -> None:
    def measured(*_, **__):
        raise AssertionError("measured")

    monkeypatch.setattr(method, "loss_of", measured)
    monkeypatch.setattr(plan_method, "loss_of", measured)
    with pytest.raises(UsageError, match="needs a timer"):
        run(_recipe(table, {**settings, "target": "ms"}), model, data, tmp_path)


def test_a_target_out_of_reach_names_channels(model, data, tmp_path) -> None:
    with pytest.raises(
        UsageError, match=r"at most 0\.\d+ can be removed.*dec\.1\.conv \(16 of 48\).*dec\.7\.0 \(3: it is"
    ):
        run(_recipe("plan", {"plan": "uniform", "reduction": 0.99}), model, data, tmp_path)


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        ("search", {"reduction": 1.2}, r"reduction=1.2 \(needs a fraction"),
        ("search", {"reduction": 0.5, "target": "flops"}, "target='flops' .*macs, params, ms"),
        ("search", {"reduction": 0.5, "transforms": "head"}, "transforms='head'"),
        ("search", {"reduction": 0.5, "rule": "best"}, "rule='best'"),
        ("search", {"reduction": 0.5, "candidates": [0.5, 1]}, "candidates="),
        ("search", {"reduction": 0.5, "candidates": []}, "candidates="),
        ("search", {"reduction": 0.5, "side": 100}, "side=100"),
        ("search", {"reduction": 0.5, "round_to": 0}, "round_to=0"),
        ("search", {"reduction": 0.5, "tolerance": -1}, "tolerance=-1"),
        ("search", {"reduction": 0.5, "criterion": "l3"}, "criterion='l3'"),
        ("plan", {"plan": "uniform"}, "reduction=None"),
        ("plan", {"plan": "some/plan.json", "reduction": 0.5}, "none for the path of a plan"),
        ("plan", {"plan": "uniform", "reduction": 0.0}, "reduction=0.0"),
        ("plan", {"plan": "global", "reduction": 0.5, "criterion": "l3"}, "criterion='l3' .*energy, l1, l2"),
        ("plan", {"plan": "global-magnitude", "reduction": 0.5}, "needs a reduction for uniform, global,"),
    ],
)
def test_settings_out_of_range_are_refused(table: str, settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _recipe(table, settings)
