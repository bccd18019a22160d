"""Patterns: which neighbouring steps become one call.

They match what layers do (conv, activation, depthwise, conv, add), so every codec's classes compile alike.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sparsecodec.ops._epilogue import scale_channels
from sparsecodec.runtime.gates import Gate, apply, chunk_sum, gate, piece, scale, shortcut, two_slopes
from sparsecodec.runtime.lowering import CONVOLUTIONS, PLAIN, Program, Step
from sparsecodec.runtime.torch_steps import plane_means


def fuse(program: Program, head: dict[str, Any] | None = None) -> Program:
    """Applies all patterns to `program`, in place, and returns it. What stays unfused becomes a plain torch step.

    Args:
        program: from `lower`.
        head: the constants that make a `prior_head` of the last 1x1; then the program returns table indexes and means,
            if it ends in one (`ends_in_head`).
    """
    apply(program, gate)
    fuse_neighbours(program)
    if head is not None:
        _prior_head(program, head)
    for pattern in (_depth_conv_block, _half_block, shortcut, scale, plane_means, _plain):
        apply(program, pattern)
    return program


def fuse_neighbours(program: Program) -> None:
    """Convolutions take up the activation, the pixel shuffle and the addition that follow them; in place."""
    for pattern in (_activation, chunk_sum, _pixel_shuffle, _activation, _residual):
        apply(program, pattern)


def ends_in_head(program: Program) -> bool:
    """Whether `program` returns table indexes and means."""
    return program.output.op == "prior_head"


def _prior_head(program: Program, head: dict[str, Any]) -> None:
    """The last 1x1 of a network of entropy parameters -> indexes and means."""
    last = program.output
    if last.op == "pointwise" and not {"out_index", "shuffle", "chunks"} & last.constants.keys():
        program.merge([last], Step("prior_head", last.inputs, {**last.constants, **head}, last.paths))


def _activation(program: Program, step: Step) -> None:
    """conv, activation -> conv with an epilogue. Also behind a pixel shuffle, which commutes with it."""
    if step.op != "activation":
        return
    conv = step.inputs["x"]
    if conv.op not in (*CONVOLUTIONS, "depthwise") or program.only_user(conv) is not step:
        return
    if "activation" not in conv.constants:
        program.merge([conv, step], conv.joined(step, **{"activation": "leaky_relu", **step.constants}))


def _pixel_shuffle(program: Program, step: Step) -> None:
    """conv, pixel shuffle -> conv that writes shuffled."""
    if step.op != "pixel_shuffle":
        return
    conv = step.inputs["x"]
    if conv.op in ("pointwise", "conv2d_act") and program.only_user(conv) is step and "out_index" not in conv.constants:
        program.merge([conv, step], conv.joined(step, shuffle=step.constants["shuffle"]))


def _residual(program: Program, step: Step) -> None:
    """conv, add -> conv that adds on its way out, scattering its kept channels if it was pruned alone."""
    if step.op != "add":
        return

    def fits(operand: Step) -> bool:
        return (
            operand.op in ("pointwise", "conv2d_act")
            and program.only_user(operand) is step
            and "residual" not in operand.inputs
            and step.inputs["x"] is not step.inputs["residual"]
            and _same_shape(program, *step.inputs.values())
        )

    # Of a block and its skip, the block's last convolution adds: it is the deeper one.
    depth: dict[Step, int] = {}
    for other in program.steps:
        depth[other] = 1 + max((depth[source] for source in other.sources), default=0)
    operands = sorted(
        filter(fits, step.inputs.values()),
        key=lambda operand: ("out_index" in operand.constants, depth[operand], program.steps.index(operand)),
    )
    if not operands:
        return
    conv = operands[-1]
    (other,) = (operand for operand in step.inputs.values() if operand is not conv)
    program.merge([conv, step], conv.joined(step, {"residual": other}))


def _same_shape(program: Program, a: Step, b: Step) -> bool:
    """Whether the two results have one shape for every input; an addition may also broadcast."""
    width = width_of(program, a)
    return width is not None and width == width_of(program, b) and _extent(a) == _extent(b)


def width_of(program: Program, step: Step) -> int | None:
    """Number of channels, None if unknown."""
    if "weight" in step.constants:
        if "out_index" in step.constants:
            return step.function.out_channels
        channels = step.constants["weight"].shape[1 if step.op == "conv_transpose2d_act" else 0]
        return channels // (step.constants.get("shuffle", 1) ** 2 * step.constants.get("chunks", 1))
    if step.op in ("activation", "gdn", "scale"):
        return width_of(program, step.inputs["x"])
    if step.op == "add":
        widths = {width_of(program, operand) for operand in step.inputs.values()}
        if len(widths) == 1 and None not in widths:
            return widths.pop()
    return _width_as_read(program, step)


def _width_as_read(program: Program, step: Step) -> int | None:
    """Number of channels by who reads them, maybe behind an activation; None if unknown."""
    for user in program.users(step):
        width = None
        if user.inputs.get("x") is step and user.op in CONVOLUTIONS:
            width = user.constants["weight"].shape[0 if user.op == "conv_transpose2d_act" else 1]
        elif user.op == "activation":
            width = _width_as_read(program, user)
        if width is not None:
            return width
    return None


def _extent(step: Step) -> tuple:
    """Height and width as a chain: where they come from, then ``(up or down, factor, what it starts from)`` each."""
    if part := piece(step):  # some of its channels
        return _extent(part[0])
    if step.op not in (*CONVOLUTIONS, "depthwise", "activation", "gdn", "scale", "add"):
        return (step,)
    before, constants = _extent(step.inputs["x"]), step.constants
    if step.op == "add":
        return before if before == _extent(step.inputs["residual"]) else (step,)
    if step.op in ("depthwise", "activation", "gdn", "scale"):
        return before
    stride, reach = constants.get("stride", 1), constants["weight"].shape[-1] if step.op != "pointwise" else 1
    reach -= 2 * constants.get("padding", 0)
    if step.op == "conv_transpose2d_act":
        before += (("up", stride, reach + constants["output_padding"]),)
    elif (stride, reach) != (1, 1):
        before += (("down", stride, reach),)
    shuffle = constants.get("shuffle", 1)
    return before if shuffle == 1 else (*before, ("up", shuffle, shuffle))


def _slope(step: Step) -> float:
    """1 = no activation, 0 = ReLU."""
    return step.constants.get("slope", 1.0)


def _gated(step: Step) -> bool:
    return step.constants.get("activation") == "sigmoid_gate"


@dataclass
class _Half:
    """1x1, depthwise, 1x1 + skip, with or without an adaptor in the skip."""

    x: Step
    steps: list[Step]  # in order, then the adaptor
    constants: dict[str, Any]
    slopes: tuple[float, float, float]
    gated: bool  # after the first product


def _half_before(program: Program, middle: Step) -> _Half | None:
    """The half block that ends in `middle`, if it does."""
    if middle.op != "pointwise" or "residual" not in middle.inputs:
        return None
    depthwise = middle.inputs["x"]
    if depthwise.op != "depthwise" or depthwise.inputs["x"].op != "pointwise":
        return None
    first, skip = depthwise.inputs["x"], middle.inputs["residual"]
    x, inner, adaptor = first.inputs["x"], [first, depthwise], None
    if skip is not x:
        adaptor = skip
        plain_adaptor = skip.op == "pointwise" and skip.inputs == {"x": x} and set(skip.constants) == {"weight", "bias"}
        if not plain_adaptor or program.only_user(skip) is not middle:
            return None
        inner.append(skip)
    if any("residual" in step.inputs or "out_index" in step.constants for step in inner):
        return None
    if any({"shuffle", "chunks"} & step.constants.keys() for step in (*inner, middle)):
        return None
    if any(map(_gated, (depthwise, middle))):
        return None
    if not all(program.only_user(step) is not None for step in inner):
        return None
    constants = {
        "w1": first.constants["weight"],
        "b1": first.constants["bias"],
        "dw": depthwise.constants["weight"],
        "db": depthwise.constants["bias"],
        "w2": middle.constants["weight"],
        "b2": middle.constants["bias"],
        "adaptor": adaptor.constants["weight"] if adaptor else None,
        "adaptor_bias": adaptor.constants["bias"] if adaptor else None,
        "out2_index": middle.constants.get("out_index"),
    }
    steps = [first, depthwise, middle, *([adaptor] if adaptor else [])]
    return _Half(x, steps, constants, tuple(map(_slope, (first, depthwise, middle))), _gated(first))


def _depth_conv_block(program: Program, last: Step) -> None:
    """1x1, depthwise, 1x1 + skip, then 1x1, 1x1 + skip -> one block."""
    if last.op != "pointwise" or "residual" not in last.inputs:
        return
    ffn_in, inside = last.inputs["x"], [last.inputs["x"]]
    if program.only_user(ffn_in) is None:
        return
    reader, rest = ffn_in, None
    if sloped := two_slopes(program, ffn_in):
        ffn_in, rest, inside = sloped
        reader = inside[0]
    if ffn_in.op != "pointwise":
        return
    middle = last.inputs["residual"]
    half = _half_before(program, middle) if ffn_in.inputs["x"] is middle else None
    if half is None or middle is program.output:
        return
    if "residual" in ffn_in.inputs or {"out_index", "shuffle"} & ffn_in.constants.keys():
        return
    if {"shuffle", "chunks"} & last.constants.keys() or _gated(last) or _gated(ffn_in) != half.gated:
        return
    if set(program.users(middle)) != {reader, last}:
        return
    constants = {
        **half.constants,
        "w3": ffn_in.constants["weight"],
        "b3": ffn_in.constants["bias"],
        "w4": last.constants["weight"],
        "b4": last.constants["bias"],
        "out4_index": last.constants.get("out_index"),
        "slopes": (*half.slopes, _slope(ffn_in), _slope(last), *(() if rest is None else (rest,))),
        "gated": half.gated,
        **{name: ffn_in.constants[name] for name in ("chunks", "interleaved") if name in ffn_in.constants},
    }
    paths = tuple(path for step in (*half.steps[:3], ffn_in, last, *half.steps[3:]) for path in step.paths)
    absorbed = [*half.steps[:3], *inside, last, *half.steps[3:]]
    program.merge(absorbed, Step("depth_conv_block", {"x": half.x}, constants, paths))


def _half_block(program: Program, middle: Step) -> None:
    """1x1, depthwise, 1x1 + skip with nothing of a block behind it -> a block whose second half has no channels."""
    half = _half_before(program, middle)
    if half is None:
        return
    w2 = half.constants["w2"]
    width = width_of(program, middle)
    if width is None:
        return
    nothing = {"w3": w2.new_zeros(1, width), "b3": None, "w4": w2.new_zeros(0, 1), "b4": None}
    constants = {
        **half.constants,
        **nothing,
        "out4_index": torch.empty(0, dtype=torch.int32, device=w2.device),
        "slopes": (*half.slopes, 1.0, 1.0),
        "gated": half.gated,
    }
    paths = tuple(path for step in half.steps for path in step.paths)
    program.merge(half.steps, Step("depth_conv_block", {"x": half.x}, constants, paths))


def _with_activation(step: Step) -> nn.Module:
    if "activation" not in step.constants:
        return step.function
    return nn.Sequential(step.function, Gate() if _gated(step) else nn.LeakyReLU(_slope(step)))


def _plain(program: Program, step: Step) -> None:
    """What no pattern took becomes a call of torch."""
    if step.op == "depthwise":
        step.args, step.reason = (step.inputs["x"],), "a depthwise convolution outside a block"
        step.function = _with_activation(step)
    elif step.op == "activation":
        gated = "slope" not in step.constants
        step.function = Gate() if gated else nn.LeakyReLU(step.constants["slope"])
        step.args, step.reason = (step.inputs["x"],), "an activation that does not follow a convolution"
    elif step.op == "pixel_shuffle":
        step.function, step.args = F.pixel_shuffle, (step.inputs["x"], step.constants["shuffle"])
        step.reason = "a pixel shuffle that does not follow a convolution"
    elif step.op == "add":
        step.function, step.args = operator.add, tuple(step.inputs.values())
        step.reason = "an addition that does not follow a convolution"
    elif step.op == "scale":
        step.function, step.args = scale_channels, tuple(step.inputs.values())
        step.reason = "factors of what no 1x1 and no block gives"
    elif "out_index" in step.constants and "residual" not in step.inputs:
        step.args, step.reason = (step.inputs["x"],), "kept channels that are scattered outside an addition"
        step.function = _with_activation(step)
    else:
        return
    step.op, step.inputs, step.constants = PLAIN, {}, {}
