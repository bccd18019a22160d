"""Bits per layer from what each costs alone."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import pytest
import torch
from torch import nn

from sparsecodec import UsageError
from sparsecodec.quant import (
    Precision,
    Sensitivities,
    find_layers,
    plan_for_bytes,
    plan_for_threshold,
    post_training,
    sensitivities,
)

TABLE = Sensitivities(
    1.0,
    {
        "a": {4: 0.5, 8: 0.02, 16: 0.001},
        "b": {4: 0.01, 8: 0.005, 16: 0.005},
        "c": {4: 0.2, 8: 0.1, 16: 0.0},
    },
    {"a": 1000, "b": 400, "c": 100},
    dict.fromkeys("abc", Precision()),
)


def test_lowest_bits_below_the_threshold_win():
    assert TABLE.choose(0.01) == {"a": 16, "b": 4, "c": 16}
    assert TABLE.choose(0.1) == {"a": 8, "b": 4, "c": 8}
    assert TABLE.choose(1.0) == {"a": 4, "b": 4, "c": 4}
    assert TABLE.choose(-1.0) == {"a": 16, "b": 16, "c": 16}


def test_bytes_fall_with_the_threshold():
    sizes = [TABLE.bytes(TABLE.choose(threshold)) for threshold in (-1, 0, 0.01, 0.1, 0.2, 0.5, 1)]
    assert sizes == sorted(sizes, reverse=True) and (sizes[0], sizes[-1]) == (1500, 750)


@pytest.mark.parametrize(("target", "size"), [(1500, 1500), (1400, 1300), (1300, 1300), (1260, 1250), (750, 750)])
def test_bisection_finds_the_nearest_plan_below(target, size):
    plan = plan_for_bytes(TABLE, target)
    assert plan.weight_bytes == size
    if target not in (size, 1500):
        assert plan.note == f"{target - size} bytes below the target"
    assert json.loads(json.dumps(dataclasses.asdict(plan)))["weight_bytes"] == size


def test_bisection_takes_the_smallest_threshold():
    plan = plan_for_bytes(TABLE, 1300)
    assert plan.threshold == 0.01
    assert plan.bits == {"a": 16, "b": 4, "c": 16} and plan.expected == pytest.approx(0.011)


def test_unreachable_target_says_what_is_the_least():
    with pytest.raises(UsageError, match="need 750"):
        plan_for_bytes(TABLE, 749)


def test_target_that_does_not_bind_says_so():
    assert "does not bind" in plan_for_bytes(TABLE, 10_000).note


def test_zeta_is_monotone_and_sees_the_fragile_layer():
    """A layer whose inputs span five decades suffers at 8 bits of input, and not at 16."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        model[0].weight[0].mul_(300)
        model[1].weight[:, 0].div_(300)
    x = torch.randn(2, 4, 8, 8)
    target = model(x).detach()
    reference = 1e-3

    def loss(candidate):
        return reference + float((candidate(x) - target).detach().square().mean())

    found = sensitivities(model, dict.fromkeys("01", Precision()), loss)
    for costs in found.zeta.values():
        assert costs[4] >= costs[8] >= costs[16] >= -1e-9
    assert found.zeta["1"][8] > 3 * found.zeta["1"][16]
    assert found.choose(2 * found.zeta["1"][16])["1"] == 16


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_bits_at_which_the_model_breaks_down_are_taken_last(broken):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    x = torch.randn(2, 4, 8, 8)

    def loss(candidate):
        bad = getattr(candidate[0], "active", False) and candidate[0].weight_bits == 4
        return broken if bad else 1.0 + float(candidate(x).detach().square().mean())

    found = sensitivities(model, dict.fromkeys("01", Precision()), loss, (4, 8))
    assert found.zeta["0"][4] == float("inf") and found.choose(1e9) == {"0": 8, "1": 4}
    assert plan_for_bytes(found, 24).bits == {"0": 8, "1": 4}
    assert plan_for_bytes(found, 16).bits == {"0": 4, "1": 4}


def test_mixed_plan_beats_eight_bits_on_a_real_codec(codec, crops, rd_loss):
    names = find_layers(codec, ["dec.7", "dec.5.upsample", "dec.6"])[0]
    loss = partial(rd_loss, x=crops)
    found = sensitivities(codec, dict.fromkeys(names, Precision()), loss, (8, 16))
    plan = plan_for_threshold(found, 1e-3)
    assert 16 in plan.bits.values() and 8 in plan.bits.values()
    mixed = loss(post_training(codec, found.to_precisions(plan.bits), loss, "mse"))
    plain = loss(post_training(codec, dict.fromkeys(names, Precision()), loss, "mse"))
    assert mixed - found.loss < 0.5 * (plain - found.loss)


def test_kind_of_scales_is_kept():
    table = dataclasses.replace(TABLE, precisions=dict.fromkeys("abc", Precision(8, 16, dyadic=True)))
    assert table.to_precisions({"a": 4}) == {"a": Precision(4, 8, dyadic=True)}


@pytest.mark.parametrize("bits", [(), (8, 12)])
def test_unknown_bits_are_refused(bits):
    with pytest.raises(UsageError, match="bits="):
        sensitivities(
            nn.Sequential(nn.Conv2d(1, 1, 1)),
            {"0": Precision()},
            lambda m: float(m(torch.ones(1, 1, 2, 2)).sum()),
            bits,
        )
