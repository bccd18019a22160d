"""Pruning plans: they repeat, travel as JSON, are replayed without a search, and belong to one architecture."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from torch import nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.sparsity import ChannelGraph, ChannelMasks, apply_masks, compact, masked, trace_model
from sparsecodec.sparsity.plans import Plan, best_of
from sparsecodec.sparsity.search import uniform
from sparsecodec.sparsity.sensitivity import RATIOS


def test_the_same_calibration_gives_the_same_plan_and_another_one_another(case) -> None:
    one, two = (case.plan(case.measured(), 0.5) for _ in range(2))
    assert one == two
    case.x = torch.rand(case.x.shape, generator=torch.Generator().manual_seed(9))
    assert case.plan(case.measured(), 0.5).sensitivity != one.sensitivity


def test_what_a_plan_says_of_its_making_comes_back_as_it_was(case, tmp_path) -> None:
    plan = case.plan(case.measured(), 0.5)
    plan.made_by.update(folder="photos [2  of them]", crops=[1, 2])
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert '"kept": [0 1' not in (text := (tmp_path / "plan.json").read_text()) and "[1, 2]" in text


def test_a_plan_is_replayed_from_its_file_without_a_search(case, tmp_path) -> None:
    plan = case.plan(case.measured(), 0.5)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    calls = case.calls
    masks, again = plan.masks(case.graph), loaded.masks(case.graph)
    assert masks.to_json() == again.to_json() and case.calls == calls
    assert {name: pair for name, pair in masks.widths.items()}.items() <= plan.widths.items()
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_keeps_the_channels_of_the_weights_it_was_made_from(case, tmp_path) -> None:
    """It is replayed without calibration data, so nothing is ranked again, whatever the weights are by then."""
    plan = uniform(case.graph, case.ranking, case.cost, 0.5, round_to=4)
    expected = best_of(case.graph, case.ranking.scores, {name: kept for name, (kept, _) in plan.widths.items()})
    plan.save(tmp_path / "plan.json")
    other = case.wider(32)
    case.x.zero_()
    masks = Plan.load(tmp_path / "plan.json").masks(trace_model(other, ["first", "second"]))
    assert masks.to_json() == expected.to_json() == plan.kept
    again = best_of(case.graph, case.ranking.scores, {name: kept for name, (kept, _) in plan.widths.items()})
    assert again.to_json() != plan.kept, "other data rank the channels alike, so this shows nothing"


def test_a_plan_whose_widths_were_edited_is_refused(case) -> None:
    plan = case.plan(case.measured(), 0.5)
    name, (kept, width) = next((name, pair) for name, pair in plan.widths.items() if pair[0] < pair[1])
    edited = dataclasses.replace(plan, widths={**plan.widths, name: (width, width)})
    with pytest.raises(GraphError, match=f"keeps {width} channels of '{name}', but lists {kept}"):
        edited.masks(case.graph)


def test_the_curves_of_a_plan_serve_another_target(case, tmp_path) -> None:
    plan = case.plan(case.measured(), 0.5)
    plan.save(tmp_path / "plan.json")
    calls = case.calls
    other = case.plan(Plan.load(tmp_path / "plan.json").sensitivity, 0.8)
    assert other == case.plan(plan.sensitivity, 0.8)
    assert case.calls == calls + 2  # each joint model once


def test_masked_by_a_plan_equals_compacted_by_it(case) -> None:
    masks = case.plan(case.measured(), 0.6).masks(case.graph)
    model, x = case.model.double(), case.x.double()
    with masked(model, masks, case.graph), torch.no_grad():
        expected = model(x)
    with torch.no_grad():
        got = compact(model, masks, case.graph)(x)
        assert (model(x) - got).abs().max() > 1e-3, "nothing was pruned"
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_masks_in_place_are_those_of_a_copy(codec) -> None:
    graph = trace_model(codec.model, codec.transforms)
    masks = ChannelMasks.random(graph, 0.5, 0)
    expected = apply_masks(codec.model, masks, graph).state_dict()
    before = {name: value.clone() for name, value in codec.model.state_dict().items()}
    with masked(codec.model, masks, graph):
        assert all(torch.equal(value, expected[name]) for name, value in codec.model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in codec.model.state_dict().items())


def test_a_weight_that_is_masked_on_both_sides_comes_back() -> None:
    """Behind a sigmoid masked channels are not zero, so the reader's weight is masked too, beside its own filters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    graph = ChannelGraph.trace(model)
    masks = ChannelMasks.random(graph, 0.5, 0)
    before = model[2].weight.detach().clone()
    with masked(model, masks, graph):
        assert int((model[2].weight != 0).sum()) == 16
    assert torch.equal(model[2].weight, before)


def test_a_plan_of_another_architecture_is_refused(case) -> None:
    plan = case.plan(case.measured(), 0.5)
    wide = case.wider(40)
    with pytest.raises(GraphError, match=r"keeps \d+ of 32 channels of 'first.0.adaptor', the model has 40"):
        plan.masks(trace_model(wide, ["first", "second"]))
    with pytest.raises(GraphError, match="for transforms"):
        plan.masks(trace_model(case.model, ["first"]))
    flat = case.wider(32)
    flat.first[0] = nn.Conv2d(3, 32, 1)
    with pytest.raises(GraphError, match="'branch:first.0.outer' is in the plan, not in the model"):
        plan.masks(trace_model(flat, ["first", "second"]))


@pytest.mark.parametrize(
    "damage", ["{", "[]", "7", "null", "[" * 100_000, "{}", '{"format": 1}', '{"format": 2, "widths": {"a": 3}}']
)
def test_a_file_that_is_no_plan_is_refused(tmp_path, damage: str) -> None:
    (tmp_path / "plan.json").write_text(damage)
    with pytest.raises(UsageError, match=r"plan") as caught:
        Plan.load(tmp_path / "plan.json")
    assert str(tmp_path / "plan.json") in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"made_by": None}, "'made_by' cannot be None"),
        ({"made_by": [1]}, "'made_by' cannot be "),
        ({"transforms": "first"}, "'transforms' cannot be 'first'"),
        ({"transforms": [1]}, "'transforms' cannot be "),
        ({"widths": {"a": 3}}, "'widths' cannot be {'a': 3}"),
        ({"widths": None}, "'widths' cannot be None"),
        ({"kept": []}, "'kept' cannot be "),
        ({"kept": {"a": {"width": 4, "kept": [3, 1]}}}, "kept indices are not ascending within width 4"),
        ({"kept": {"a": {"width": 10**30, "kept": [0]}}}, "'kept' cannot be "),
        ({"sensitivity": 3}, "'sensitivity' cannot be 3"),
        ({"alpha": "much"}, "'alpha' cannot be 'much'"),
        ({"alpha": 10**400}, "'alpha' cannot be 1000"),
        ({"reached": "0.5"}, "'reached' cannot be '0.5'"),
        ({"author": "me"}, "'author' is none of its keys"),
    ],
)
def test_a_damaged_plan_is_refused_with_its_path_and_what_is_wrong(case, tmp_path, changes, message) -> None:
    data = uniform(case.graph, case.ranking, case.cost, 0.5, round_to=4).to_json()
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**data, **changes}))
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        Plan.load(path)
    assert str(caught.value).startswith(f"{path}: not a pruning plan: ") and "Error" not in str(caught.value)


def test_a_plan_without_one_of_its_keys_is_refused(case) -> None:
    data = uniform(case.graph, case.ranking, case.cost, 0.5, round_to=4).to_json()
    for name in data.keys() - {"device", "made_by"}:
        with pytest.raises(UsageError, match=f"not a pruning plan: .*{name}"):
            Plan.from_json({key: value for key, value in data.items() if key != name})
    short = {key: value for key, value in data.items() if key not in ("device", "made_by")}
    assert Plan.from_json(short).made_by == {}


def test_a_plan_of_another_format_is_refused(case) -> None:
    data = uniform(case.graph, case.ranking, case.cost, 0.5, round_to=4).to_json()
    assert Plan.from_json(data).to_json() == data
    with pytest.raises(UsageError, match="format 1, not 2"):
        Plan.from_json({**data, "format": 1})


def test_default_ratios_begin_dense() -> None:
    assert RATIOS[0] == 0 and list(RATIOS) == sorted(RATIOS) and RATIOS[-1] < 1
