"""From the widths that training arrived at to widths that are whole tiles and meet a MAC target."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from sparsecodec.sparsity.channel_graph import ChannelGraph
from sparsecodec.sparsity.macs import MacReport, masked_macs
from sparsecodec.sparsity.masks import rounded, top


def freeze_masks(
    graph: ChannelGraph,
    report: MacReport,
    scores: Mapping[str, Tensor],
    counts: Mapping[str, int],
    sparsity: float,
    round_to: int,
) -> dict[str, Tensor]:
    """Round every kept width to whole tiles, then move tiles until the MAC reduction is met and hardly exceeded.

    Tiles go in the order of their mean score, or come back in the reverse order; at the end each space may get one
    more tile back, best first, if the target still holds.

    Args:
        graph: spaces and branches.
        report: MACs of the dense model.
        scores: ``[width]`` by name, comparable between spaces.
        counts: kept channels by name, before rounding.
        sparsity: MAC reduction to reach; 0 leaves the rounded counts as they are.
        round_to: channels in a tile.

    Returns:
        Masks by name. If one tile per space is still too much, that.
    """
    spaces = {name: graph.spaces[name].width for name in counts}
    kept = {name: -(-rounded(count, spaces[name], round_to) // round_to) for name, count in counts.items()}
    parts = {name: graph.parts(name) for name in counts}
    tiles = {name: [tile.mean().item() for tile in _ranked(scores[name]).split(round_to)] for name in counts}

    def masks(change: Counter[str] | None = None) -> dict[str, Tensor]:
        chosen: dict[str, Tensor] = {}
        for name, number in kept.items():
            width = min((number + (change[name] if change else 0)) * round_to, spaces[name])
            chosen[name] = top(scores[name], graph.allowed(name, chosen), width, parts[name])
        return chosen

    def fits(change: Counter[str] | None = None) -> bool:
        return masked_macs(report, graph, masks(change)) <= (1 - sparsity) * report.macs

    if sparsity == 0:
        return masks()
    if fits():
        absent = sorted((-tiles[name][t], t, name) for name in kept for t in range(kept[name], len(tiles[name])))
        added = [name for _, _, name in absent]
        number = bisect_left(range(1, len(added) + 1), True, key=lambda k: not fits(Counter(added[:k])))
        change = Counter(added[:number])
    else:
        present = sorted((tiles[name][t], -t, name) for name in kept for t in range(1, kept[name]))
        removed = [name for _, _, name in present]
        number = bisect_left(range(len(removed)), True, key=lambda k: fits(_minus(removed[:k])))
        change = _minus(removed[:number])
    kept = {name: number + change[name] for name, number in kept.items()}
    growing = [name for name in kept if kept[name] < len(tiles[name])]
    for name in sorted(growing, key=lambda name: -tiles[name][kept[name]]):
        if fits(Counter([name])):
            kept[name] += 1
    return masks()


def _ranked(scores: Tensor) -> Tensor:
    return scores.sort(descending=True).values


def _minus(names: list[str]) -> Counter[str]:
    return Counter({name: -number for name, number in Counter(names).items()})
