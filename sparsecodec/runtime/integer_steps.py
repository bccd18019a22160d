"""What integers compute in steps of their own where floats have an epilogue, or a layer of torch's."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn

from sparsecodec.errors import GraphError
from sparsecodec.nn.fvc_layers import DeformableConv2d
from sparsecodec.runtime.gates import calls_sigmoid, multiplies
from sparsecodec.runtime.lowering import PLAIN, Program, Step
from sparsecodec.runtime.torch_steps import is_plane, max_pool2
from sparsecodec.sparsity.rules import is_quantized

GATE = "integer_gate"
SUM = "sum"
EXCITATION = "excitation"  # the factors of channels that follow from their means
SAMPLES = "integer_deform_columns"
FACTORS = "factors of taps"  # twice a sigmoid
FACTORS_EXPONENT = -11  # of what it reads: +- 16


def is_unshuffle(step: Step) -> bool:
    """Whether `split_downsampling` made it."""
    return step.op == PLAIN and step.function is F.pixel_unshuffle


def moves_only(step: Step) -> bool:
    """Whether a step takes integers from one place to another, so that all of its tensors have one exponent."""
    return is_unshuffle(step) or step.op == PLAIN and step.function in (torch.cat, max_pool2)


def same_integers(step: Step) -> list[Step]:
    """The tensors that a step's result has the exponent of."""
    if step.op == SAMPLES:
        return [step.inputs["x"]]
    return step.sources if step.op == GATE or moves_only(step) else []


def pools(program: Program, step: Step) -> None:
    """A max pooling of 2 x 2 -> one that knows integers."""
    layer = step.function
    if step.op == PLAIN and isinstance(layer, nn.MaxPool2d) and len(step.args) == 1:
        sizes = [getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")]
        if sizes == [2, 2, 0, 1] and not layer.ceil_mode and not layer.return_indices:
            step.function = max_pool2


def excitations(program: Program, step: Step) -> None:
    """x times a sigmoid of two layers of its channels' means -> factors (`EXCITATION`) and x `scale`d by them."""
    if not multiplies(step) or len(step.sources) != 2:
        return
    for x, factors in (step.args, step.args[::-1]):
        chain = _excitation(factors)
        if len(chain) != 6 or chain[-1].sources != [x]:
            continue
        if any(program.only_user(one) is not user for one, user in zip(chain, (step, *chain), strict=False)):
            continue
        _, _, up, _, down, _ = chain
        squeezed = Step(EXCITATION, {"x": x}, {"down": down.function, "up": up.function}, down.paths + up.paths)
        program.steps.insert(program.steps.index(step), squeezed)
        program.merge([*chain, step], Step("scale", {"x": x, "scale": squeezed}))
        return


def _excitation(step: Step) -> list[Step]:
    """getitem, sigmoid, linear, ReLU, linear, mean: as far as they are there."""
    tests = (
        lambda s: s.function is operator.getitem and s.args[1] == (slice(None), slice(None), None, None),
        lambda s: isinstance(s.function, nn.Sigmoid),
        lambda s: isinstance(s.function, nn.Linear) and is_quantized(s.function) and s.function.bias is None,
        lambda s: s.op == "activation" and s.constants.get("slope") == 0.0,
        lambda s: isinstance(s.function, nn.Linear) and is_quantized(s.function) and s.function.bias is None,
        lambda s: s.target == "mean" and len(s.args) == 2 and is_plane(s.args[1]) and not s.kwargs,
    )
    chain: list[Step] = []
    for test in tests:
        if not test(step):
            break
        chain.append(step)
        step = step.sources[0]
    return chain


def deformations(program: Program, step: Step) -> None:
    """A deformable convolution on integers -> what its taps read (`SAMPLES`), and a 1x1.

    Where taps are weighed, the layer of the offsets becomes two, one of them for the factors (`FACTORS`).
    """
    layer = step.function
    if step.op != PLAIN or not isinstance(layer, DeformableConv2d) or not is_quantized(layer) or step.kwargs:
        return
    x, moved, mask = (*step.args, None)[:3]
    weighing = [] if mask is None else _doubled_sigmoid(mask)
    parts = [moved, *weighing[-1:]]
    found = moved.sources[0]
    if (mask is not None and len(weighing) != 3) or any(_channels(part) is None for part in parts):
        return
    if found.op != "conv2d_act" or any(part.sources != [found] for part in parts):
        return
    absorbed = [moved, *weighing[::-1], step]
    if any(not set(program.users(one)) <= set(absorbed) for one in (found, *absorbed[:-1])):
        return
    halves = []
    for part in parts:
        constants = {**found.constants, "channels": _channels(part)}
        halves.append(Step(found.op, found.inputs, constants, found.paths, function=found.function))
    inputs = {"x": x, "offset": halves[0]}
    if mask is not None:
        inputs["mask"] = Step(FACTORS, {"x": halves[1]}, {"chunks": 1}, found.paths)
    samples = Step(SAMPLES, inputs, {}, step.paths)
    weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
    at = program.steps.index(step)
    program.steps[at:at] = [*halves, *([] if mask is None else [inputs["mask"]]), samples]
    constants = {"weight": weight, "bias": layer.bias}
    program.merge([found, *absorbed], Step("pointwise", {"x": samples}, constants, step.paths, function=layer))


def _channels(step: Step) -> tuple[int, int | None] | None:
    """Of which channels a step is all positions."""
    if step.op != PLAIN or step.function is not operator.getitem or len(step.args[1]) != 2:
        return None
    everything, channels = step.args[1]
    if everything != slice(None) or not isinstance(channels, slice) or channels.step is not None:
        return None
    return channels.start or 0, channels.stop


def _doubled_sigmoid(step: Step) -> list[Step]:
    """The product, the sigmoid and what that reads; empty: it is none."""
    if not multiplies(step) or 2 not in step.args or len(step.sources) != 1:
        return []
    (sigmoid,) = step.sources
    return [step, sigmoid, *sigmoid.sources] if calls_sigmoid(sigmoid) else []


def split_downsampling(program: Program) -> None:
    """A convolution of kernel = stride without padding -> a pixel unshuffle, then a 1x1; in place.

    Channel ``s^2 c + s i + j`` of the unshuffled tensor is what tap (i, j) of input channel c reads.
    """
    for step in list(program.steps):
        stride = step.constants.get("stride", 1)
        if step.op != "conv2d_act" or stride == 1:
            continue
        if step.constants["weight"].shape[-1] != stride or step.constants["padding"] != 0:
            continue
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
