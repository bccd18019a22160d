"""Ratio search: the limits of its staircase, targets out of reach, and baselines at the same target."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.sparsity import ChannelGraph, ChannelMasks, compact, count, masked_params, trace_model
from sparsecodec.sparsity.plans import Cost, Plan, best_of, parameter_cost
from sparsecodec.sparsity.ranking import rank_channels
from sparsecodec.sparsity.search import global_threshold, search, uniform
from sparsecodec.sparsity.sensitivity import Sensitivity, measure_sensitivity

REDUCTIONS = (0.2, 0.5, 0.8)
METHODS = ("search by slope", "search by threshold", "uniform", "global")


def test_removed_cost_never_falls_as_alpha_grows(case) -> None:
    measured = case.measured()
    cost, plans = case.cost, [measured.widths(alpha) for alpha in (-1, *measured.alphas)]
    assert all(a[name] >= b[name] for a, b in zip(plans, plans[1:], strict=False) for name in a)
    assert plans[0] == {name: space.width for name, space in case.graph.prunable.items()}
    assert plans[-1] == measured.widths(math.inf) == {name: min(curve)[0] for name, curve in measured.zeta.items()}
    left = []
    for widths in plans[1:]:
        left.append(cost.of(best_of(case.graph, case.ranking.scores, widths)))
    assert left == sorted(left, reverse=True) and left[-1] < left[0] <= cost.of({})


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_plan_is_the_nearest_step_of_the_staircase(case, reduction: float) -> None:
    measured = case.measured()
    dense, steps = case.cost.of({}), {}
    for alpha in measured.alphas:
        masks = best_of(case.graph, case.ranking.scores, measured.widths(alpha))
        if masks:
            steps[alpha] = 1 - case.cost.of(masks) / dense
    plan = case.plan(measured, reduction, tolerance=0)
    assert abs(plan.missed) == min(abs(removed - reduction) for removed in steps.values())
    assert plan.missed == plan.reached - reduction and plan.reached == steps[plan.alpha]
    assert f"{plan.missed:+.1%} off the target" in str(plan)


def test_a_staircase_without_a_point_at_the_target_ends(case) -> None:
    """All groups fall at one alpha: between nothing and everything there is no step."""
    cliff = Sensitivity(1.0, {n: ((s.width, 0.0), (4, 0.1)) for n, s in case.graph.prunable.items()}, "energy", 4)
    least, most = (case.plan(cliff, reduction) for reduction in (0.1, 0.8))
    assert {kept for kept, _ in most.widths.values()} == {4}
    assert all(kept == width for kept, width in least.widths.values())
    assert least.reached == 0 and least.zeta_joint == 0 and least.alpha < 0


def test_tolerance_ends_the_bisection(case) -> None:
    measured, cost, asked = case.measured(), case.cost, []
    counting = dataclasses.replace(cost, of=lambda masks: (asked.append(masks), cost.of(masks))[1])
    counts = []
    for tolerance in (0.3, 0):
        plan = search(
            case.model,
            case.graph,
            case.ranking,
            measured,
            case.loss,
            counting,
            0.5,
            rule="threshold",
            tolerance=tolerance,
        )
        assert abs(plan.missed) <= max(tolerance, 0.1)
        counts.append(len(asked))
        asked.clear()
    assert counts[0] < counts[1] <= 3 + math.ceil(math.log2(len(measured.alphas) + 1))


def test_the_joint_model_is_measured_against_the_sum(case) -> None:
    plan = case.plan(case.measured(), 0.5)
    small = compact(case.model, plan.masks(case.graph), case.graph)
    dense = case.loss(case.model)
    assert plan.zeta_joint == pytest.approx((case.loss(small) - dense) / dense, rel=1e-4)
    chosen = plan.sensitivity.widths(plan.alpha)
    assert plan.zeta_sum == sum(dict(plan.sensitivity.monotone(name))[kept] for name, kept in chosen.items())
    assert max(dict(plan.sensitivity.monotone(name))[kept] for name, kept in chosen.items()) <= plan.alpha


def test_parameters_are_what_compaction_leaves(case) -> None:
    report = count(case.model, case.shapes)
    cost = parameter_cost(case.model, report, case.graph)
    plan = search(case.model, case.graph, case.ranking, case.measured(), case.loss, cost, 0.6)
    small = compact(case.model, plan.masks(case.graph), case.graph)
    left = sum(p.numel() for p in small.parameters())
    assert cost.of(plan.masks(case.graph)) == left
    assert plan.reached == 1 - left / sum(p.numel() for p in case.model.parameters())
    assert plan.target == "params"


def test_parameters_without_biases_and_of_uneven_kernels_are_counted() -> None:
    layers = nn.Conv2d(3, 8, (3, 1), bias=False), nn.ReLU(), nn.ConvTranspose2d(8, 6, (1, 5)), nn.Conv2d(6, 2, 1)
    model = nn.Sequential(*layers)
    graph = ChannelGraph.trace(model)
    masks = ChannelMasks.random(graph, 0.5, 0)
    report = count(model, {"": (1, 3, 9, 9)})
    left = sum(p.numel() for p in compact(model, masks, graph).parameters())
    assert masked_params(model, report, graph, masks) == left < report.params


def test_parameters_of_every_kind_of_layer_are_counted(codec) -> None:
    graph = trace_model(codec.model, codec.transforms)
    report = count(codec.model, codec.shapes)
    masks = ChannelMasks.random(graph, 0.3, 0)
    assert masked_params(codec.model, report, graph, {}) == report.params
    small = compact(codec.model, masks, graph)
    assert masked_params(codec.model, report, graph, masks) == count(small, codec.shapes).params


@pytest.mark.parametrize("method", METHODS)
def test_a_target_out_of_reach_says_which_channels_and_how_far(case, method: str) -> None:
    with pytest.raises(UsageError) as caught:
        _by(method, case, 0.99)
    message = str(caught.value)
    assert "reduction=0.99 of macs cannot be met: at most 0.9" in message
    assert "first.0.inner (" in message and "of 64)" in message
    assert "second.2 (3: it is an output)" in message and "first.2 (5: it is an output)" in message


@pytest.mark.parametrize("reduction", [0.0, 1.0, -0.1, math.nan])
def test_reductions_that_are_no_fraction_are_refused(case, reduction: float) -> None:
    with pytest.raises(UsageError, match="reduction="):
        uniform(case.graph, case.ranking, case.cost, reduction)


def test_slopes_prune_what_saves_most_for_its_damage(case) -> None:
    """Two groups with equal damage: by threshold both are pruned, by slope the one that saves more."""
    curves = {name: ((space.width, 0.0),) for name, space in case.graph.prunable.items()}
    curves |= {"first.0.inner": ((64, 0.0), (32, 0.1)), "second.0": ((24, 0.0), (12, 0.1))}
    equal = Sensitivity(1.0, curves, "energy", 4)
    by_slope, by_threshold = (case.plan(equal, 0.45, rule=rule) for rule in ("slope", "threshold"))
    changed = {name for name, (kept, width) in by_slope.widths.items() if kept < width}
    assert changed == {"first.0.inner"}
    assert by_threshold.widths["second.0"] == (12, 24)
    saved = 1 - case.cost.of(by_slope.masks(case.graph)) / case.cost.of({})
    assert by_slope.alpha == pytest.approx(0.1 / saved)


def test_slopes_follow_the_lower_hull_and_stop_at_widths_between(case) -> None:
    """Damage of 64 -> 48 -> 32 -> 16 channels: the hull goes straight from 64 to 32, past 48."""
    curves = {name: ((space.width, 0.0),) for name, space in case.graph.prunable.items()}
    curves["first.0.inner"] = ((64, 0.0), (48, 0.3), (32, 0.3), (16, 0.9))
    plans = [case.plan(Sensitivity(1.0, curves, "energy", 4), r, rule="slope", tolerance=0) for r in (0.23, 0.46, 0.69)]
    assert [plan.widths["first.0.inner"][0] for plan in plans] == [48, 32, 16]
    assert plans[0].alpha == plans[1].alpha < plans[2].alpha


@pytest.mark.parametrize("rule", ["slope", "threshold"])
def test_a_group_that_breaks_the_model_goes_last(case, rule: str) -> None:
    curves = {name: ((space.width, 0.0),) for name, space in case.graph.prunable.items()}
    curves |= {"first.0.inner": ((64, 0.0), (32, math.inf), (4, math.inf)), "first.0.adaptor": ((32, 0.0), (24, 0.2))}
    broken = Sensitivity(1.0, curves, "energy", 4)
    before, last = (case.plan(broken, reduction, rule=rule, tolerance=0) for reduction in (0.2, 0.89))
    assert before.widths["first.0.inner"] == (64, 64) and before.alpha < math.inf
    assert last.widths["first.0.inner"] == (4, 64) and last.alpha == math.inf
    assert Plan.from_json(json.loads(json.dumps(last.to_json(), allow_nan=False))) == last


def test_curves_of_another_graph_are_refused(case) -> None:
    measured = case.measured(candidates=(0.5,))
    case.model = case.wider(40)
    case.graph = trace_model(case.model, ["first", "second"])
    with pytest.raises(
        GraphError, match=r"another graph: 'branch:first.0.outer' had 32 channels there, it has 40 here"
    ):
        case.plan(measured, 0.5)


def test_an_unknown_rule_is_refused(case) -> None:
    with pytest.raises(UsageError, match="rule='best' .*slope, threshold"):
        case.plan(case.measured(candidates=(0.5,)), 0.5, rule="best")


def _by(method: str, case, reduction: float) -> Plan:
    if method.startswith("search"):
        return case.plan(case.measured(), reduction, rule=method.removeprefix("search by "))
    baseline = {"uniform": uniform, "global": global_threshold}[method]
    return baseline(case.graph, case.ranking, case.cost, reduction, round_to=4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reduction", (0.4, 0.6, 0.8))
def test_all_methods_meet_the_same_target(case, method: str, reduction: float) -> None:
    plan = _by(method, case, reduction)
    small = compact(case.model, plan.masks(case.graph), case.graph)
    left = count(small, case.shapes).macs
    assert plan.reached == 1 - left / case.cost.of({})
    assert plan.method == method
    assert abs(plan.missed) < 0.06


def test_of_two_points_as_near_the_cheaper_one_is_taken(case) -> None:
    graph = trace_model(case.model, ["second"])
    ranking = rank_channels(case.model, graph, "l2")
    halved = Cost("macs", lambda masks: 8.0 if "second.0" not in masks else 4.0)
    plan = uniform(graph, ranking, halved, 0.25, round_to=12, tolerance=0.0)
    assert plan.reached == 0.5 and plan.widths == {"second.0": (12, 24)}


def test_uniform_takes_one_ratio(case) -> None:
    plan = uniform(case.graph, case.ranking, case.cost, 0.5, round_to=1)
    assert all(kept == round(width * (1 - plan.alpha)) for kept, width in plan.widths.values())


def test_global_threshold_takes_weak_groups_first(case) -> None:
    case.criterion = "l2"  # by energy the channels that a ReLU silences go first, in whatever group
    with torch.no_grad():
        case.model.second[0].weight[4:] *= 1e-3
    plan = global_threshold(case.graph, case.ranking, case.cost, 0.03, round_to=4)
    assert plan.widths["second.0"] == (4, 24)
    assert all(kept == width for name, (kept, width) in plan.widths.items() if name != "second.0")


@pytest.mark.parametrize("criterion", ["energy", "l2"])
def test_global_threshold_compares_groups_of_different_scale(case, criterion: str) -> None:
    case.criterion = criterion
    plan = global_threshold(case.graph, case.ranking, case.cost, 0.5, round_to=4)
    with torch.no_grad():  # larger filters; a layer that reads more loudly
        louder = case.model.first[0].inner if criterion == "l2" else case.model.second[2]
        louder.weight *= 1024
    assert global_threshold(case.graph, case.ranking, case.cost, 0.5, round_to=4).kept == plan.kept


def test_curves_by_another_criterion_are_refused(case) -> None:
    measured = case.measured(candidates=(0.5,))
    case.criterion = "l1"
    with pytest.raises(UsageError, match="ranked by 'l1', but measured by 'energy'"):
        case.plan(measured, 0.5)


@pytest.mark.parametrize("method", [uniform, global_threshold])
def test_a_ranking_of_another_graph_is_refused(case, method) -> None:
    wide = case.wider(40)
    other = rank_channels(wide, trace_model(wide, ["first", "second"]), "l2")
    message = "the ranking is of another graph: 'branch:first.0.outer' had 40 channels there, it has 32 here"
    with pytest.raises(GraphError, match=message):
        method(case.graph, other, case.cost, 0.5)
    with pytest.raises(GraphError, match=message):
        measure_sensitivity(case.model, case.graph, other, case.loss)
