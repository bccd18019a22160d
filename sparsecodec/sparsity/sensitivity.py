"""How much worse a codec gets when one group of channels is pruned and all others are left alone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.sparsity.channel_graph import ChannelGraph, LayerChannels
from sparsecodec.sparsity.compact import masked
from sparsecodec.sparsity.masks import ChannelMasks, rounded, top
from sparsecodec.sparsity.ranking import Ranking

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Loss = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Sensitivity:
    """Curves ``zeta_n(p) = (RD(only group n pruned by p) - RD_0) / RD_0`` at widths that can be deployed.

    Attributes:
        loss: ``RD_0``, of the dense model on the calibration set.
        zeta: group -> (kept channels, zeta) from the full width, whose zeta is 0, to the smallest; as measured.
        criterion: of the ranking that chose the channels.
        round_to: kept widths are multiples of it.
    """

    loss: float
    zeta: Mapping[str, tuple[tuple[int, float], ...]]
    criterion: str
    round_to: int

    def monotone(self, name: str) -> list[tuple[int, float]]:
        """(kept, running maximum of zeta over growing p) of one group."""
        kept, zeta = zip(*self.zeta[name], strict=True)
        return list(zip(kept, accumulate(zeta, max), strict=True))

    def widths(self, alpha: float) -> dict[str, int]:
        """Kept channels of every group at threshold `alpha`: ``p_n = max {p : zeta_n(p) <= alpha}``, monotone zeta.

        Below the smallest zeta, 0, that is the dense model; at infinity it is the smallest width everywhere.
        """
        full = {name: curve[0][0] for name, curve in self.zeta.items()}
        return {
            name: min((kept for kept, zeta in self.monotone(name) if zeta <= alpha), default=full[name])
            for name in self.zeta
        }

    @property
    def alphas(self) -> list[float]:
        """The thresholds at which a width changes, ascending."""
        found = {zeta for name in self.zeta for _, zeta in self.monotone(name)[1:]}
        return sorted(found)

    def damage(self, widths: Mapping[str, int]) -> float:
        """Sum of the groups' zeta at `widths`: what the joint model would lose if groups were independent."""
        return sum(dict(self.monotone(name))[kept] for name, kept in widths.items())

    def to_json(self) -> dict[str, Any]:
        """JSON-able; an infinite zeta, of a model that broke down, becomes null."""
        curves = {
            name: [[kept, zeta if math.isfinite(zeta) else None] for kept, zeta in curve]
            for name, curve in self.zeta.items()
        }
        return {"loss": self.loss, "criterion": self.criterion, "round_to": self.round_to, "zeta": curves}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sensitivity:
        """Reads what `to_json` wrote; raises KeyError, TypeError or ValueError for anything else."""
        curves = {
            name: tuple((int(kept), math.inf if zeta is None else float(zeta)) for kept, zeta in curve)
            for name, curve in data["zeta"].items()
        }
        return cls(float(data["loss"]), curves, str(data["criterion"]), int(data["round_to"]))


def measure_sensitivity(
    model: nn.Module,
    graph: ChannelGraph,
    ranking: Ranking,
    loss: Loss,
    *,
    candidates: Sequence[float] = RATIOS,
    round_to: int = 16,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> Sensitivity:
    """Prunes each group by each ratio, alone and without training, and measures the loss (arXiv 2506.01221, sec. 3).

    Ratios are rounded to whole tiles first, so that every width that is measured can be deployed; ratios that round to
    one width are measured once. Channels are masked in place, so the model is never copied, and a part of the model
    that a group does not reach is not computed again.

    Args:
        model: dense; its weights are the old ones afterwards, bit for bit.
        graph: of the transforms that may be pruned.
        ranking: of the channels of `model`; the best of a group stay.
        loss: model -> rate-distortion loss on the calibration set, the same for the same weights.
        candidates: ratios in [0, 1).
        round_to: channels in a tile.
        progress: wraps the list of (group, kept channels), for example ``tqdm``.

    Raises:
        GraphError: `ranking` is of another graph.
        UsageError: a ratio or `round_to` is out of range, nothing may be pruned, or the dense model's loss is no
            positive number.
    """
    ranking.validate(graph)
    if round_to < 1:
        raise UsageError(f"round_to={round_to} (needs at least 1)")
    for ratio in candidates:
        if not 0 <= ratio < 1:
            raise UsageError(f"candidate ratio {ratio} (needs 0 <= ratio < 1)")
    if not graph.prunable:
        raise UsageError(f"nothing can be pruned: every space of {list(graph.transforms)} is locked\n{graph.report()}")
    todo = [
        (name, kept)
        for name, space in graph.prunable.items()
        for kept in sorted({rounded(space.width * (1 - p), space.width, round_to) for p in candidates}, reverse=True)
        if kept < space.width
    ]
    curves = {name: [(space.width, 0.0)] for name, space in graph.prunable.items()}
    with _Remembered(model, graph).watching() as remembered:
        dense = loss(model)
        if not (math.isfinite(dense) and dense > 0):
            raise UsageError(f"the dense model's loss on the calibration set is {dense} (needs a positive number)")
        for name, kept in progress(todo):
            score = ranking.scores[name]
            keep = top(score, torch.ones(len(score), dtype=torch.bool), kept)
            remembered.rewind(name)
            with masked(model, ChannelMasks({name: keep}), graph):
                pruned = loss(model)
            curves[name].append((kept, (pruned - dense) / dense if math.isfinite(pruned) else math.inf))
    return Sensitivity(dense, {name: tuple(curve) for name, curve in curves.items()}, ranking.criterion, round_to)


class _Remembered:
    """The calls of a model's parts in a first, dense evaluation: a part whose weights and inputs are the same again
    returns what it returned then, bit for bit, without computing it.

    Parts are the graph's transforms and the model's children beside them.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        holders = {path.partition(".")[0] for path in graph.transforms}
        beside = [] if "" in holders else [name for name, _ in model.named_children() if name not in holders]
        self._parts = {path: model.get_submodule(path) for path in (*graph.transforms, *beside)}
        self._weights = {path: set(map(id, part.parameters())) for path, part in self._parts.items()}
        self._model = model
        self._graph = graph
        self._calls: dict[str, list[tuple[Tensor, Tensor] | None]] = {path: [] for path in self._parts}
        self._next: dict[str, int] | None = None  # index of each part's next call; None while recording
        self._touched: set[str] = set()

    @contextlib.contextmanager
    def watching(self) -> Iterator[_Remembered]:
        """Within the block the parts are recorded, until the first `rewind`, and replayed after it."""
        own = {path: vars(part).get("forward") for path, part in self._parts.items()}
        for path, part in self._parts.items():
            part.forward = self._forward(path, part.forward)
        try:
            yield self
        finally:
            for path, part in self._parts.items():
                if own[path] is None:
                    del part.forward  # the class's shows again
                else:
                    part.forward = own[path]

    def rewind(self, group: str) -> None:
        """Before another evaluation, in which `group` is pruned."""
        layers = {layer.name for layer in self._graph.layers.values() if group in (layer.branch, *_spaces(layer))}
        changed = {id(p) for name in layers for p in self._model.get_submodule(name).parameters()}
        self._touched = {path for path, weights in self._weights.items() if weights & changed}
        self._next = dict.fromkeys(self._parts, 0)

    def _forward(self, path: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            simple = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
            if self._next is None:
                given = args[0].clone() if simple else None  # a part may write into its input
                result = compute(*args, **kwargs)
                plain = simple and isinstance(result, Tensor)
                self._calls[path].append((given, result.clone()) if plain else None)
                return result
            calls, index = self._calls[path], self._next[path]
            self._next[path] += 1
            call = calls[index] if index < len(calls) else None
            if path in self._touched or not simple or call is None or not torch.equal(args[0], call[0]):
                return compute(*args, **kwargs)
            return call[1].clone()

        return forward


def _spaces(layer: LayerChannels) -> tuple[str, ...]:
    return layer.inputs.spaces() + layer.outputs.spaces()
