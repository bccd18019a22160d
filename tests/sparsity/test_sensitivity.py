"""Sensitivity curves: where they start, what they hold, and that measuring them leaves the model alone."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from sparsecodec.errors import UsageError
from sparsecodec.sparsity import ChannelGraph, ChannelMasks, apply_masks
from sparsecodec.sparsity.plans import best_of
from sparsecodec.sparsity.ranking import Ranking
from sparsecodec.sparsity.sensitivity import Sensitivity, measure_sensitivity


def _curves(**zeta: list[tuple[int, float]]) -> Sensitivity:
    return Sensitivity(1.0, {name: tuple(curve) for name, curve in zeta.items()}, "l2", 4)


def test_curves_start_dense_at_zero_and_hold_deployable_widths(case) -> None:
    measured = case.measured()
    assert measured.zeta.keys() == case.graph.prunable.keys() >= {"first.0.adaptor", "branch:first.0.outer", "second.0"}
    for name, curve in measured.zeta.items():
        widths = [kept for kept, _ in curve]
        assert curve[0] == (case.graph.spaces[name].width, 0.0)
        assert widths == sorted(set(widths), reverse=True)
        assert all(kept % 4 == 0 for kept in widths)
    assert min(kept for kept, _ in measured.zeta["first.0.inner"]) == 8  # a tenth of 64, in whole tiles


def test_every_width_is_measured_once_and_alone(case) -> None:
    measured = case.measured()
    assert case.calls == 1 + sum(len(curve) - 1 for curve in measured.zeta.values())
    for name in ("first.0.inner", "branch:first.0.outer", "second.0"):
        kept, zeta = measured.zeta[name][-1]
        lone = apply_masks(case.model, _only(case, name, kept), case.graph)
        assert zeta == (case.loss(lone) - case.loss(case.model)) / case.loss(case.model)
        assert zeta != 0


def _only(case, name: str, kept: int) -> ChannelMasks:
    widths = {other: space.width for other, space in case.graph.prunable.items()}
    return best_of(case.graph, case.ranking.scores, {**widths, name: kept})


def test_measuring_leaves_the_model_bit_for_bit(case) -> None:
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    case.measured()
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
    assert not any("forward" in vars(module) for module in case.model.modules())


def test_weights_come_back_when_the_loss_fails(case) -> None:
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    losses = iter([1.0, 1.0])
    with pytest.raises(StopIteration):
        measure_sensitivity(case.model, case.graph, case.ranking, lambda model: next(losses))
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
    assert not any("forward" in vars(module) for module in case.model.modules())


def test_parts_that_a_group_does_not_reach_are_not_computed_again(case) -> None:
    ranking, computed = case.ranking, []
    case.model.first[0].adaptor.register_forward_hook(lambda *_: computed.append(1))
    measured = measure_sensitivity(case.model, case.graph, ranking, case.loss, round_to=4)
    reaching = [name for name in measured.zeta if name.removeprefix("branch:").startswith("first")]
    assert len(computed) == 1 + sum(len(measured.zeta[name]) - 1 for name in reaching) < case.calls


def test_a_part_called_twice_with_other_inputs_is_computed(case) -> None:
    once = case.measured()
    inner, outer = case.loss, []

    def twice(model: nn.Module) -> float:
        with torch.no_grad():
            outer.append(model(case.x.flip(0)).sum().item())
        return inner(model)

    assert measure_sensitivity(case.model, case.graph, case.ranking, twice, round_to=4) == once
    assert len(set(outer)) > 10  # each pruned model has its own first output


def test_monotone_takes_the_running_maximum() -> None:
    curves = _curves(a=[(16, 0.0), (12, -0.1), (8, 0.3), (4, 0.2)])
    assert curves.monotone("a") == [(16, 0.0), (12, 0.0), (8, 0.3), (4, 0.3)]
    assert curves.alphas == [0.0, 0.3]
    assert [curves.widths(alpha)["a"] for alpha in (-1, 0, 0.29, 0.3)] == [16, 12, 12, 4]


def test_a_model_that_breaks_down_is_infinitely_worse(case) -> None:
    dense = case.loss(case.model)
    broken = iter([dense, *[math.nan] * 1000])
    measured = measure_sensitivity(case.model, case.graph, case.ranking, lambda model: next(broken), candidates=(0.5,))
    assert {zeta for curve in measured.zeta.values() for _, zeta in curve[1:]} == {math.inf}
    assert measured.widths(1e9) == {name: space.width for name, space in case.graph.prunable.items()}
    assert Sensitivity.from_json(json.loads(json.dumps(measured.to_json(), allow_nan=False))) == measured


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": (0.5, 1.0)}, "candidate ratio 1.0"),
        ({"round_to": 0}, "round_to=0"),
    ],
)
def test_values_out_of_range_are_refused(case, changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        case.measured(**changes)


@pytest.mark.parametrize("loss", [0.0, -1.0, math.nan])
def test_a_dense_loss_that_nothing_can_be_relative_to_is_refused(case, loss: float) -> None:
    with pytest.raises(UsageError, match="the dense model's loss"):
        measure_sensitivity(case.model, case.graph, case.ranking, lambda model: loss)


def test_a_graph_without_prunable_channels_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(UsageError, match="locked, because it is an output"):
        measure_sensitivity(model, ChannelGraph.trace(model), Ranking("l2", {}), lambda model: 1.0)
