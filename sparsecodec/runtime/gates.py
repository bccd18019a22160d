"""Patterns of DCVC's blocks: gates, sums of chunks, shortcuts, and factors that change between calls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.ops._epilogue import activate
from sparsecodec.runtime.lowering import PLAIN, Program, Step
from sparsecodec.sparsity.rules import is_multiply

_SIGMOIDS = (torch.sigmoid, nn.functional.sigmoid, "sigmoid")
_CHUNKS = (torch.chunk, "chunk")
Piece = tuple[int, int, int]  # channels [start, stop) in steps of the third


class Gate(nn.Module):
    """``y * sigmoid(4 y)``, where no kernel takes it up."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return activate(x, "sigmoid_gate", 1.0)


def apply(program: Program, pattern: Callable[[Program, Step], None]) -> None:
    """Tries `pattern` on each step, in order."""
    for step in list(program.steps):
        if step in program.steps:
            pattern(program, step)


def gate(program: Program, step: Step) -> None:
    """x * sigmoid(4 x), DCVC's WSiLU -> an activation."""
    if not multiplies(step) or len(step.sources) != 2:
        return
    for x, sigmoid in (step.args, step.args[::-1]):
        if not calls_sigmoid(sigmoid):
            continue
        fourfold = sigmoid.sources[0]
        if multiplies(fourfold) and fourfold.sources == [x] and 4 in fourfold.args:
            if program.only_user(fourfold) is sigmoid and program.only_user(sigmoid) is step:
                result = Step("activation", {"x": x}, {"activation": "sigmoid_gate"})
                program.merge([fourfold, sigmoid, step], result)
                return


def multiplies(step: Step) -> bool:
    """Whether it is a product of two things, by an operator, a function or a method."""
    if step.op != PLAIN or isinstance(step.function, nn.Module) or step.kwargs or len(step.args) != 2:
        return False
    return is_multiply(step.target)


def calls_sigmoid(step: Step) -> bool:
    return step.op == PLAIN and (isinstance(step.function, nn.Sigmoid) or step.target in _SIGMOIDS)


def chunk_sum(program: Program, step: Step) -> None:
    """conv, then the sum of all its runs of channels, or of all neighbours -> conv with chunks."""
    if step.op != "add":
        return
    parts, sums = _terms(program, step)
    if found := _chunks(program, parts, sums):
        program.merge([*found.steps, *sums], found.conv.joined(step, **found.constants))


def two_slopes(program: Program, step: Step) -> tuple[Step, float, list[Step]] | None:
    """1x1, leaky ReLUs of its two chunks, their sum -> (1x1 with chunks, slope of the second, what that takes up)."""
    activated = list(step.inputs.values()) if step.op == "add" else []
    if not activated or any(part.op != "activation" or "slope" not in part.constants for part in activated):
        return None
    found = _chunks(program, [part.inputs["x"] for part in activated], activated)
    if (
        found is None
        or "activation" in found.conv.constants
        or any(program.only_user(a) is not step for a in activated)
    ):
        return None
    first, rest = (activated[i].constants["slope"] for i in found.order)
    paths = tuple(path for part in activated for path in part.paths)
    conv = found.conv.joined(Step("add", paths=paths), **found.constants, activation="leaky_relu", slope=first)
    return conv, rest, [*found.steps, *activated, step]


@dataclass
class _Chunks:
    """Parts that make up a 1x1; `order`: which of them comes first; `steps`: the 1x1 and what cuts it."""

    conv: Step
    order: list[int]
    constants: dict[str, Any]
    steps: list[Step]


def _chunks(program: Program, parts: Sequence[Step], then: Sequence[Step]) -> _Chunks | None:
    """The 1x1 whose chunks `parts` are, if nobody but `then` reads it or them; each once."""
    pieces = [piece(part) for part in parts]
    if any(piece is None for piece in pieces):
        return None
    convs = {conv for conv, _, _ in pieces}
    conv = convs.pop()
    if convs or conv.op != "pointwise" or "residual" in conv.inputs:
        return None
    if {"out_index", "shuffle", "chunks"} & conv.constants.keys():
        return None
    count, width = len(parts), conv.constants["weight"].shape[0]
    ranges = [_range(part, width) for _, part, _ in pieces]
    size = width // count
    runs = [(i * size, (i + 1) * size, 1) for i in range(count)]
    neighbours = [(i, width, count) for i in range(count)]
    if width % count or sorted(ranges) not in (runs, neighbours):
        return None
    between = {step for _, _, way in pieces for step in way}
    if not set(program.users(conv)) <= between or conv is program.output:
        return None
    if any(not set(program.users(other)) <= between | set(then) for other in between):
        return None
    order = sorted(range(count), key=ranges.__getitem__)
    return _Chunks(conv, order, {"chunks": count, "interleaved": sorted(ranges) != runs}, [conv, *between])


def _terms(program: Program, step: Step) -> tuple[list[Step], list[Step]]:
    """(what a tree of additions adds, the additions)."""
    terms, sums = [], [step]
    for operand in step.inputs.values():
        if operand.op == "add" and program.only_user(operand) is step:
            inner, additions = _terms(program, operand)
            terms, sums = terms + inner, sums + additions
        else:
            terms.append(operand)
    return terms, sums


def piece(step: Step) -> tuple[Step, Piece | tuple[int, int], list[Step]] | None:
    """(convolution, slice or (index, count) of its channels, steps on the way), None if it is no part of one."""
    if step.op != PLAIN or step.function is not operator.getitem:
        return None
    of, key = step.args
    if isinstance(key, int):
        if not (isinstance(of, Step) and of.op == PLAIN and of.target in _CHUNKS):
            return None
        arguments = dict(zip(("input", "chunks", "dim"), of.args, strict=False)) | of.kwargs
        if arguments.get("dim", 0) != 1 or not isinstance(arguments["chunks"], int):
            return None
        return arguments["input"], (key, arguments["chunks"]), [step, of]
    if not isinstance(key, tuple) or len(key) < 2 or not all(isinstance(part, slice) for part in key):
        return None
    bounds = (key[1].start, key[1].stop, key[1].step)
    whole = all(part == slice(None) for i, part in enumerate(key) if i != 1)
    if not whole or any(isinstance(bound, Step) for bound in bounds):
        return None
    return of, bounds, [step]


def _range(part: tuple, width: int) -> Piece:
    """Channels of a part as `_piece` gives it."""
    if len(part) == 2:
        index, count = part
        size = -(-width // count)
        return (index % count * size, min(width, (index % count + 1) * size), 1)
    return slice(*part).indices(width)


def shortcut(program: Program, step: Step) -> None:
    """block, add what the block starts from -> block with a shortcut."""
    if step.op != "add":
        return
    for block, skip in (tuple(step.inputs.values()), tuple(step.inputs.values())[::-1]):
        if block.op != "depth_conv_block" or program.only_user(block) is not step or block is skip:
            continue
        if block.inputs["x"] is skip and block.constants["adaptor"] is None and "shortcut" not in block.constants:
            program.merge([block, step], block.joined(step, shortcut=True))
            return


def scale(program: Program, step: Step) -> None:
    """1x1 or block, times factors -> the same with the factors in its epilogue."""
    if step.op != "scale":
        return
    before = step.inputs["x"]
    if before.op in ("pointwise", "depth_conv_block") and program.only_user(before) is step:
        if "scale" not in before.inputs:
            program.merge([before, step], before.joined(step, {"scale": step.inputs["scale"]}))
