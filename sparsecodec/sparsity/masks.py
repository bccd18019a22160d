"""Which channels are kept: `ChannelMasks`, how to make them, and how they travel as JSON."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecodec._files import replacing, writing
from sparsecodec.errors import GraphError, UsageError
from sparsecodec.sparsity.channel_graph import ChannelGraph


class ChannelMasks(Mapping[str, Tensor]):
    """Space or branch name -> bool ``[width]``, True = keep. A space that is not listed is kept whole.

    Args:
        keep: masks by name; copied.

    Raises:
        UsageError: a mask is not a one-dimensional bool tensor.
    """

    def __init__(self, keep: Mapping[str, Tensor]) -> None:
        self._keep: dict[str, Tensor] = {}
        for name, mask in keep.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 1:
                raise UsageError(f"mask of {name!r} is {_describe(mask)} (needs a bool tensor [width])")
            self._keep[name] = mask.detach().cpu().clone()

    def __getitem__(self, name: str) -> Tensor:
        return self._keep[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keep)

    def __len__(self) -> int:
        return len(self._keep)

    def __repr__(self) -> str:
        return f"ChannelMasks({len(self)} spaces, sparsity={self.sparsity:.3f})"

    @property
    def sparsity(self) -> float:
        """Fraction of masked channels over all spaces that are listed."""
        total = sum(len(mask) for mask in self._keep.values())
        return 1 - sum(int(mask.sum()) for mask in self._keep.values()) / total if total else 0.0

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Name -> (kept channels, full width)."""
        return {name: (int(mask.sum()), len(mask)) for name, mask in self._keep.items()}

    def validate(self, graph: ChannelGraph) -> None:
        """Check that the masks can be applied to the model that `graph` was traced from.

        Raises:
            GraphError: an unknown or locked space, a wrong width, or a space without any kept channel.
            UsageError: nothing is pruned.
        """
        for name, mask in self._keep.items():
            space = graph.spaces.get(name)
            if space is None:
                near = difflib.get_close_matches(name, graph.spaces, 3)
                hint = f"; did you mean {', '.join(near)}?" if near else f"; there are {len(graph.spaces)} others"
                raise GraphError(f"no channel space {name!r} in transforms {list(graph.transforms)}{hint}")
            if len(mask) != space.width:
                raise GraphError(f"mask of {name!r} has {len(mask)} channels, the space has {space.width}")
            if space.locked is not None and not mask.all():
                raise GraphError(f"space {name!r} is locked, because {space.locked}")
            if not mask.any():
                raise GraphError(f"mask of {name!r} keeps none of {space.width} channels (needs at least 1)")
        for layer in graph.layers.values():
            if layer.branch in self._keep and not layer.keep_outputs(self._keep).any():
                raise GraphError(f"{layer.branch!r} keeps no channel that its joined space keeps")
            if not layer.outputs.keep(self._keep).any():
                raise GraphError(f"layer {layer.name!r} keeps none of its {len(layer.outputs)} channels")
        if all(bool(mask.all()) for mask in self._keep.values()):
            raise UsageError("these masks prune nothing: every channel of every listed space is kept")

    @classmethod
    def from_scores(
        cls,
        graph: ChannelGraph,
        scores: Mapping[str, Tensor],
        sparsity: float | Mapping[str, float],
        round_to: int = 1,
    ) -> ChannelMasks:
        """Keep the best channels of each space.

        Args:
            graph: names, widths and locks.
            scores: by name, ``[width]``; a space without a score is left whole. Higher stays.
            sparsity: fraction to mask, for all or by name (names that are missing stay whole).
            round_to: kept widths are rounded to a multiple of it (at least one multiple, at most the full width).

        Raises:
            GraphError: as `validate`.
            UsageError: sparsity outside [0, 1), round_to below 1, or nothing pruned.
        """
        masks = cls(best_channels(graph, scores, sparsity, round_to))
        masks.validate(graph)
        return masks

    @classmethod
    def random(cls, graph: ChannelGraph, sparsity: float, seed: int, round_to: int = 1) -> ChannelMasks:
        """Random channels of every prunable space and branch; the same seed gives the same masks."""
        generator = torch.Generator().manual_seed(seed)
        scores = {name: torch.rand(space.width, generator=generator) for name, space in graph.prunable.items()}
        return cls.from_scores(graph, scores, sparsity, round_to)

    def to_json(self) -> dict[str, Any]:
        """``{name: {"width": W, "kept": [indices]}}``, only what is pruned; `from_json` reads it back."""
        return {
            name: {"width": len(mask), "kept": mask.nonzero().flatten().tolist()}
            for name, mask in self._keep.items()
            if not mask.all()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ChannelMasks:
        """Reads what `to_json` wrote.

        Raises:
            UsageError: the structure is another one, or an index lies outside its width.
        """
        keep = {}
        for name, entry in data.items():
            try:
                width, kept = int(entry["width"]), [int(index) for index in entry["kept"]]
            except (TypeError, KeyError, ValueError) as error:
                raise UsageError(f"mask of {name!r} is {entry!r:.80} (needs width and kept)") from error
            if width < 1 or sorted(set(kept)) != kept or (kept and not 0 <= kept[0] <= kept[-1] < width):
                raise UsageError(f"mask of {name!r}: kept indices are not ascending within width {width}")
            keep[name] = torch.zeros(width, dtype=torch.bool)
            keep[name][kept] = True
        return cls(keep)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json` to a file, which appears only when it is whole."""
        path = Path(path)
        with writing(path), replacing(path) as partial:
            partial.write_text(json.dumps(self.to_json()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ChannelMasks:
        """Reads what `save` wrote."""
        try:
            data = json.loads(Path(path).read_text())
        except ValueError as error:
            raise UsageError(f"{path} is not JSON: {error}") from error
        return cls.from_json(data)


def best_channels(
    graph: ChannelGraph, scores: Mapping[str, Tensor], sparsity: float | Mapping[str, float], round_to: int
) -> dict[str, Tensor]:
    """The masks of `ChannelMasks.from_scores`, which may prune nothing at all."""
    if round_to < 1:
        raise UsageError(f"round_to={round_to} (needs at least 1)")
    keep: dict[str, Tensor] = {}
    for name, space in graph.prunable.items():  # spaces come before the branches that are added into them
        wanted = sparsity.get(name, 0.0) if isinstance(sparsity, Mapping) else sparsity
        if not 0 <= wanted < 1:
            raise UsageError(f"sparsity={wanted} of {name!r} (needs 0 <= sparsity < 1)")
        if name not in scores or wanted == 0:
            continue
        if len(scores[name]) != space.width:
            raise GraphError(f"scores of {name!r} have {len(scores[name])} channels, the space has {space.width}")
        allowed = graph.allowed(name, keep)
        count = rounded(int(allowed.sum()) * (1 - wanted), int(allowed.sum()), round_to)
        keep[name] = top(scores[name], allowed, count, graph.parts(name))
    return keep


def filter_norms(weight: Tensor, kind: str, p: float = 2.0) -> Tensor:
    """``[C_out]`` float32, differentiable: L_p norm of each filter of a layer of `kind`."""
    filters = weight.transpose(0, 1) if kind == "conv_transpose" else weight
    return torch.linalg.vector_norm(filters.float().flatten(1), p, 1)


def rounded(count: float, width: int, round_to: int) -> int:
    """The multiple of `round_to` nearest to `count`, at least one multiple, at most `width`."""
    return min(max(round(count / round_to), 1) * round_to, width)


def top(scores: Tensor, allowed: Tensor, count: int, parts: Iterable[Tensor] = ()) -> Tensor:
    """``[width]`` bool: the `count` best of the allowed channels; ties go to the lower index.

    The best of each of `parts` comes before all others: no layer that makes only these may lose them all.
    """
    scores = scores.float().masked_fill(~allowed, -torch.inf)
    first = torch.zeros_like(allowed)
    for part in parts:
        first[part[scores[part].argmax()]] = True
    order = scores.masked_fill(first, torch.inf).argsort(descending=True, stable=True)
    count = max(count, int(first.sum()))
    keep = torch.zeros_like(allowed)
    keep[order[:count]] = True
    return keep & allowed


def _describe(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
