"""From frozen dyadic layers to a program of integer ops, none of which overflows.

docs/portable.md, sections 2, 6, 7 and 9, say what a network computes; everything is decided from the stored integers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.nn.integer_functions import gate_table, sigmoid_table
from sparsecodec.ops.integer_deform_columns import MASK_BITS
from sparsecodec.runtime.fusion import fuse_neighbours, width_of
from sparsecodec.runtime.gates import apply, gate
from sparsecodec.runtime.integer_constants import conv_constants, layer_of, residual_shift, scale_constants
from sparsecodec.runtime.integer_excitation import SIGMOID_BITS, Excitation
from sparsecodec.runtime.integer_exponents import Exponents
from sparsecodec.runtime.integer_normalisation import gdn_constants
from sparsecodec.runtime.integer_steps import (
    EXCITATION,
    FACTORS,
    FACTORS_EXPONENT,
    GATE,
    SAMPLES,
    SUM,
    deformations,
    excitations,
    moves_only,
    pools,
    split_additions,
    split_downsampling,
    split_gates,
)
from sparsecodec.runtime.lowering import CONVOLUTIONS, PLAIN, Program, Step, lower, lower_conv, together
from sparsecodec.sparsity.rules import is_conv, is_gdn, is_quantized
from sparsecodec.sparsity.scatter import ScatterConv2d

LAYERS = (*CONVOLUTIONS, "depthwise", "gdn")


def integer_program(
    networks: Mapping[str, nn.Module], sources: Sequence[int | None] = (), results: Sequence[int | None] = ()
) -> tuple[Program, Exponents]:
    """Lowers a network, or several that follow each other, taken as one.

    Args:
        networks: path in the model -> module of frozen dyadic layers, in order of execution.
        sources, results: as for `Exponents`.

    Returns:
        The program, each step but the inputs one call of an integer op, or of what moves integers, and its exponents.

    Raises:
        UsageError: a layer is float, or on other integers.
        GraphError: a structure that integers have no rule for, exponents that contradict each other, or an accumulator
            that could overflow; the message names the layer.
    """
    name = "+".join(networks)
    program = _lowered(networks)
    for step in list(program.steps):
        if step.op == PLAIN and isinstance(step.function, nn.Module) and is_quantized(layer_of(step)):
            if is_conv(layer_of(step)):
                program.merge([step], _as_convolution(step))
            elif is_gdn(step.function):
                program.merge([step], Step("gdn", {"x": step.args[0]}, {}, step.paths, function=step.function))
    for pattern in (pools, excitations, deformations, gate):
        apply(program, pattern)
    fuse_neighbours(program)
    for rule in (split_downsampling, split_gates, split_additions):
        rule(program)
    for step in program.steps:
        _check(step, program, name)
    exponents = Exponents(program, sources, results, name)
    device = next(tensor for module in networks.values() for tensor in module.buffers()).device
    widths = {step: width_of(program, step) for step in program.steps if step.op in ("activation", "add")}
    for step in program.steps:
        _as_integers(step, exponents, widths.get(step), device)
    return program, exponents


def _lowered(networks: Mapping[str, nn.Module]) -> Program:
    if len(networks) == 1:
        ((path, module),) = networks.items()
        return lower(module, path)
    named = OrderedDict((path.replace(".", "/"), module) for path, module in networks.items())  # torch wants no dots
    program = lower(nn.Sequential(named), "")
    for step in program.steps:
        step.paths = tuple(path.replace("/", ".") for path in step.paths)
    return program


def _as_convolution(step: Step) -> Step:
    """The step of a quantised layer as that of a float one, which the patterns know; `function` keeps the layer."""
    (x,), layer = step.args, step.function
    conv = lower_conv(layer_of(step), x, step.paths[0])
    conv.function = layer
    if isinstance(layer, ScatterConv2d):
        conv.constants["out_index"] = layer.out_index
    return conv


def _check(step: Step, program: Program, name: str) -> None:
    label = ", ".join(step.paths) or step.op
    if step.op in ("input", GATE, SUM, EXCITATION, SAMPLES, FACTORS) or moves_only(step) or step.function is together:
        return
    if step.op == "scale" and step.inputs["scale"].op == EXCITATION:
        return
    if step.op == "activation" and "slope" in step.constants or step.op == "add":
        if width_of(program, step) is None:
            raise GraphError(f"{name}: {label} of a tensor whose number of channels no layer tells")
    else:
        _check_layer(step, label, name)
    if not 0 <= step.constants.get("slope", 1.0) <= 1:
        raise GraphError(f"{label}: an activation of slope {step.constants['slope']} (needs 0 to 1)")


def _check_layer(step: Step, label: str, name: str) -> None:
    if step.op not in LAYERS:
        raise GraphError(f"{name}: {label} has no rule for integers {step.reason}".rstrip())
    layer = None if step.function is None else layer_of(step)
    if layer is None or not is_quantized(layer):
        raise UsageError(f"{label} is a float layer (a portable stream needs integers: see quant.portable)")
    if not (layer.frozen and layer.precision.dyadic):
        raise UsageError(f"{label} is quantised, but not to frozen dyadic integers")


def _as_integers(step: Step, exponents: Exponents, width: int | None, device: torch.device) -> None:
    """Makes a step the call of an integer op, in place."""
    label = ", ".join(step.paths) or step.op
    if step.op == "gdn":
        x = step.inputs["x"]
        step.constants = gdn_constants(step.function, exponents[x], exponents[step], exponents.bits(step), label)
        step.op, step.function = "integer_gdn", None
    elif step.op in LAYERS:
        x, residual = step.inputs["x"], step.inputs.get("residual")
        added = None if residual is None else exponents[residual]
        step.constants = conv_constants(step, exponents[x], exponents[step], exponents.bits(step), added)
        step.op, step.function = "integer_conv2d", None
    elif step.op == GATE:
        step.constants["table"] = gate_table(exponents[step]).to(device)
    elif step.op == FACTORS:
        step.op, step.constants["table"] = GATE, sigmoid_table(FACTORS_EXPONENT, MASK_BITS + 1).to(device)
    elif step.op == EXCITATION:
        x, layers = step.inputs["x"], step.constants
        step.op, step.inputs, step.constants, step.args = PLAIN, {}, {}, (x,)
        step.function = Excitation(layers["down"], layers["up"], exponents[x], step.paths)
    elif step.op == "scale":
        x, width = step.inputs["x"], step.inputs["scale"].function.width
        shift = SIGMOID_BITS - exponents[x] + exponents[step]
        step.inputs = {"x": x, "multiplier": step.inputs["scale"]}
        step.constants = {"shift": torch.full((width,), shift, dtype=torch.int32, device=device)}
        step.constants |= {"residual_shift": 0, "bits": exponents.bits(step)}
        step.op = "integer_scale"
    elif step.op in ("activation", "add", SUM):
        x, residual = step.inputs["x"], step.inputs.get("residual")
        ones = torch.ones(step.constants.get("width", width), dtype=torch.float32, device=device)
        gain, slope = exponents[x] - exponents[step], step.constants.get("slope", 1.0)
        shift = 0 if residual is None else residual_shift(exponents[residual], exponents[step], label)
        step.constants = scale_constants(ones, gain, slope, label)
        step.constants |= {"residual_shift": shift, "bits": exponents.bits(step)}
        step.op = "integer_scale"
