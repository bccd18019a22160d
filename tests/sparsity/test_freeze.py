"""Freezing: whole tiles, taken and given back in the order of their scores, until the MACs fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsecodec.sparsity import ChannelGraph, DecayConfig, GradientDecay, count, gradient_decay
from sparsecodec.sparsity.freeze import freeze_masks

SCORES = {"0": [8, 8, 6, 6, 4, 4, 1, 1], "2": [7, 7, 5, 5, 3, 3, 2, 2]}  # two channels a tile, the best first


def _kept(counts: tuple[int, int], sparsity: float, scores: dict[str, list[int]] = SCORES) -> tuple[int, int]:
    """Kept channels of ``3 -> k -> l -> 2``, which takes 3 k + k l + 2 l MACs, 104 of them dense."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    report, graph = count(net, {"": (1, 3, 1, 1)}), ChannelGraph.trace(net)
    assert report.macs == 104
    tensors = {name: torch.tensor(values, dtype=torch.float32) for name, values in scores.items()}
    masks = freeze_masks(graph, report, tensors, dict(zip(scores, counts, strict=True)), sparsity, 2)
    for name, mask in masks.items():
        assert tensors[name][mask].min() >= tensors[name][~mask].max() if not mask.all() else True
    return int(masks["0"].sum()), int(masks["2"].sum())


@pytest.mark.parametrize(("counts", "kept"), [((3, 5), (4, 4)), ((1, 8), (2, 8)), ((7, 6), (8, 6))])
def test_without_a_target_widths_are_only_rounded(counts, kept) -> None:
    assert _kept(counts, 0.0) == kept


def test_the_worst_tiles_go_first_until_it_fits() -> None:
    assert _kept((8, 8), 0.5) == (6, 4)  # scores 1, 2 and 3: 50 MACs of 52


def test_the_best_tiles_come_back_while_it_fits() -> None:
    assert _kept((2, 2), 0.5) == (6, 4)  # scores 6, 5 and 4: again 50


def test_a_smaller_tile_may_come_back_where_the_next_one_does_not_fit() -> None:
    assert _kept((2, 2), 0.38) == (8, 4)  # 64 MACs of 64.48: that of score 3 would make it 66, that of score 1 fits


def test_the_better_tile_comes_back_where_only_one_fits() -> None:
    scores = {"0": [8, 8, 6, 6, 4, 4, 1, 1], "2": [7, 7, 5, 5, 0, 0, 0, 0]}
    assert _kept((8, 8), 0.35, scores) == (8, 4)  # 64 of 67.6; (6, 6) with 66 would fit as well


def test_one_tile_of_every_space_is_left_of_a_target_out_of_reach() -> None:
    assert _kept((8, 8), 0.99) == (2, 2)


# --- what gradient decay asks for ---------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.inner = nn.Conv2d(4, 12, 1), nn.Conv2d(12, 10, 1)
        self.outer, self.last = nn.Conv2d(10, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.last(x + self.outer(torch.relu(self.inner(x))))


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block()


def _asked(block: Block, theta: dict[str, float], monkeypatch) -> tuple[GradientDecay, dict, dict]:
    """The decay, and the scores and counts that it gives to `freeze_masks` at the end."""
    graph = ChannelGraph.trace(block)
    report = count(block, {"": (1, 4, 3, 3)})
    decay = GradientDecay(block, graph, report, DecayConfig(sparsity=0.5, t0=1, t1=2))
    with torch.no_grad():
        decay.theta.copy_(torch.tensor([theta[name] for name in decay.names]))
    given = []
    freeze = gradient_decay.freeze_masks
    monkeypatch.setattr(gradient_decay, "freeze_masks", lambda *values: given.append(values) or freeze(*values))
    decay.set_step(2)
    return decay, given[0][2], given[0][3]


def test_a_branch_is_frozen_at_what_it_keeps_of_its_sum(block: Block, monkeypatch) -> None:
    """Channels above its threshold that the sum does not keep were never there."""
    with torch.no_grad():
        block.head.weight[:8] *= 1e-3
        block.outer.weight[:8] *= 1e-3
    _, _, counts = _asked(block, {"head": 0.5, "inner": 0.5, "branch:outer": 0.0}, monkeypatch)
    assert counts["head"] == counts["branch:outer"] == 4


def test_tiles_are_frozen_in_the_order_of_their_margin_above_the_threshold(block: Block, monkeypatch) -> None:
    theta = {"head": 0.2, "inner": 0.9, "branch:outer": 0.5}
    decay, scores, _ = _asked(block, theta, monkeypatch)
    for name, own in decay.gating.sections(decay.scores).items():
        torch.testing.assert_close(scores[name], own - theta[name])
