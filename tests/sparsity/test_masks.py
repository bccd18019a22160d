"""Masks: how they are chosen, refused, and stored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.sparsity import ChannelGraph, ChannelMasks, magnitude_scores, trace_model


@pytest.fixture
def chain() -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    return model, ChannelGraph.trace(model)


def _mask(width: int, *dropped: int) -> torch.Tensor:
    mask = torch.ones(width, dtype=torch.bool)
    mask[list(dropped)] = False
    return mask


def test_magnitude_drops_the_smallest_filters(chain) -> None:
    model, graph = chain
    with torch.no_grad():
        model[0].weight[[1, 5]] *= 1e-3
        model[2].weight[:, [0, 4]] *= 1e-3  # a transposed convolution stores its filters along dimension 1
    masks = ChannelMasks.from_scores(graph, magnitude_scores(model, graph), {"0": 0.25, "2": 1 / 3})
    assert torch.equal(masks["0"], _mask(8, 1, 5))
    assert torch.equal(masks["2"], _mask(6, 0, 4))
    assert masks.widths == {"0": (6, 8), "2": (4, 6)}
    assert masks.sparsity == pytest.approx(4 / 14)


def test_magnitude_of_a_sub_pixel_space_is_the_mean_of_its_filters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.PixelShuffle(2), nn.Conv2d(2, 3, 1))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[:, 0, 0, 0] = torch.tensor([1.0, 3.0, 0.0, 0.0, 1.0, 1.0, 1.0, 3.0])
    graph = ChannelGraph.trace(model)
    assert magnitude_scores(model, graph)["0"].tolist() == [1.0, 1.5]


def test_joined_space_scores_all_its_producers(evc) -> None:
    graph = trace_model(evc.model, ["dec"])
    before = magnitude_scores(evc.model, graph)
    with torch.no_grad():
        evc.model.dec[2].block[1].conv[2].weight[7] *= 100
    after = magnitude_scores(evc.model, graph)
    assert after["dec.1.conv"].argmax() == 7
    assert after["branch:dec.2.block.1.conv.2"].argmax() == 7
    assert torch.equal(after["branch:dec.1.conv"], before["branch:dec.1.conv"])


@pytest.mark.parametrize("round_to", [1, 8, 16, 100])
def test_kept_widths_are_whole_tiles_and_never_none(evc, round_to: int) -> None:
    graph = trace_model(evc.model, evc.transforms)
    masks = ChannelMasks.random(graph, 0.9, 0, round_to)
    for name, (kept, width) in masks.widths.items():
        assert kept % round_to == 0 or kept == width or kept == int(graph.allowed(name, masks).sum())
        assert kept >= min(round_to, width, int(graph.allowed(name, masks).sum()))


def test_a_branch_keeps_only_what_its_join_keeps(evc) -> None:
    graph = trace_model(evc.model, ["dec"])
    masks = ChannelMasks.random(graph, 0.5, 0, 8)
    assert not (masks["branch:dec.3.conv"] & ~masks["dec.3.conv"]).any()
    assert int(masks["branch:dec.3.conv"].sum()) % 8 == 0


def test_random_repeats_with_its_seed(evc) -> None:
    graph = trace_model(evc.model, ["dec"])
    one, two, three = (ChannelMasks.random(graph, 0.5, seed) for seed in (1, 1, 2))
    assert one.to_json() == two.to_json() != three.to_json()


def test_ties_go_to_the_lower_index(chain) -> None:
    _, graph = chain
    assert torch.equal(ChannelMasks.from_scores(graph, {"0": torch.ones(8)}, 0.5)["0"], _mask(8, 4, 5, 6, 7))


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        ({"7": _mask(8, 0)}, GraphError, "no channel space '7'"),
        ({"0": _mask(9, 0)}, GraphError, "mask of '0' has 9 channels, the space has 8"),
        ({"4": _mask(2, 0)}, GraphError, "space '4' is locked, because it is an output"),
        ({"0": torch.zeros(8, dtype=torch.bool)}, GraphError, "keeps none of 8 channels"),
        ({"0": _mask(8)}, UsageError, "prune nothing"),
        ({}, UsageError, "prune nothing"),
    ],
)
def test_masks_that_do_not_fit_are_refused(chain, keep, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        ChannelMasks(keep).validate(chain[1])


def test_misspelt_space_gets_suggestions(evc) -> None:
    graph = trace_model(evc.model, ["dec"])
    with pytest.raises(GraphError, match=r"did you mean .*dec\.1\.conv"):
        ChannelMasks({"dec.1.convv": _mask(64, 0)}).validate(graph)


def test_branch_outside_its_join_is_refused(evc) -> None:
    graph = trace_model(evc.model, ["dec"])
    keep = {"dec.3.conv": _mask(48, *range(24)), "branch:dec.3.conv": _mask(48, *range(24, 48))}
    with pytest.raises(GraphError, match="keeps no channel that its joined space keeps"):
        ChannelMasks(keep).validate(graph)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5])
def test_sparsity_out_of_range_is_refused(chain, sparsity: float) -> None:
    with pytest.raises(UsageError, match="sparsity="):
        ChannelMasks.random(chain[1], sparsity, 0)


def test_only_bool_vectors_are_masks() -> None:
    with pytest.raises(UsageError, match=r"torch\.float32 \(8,\)"):
        ChannelMasks({"0": torch.ones(8)})


def test_saved_masks_come_back(tmp_path, evc) -> None:
    graph = trace_model(evc.model, evc.transforms)
    masks = ChannelMasks.random(graph, 0.5, 0)
    masks.save(tmp_path / "masks.json")
    loaded = ChannelMasks.load(tmp_path / "masks.json")
    assert list(loaded) == list(masks)
    assert all(torch.equal(loaded[name], masks[name]) for name in masks)
    assert [path.name for path in tmp_path.iterdir()] == ["masks.json"]


@pytest.mark.parametrize(
    "entry", [{"width": 4}, {"width": 4, "kept": [0, 4]}, {"width": 4, "kept": [1, 0]}, {"width": 4, "kept": [1, 1]}, 3]
)
def test_damaged_masks_are_refused(entry) -> None:
    with pytest.raises(UsageError, match="mask of 'dec.0'"):
        ChannelMasks.from_json({"dec.0": entry})


def test_a_file_that_is_not_json_is_refused(tmp_path) -> None:
    (tmp_path / "masks.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        ChannelMasks.load(tmp_path / "masks.json")
