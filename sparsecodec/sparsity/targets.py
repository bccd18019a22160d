"""How wide each channel space is to become: from the architecture of a student, or from a MAC reduction."""

from __future__ import annotations

import torch
from torch import nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.sparsity.channel_graph import ChannelGraph, trace_model
from sparsecodec.sparsity.compact import compact
from sparsecodec.sparsity.gating import magnitude_scores
from sparsecodec.sparsity.macs import MacReport, masks_for_macs
from sparsecodec.sparsity.masks import ChannelMasks


def student_targets(model: nn.Module, graph: ChannelGraph, student: nn.Module) -> dict[str, int]:
    """Widths that turn `model` into the architecture of `student`.

    Args:
        model: the wide codec.
        graph: its channel graph; what lies outside must be alike in both.
        student: a codec of the same family, narrower; its weights do not matter.

    Returns:
        Space -> width, for the spaces that shrink. With any masks of these widths, the state dict of ``compact(model,
        masks, graph)`` loads into `student`.

    Raises:
        GraphError: the student cannot be cut from `model`; the message names where they part.
        UsageError: it is as wide as `model` everywhere.
    """
    theirs = trace_model(student, graph.transforms)
    targets: dict[str, int] = {}
    for name, space in graph.spaces.items():
        if space.joined is not None:
            continue
        other = theirs.spaces.get(name)
        if other is None or other.producers != space.producers:
            raise _cannot(f"it has no space {name!r} made by {', '.join(space.producers)}")
        if other.width > space.width or (space.locked is not None and other.width != space.width):
            locked = f" and is locked, because {space.locked}" if space.locked is not None else ""
            raise _cannot(f"space {name!r} has {space.width} channels{locked}, the student's {other.width}")
        if other.width < space.width:
            targets[name] = other.width
    cut = model if not targets else compact(model, _any_masks(graph, targets), graph)
    ours, wanted = ({key: tuple(value.shape) for key, value in m.state_dict().items()} for m in (cut, student))
    for key in sorted(ours.keys() | wanted.keys()):
        if ours.get(key) != wanted.get(key):
            raise _cannot(f"{key} would be {ours.get(key, 'absent')} and is {wanted.get(key, 'absent')} in the student")
    if not targets:
        raise UsageError(f"the student is as wide as the model in every space of {list(graph.transforms)}")
    return targets


def uniform_targets(
    model: nn.Module, graph: ChannelGraph, report: MacReport, reduction: float, round_to: int = 1
) -> dict[str, int]:
    """Widths of one sparsity for all spaces that remove a fraction of the MACs.

    Args:
        model: the dense codec.
        graph: its channel graph; branches keep the width of what they are added into.
        report: MACs of everything that is to count, on the dense model.
        reduction: fraction of ``report.macs`` to remove, in (0, 1).
        round_to: widths become multiples of it.

    Returns:
        Space -> width, for the spaces that shrink.

    Raises:
        UsageError: no sparsity below 1 removes that much.
    """
    scores = {name: s for name, s in magnitude_scores(model, graph).items() if graph.spaces[name].joined is None}
    widths = masks_for_macs(report, graph, scores, reduction, round_to).widths
    return {name: kept for name, (kept, width) in widths.items() if kept < width}


def _any_masks(graph: ChannelGraph, targets: dict[str, int]) -> ChannelMasks:
    return ChannelMasks({name: torch.arange(graph.spaces[name].width) < kept for name, kept in targets.items()})


def _cannot(reason: str) -> GraphError:
    return GraphError(f"the student cannot be cut from the model: {reason}")
