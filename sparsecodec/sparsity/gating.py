"""Which parameters of which layers follow which channel: what all trained masks share.

The channels of several spaces form one flat vector, a section for each space. A value per channel becomes a gate for
each parameter that makes or carries the channel; a space that several layers make has one section, so it cannot drift
apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.sparsity.channel_graph import ChannelGraph, ChannelMap
from sparsecodec.sparsity.masks import filter_norms


@dataclass(frozen=True)
class GatedLayer:
    """A layer whose filters are gated: indices into the flat vector, one past its end for what is never gated.

    `rows` and `branch` are ``[C_out]``; `columns` is ``[C_in]`` for inputs that zeroed filters do not make zero, else
    ``[0]``. A `follower` (depthwise) reads zeros; only its bias is gated, so that gradient reaches the filters through
    it.
    """

    name: str
    rows: Tensor
    branch: Tensor
    columns: Tensor
    row_dim: int
    follower: bool


@dataclass(frozen=True)
class _Maker:
    """A layer that makes channels of a space; `share` is 1 / filters per channel, `place` the section of the space."""

    layer: str
    kind: str
    positions: Tensor
    share: Tensor
    place: slice


class Gating:
    """The flat vector of the channels of some spaces, and the parameters that it gates. All tables are on the CPU.

    Args:
        graph: the channel graph.
        names: spaces and branches of it, in the order of their sections.

    Attributes:
        size: length of the vector, W.
        offsets: where the section of each space begins.
        unit_of: ``[W]`` int64, which space each channel belongs to.
    """

    def __init__(self, graph: ChannelGraph, names: Sequence[str]) -> None:
        self.graph = graph
        self.names = list(names)
        self.widths = [graph.spaces[name].width for name in self.names]
        self.size = sum(self.widths)
        self.offsets = {name: sum(self.widths[:i]) for i, name in enumerate(self.names)}
        self.unit_of = torch.repeat_interleave(torch.arange(len(self.names)), torch.tensor(self.widths))
        self.layers = self._find_layers()
        self._rows, self._branches, self._columns = (
            torch.cat([getattr(layer, key) for layer in self.layers]) for key in ("rows", "branch", "columns")
        )
        self._makers = self._find_makers()

    def sections(self, flat: Tensor) -> dict[str, Tensor]:
        """``[W]`` -> views of its sections, by name."""
        return dict(zip(self.names, flat.split(self.widths), strict=True))

    def gates(self, model: nn.Module, values: Tensor) -> Iterator[tuple[str, str, Tensor]]:
        """What to multiply each parameter by: (layer, "weight" or "bias", gate that broadcasts to the parameter).

        Args:
            model: holds the layers.
            values: ``[W]`` bool or floating point, one value per channel; the gates have its dtype and device.
        """
        values = torch.cat([values, values.new_ones(1)])
        rows = values[self._rows.to(values.device)] * values[self._branches.to(values.device)]
        columns = values[self._columns.to(values.device)]
        parts = zip(
            self.layers,
            rows.split([len(layer.rows) for layer in self.layers]),
            columns.split([len(layer.columns) for layer in self.layers]),
            strict=True,
        )
        for layer, row, column in parts:
            if not layer.follower:
                dims = model.get_submodule(layer.name).weight.dim()
                gate = along(row, layer.row_dim, dims)
                if len(column):
                    gate = gate * along(column, 1 - layer.row_dim, dims)
                yield layer.name, "weight", gate
            if model.get_submodule(layer.name).bias is not None:
                yield layer.name, "bias", row

    def norms(self, model: nn.Module, p: float = 2.0) -> Tensor:
        """``[W]`` float32: L_p norm of the filters of each channel, differentiable in the filters.

        Filters that stand together within a layer (sub-pixel convolution) are averaged; several layers that make one
        channel (a residual join) are combined as the root of the sum of squares.
        """
        total = torch.zeros(self.size)
        for maker in self._makers:
            norms = filter_norms(model.get_submodule(maker.layer).weight, maker.kind, p)
            mean = torch.zeros_like(maker.share).index_add(0, maker.positions, norms.cpu()) * maker.share
            total[maker.place] += mean.square()
        return torch.where(total == 0, 1.0, total).sqrt() * (total != 0)  # the root's slope at 0 is infinite

    def _find_layers(self) -> list[GatedLayer]:
        found = []
        for layer in self.graph.layers.values():
            if layer.kind == "gdn":
                continue
            rows = self.flat(layer.outputs)
            branch = torch.full_like(rows, self.size)
            if layer.branch in self.offsets:
                branch = layer.branch_positions + self.offsets[layer.branch]
            columns = rows.new_empty(0)
            if not layer.input_keeps_zero and layer.kind != "depthwise":
                columns = self.flat(layer.inputs)
            if any((index < self.size).any() for index in (rows, branch, columns)):
                follower = layer.kind == "depthwise" and layer.input_keeps_zero
                row_dim = 1 if layer.kind == "conv_transpose" else 0
                found.append(GatedLayer(layer.name, rows, branch, columns, row_dim, follower))
        return found

    def _find_makers(self) -> list[_Maker]:
        makers = []
        for name in self.names:
            space = self.graph.spaces[name]
            for layer in space.producers:
                positions = self.graph.filter_positions(layer, name)
                share = 1 / torch.bincount(positions, minlength=space.width).clamp(min=1)
                place = slice(self.offsets[name], self.offsets[name] + space.width)
                makers.append(_Maker(layer, self.graph.layers[layer].kind, positions, share, place))
        return makers

    def flat(self, channels: ChannelMap) -> Tensor:
        pieces = [
            positions + self.offsets[name] if name in self.offsets else torch.full_like(positions, self.size)
            for name, positions in channels.parts
        ]
        return torch.cat(pieces)


@torch.no_grad()
def magnitude_scores(model: nn.Module, graph: ChannelGraph, p: float = 2.0) -> dict[str, Tensor]:
    """``[width]`` float32 per prunable space and branch: `Gating.norms` of the model as it is."""
    if not graph.prunable:
        return {}
    gating = Gating(graph, list(graph.prunable))
    return gating.sections(gating.norms(model, p))


def along(values: Tensor, dim: int, dims: int) -> Tensor:
    """``[C]`` as a view with `dims` dimensions, all of size 1 but `dim`."""
    return values.view([-1 if d == dim else 1 for d in range(dims)])


@contextlib.contextmanager
def replaced(model: nn.Module, tensors: Iterable[tuple[str, str, Tensor]]) -> Iterator[None]:
    """Within the context layers of `model` compute with other tensors than their parameters.

    Args:
        model: not changed in the end, also not by an exception.
        tensors: (layer, parameter, tensor in its place); may be made from the parameter while it is read.
    """
    kept: list[tuple[dict[str, Any], str, nn.Parameter]] = []
    try:
        for name, key, tensor in tensors:
            parameters = model.get_submodule(name)._parameters
            kept.append((parameters, key, parameters[key]))
            parameters[key] = tensor
        yield
    finally:
        for parameters, key, original in kept:
            parameters[key] = original
