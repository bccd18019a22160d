"""What integers compute in steps of their own where floats have an epilogue: gates, second additions, strides."""

from __future__ import annotations

import torch.nn.functional as F

from sparsecodec.errors import GraphError
from sparsecodec.runtime.lowering import PLAIN, Program, Step

GATE = "integer_gate"
SUM = "sum"


def is_unshuffle(step: Step) -> bool:
    """Whether `split_downsampling` made it: the one step that is left to torch."""
    return step.op == PLAIN and step.function is F.pixel_unshuffle


def split_downsampling(program: Program) -> None:
    """A convolution of kernel = stride without padding -> a pixel unshuffle, then a 1x1; in place.

    Channel ``s^2 c + s i + j`` of the unshuffled tensor is what tap (i, j) of input channel c reads.
    """
    for step in list(program.steps):
        stride = step.constants.get("stride", 1)
        if step.op != "conv2d_act" or stride == 1:
            continue
        if step.constants["weight"].shape[-1] != stride or step.constants["padding"] != 0:
            continue  # refused later
        moved = Step(PLAIN, paths=step.paths, function=F.pixel_unshuffle, args=(step.inputs["x"], stride))
        program.steps.insert(program.steps.index(step), moved)
        step.inputs["x"] = moved
        step.op = "pointwise"
        step.constants = {name: value for name, value in step.constants.items() if name not in ("stride", "padding")}


def split_gates(program: Program) -> None:
    """A convolution with a gate -> the convolution, then the gate with its sum of chunks; in place."""
    for step in list(program.steps):
        if step.constants.get("activation") != "sigmoid_gate":
            continue
        if {"residual"} & step.inputs.keys() or {"out_index", "shuffle"} & step.constants.keys():
            raise GraphError(f"{', '.join(step.paths)}: a gate between a convolution and an addition or a shuffle")
        if step.constants.get("interleaved"):
            raise GraphError(f"{', '.join(step.paths)}: a sum of neighbouring channels has no rule for integers")
        chunks = step.constants.get("chunks", 1)
        kept = {k: v for k, v in step.constants.items() if k not in ("activation", "chunks", "interleaved")}
        conv = Step(step.op, step.inputs, kept, step.paths, function=step.function)
        result = Step(GATE, {"x": conv}, {"chunks": chunks}, step.paths)
        program.steps.insert(program.steps.index(step), conv)
        program.merge([step], result)


def split_additions(program: Program) -> None:
    """conv + a, then + b -> conv + (a + b): a convolution adds one tensor, what it adds is summed before; in place."""
    for step in list(program.steps):
        if step.op != "add":
            continue
        for conv, other in (tuple(step.inputs.values()), tuple(step.inputs.values())[::-1]):
            added = conv.inputs.get("residual")
            if added is None or program.only_user(conv) is not step or conv is other:
                continue
            total = Step(SUM, {"x": added, "residual": other}, {"width": conv.function.out_channels}, conv.paths)
            program.steps.insert(program.steps.index(conv), total)
            program.merge([conv, step], conv.joined(step, {"residual": total}))
            break
