"""Multiply-accumulates and parameters, layer by layer, of modules and of masks that are not compacted yet."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.sparsity.channel_graph import ChannelGraph
from sparsecodec.sparsity.masks import ChannelMasks, best_channels
from sparsecodec.sparsity.rules import is_conv, is_deformable, is_depthwise, is_gdn
from sparsecodec.sparsity.scatter import ScatterConv2d


@dataclass(frozen=True)
class LayerMacs:
    """One layer: its multiply-accumulates per forward, its parameters, and its channels in and out."""

    name: str
    kind: str
    macs: int
    params: int
    channels: tuple[int, int]


@dataclass(frozen=True)
class MacReport:
    """Layers in execution order. Biases, activations and additions are not counted, as usual."""

    layers: tuple[LayerMacs, ...]

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def params(self) -> int:
        return sum(layer.params for layer in self.layers)

    def table(self, after: MacReport | None = None) -> str:
        """Aligned text, one row per layer and the sum; with `after`, its figures and what remains of each layer."""
        rows = [("layer", "kind", "MMAC", "kparams") + (("MMAC after", "kparams after", "left") if after else ())]
        later = {layer.name: layer for layer in after.layers} if after else {}
        total = LayerMacs("sum", "", self.macs, self.params, (0, 0))
        if after:
            later["sum"] = LayerMacs("sum", "", after.macs, after.params, (0, 0))
        for layer in (*self.layers, total):
            row = (layer.name, layer.kind, f"{layer.macs / 1e6:.2f}", f"{layer.params / 1e3:.1f}")
            if after:
                new = later.get(layer.name)
                macs, params = (new.macs, new.params) if new else (0, 0)
                row += (f"{macs / 1e6:.2f}", f"{params / 1e3:.1f}", f"{macs / max(layer.macs, 1):.1%}")
            rows.append(row)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = []
        for row in rows:
            cells = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
            lines.append("  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), *cells]))
        return "\n".join(lines)


def count(model: nn.Module, inputs: Mapping[str, Sequence[int] | Sequence[Sequence[int]]]) -> MacReport:
    """Count transforms of a model on given input shapes, without computing anything.

    Args:
        model: any module; not modified.
        inputs: dotted path of a transform (``""`` is the model itself) -> shape ``(N, C, H, W)`` of its one input, or
            the shapes of its inputs.

    Raises:
        UsageError: a layer does not accept the shape.
    """
    layers: list[LayerMacs] = []
    for path, shape in inputs.items():
        module = copy.deepcopy(model.get_submodule(path)).to("meta", torch.float32).eval()
        hooks = [
            layer.register_forward_hook(_recorder(layers, name)) for name, layer in _named_layers(module, path).items()
        ]
        try:
            with torch.no_grad():
                shapes = shape if isinstance(shape[0], Sequence) else (shape,)
                module(*(torch.empty(tuple(one), device="meta") for one in shapes))
        except RuntimeError as error:
            raise UsageError(
                f"{path or type(model).__name__} does not take an input {tuple(shape)}: {error}"
            ) from error
        for hook in hooks:
            hook.remove()
    return MacReport(tuple(layers))


def conv_macs(layer: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, output: Tensor) -> int:
    """Multiply-accumulates of a convolution that made `output` of `x`, both ``[N, C, H, W]`` or ``[C, H, W]``."""
    # every weight meets each position of the smaller side: the output, or a transposed convolution's input
    smaller = x if isinstance(layer, nn.ConvTranspose2d) else output
    return layer.weight.numel() * (smaller.numel() // smaller.shape[-3])


def masked_macs(report: MacReport, graph: ChannelGraph, masks: Mapping[str, Tensor]) -> int:
    """What `count` would give after compaction, from the dense report: each layer's MACs times kept in and out."""
    total = 0
    for layer in report.layers:
        channels = graph.layers.get(layer.name)
        if channels is None:
            total += layer.macs
            continue
        kept_in, kept_out = int(channels.inputs.keep(masks).sum()), int(channels.keep_outputs(masks).sum())
        full_in, full_out = len(channels.inputs), len(channels.outputs)
        if layer.kind == "depthwise":
            total += layer.macs * kept_out // full_out
        else:
            total += layer.macs * kept_in * kept_out // (full_in * full_out)
    return total


def masked_params(model: nn.Module, report: MacReport, graph: ChannelGraph, masks: Mapping[str, Tensor]) -> int:
    """What `count` would give as parameters after compaction, from the dense model and its report."""
    total = 0
    for layer in report.layers:
        channels = graph.layers.get(layer.name)
        if channels is None:
            total += layer.params
            continue
        module = model.get_submodule(layer.name)
        kept_in, kept_out = int(channels.inputs.keep(masks).sum()), int(channels.keep_outputs(masks).sum())
        if layer.kind == "gdn":
            total += kept_out + kept_out * kept_in
            continue
        read = 1 if layer.kind == "depthwise" else kept_in // getattr(module, "groups", 1)
        size = math.prod(module.weight.shape[2:]) * read * kept_out
        total += size + (kept_out if module.bias is not None else 0)
    return total


class MacShares:
    """MAC reduction as a differentiable function of the kept fraction of each space."""

    def __init__(self, graph: ChannelGraph, report: MacReport, names: list[str]) -> None:
        column = {name: i for i, name in enumerate(names)}
        n = len(report.layers)
        self.macs = torch.tensor([layer.macs for layer in report.layers], dtype=torch.float64)
        self.inputs = torch.zeros(n, len(names) + 1, dtype=torch.float64)  # last column: what always stays
        self.outputs = torch.zeros(n, len(names) + 1, dtype=torch.float64)
        self.branch = torch.full((n,), len(names))
        for i, counted in enumerate(report.layers):
            layer = graph.layers.get(counted.name)
            for side, table in (("inputs", self.inputs), ("outputs", self.outputs)):
                if layer is None or (layer.kind == "depthwise" and side == "inputs"):
                    table[i, -1] = 1
                    continue
                channels = getattr(layer, side)
                for name, positions in channels.parts:
                    table[i, column.get(name, len(names))] += len(positions) / len(channels)
            if layer is not None and layer.branch in column:
                self.branch[i] = column[layer.branch]

    def reduction(self, fractions: Tensor) -> Tensor:
        """Scalar float32; `fractions` is ``[U]`` kept fraction of each space."""
        fractions = torch.cat([fractions.double(), fractions.new_ones(1).double()])
        left = self.macs * (self.inputs @ fractions) * (self.outputs @ fractions) * fractions[self.branch]
        return (1 - left.sum() / self.macs.sum()).float()


def masks_for_macs(
    report: MacReport, graph: ChannelGraph, scores: Mapping[str, Tensor], reduction: float, round_to: int = 1
) -> ChannelMasks:
    """Masks of one sparsity for all spaces, the least one that removes at least `reduction` of the counted MACs.

    Args:
        report: of the dense model, over everything that is to be counted.
        graph: what may be pruned.
        scores: as for `ChannelMasks.from_scores`.
        reduction: fraction of ``report.macs`` to remove, in (0, 1).
        round_to: kept widths become multiples of it.

    Raises:
        UsageError: no sparsity below 1 removes that much.
    """

    def left(sparsity: float) -> float:
        return masked_macs(report, graph, best_channels(graph, scores, sparsity, round_to)) / report.macs

    low, high = 0.0, 1 - 1e-6
    if left(high) > 1 - reduction:
        raise UsageError(
            f"reduction={reduction}: at most {1 - left(high):.3f} of the MACs can be removed; {graph.locks}"
        )
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) <= 1 - reduction else (middle, high)
    return ChannelMasks.from_scores(graph, scores, high, round_to)


def _named_layers(module: nn.Module, path: str) -> dict[str, nn.Module]:
    """Counted layers by their dense name: the convolution inside a `ScatterConv2d` stands for its place."""
    scattered = {child.conv: name for name, child in module.named_modules() if isinstance(child, ScatterConv2d)}
    found = {}
    for name, child in module.named_modules():
        if is_conv(child) or is_gdn(child) or is_deformable(child) or isinstance(child, nn.Linear):
            found[".".join(part for part in (path, scattered.get(child, name)) if part)] = child
    return found


def _recorder(layers: list[LayerMacs], name: str):
    def record(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        params = sum(p.numel() for p in layer.parameters(recurse=False))
        if is_gdn(layer):
            c = len(layer.beta)
            layers.append(LayerMacs(name, "gdn", c * output.numel(), params, (c, c)))
        elif isinstance(layer, nn.Linear):
            channels = (layer.in_features, layer.out_features)
            layers.append(LayerMacs(name, "linear", layer.in_features * output.numel(), params, channels))
        elif is_deformable(layer):
            channels = (layer.weight.shape[1], layer.weight.shape[0])
            layers.append(LayerMacs(name, "deformable", layer.weight.numel() * output[:, 0].numel(), params, channels))
        else:
            transposed = isinstance(layer, nn.ConvTranspose2d)
            kind = "conv_transpose" if transposed else "depthwise" if is_depthwise(layer) else "conv"
            channels = (layer.in_channels, layer.out_channels)
            layers.append(LayerMacs(name, kind, conv_macs(layer, inputs[0], output), params, channels))

    return record
