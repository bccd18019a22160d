"""The channel algebra: which channel of which tensor is which, while a transform is walked through."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import nn

OPEN = -1
"""Stands in a channel array for a channel that no layer of this transform makes: it comes from outside and stays."""

UNKNOWN = object()
"""What a traced value that is no tensor of channels becomes: a size, an entry of a shape, a buffer of one element."""

MAKERS = ("conv", "conv_transpose", "deformable", "linear")
"""Kinds of layers whose outputs are channels of their own; those of other kinds are their inputs."""


@dataclass(frozen=True)
class Layout:
    """The channels of one tensor, in order.

    Attributes:
        parts: arrays ``[C_part]`` of atoms; ``None`` is a part of unknown width that comes from outside or from an
            operator without a rule, and is locked.
        keeps_zero: a masked channel is exactly zero in this tensor (false behind a sigmoid, an added constant, ...).
        pooled: the tensor is ``[N, C]``, a mean over space, and not ``[N, C, H, W]``.
    """

    parts: tuple[np.ndarray | None, ...]
    keeps_zero: bool = True
    pooled: bool = False

    @property
    def known(self) -> bool:
        return all(part is not None for part in self.parts)

    @property
    def outside(self) -> bool:
        """Nothing of it is known: it comes from outside, or from an operator without a rule."""
        return all(part is None for part in self.parts)

    @property
    def channels(self) -> np.ndarray:
        """All channels as one array; only for a layout that is known."""
        return np.concatenate(self.parts) if len(self.parts) != 1 else self.parts[0]


OUTSIDE = Layout((None,))


@dataclass
class LayerUse:
    """One layer with its channels as atoms ``[C_in]`` and ``[C_out]``; `OPEN` marks a channel from outside."""

    name: str
    kind: str
    module: nn.Module
    inputs: np.ndarray
    outputs: np.ndarray
    input_keeps_zero: bool


@dataclass
class Recorder:
    """Collects atoms (one per filter), the equalities between them, the locks, the layers, and the banks of steps."""

    prefix: str = ""
    count: int = 0
    edges: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    locks: list[tuple[np.ndarray, str]] = field(default_factory=list)
    layers: dict[str, LayerUse] = field(default_factory=dict)
    banks: dict[str, np.ndarray] = field(default_factory=dict)

    def new(self, n: int) -> np.ndarray:
        self.count += n
        return np.arange(self.count - n, self.count)

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Channel ``a[i]`` and channel ``b[i]`` are kept or dropped together; beside an `OPEN` one it is locked."""
        both = (a != OPEN) & (b != OPEN)
        self.edges.append((a[both], b[both]))
        lone = np.concatenate([a[(a != OPEN) & ~both], b[(b != OPEN) & ~both]])
        if len(lone):
            self.locks.append((lone, "it is joined with channels from outside"))

    def lock(self, layout: Layout, reason: str) -> Layout:
        for part in layout.parts:
            if part is not None:
                self.locks.append((part[part != OPEN], reason))
        return OUTSIDE

    def resolve(self, layout: Layout, width: int, reader: str) -> np.ndarray:
        """The ``[width]`` channels that a layer of known input width reads."""
        known = sum(len(part) for part in layout.parts if part is not None)
        unknown = sum(part is None for part in layout.parts)
        if (unknown == 0 and known != width) or unknown > 1 or known > width:
            self.lock(layout, f"{reader} reads a concatenation whose widths are not known")
            return np.full(width, OPEN)
        filled = (np.full(width - known, OPEN) if part is None else part for part in layout.parts)
        return np.concatenate(list(filled))

    def add_layer(self, name: str, kind: str, module: nn.Module, inputs: np.ndarray, outputs: np.ndarray, zero: bool):
        """Record a layer; a layer that is called again shares its rows and columns with its first call."""
        name = self.prefix + name
        first = self.layers.get(name)
        if first is None:
            self.layers[name] = LayerUse(name, kind, module, inputs, outputs, zero)
            return outputs
        self.join(first.inputs, inputs)
        first.input_keeps_zero &= zero
        if kind in MAKERS:
            return first.outputs
        return outputs

    def classes(self) -> np.ndarray:
        """``[count]`` smallest atom that each atom is equal to (connected components by label propagation)."""
        label = np.arange(self.count)
        if not self.edges:
            return label
        a = np.concatenate([edge[0] for edge in self.edges])
        b = np.concatenate([edge[1] for edge in self.edges])
        while True:
            low = np.minimum(label[a], label[b])
            new = label.copy()
            np.minimum.at(new, a, low)
            np.minimum.at(new, b, low)
            np.minimum.at(new, label[a], low)
            np.minimum.at(new, label[b], low)
            new = new[new]
            if np.array_equal(new, label):
                return label
            label = new
