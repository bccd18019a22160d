"""Measured milliseconds of the blocks of a transform at the widths that a plan would leave: nothing is interpolated.

A block is what a compiler fuses at most: a child of a sequential transform with the activations behind it, or else the
whole transform. Two blocks with the same layers at the same kept widths and picture size are one entry of the table.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from sparsecodec._files import replacing, writing
from sparsecodec.errors import UsageError
from sparsecodec.sparsity.channel_graph import ChannelGraph
from sparsecodec.sparsity.compact import compact
from sparsecodec.sparsity.masks import ChannelMasks
from sparsecodec.sparsity.plans import Cost
from sparsecodec.sparsity.rules import is_conv, is_gdn
from sparsecodec.sparsity.scatter import ScatterConv2d

FORMAT = 1


@dataclass(frozen=True)
class Block:
    """A block with the input shape ``(N, C, H, W)`` it has in its transform; equal keys take equally long.

    Attributes:
        transform: path of the transform in the model, which decides its precision.
    """

    key: str
    transform: str
    module: nn.Module
    shape: tuple[int, ...]


class Timer(Protocol):
    """Measures blocks on one device.

    Attributes:
        device: everything that its figures depend on: device, precisions, threads.
    """

    device: str

    def __call__(self, blocks: Sequence[Block]) -> list[float]:
        """Milliseconds of one forward of each block, from interleaved runs after a warm-up."""
        ...


_timer: ContextVar[Callable[[nn.Module, torch.device], Timer] | None] = ContextVar("sparsecodec_timer", default=None)


@contextmanager
def timed_by(make: Callable[[nn.Module, torch.device], Timer]) -> Iterator[None]:
    """Within the block `timer_for` gives ``make(model, device)``; the command line times what compiled codecs run."""
    token = _timer.set(make)
    try:
        yield
    finally:
        _timer.reset(token)


def timer_for(model: nn.Module, device: torch.device) -> Timer:
    """The timer for blocks of `model`.

    Raises:
        UsageError: there is none.
    """
    make = _timer.get()
    if make is None:
        raise UsageError("a target in ms needs a timer: use the command line, or sparsity.latency.timed_by")
    return make(model, device)


class LatencyTable:
    """Milliseconds by block, measured when they are first asked for.

    Args:
        timer: for what is missing.
        path: JSON file that holds the table between runs; written after every measurement.

    Raises:
        UsageError: the file cannot be read, is something else, or was measured on another device.
    """

    def __init__(self, timer: Timer, path: str | os.PathLike[str] | None = None) -> None:
        self.timer = timer
        self.path = None if path is None else Path(path)
        self.entries: dict[str, float] = {}
        if self.path is not None and self.path.exists():
            self.entries = self._read(self.path)

    def ms(self, blocks: Sequence[Block]) -> float:
        """The sum over `blocks`; those that the table lacks are measured, all of them in one session."""
        missing = {block.key: block for block in blocks if block.key not in self.entries}
        if missing:
            for key, ms in zip(missing, self.timer(list(missing.values())), strict=True):
                self.entries[key] = ms
            self._write()
        return sum(self.entries[block.key] for block in blocks)

    def _read(self, path: Path) -> dict[str, float]:
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']!r}, not {FORMAT}")
            device, entries = str(data["device"]), {str(key): float(ms) for key, ms in data["ms"].items()}
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"latency table {path} cannot be read: {error}") from error
        if device != self.timer.device:
            raise UsageError(f"latency table {path} was measured on {device}, not on {self.timer.device}")
        return entries

    def _write(self) -> None:
        if self.path is None:
            return
        text = json.dumps({"format": FORMAT, "device": self.timer.device, "ms": self.entries}, indent=1)
        with writing(self.path), replacing(self.path) as partial:
            partial.write_text(text)


def latency_cost(
    model: nn.Module, graph: ChannelGraph, table: LatencyTable, inputs: Mapping[str, Sequence[int]]
) -> Cost:
    """Milliseconds of some transforms of the compacted model, one after the other.

    Args:
        model: dense; not modified.
        graph: of what may be pruned.
        table: of the device.
        inputs: as for `blocks_of`; `graph` need not cover all of them.
    """
    parts = [_Part(model, graph, table, path, shape) for path, shape in inputs.items()]
    return Cost("ms", lambda masks: sum(part.ms(masks) for part in parts), table.timer.device)


class _Part:
    """One transform of a model without the rest of it, and its milliseconds by the widths that masks leave."""

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, table: LatencyTable, path: str, shape: Sequence[int]
    ) -> None:
        self.table = table
        self.inputs = {path: shape}
        self.model = _alone(model, path)
        within = {name: layer for name, layer in graph.layers.items() if not path or name.startswith(path + ".")}
        spaces = {name: space for name, space in graph.spaces.items() if space.producers[0] in within}
        self.graph = ChannelGraph(spaces, within, (path,))
        self.known: dict[tuple[tuple[str, int], ...], float] = {}

    def ms(self, masks: Mapping[str, Tensor]) -> float:
        mine = {name: mask for name, mask in masks.items() if name in self.graph.spaces and not mask.all()}
        widths = tuple(sorted((name, int(mask.sum())) for name, mask in mine.items()))
        if widths not in self.known:
            small = compact(self.model, ChannelMasks(mine), self.graph) if mine else self.model
            self.known[widths] = self.table.ms(blocks_of(small, self.inputs))
        return self.known[widths]


def _alone(model: nn.Module, path: str) -> nn.Module:
    """A module that holds nothing but ``model.<path>``, under that path."""
    if not path:
        return model
    alone = holder = nn.Module()
    *outer, last = path.split(".")
    for name in outer:
        holder.add_module(name, nn.Module())
        holder = holder.get_submodule(name)
    holder.add_module(last, model.get_submodule(path))
    return alone


def blocks_of(model: nn.Module, inputs: Mapping[str, Sequence[int]]) -> list[Block]:
    """Blocks of transforms in order of execution.

    Args:
        model: dense or compact; the blocks hold its layers.
        inputs: dotted path of a transform -> shape ``(N, C, H, W)`` of its one input.

    Raises:
        UsageError: a transform does not take its shape.
    """
    blocks = []
    for path, shape in inputs.items():
        if not all(isinstance(side, int) for side in shape):
            raise UsageError(f"{path} has {len(shape)} inputs: only transforms of one input can be timed")
        units = _units(model.get_submodule(path))
        try:
            shapes = _input_shapes(units, shape)
        except RuntimeError as error:
            raise UsageError(f"{path} does not take an input {tuple(shape)}: {error}") from error
        for unit, taken in zip(units, shapes, strict=True):
            blocks.append(Block(f"{path} {_structure(unit, taken)}", path, unit, taken))
    return blocks


def _units(transform: nn.Module) -> list[nn.Module]:
    if not isinstance(transform, nn.Sequential):
        return [transform]
    runs: list[list[nn.Module]] = []
    for child in transform:
        if runs and not any(map(_is_layer, child.modules())):
            runs[-1].append(child)  # an activation or a reshaping: it is fused into what is before it
        else:
            runs.append([child])
    return [run[0] if len(run) == 1 else nn.Sequential(*run) for run in runs]


def _input_shapes(units: Sequence[nn.Module], shape: Sequence[int]) -> list[tuple[int, ...]]:
    x = torch.empty(tuple(shape), device="meta")
    shapes = []
    for unit in units:
        shapes.append(tuple(x.shape))
        with torch.no_grad():
            x = copy.deepcopy(unit).to("meta", torch.float32).eval()(x)
    return shapes


def _is_layer(module: nn.Module) -> bool:
    return is_conv(module) or is_gdn(module)


def _structure(unit: nn.Module, shape: Sequence[int]) -> str:
    """What the time of a block depends on: its classes, and per layer kernel, stride and channels."""
    words = [f"{type(unit).__name__} {'x'.join(map(str, shape))}:"]
    for module in unit.modules():
        if isinstance(module, ScatterConv2d):
            words.append(f"into {module.out_channels}")
        elif is_conv(module):
            kernel, stride = "x".join(map(str, module.kernel_size)), "x".join(map(str, module.stride))
            groups = f" in {module.groups}" if module.groups > 1 else ""
            kind = type(module).__name__
            words.append(f"{kind} {kernel}/{stride} {module.in_channels}>{module.out_channels}{groups}")
        elif isinstance(module, nn.Linear):
            words.append(f"Linear {module.in_features}>{module.out_features}")
        elif is_gdn(module):
            words.append(f"{type(module).__name__} {len(module.beta)}")
        elif not list(module.children()):
            words.append(type(module).__name__)
    return ", ".join(words).replace(":,", ":")
