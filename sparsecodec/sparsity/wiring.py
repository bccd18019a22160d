"""What transforms hand on to each other, within a frame or to the next one: wires, each of them one set of channels.

A model names them in its attribute ``wires``: a transform -> ``(reads, makes)``, a wire for each input and output. An
input that is a concatenation is a tuple of wires; None stands for what comes from elsewhere and keeps its width. What
lies on the way between transforms must keep channels apart and zeros zero, as a warp does. Its attribute ``stand_ins``
maps a transform that runs in the place of another at some frames to that other one: they are traced together.

Coupled, a wire is a channel space like any other: all that make or read it, at whatever frame, share one mask, so that
the state that one compact frame leaves fits the next. A wire with an end that is not traced is locked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from sparsecodec.sparsity.layout import OUTSIDE, Layout, Recorder
from sparsecodec.sparsity.tracing import Bank, Walk, walk

LOCKED, COUPLED = "locked", "coupled"
STATES = (LOCKED, COUPLED)


@dataclass(frozen=True)
class Ports:
    """The wires of a transform: those that each input concatenates, and that of each output."""

    reads: tuple[tuple[str | None, ...], ...] = ()
    makes: tuple[str | None, ...] = ()

    def names(self) -> set[str]:
        return {name for name in (*(n for wires in self.reads for n in wires), *self.makes) if name is not None}


@dataclass(frozen=True)
class Wires:
    """Of the transforms of a model.

    Attributes:
        ports: by the path of a transform.
        loose: by the name of a wire, the path of a transform that makes or reads it and is not traced.
    """

    ports: dict[str, Ports]
    loose: dict[str, str]


def with_stand_ins(model: nn.Module, paths: Sequence[str]) -> tuple[str, ...]:
    """`paths`, and in front of them the transforms that run in the place of one of them at some frames."""
    added = []
    for owner, module in model.named_modules():
        for stand_in, other in getattr(module, "stand_ins", {}).items():
            stand_in, other = (_under(owner, name) for name in (stand_in, other))
            if other in paths and stand_in not in paths:
                added.append(stand_in)
    return (*added, *paths)


def wires_of(model: nn.Module, paths: Sequence[str]) -> Wires:
    """The wires of the transforms at `paths`, as the models that own these name them."""
    ports, loose = {}, {}
    for owner, module in model.named_modules():
        for transform, (reads, makes) in getattr(module, "wires", {}).items():
            path = _under(owner, transform)
            inputs = tuple(wires if isinstance(wires, tuple) else (wires,) for wires in reads)
            named = Ports(
                tuple(tuple(_under(owner, name) for name in wires) for wires in inputs),
                tuple(_under(owner, name) for name in makes),
            )
            if path in paths:
                ports[path] = named
            else:
                loose |= dict.fromkeys(named.names(), path)
    return Wires(ports, loose)


def walk_coupled(modules: Mapping[str, nn.Module], banks: Mapping[str, Mapping[str, Bank]], wires: Wires) -> list[Walk]:
    """Walks through transforms that know of each other; all have one recorder.

    Args:
        modules: the transforms, by path.
        banks: by path, as for `walk`.
        wires: of the transforms.

    Raises:
        GraphError: as `walk`.
    """
    widths: dict[str, int] = {}
    for path, module in modules.items():  # a first time for the widths alone: wires may go in circles
        makes = wires.ports.get(path, Ports()).makes
        for name, layout in zip(makes, walk(module, path, banks[path]).results if makes else (), strict=True):
            if name is not None and layout.known:
                widths.setdefault(name, len(layout.channels))
    recorder = Recorder()
    atoms = {name: recorder.new(width) for name, width in widths.items()}
    for name, path in wires.loose.items():
        if name in atoms:
            recorder.lock(Layout((atoms[name],)), f"{path}, which is not traced, makes or reads it")
    walks = []
    for path, module in modules.items():
        ports = wires.ports.get(path, Ports())
        inputs = [Layout(tuple(atoms.get(name) for name in names)) for names in ports.reads] or [OUTSIDE]
        outputs: list[np.ndarray | None] = [atoms.get(name) for name in ports.makes]
        walks.append(walk(module, path, banks[path], recorder, inputs, outputs))
    return walks


def _under(owner: str, name: str | None) -> str | None:
    return name if name is None or not owner else f"{owner}.{name}"
