"""From masks to smaller layers: `apply_masks` makes zeros, `compact` removes the channels; the output is the same."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.sparsity.channel_graph import ChannelGraph, LayerChannels, trace_model
from sparsecodec.sparsity.gating import along
from sparsecodec.sparsity.masks import ChannelMasks
from sparsecodec.sparsity.scatter import ScatterConv2d
from sparsecodec.sparsity.wiring import LOCKED

CONFIG_FORMAT = 1


def apply_masks(model: nn.Module, masks: ChannelMasks, graph: ChannelGraph) -> nn.Module:
    """A copy of `model` in which every masked channel is zero where it is read.

    Filters and biases of the masked channels become zero, in every layer that makes or carries them; where an operator
    in between does not keep zeros (a sigmoid), the reader's weights for the channel become zero too.

    Args:
        model: the model that `graph` was traced from; not modified.
        masks: which channels stay.
        graph: its channel graph.

    Raises:
        GraphError, UsageError: the masks do not fit, or prune nothing; see `ChannelMasks.validate`.
    """
    masks.validate(graph)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for tensor, keep in _zeroed(model, masks, graph):
            tensor.mul_(keep)
    return model


@contextlib.contextmanager
def masked(model: nn.Module, masks: ChannelMasks, graph: ChannelGraph) -> Iterator[None]:
    """Within the block `model` itself is what `apply_masks` gives; behind it its weights are the old ones, bit for bit.

    Only the layers that the masks touch are stored meanwhile, so that trying many masks costs no copies of the model.

    Args:
        model: the model that `graph` was traced from.
        masks: which channels stay.
        graph: its channel graph.

    Raises:
        GraphError, UsageError: the masks do not fit, or prune nothing; see `ChannelMasks.validate`.
    """
    masks.validate(graph)
    before: dict[int, tuple[Tensor, Tensor]] = {}
    try:
        with torch.no_grad():
            for tensor, keep in _zeroed(model, masks, graph):
                before.setdefault(id(tensor), (tensor, tensor.clone()))
                tensor.mul_(keep)
        yield
    finally:
        with torch.no_grad():
            for tensor, value in before.values():
                tensor.copy_(value)


def compact(model: nn.Module, masks: ChannelMasks, graph: ChannelGraph) -> nn.Module:
    """A copy of `model` without the masked channels: the same output as `apply_masks`, from smaller layers.

    Every class and attribute name stays, so the model's own forward, its compress and its state-dict keys work as
    before. Only the last convolution of a branch that is pruned alone is wrapped in a `ScatterConv2d`.

    Args:
        model: the model that `graph` was traced from; not modified.
        masks: which channels stay.
        graph: its channel graph.

    Raises:
        GraphError, UsageError: the masks do not fit, or prune nothing; see `ChannelMasks.validate`.
    """
    masks.validate(graph)
    model = copy.deepcopy(model)
    for layer in graph.layers.values():
        module = model.get_submodule(layer.name)
        module.dense_channels = (len(layer.inputs), len(layer.outputs))  # for reports; not in the state dict
        if layer.kind == "gdn":
            _shrink_gdn(module, layer.inputs.keep(masks))
            continue
        keep, full = layer.keep_outputs(masks), layer.outputs.keep(masks)
        _shrink_layer(module, layer, layer.inputs.keep(masks), keep)
        if not torch.equal(keep, full):
            out_index = (full.cumsum(0) - 1)[keep]
            scattered = ScatterConv2d(module, out_index, int(full.sum())).train(module.training)
            parent, _, name = layer.name.rpartition(".")
            setattr(model.get_submodule(parent), name, scattered)
    for name, channels in graph.banks.items():
        if not (keep := channels.keep(masks)).all():
            owner, _, parameter = name.rpartition(".")
            _replace(model.get_submodule(owner), parameter, ((1, keep),))
    return model


def compact_config(masks: ChannelMasks, graph: ChannelGraph) -> dict[str, Any]:
    """What `apply_compact_config` needs beside the dense architecture to rebuild the compact one; JSON-able."""
    return {
        "format": CONFIG_FORMAT,
        "transforms": list(graph.transforms),
        "state": graph.state,
        "kept": masks.to_json(),
    }


def apply_compact_config(dense: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """The compact model of a `compact_config`, with the dense model's weights; a compact state dict loads into it.

    Args:
        dense: the dense architecture, with any weights; not modified.
        config: from `compact_config`; or several of them under ``stages``, each of what those before it leave.

    Raises:
        UsageError: the configuration is of another format.
        GraphError: it belongs to another architecture.
    """
    for stage in config.get("stages", [config]):
        if stage.get("format") != CONFIG_FORMAT or "transforms" not in stage or "kept" not in stage:
            raise UsageError(f"compact configuration has format {stage.get('format')!r} (needs {CONFIG_FORMAT})")
        graph = trace_model(dense, stage["transforms"], stage.get("state", LOCKED))
        dense = compact(dense, ChannelMasks.from_json(stage["kept"]), graph)
    return dense


def _zeroed(model: nn.Module, masks: ChannelMasks, graph: ChannelGraph) -> Iterator[tuple[Tensor, Tensor]]:
    """(weight or bias, bool that broadcasts over it, True = keep) of everything that masks change."""
    for layer in graph.layers.values():
        if layer.kind == "gdn":
            continue
        module = model.get_submodule(layer.name)
        device = module.weight.device
        out_dim, in_dim = (1, 0) if layer.kind == "conv_transpose" else (0, 1)
        keep = layer.keep_outputs(masks).to(device)
        if not keep.all():
            yield module.weight, along(keep, out_dim, module.weight.dim())
            if module.bias is not None:
                yield module.bias, keep
        if not layer.input_keeps_zero and layer.kind != "depthwise":
            read = layer.inputs.keep(masks).to(device)
            if not read.all():
                yield module.weight, along(read, in_dim, module.weight.dim())


def _shrink_layer(module: nn.Module, layer: LayerChannels, keep_in: Tensor, keep_out: Tensor) -> None:
    if keep_in.all() and keep_out.all():
        return
    if layer.kind == "depthwise":
        slices = ((0, keep_out),)
        module.groups = int(keep_out.sum())
    else:
        slices = ((1, keep_out), (0, keep_in)) if layer.kind == "conv_transpose" else ((0, keep_out), (1, keep_in))
    shape = module.weight.shape
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if tensor.shape == shape:  # the weight, and buffers that mask it (autoregressive convolutions)
            _replace(module, name, slices)
    if module.bias is not None:
        _replace(module, "bias", ((0, keep_out),))
    names = ("in_features", "out_features") if layer.kind == "linear" else ("in_channels", "out_channels")
    for name, keep in zip(names, (keep_in, keep_out), strict=True):
        if hasattr(module, name):
            setattr(module, name, int(keep.sum()))


def _shrink_gdn(module: nn.Module, keep: Tensor) -> None:
    if not keep.all():
        _replace(module, "beta", ((0, keep),))
        _replace(module, "gamma", ((0, keep), (1, keep)))


def _replace(module: nn.Module, name: str, slices: tuple[tuple[int, Tensor], ...]) -> None:
    old = getattr(module, name)
    new = old.detach()
    for dim, keep in slices:
        new = new.index_select(dim, keep.nonzero().flatten().to(new.device))
    if new.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous():
        new = new.contiguous(memory_format=torch.channels_last)
    setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
