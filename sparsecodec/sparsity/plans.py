"""Pruning plans: how many channels every group keeps and how that was found; and what a plan costs."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsecodec._files import replacing, writing
from sparsecodec.errors import GraphError, UsageError, reason
from sparsecodec.sparsity.channel_graph import ChannelGraph
from sparsecodec.sparsity.macs import MacReport, masked_macs, masked_params
from sparsecodec.sparsity.masks import ChannelMasks, top
from sparsecodec.sparsity.sensitivity import Sensitivity

FORMAT = 2
Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Cost:
    """What a target counts.

    Attributes:
        kind: macs, params or ms.
        of: masks -> cost of the model compacted by them; no masks: of the dense model.
        device: where it was measured; None for what is counted.
    """

    kind: str
    of: Callable[[Masks], float]
    device: str | None = None


def mac_cost(report: MacReport, graph: ChannelGraph) -> Cost:
    """Multiply-accumulates of everything that `report` counts."""
    return Cost("macs", lambda masks: masked_macs(report, graph, masks))


def parameter_cost(model: nn.Module, report: MacReport, graph: ChannelGraph) -> Cost:
    """Parameters of everything that `report` counts in the dense `model`."""
    return Cost("params", lambda masks: masked_params(model, report, graph, masks))


@dataclass(frozen=True)
class Plan:
    """Which channels stay, and how they were found. It holds no weights and is replayed without calibration data.

    Attributes:
        method: "search by slope", "search by threshold", "uniform" or "global".
        transforms: paths that were traced.
        widths: group -> (kept channels, full width), all groups that may be pruned.
        kept: indices of the kept channels of the groups that become narrower by themselves; `ChannelMasks.to_json`.
        criterion: what ranked the channels within a group.
        target: kind of cost.
        reduction: fraction of it that was to be removed.
        reached: fraction that is removed; the nearest that the method can reach.
        alpha: the method's one parameter: a bound on zeta or its slope, the common ratio, or a bound on the score.
        sensitivity: the curves that a search chose from; another target can be searched in them without measuring.
        zeta_joint: relative loss increase of the joint model before fine-tuning.
        zeta_sum: the sum of the groups' own, which it would equal if groups were independent.
        device: of a target in ms.
        made_by: what else it was made from, for the record: seed, calibration set, ...; JSON-able.
    """

    method: str
    transforms: tuple[str, ...]
    widths: Mapping[str, tuple[int, int]]
    kept: Mapping[str, Any]
    criterion: str
    target: str
    reduction: float
    reached: float
    alpha: float
    sensitivity: Sensitivity | None = None
    zeta_joint: float | None = None
    zeta_sum: float | None = None
    device: str | None = None
    made_by: Mapping[str, Any] = field(default_factory=dict)

    @property
    def missed(self) -> float:
        """How far the target is from the nearest reachable point; positive where too much was removed."""
        return self.reached - self.reduction

    def __str__(self) -> str:
        where = f" on {self.device}" if self.device else ""
        text = f"{self.method}: {self.reached:.1%} of {self.target}{where} removed ({self.missed:+.1%} off the target)"
        if self.zeta_joint is not None:
            text += f", loss {self.zeta_joint:+.2%} before fine-tuning"
        if self.zeta_sum:
            text += f", {self.zeta_joint / self.zeta_sum:.2f} times the sum over groups"
        return text

    def masks(self, graph: ChannelGraph) -> ChannelMasks:
        """The channels that stay: the best ones of the weights that the plan was made from.

        Args:
            graph: of the plan's transforms in a model of the same architecture.

        Raises:
            GraphError: the plan belongs to another architecture or to other transforms, or was edited.
            UsageError: it prunes nothing.
        """
        if graph.transforms != self.transforms:
            raise GraphError(f"the plan is for transforms {list(self.transforms)}, not for {list(graph.transforms)}")
        there = {name: space.width for name, space in graph.prunable.items()}
        for name in sorted(there.keys() ^ self.widths.keys()):
            holder, other = ("plan", "model") if name in self.widths else ("model", "plan")
            raise GraphError(f"the plan is for another architecture: {name!r} is in the {holder}, not in the {other}")
        for name, (kept, width) in self.widths.items():
            if there[name] != width or not 1 <= kept <= width:
                raise GraphError(f"the plan keeps {kept} of {width} channels of {name!r}, the model has {there[name]}")
        masks = ChannelMasks.from_json(self.kept)
        masks.validate(graph)
        counted = kept_widths(graph, masks)
        for name, pair in self.widths.items():
            if counted[name] != pair:
                raise GraphError(f"the plan keeps {pair[0]} channels of {name!r}, but lists {counted[name][0]}")
        return masks

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `from_json` reads it back."""
        values = {"format": FORMAT, **vars(self)}
        values["transforms"] = list(self.transforms)
        values["widths"] = {name: list(pair) for name, pair in self.widths.items()}
        values["sensitivity"] = None if self.sensitivity is None else self.sensitivity.to_json()
        for name in ("alpha", "zeta_joint", "zeta_sum"):  # JSON has no infinity: a model that broke down
            values[name] = "inf" if values[name] == math.inf else values[name]
        return values

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Reads what `to_json` wrote.

        Raises:
            UsageError: it is something else.
        """
        if not isinstance(data, Mapping):
            raise UsageError(f"not a pruning plan: {data!r:.60} (needs an object)")
        values = dict(data)
        if values.pop("format", None) != FORMAT:
            raise UsageError(f"not a pruning plan: format {data.get('format')!r:.60}, not {FORMAT}")
        absent = [name for name in _READERS if name not in values and name not in ("device", "made_by")]
        if absent:
            raise UsageError(f"not a pruning plan: it has no {absent[0]!r}")
        for name, value in values.items():
            if name not in _READERS:
                raise UsageError(f"not a pruning plan: {name!r} is none of its keys")
            try:
                values[name] = _READERS[name](value)
            # RuntimeError: a mask of a width that no memory holds
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
                why = f": {error}" if isinstance(error, UsageError) else ""
                raise UsageError(f"not a pruning plan: {name!r} cannot be {value!r:.60}{why}") from error
        return cls(**values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json` to a file, which appears only when it is whole."""
        path = Path(path)
        text = json.dumps(self.to_json(), indent=1)
        text = re.sub(r"\[\n[^][{}\"]*\]", lambda row: f"[{' '.join(row[0][1:-1].split())}]", text)  # one line per pair
        with writing(path), replacing(path) as partial:
            partial.write_text(text + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads what `save` wrote.

        Raises:
            UsageError: the file cannot be read or is no plan; the message names it.
        """
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, ValueError, RecursionError) as error:  # the last: brackets nested too deep
            raise UsageError(f"plan {path} cannot be read: {reason(error)}") from error
        try:
            return cls.from_json(data)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error


def _an(*kinds: type) -> Callable[[Any], Any]:
    """Takes values of these types as they are."""

    def read(value: Any) -> Any:
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError
        return value

    return read


def _read_transforms(value: Any) -> tuple[str, ...]:
    return tuple(map(_an(str), _an(list, tuple)(value)))


def _read_widths(value: Any) -> dict[str, tuple[int, int]]:
    return {name: (int(kept), int(width)) for name, (kept, width) in value.items()}


def _read_number(value: Any) -> float | None:
    """JSON has no infinity, so `Plan.to_json` writes a word."""
    return None if value is None else float(value)


# How each value of a plan's JSON is read; whatever they raise says that it cannot be.
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "method": _an(str),
    "transforms": _read_transforms,
    "widths": _read_widths,
    "kept": lambda value: ChannelMasks.from_json(value).to_json(),
    "criterion": _an(str),
    "target": _an(str),
    "reduction": _an(int, float),
    "reached": _an(int, float),
    "alpha": _read_number,
    "sensitivity": lambda value: None if value is None else Sensitivity.from_json(value),
    "zeta_joint": _read_number,
    "zeta_sum": _read_number,
    "device": _an(str, type(None)),
    "made_by": _an(dict),
}


def best_of(graph: ChannelGraph, scores: Masks, widths: Mapping[str, int]) -> ChannelMasks:
    """Masks of the `widths` best channels of each group; a branch keeps at most what its joined space keeps.

    It prunes nothing where all widths are full.
    """
    keep: dict[str, Tensor] = {}
    for name in graph.prunable:  # spaces come before the branches that are added into them
        allowed = graph.allowed(name, keep)
        if widths[name] < int(allowed.sum()):
            keep[name] = top(scores[name], allowed, widths[name], graph.parts(name))
    return ChannelMasks(keep)


def kept_widths(graph: ChannelGraph, masks: Masks) -> dict[str, tuple[int, int]]:
    """(kept channels, full width) of every prunable group, a branch within its joined space."""
    found = {}
    for name, space in graph.prunable.items():
        keep = masks[name] if name in masks else graph.allowed(name, masks)
        found[name] = (int(keep.sum()), space.width)
    return found
