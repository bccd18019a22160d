"""What ranks the channels within a group, for everything that decides how many of each group stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.sparsity.channel_graph import ChannelGraph
from sparsecodec.sparsity.energy import channel_energies
from sparsecodec.sparsity.gating import magnitude_scores

NORMS = {"l1": 1.0, "l2": 2.0}  # p of the norm of a channel's filters
CRITERIA = ("energy", *NORMS)


@dataclass(frozen=True)
class Ranking:
    """Scores of the channels of one model.

    Attributes:
        criterion: one of `CRITERIA`.
        scores: prunable space or branch -> ``[width]`` float32; higher stays.
    """

    criterion: str
    scores: Mapping[str, Tensor]

    def validate(self, graph: ChannelGraph) -> None:
        """Raises GraphError where the scores are not those of the prunable groups of `graph`."""
        ranked = {name: len(score) for name, score in self.scores.items()}
        there = {name: space.width for name, space in graph.prunable.items()}
        if ranked != there:
            odd = min(name for name, _ in ranked.items() ^ there.items())
            was, now = ranked.get(odd, "no"), there.get(odd, "no")
            raise GraphError(f"the ranking is of another graph: {odd!r} had {was} channels there, it has {now} here")


def rank_channels(
    model: nn.Module, graph: ChannelGraph, criterion: str = "energy", run: Callable[[], object] | None = None
) -> Ranking:
    """Scores of the channels of all groups that may be pruned.

    Args:
        model: dense.
        graph: of the transforms that may be pruned.
        criterion: "energy", see `sparsecodec.sparsity.energy`; "l2" or "l1", norms of the filters.
        run: forwards of `model` on calibration data, which "energy" needs.

    Raises:
        UsageError: another criterion, no data for "energy", or the data are no good; see `channel_energies`.
    """
    if criterion in NORMS:
        return Ranking(criterion, magnitude_scores(model, graph, NORMS[criterion]))
    if criterion != "energy":
        raise UsageError(f"criterion={criterion!r} (one of {', '.join(CRITERIA)})")
    if run is None:
        raise UsageError("criterion='energy' needs a run of the model on calibration data (l2 and l1 do without)")
    return Ranking(criterion, channel_energies(model, graph, run))
