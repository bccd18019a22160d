"""The channel graph: which channels of which layers are one and the same, and which of them may be pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.sparsity.layout import MAKERS, OPEN, LayerUse
from sparsecodec.sparsity.tracing import Bank, Walk, walk
from sparsecodec.sparsity.wiring import COUPLED, LOCKED, STATES, walk_coupled, wires_of, with_stand_ins

BRANCH = "branch:"


@dataclass(frozen=True)
class ChannelMap:
    """Where each channel of one side of a layer lives: runs of ``(space or None, positions in it)``.

    A run of ``None`` comes from outside the transform and is always kept.
    """

    parts: tuple[tuple[str | None, Tensor], ...]

    def __len__(self) -> int:
        return sum(len(positions) for _, positions in self.parts)

    def spaces(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name, _ in self.parts if name is not None))

    def keep(self, masks: Mapping[str, Tensor]) -> Tensor:
        """``[C]`` bool, True = keep; a space without a mask is kept whole."""
        pieces = []
        for name, positions in self.parts:
            mask = None if name is None else masks.get(name)
            pieces.append(torch.ones(len(positions), dtype=torch.bool) if mask is None else mask[positions])
        return torch.cat(pieces) if pieces else torch.ones(0, dtype=torch.bool)


@dataclass(frozen=True)
class LayerChannels:
    """One layer. `kind` is one of `layout.MAKERS`, depthwise or gdn; for the last two both sides are alike.

    Attributes:
        branch: the branch that this layer ends, if its filters may be dropped without shrinking the joined space.
        input_keeps_zero: masked channels are zero where this layer reads them, by zeroing their filters alone.
    """

    name: str
    kind: str
    inputs: ChannelMap
    outputs: ChannelMap
    branch: str | None = None
    input_keeps_zero: bool = True

    def keep_outputs(self, masks: Mapping[str, Tensor]) -> Tensor:
        """``[C_out]`` bool: filters that stay, by the space's mask and by the branch's own."""
        keep = self.outputs.keep(masks)
        if self.branch is not None and self.branch in masks:
            keep = keep & masks[self.branch][self.branch_positions]
        return keep

    @property
    def branch_positions(self) -> Tensor:
        """``[C_out]`` channel of the branch that each filter makes."""
        _, positions = self.outputs.parts[0]
        return torch.unique(positions, return_inverse=True)[1]


@dataclass(frozen=True)
class Space:
    """A set of channels that shrinks everywhere or nowhere, or one branch of a residual addition.

    Attributes:
        name: the first layer that makes it; ``branch:<layer>`` for a branch.
        joined: for a branch, the space it is added into and which keeps its width.
        locked: why it may not be pruned; None where it may.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    locked: str | None = None
    joined: str | None = None


@dataclass(frozen=True)
class ChannelGraph:
    """Spaces and layers of one or several transforms.

    Attributes:
        spaces: by name, in execution order; branches follow the spaces of their transform.
        layers: by dotted name, in execution order.
        transforms: the paths that were traced.
        banks: which channels the columns of a table of steps belong to, by the dotted name of the parameter; only those
            whose channels the transforms make.
        state: "coupled" where the channels that transforms hand on to each other are spaces as well, else "locked".
    """

    spaces: dict[str, Space]
    layers: dict[str, LayerChannels]
    transforms: tuple[str, ...]
    banks: dict[str, ChannelMap] = field(default_factory=dict)
    state: str = LOCKED

    @classmethod
    def trace(
        cls, module: nn.Module, name_prefix: str = "", banks: Mapping[str, Bank] = MappingProxyType({})
    ) -> ChannelGraph:
        """Trace one transform. Its inputs and outputs are locked.

        Args:
            module: takes tensors ``[N, C, H, W]`` and gives such tensors.
            name_prefix: dotted path of `module` in its model; layer names start with it.
            banks: tables of steps by the argument that takes a row, ``[N, C, 1, 1]``.

        Raises:
            GraphError: the forward cannot be traced; the message names the module and the cause.
        """
        return _build([walk(module, name_prefix, banks)], (name_prefix,))

    @property
    def prunable(self) -> dict[str, Space]:
        return {name: space for name, space in self.spaces.items() if space.locked is None}

    def filter_positions(self, layer: str, space: str) -> Tensor:
        """``[C_out]`` which channel of `space`, one of those the layer makes, each filter of `layer` makes."""
        channels = self.layers[layer]
        return channels.branch_positions if space == channels.branch else channels.outputs.parts[0][1]

    def allowed(self, name: str, masks: Mapping[str, Tensor]) -> Tensor:
        """``[width]`` bool: what a mask of `name` may keep; for a branch, what its joined space keeps."""
        space = self.spaces[name]
        allowed = torch.ones(space.width, dtype=torch.bool)
        if space.joined in masks:
            outputs = self.layers[space.producers[0]].outputs
            allowed[self.layers[space.producers[0]].branch_positions] = outputs.keep(masks)
        return allowed

    def parts(self, name: str) -> list[Tensor]:
        """Channels of space `name` that one layer makes, where it makes some of them: each part must keep one."""
        space = self.spaces[name]
        made = (self.filter_positions(layer, name).unique() for layer in space.producers)
        return [positions for positions in made if len(positions) < space.width]

    def without_branches(self) -> ChannelGraph:
        """This graph with whole spaces alone to prune: no branch is narrower than the sum that it ends in."""
        spaces = {name: space for name, space in self.spaces.items() if space.joined is None}
        layers = {name: replace(layer, branch=None) for name, layer in self.layers.items()}
        return replace(self, spaces=spaces, layers=layers)

    @property
    def locks(self) -> str:
        """The spaces that may not be pruned, with width and reason: a phrase for messages."""
        found = [f"{s.name} ({s.width}: {s.locked})" for s in self.spaces.values() if s.locked is not None]
        return f"locked: {', '.join(found) or 'none'}"

    def report(self) -> str:
        """One line per space: width, who makes and who reads it, prunable or "locked, because ..."."""
        lines = []
        for space in self.spaces.values():
            state = "prunable" if space.locked is None else f"locked, because {space.locked}"
            if space.joined is not None:
                state += f" (free: scattered into {space.joined})"
            made, read = ", ".join(space.producers), ", ".join(space.consumers) or "-"
            lines.append(f"{space.name}: {space.width} channels, {state}\n  made by {made}\n  read by {read}")
        return "\n".join(lines)


def trace_model(model: nn.Module, paths: Sequence[str], state: str = LOCKED) -> ChannelGraph:
    """Trace several transforms of a model into one graph with the model's own layer names.

    Args:
        model: the codec.
        paths: dotted paths of the transforms, such as ``["dec", "hyper_dec"]``; none inside another.
        state: what becomes of the channels that transforms hand on to each other, within a frame or to the next one:
            "locked", they keep their width, or "coupled", as the model's ``wires`` say, see `wiring`.

    Raises:
        GraphError: a path does not exist or lies inside another, or a transform cannot be traced.
        UsageError: another `state`.
    """
    if state not in STATES:
        raise UsageError(f"state={state!r} (needs one of {', '.join(STATES)})")
    paths = with_stand_ins(model, paths) if state == COUPLED else tuple(paths)
    for path in paths:
        if any(other != path and path.startswith(other + ".") for other in paths) or paths.count(path) > 1:
            raise GraphError(f"transform {path!r} is listed twice or lies inside another one of {list(paths)}")
    modules = {}
    for path in paths:
        try:
            modules[path] = model.get_submodule(path)
        except AttributeError as error:
            children = ", ".join(name for name, _ in model.named_children())
            raise GraphError(f"{type(model).__name__} has no module {path!r}; it has {children}") from error
    if state == COUPLED and (wires := wires_of(model, paths)).ports:
        banks = {path: _banks(model, path) for path in paths}
        graph = _build(walk_coupled(modules, banks, wires), paths)
        return replace(_without_shared(graph, model), state=COUPLED)
    graphs = [ChannelGraph.trace(module, path, _banks(model, path)) for path, module in modules.items()]
    graph = ChannelGraph(
        {name: space for graph in graphs for name, space in graph.spaces.items()},
        {name: layer for graph in graphs for name, layer in graph.layers.items()},
        paths,
        {name: channels for graph in graphs for name, channels in graph.banks.items()},
    )
    return _without_shared(graph, model)


def _without_shared(graph: ChannelGraph, model: nn.Module) -> ChannelGraph:
    """The graph with the channels locked of layers whose weights several transforms have, each under its own name."""
    first: dict[int, str] = {}
    locked: dict[str, str] = {}
    for name, layer in graph.layers.items():
        for parameter in model.get_submodule(name).parameters(recurse=False):
            other = first.setdefault(id(parameter), name)
            if other != name:
                around = (graph.layers[other], layer)
                touched = {space for each in around for side in (each.inputs, each.outputs) for space in side.spaces()}
                touched |= {each.branch for each in around if each.branch}
                locked |= dict.fromkeys(touched, f"{other} and {name} share their weights")
    spaces = {name: replace(space, locked=space.locked or locked.get(name)) for name, space in graph.spaces.items()}
    return replace(graph, spaces=spaces)


def _banks(model: nn.Module, path: str) -> dict[str, Bank]:
    """Those of the transform at `path`, as the model that owns the tables names them.

    Its attribute ``banks`` maps ``"transform.argument"`` to the name of the parameter.
    """
    found = {}
    names = path.split(".")
    for depth in range(len(names)):
        owner, inside = ".".join(names[:depth]), ".".join(names[depth:])
        module = model.get_submodule(owner)
        for target, parameter in getattr(module, "banks", {}).items():
            transform, _, argument = target.rpartition(".")
            if transform == inside:
                name = f"{owner}.{parameter}" if owner else parameter
                found[argument] = Bank(name, module.get_parameter(parameter).shape[1])
    return found


# --- from atoms to spaces ---------------------------------------------------------------------------------------


def _build(walks: Sequence[Walk], paths: tuple[str, ...]) -> ChannelGraph:
    """The graph of walks that share a recorder."""
    rec = walks[0].recorder
    label = rec.classes()
    reasons: dict[int, str] = {}
    for atoms, reason in rec.locks:
        for atom in label[atoms]:
            reasons.setdefault(int(atom), reason)
    makers = [layer for layer in rec.layers.values() if layer.kind in MAKERS]
    members = _components([label[layer.outputs] for layer in makers])

    home: dict[int, tuple[str, int]] = {}  # class -> (space, position)
    spaces: dict[str, Space] = {}
    for group in members:
        name = makers[group[0]].name
        order = dict.fromkeys(int(atom) for i in group for atom in label[makers[i].outputs])
        home.update({atom: (name, position) for position, atom in enumerate(order)})
        locked = next((reasons[atom] for atom in order if atom in reasons), None)
        producers = tuple(makers[i].name for i in group)
        spaces[name] = Space(name, len(order), producers, (), locked)

    layers = {layer.name: _channels(layer, label, home) for layer in rec.layers.values()}
    for name, space in spaces.items():
        readers = tuple(layer.name for layer in layers.values() if name in layer.inputs.spaces())
        spaces[name] = replace(space, consumers=readers)
    for layer_name in (name for found in walks for name in found.branches):
        layer = layers[layer_name]
        if len(layer.outputs.parts) != 1:
            continue
        name = BRANCH + layer_name
        layers[layer_name] = replace(layer, branch=name)
        width = int(layer.branch_positions.max()) + 1
        joined = layer.outputs.parts[0][0]
        spaces[name] = Space(name, width, (layer_name,), spaces[joined].consumers, None, joined)
    banks = {
        name: _channel_map(atoms, label, home)
        for name, atoms in rec.banks.items()
        if all(int(label[atom]) in home for atom in atoms)
    }
    return ChannelGraph(spaces, layers, paths, banks)


def _components(groups: Sequence[np.ndarray]) -> list[list[int]]:
    """Indices of groups that share an element, directly or through others; each sorted, ordered by first index."""
    parent = list(range(len(groups)))

    def find(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    owner: dict[int, int] = {}
    for i, group in enumerate(groups):
        for atom in np.unique(group):
            j = owner.setdefault(int(atom), i)
            low, high = sorted((find(i), find(j)))
            parent[high] = low
    components: dict[int, list[int]] = {}
    for i in range(len(groups)):
        components.setdefault(find(i), []).append(i)
    return list(components.values())


def _channels(layer: LayerUse, label: np.ndarray, home: dict[int, tuple[str, int]]) -> LayerChannels:
    sides = [_channel_map(atoms, label, home) for atoms in (layer.inputs, layer.outputs)]
    return LayerChannels(layer.name, layer.kind, *sides, input_keeps_zero=layer.input_keeps_zero)


def _channel_map(atoms: Iterable[int], label: np.ndarray, home: dict[int, tuple[str, int]]) -> ChannelMap:
    parts: list[tuple[str | None, list[int]]] = []
    for atom in atoms:
        name, position = (None, 0) if atom == OPEN else home.get(int(label[atom]), (None, 0))
        if not parts or parts[-1][0] != name:
            parts.append((name, []))
        parts[-1][1].append(position)
    return ChannelMap(tuple((name, torch.tensor(positions)) for name, positions in parts))
