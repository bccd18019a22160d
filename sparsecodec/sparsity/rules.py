"""How each operator maps channels. An operator that is missing here locks its channels and says so.

Modules are recognised by structure: a convolution by its base class, a GDN by having `beta`, `gamma` and `inverse`.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sparsecodec.ops import deform_conv2d, warp
from sparsecodec.sparsity.layout import OUTSIDE, UNKNOWN, Layout, Recorder


def is_gdn(module: nn.Module) -> bool:
    """A generalised divisive normalisation, of whatever library: ``beta [C]``, ``gamma [C, C]`` and `inverse`.

    They are parameters, or buffers where the layer is on integers.
    """
    tensors = {**module._buffers, **module._parameters}  # fx replaces plain attributes
    beta, gamma = tensors.get("beta"), tensors.get("gamma")
    if beta is None or gamma is None or not isinstance(getattr(module, "inverse", None), bool):
        return False
    return beta.dim() == 1 and gamma.shape == (len(beta), len(beta))


def is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d)


def is_quantized(module: nn.Module) -> bool:
    """A layer that computes on integers of its own: it says at how many bits."""
    known = is_conv(module) or is_gdn(module) or isinstance(module, nn.Linear) or is_deformable(module)
    return known and hasattr(module, "weight_bits")


def is_masked(module: nn.Module) -> bool:
    """A convolution that multiplies its weight with its buffer `mask`, as context models do."""
    return isinstance(module, nn.Conv2d) and getattr(module._buffers.get("mask"), "shape", None) == module.weight.shape


def is_deformable(module: nn.Module) -> bool:
    """A layer with the weight of a convolution whose taps are moved by an argument `offset`."""
    weight = module._parameters.get("weight", module._buffers.get("weight"))  # integers are a buffer
    if is_conv(module) or weight is None or weight.dim() != 4:
        return False
    return "offset" in inspect.signature(module.forward).parameters


def is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


_ACTIVATIONS_ZERO_AT_ZERO = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Hardswish),
    *(nn.Softsign, nn.Dropout),
)
# Spatial operators that treat every channel alike and map zeros to zeros count as elementwise.
_SPATIAL = (nn.Dropout2d, nn.Upsample, nn.AvgPool2d, nn.MaxPool2d, nn.ZeroPad2d)
_CONSTANT_AT_ZERO_MODULES = (nn.Sigmoid, nn.Softplus, nn.Hardsigmoid)

_ZERO_TO_ZERO = {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, F.dropout, F.interpolate),
    *(F.avg_pool2d, F.max_pool2d, torch.max_pool2d, F.softsign, F.tanh),
    *(torch.relu, torch.tanh, torch.abs, torch.square, torch.sqrt, torch.round, torch.neg, torch.floor, torch.ceil),
    *(torch.clone, operator.neg, operator.abs),
    *("relu", "relu_", "tanh", "abs", "square", "sqrt", "round", "neg", "floor", "ceil", "clone", "contiguous"),
    *("float", "half", "bfloat16", "double", "to", "detach", "trunc", "sign"),
}
_CONSTANT_AT_ZERO = {torch.sigmoid, F.sigmoid, F.softplus, F.hardsigmoid, torch.exp, torch.cos, "sigmoid", "exp", "cos"}
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_SUB = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
_MUL = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"}
_DIV = {operator.truediv, operator.itruediv, torch.div, torch.divide, "div", "div_"}
_CLAMP = {torch.clamp, torch.clip, "clamp", "clamp_", "clip"}
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, "add_", "sub_", "mul_", "div_", "clamp_"}
_POOLS = {torch.mean, "mean"}
_IN_SPACE = ({-1, -2}, {2, 3})  # dimensions of [N, C, H, W]
WARPS = {F.grid_sample, warp}
DEFORMATIONS = {deform_conv2d}
_MAXMIN = {torch.maximum, torch.minimum, torch.max, torch.min}


def is_add(target: object) -> bool:
    return target in _ADD


def is_multiply(target: object) -> bool:
    return target in _MUL


def is_activation(target: object, module: nn.Module | None) -> bool:
    """One tensor in, one out, channel by channel: what may stand between a branch's last layer and its addition."""
    if module is not None:
        return isinstance(module, (*_ACTIVATIONS_ZERO_AT_ZERO, *_CONSTANT_AT_ZERO_MODULES))
    return target in _ZERO_TO_ZERO or target in _CONSTANT_AT_ZERO


# --- modules ----------------------------------------------------------------------------------------------------


def apply_module(rec: Recorder, name: str, module: nn.Module, x: Layout) -> Layout:
    """The layout behind a leaf module with one input."""
    if is_conv(module):
        return _conv(rec, name, module, x)
    if is_gdn(module):
        return _gdn(rec, name, module, x)
    if isinstance(module, nn.Linear):
        return _linear(rec, name, module, x)
    if isinstance(module, nn.PixelShuffle):
        return pixel_shuffle(rec, x, module.upscale_factor)
    if isinstance(module, nn.PixelUnshuffle):
        return pixel_unshuffle(rec, x, module.downscale_factor)
    if isinstance(module, (*_ACTIVATIONS_ZERO_AT_ZERO, *_SPATIAL)):
        return x
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return x
    if isinstance(module, _CONSTANT_AT_ZERO_MODULES):
        return replace(x, keeps_zero=False)
    if isinstance(module, nn.Hardtanh):
        return replace(x, keeps_zero=x.keeps_zero and module.min_val <= 0 <= module.max_val)
    return rec.lock(x, f"{type(module).__name__} ({rec.prefix}{name}) has no rule")


def _conv(rec: Recorder, name: str, module: nn.Module, x: Layout) -> Layout:
    where = f"{rec.prefix}{name}"
    if "weight" not in module._parameters:
        return rec.lock(x, f"the weight of {type(module).__name__} ({where}) is not a plain parameter")
    inputs = rec.resolve(x, module.in_channels, where)
    if is_depthwise(module):
        rec.add_layer(name, "depthwise", module, inputs, inputs, x.keeps_zero)
        return Layout((inputs,)) if (inputs >= 0).all() else rec.lock(Layout((inputs,)), f"{where} reads the input")
    outputs = rec.new(module.out_channels)
    if module.groups > 1:
        for side in (x, Layout((outputs,))):
            rec.lock(side, f"{where} is a grouped convolution ({module.groups} groups)")
    kind = "conv_transpose" if isinstance(module, nn.ConvTranspose2d) else "conv"
    return Layout((rec.add_layer(name, kind, module, inputs, outputs, x.keeps_zero),))


def deformable(rec: Recorder, name: str, module: nn.Module, x: Layout, offset: Layout) -> Layout:
    """A deformable convolution: offsets stay whole, of the channels each group keeps the same ones."""
    where = f"{rec.prefix}{name}"
    c_out, c_in, kh, kw = module.weight.shape
    groups = len(offset.channels) // (2 * kh * kw) if offset.known else 0
    inputs = rec.resolve(x, c_in * getattr(module, "groups", 1), where)
    outputs = rec.new(c_out)
    rec.lock(offset, f"{where} reads positions from it")
    if groups == 0 or getattr(module, "groups", 1) > 1:
        for side in (x, Layout((outputs,))):
            rec.lock(side, f"{where} moves it in groups of unknown size")
    else:
        members = inputs.reshape(groups, -1)
        for member in members[1:]:
            rec.join(members[0], member)
    return Layout((rec.add_layer(name, "deformable", module, inputs, outputs, x.keeps_zero),))


def _linear(rec: Recorder, name: str, module: nn.Linear, x: Layout) -> Layout:
    where = f"{rec.prefix}{name}"
    if not x.pooled:
        return rec.lock(x, f"Linear ({where}) does not read means over space")
    if "weight" not in module._parameters:
        return rec.lock(x, f"the weight of {type(module).__name__} ({where}) is not a plain parameter")
    inputs, outputs = rec.resolve(x, module.in_features, where), rec.new(module.out_features)
    return Layout((rec.add_layer(name, "linear", module, inputs, outputs, x.keeps_zero),), pooled=True)


def _gdn(rec: Recorder, name: str, module: nn.Module, x: Layout) -> Layout:
    where = f"{rec.prefix}{name}"
    inputs = rec.resolve(x, len(module.beta), where)
    if not x.keeps_zero:
        return rec.lock(x, f"GDN ({where}) reads channels that are not zero when masked")
    rec.add_layer(name, "gdn", module, inputs, inputs, True)
    return Layout((inputs,)) if (inputs >= 0).all() else rec.lock(Layout((inputs,)), f"{where} reads the input")


def pixel_shuffle(rec: Recorder, x: Layout, r: int) -> Layout:
    """Output channel c is made of the r^2 consecutive input channels c r^2 ...: all kept or all dropped."""
    if not x.known or len(x.channels) % (r * r):
        return rec.lock(x, f"PixelShuffle({r}) of channels of unknown number")
    groups = x.channels.reshape(-1, r * r)
    for k in range(1, r * r):
        rec.join(groups[:, 0], groups[:, k])
    return Layout((groups[:, 0],), x.keeps_zero)


def pixel_unshuffle(rec: Recorder, x: Layout, r: int) -> Layout:
    if not x.known:
        return OUTSIDE if x.outside else rec.lock(x, f"PixelUnshuffle({r}) of channels of unknown number")
    return Layout((np.repeat(x.channels, r * r),), x.keeps_zero)


# --- functions and methods --------------------------------------------------------------------------------------


def apply_function(rec: Recorder, target: Callable | str, args: tuple, kwargs: dict, where: str) -> object:
    """What a function or method gives: a `Layout`, a tuple of them, or `UNKNOWN` where the result is no tensor.

    `args` and `kwargs` are the node's own, with a `Layout` in place of every tensor.
    """
    result = _applied(rec, target, args, kwargs, where)
    if target in _IN_PLACE and isinstance(args[0], Layout) and args[0].keeps_zero and not result.keeps_zero:
        return rec.lock(args[0], f"{_name(target)} ({where}) changes its zeros in place, for all that hold the tensor")
    return result


def _applied(rec: Recorder, target: Callable | str, args: tuple, kwargs: dict, where: str) -> object:
    if target in (getattr, operator.getitem, "size", "dim"):
        return _index(rec, target, args, where)
    if target in (torch.cat, torch.concat):
        return _cat(rec, args, kwargs, where)
    if not args:
        return lock_all(rec, args, kwargs, f"{_name(target)} ({where}) is called by keywords alone")
    x = args[0]
    if target in (torch.chunk, "chunk"):
        return _chunk(rec, args, kwargs, where)
    if target in (F.pixel_shuffle, F.pixel_unshuffle):
        rule = pixel_shuffle if target is F.pixel_shuffle else pixel_unshuffle
        return rule(rec, x, args[1] if len(args) > 1 else next(iter(kwargs.values())))
    if target in _POOLS:
        return _pool(rec, args, kwargs, where)
    if target is F.pad and not x.pooled and _pads_zeros_in_space(args, kwargs):
        return x
    if target in _ZERO_TO_ZERO:
        return x
    if target in _CONSTANT_AT_ZERO:
        return replace(x, keeps_zero=False)
    if target in _CLAMP and _numbers(args[1:], kwargs):
        low, high = (tuple(args[1:]) + (None, None))[:2]
        low, high = kwargs.get("min", low), kwargs.get("max", high)
        zero = x.keeps_zero and (low is None or low <= 0) and (high is None or high >= 0)
        return replace(x, keeps_zero=zero)
    if target in (torch.pow, operator.pow, "pow"):
        exponent = args[1] if len(args) > 1 else kwargs["exponent"]
        if isinstance(exponent, int | float) and exponent > 0:
            return x
    if target in DEFORMATIONS:  # a group of channels shares its offsets, and its weight belongs to no layer
        return lock_all(rec, args, kwargs, f"{_name(target)} ({where}) moves its channels in groups")
    if target in WARPS:  # samples of each channel, wherever the second argument says
        lock_all(rec, args[1:], kwargs, f"{_name(target)} ({where}) reads positions from it")
        return x
    if target in _ADD | _SUB | _MUL | _DIV | _MAXMIN and len(args) == 2 and not kwargs:
        return _binary(rec, target, args, where)
    return lock_all(rec, args, kwargs, f"{_name(target)} ({where}) has no rule")


def lock_all(rec: Recorder, args: tuple, kwargs: dict, reason: str) -> Layout:
    for layout in flat_layouts((args, kwargs)):
        rec.lock(layout, reason)
    return OUTSIDE


def flat_layouts(value: object) -> list[Layout]:
    if isinstance(value, Layout):
        return [value]
    if isinstance(value, _Shape):
        return [value.layout]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    if isinstance(value, list | tuple):
        return [layout for item in value for layout in flat_layouts(item)]
    return []


def _name(target: object) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", repr(target))


def _numbers(args: tuple, kwargs: dict) -> bool:
    return all(value is None or isinstance(value, int | float) for value in (*args, *kwargs.values()))


def _pads_zeros_in_space(args: tuple, kwargs: dict) -> bool:
    pads = args[1] if len(args) > 1 else kwargs.get("pad", ())
    mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
    value = args[3] if len(args) > 3 else kwargs.get("value", 0)
    return isinstance(pads, list | tuple) and len(pads) <= 4 and (mode != "constant" or value in (0, None))


def _pool(rec: Recorder, args: tuple, kwargs: dict, where: str) -> Layout:
    """The mean over space; over anything else, or of what has no space, it has no rule."""
    x = args[0]
    dims = args[1] if len(args) > 1 else kwargs.get("dim", ())
    kept = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    if x.pooled or not isinstance(dims, list | tuple) or set(dims) not in _IN_SPACE:
        return lock_all(rec, args, kwargs, f"mean ({where}) over other dimensions than those of space")
    return replace(x, pooled=not kept)


def _binary(rec: Recorder, target: object, args: tuple, where: str) -> object:
    a, b = args
    if not isinstance(a, Layout) and not isinstance(b, Layout):
        return UNKNOWN
    if not (isinstance(a, Layout) and isinstance(b, Layout)):
        x, number = (a, b) if isinstance(a, Layout) else (b, a)
        if target in _MAXMIN and number is not UNKNOWN:
            return lock_all(rec, args, {}, f"{_name(target)} ({where}) along one dimension")
        if target in _MUL or (target in _DIV and x is a):
            return x
        if target in _DIV:
            return lock_all(rec, args, {}, f"division by channels that may be zero ({where})")
        return replace(x, keeps_zero=x.keeps_zero and number == 0)
    if target in _DIV:
        return lock_all(rec, args, {}, f"division by channels that may be zero ({where})")
    if a.pooled != b.pooled:
        return lock_all(rec, args, {}, f"{_name(target)} ({where}) broadcasts channels over rows or columns")
    zero = (a.keeps_zero or b.keeps_zero) if target in _MUL else (a.keeps_zero and b.keeps_zero)
    if a.known and b.known:
        if len(a.channels) != len(b.channels):
            return lock_all(rec, args, {}, f"{_name(target)} ({where}) broadcasts over channels")
        rec.join(a.channels, b.channels)
        return Layout((a.channels,), zero, a.pooled)
    known = a if a.known else b
    reason = f"{_name(target)} ({where}) joins it with the input or with a locked tensor"
    lock_all(rec, args, {}, reason)
    return replace(known, keeps_zero=zero) if known.known else OUTSIDE


def _cat(rec: Recorder, args: tuple, kwargs: dict, where: str) -> Layout:
    tensors = args[0] if args else kwargs["tensors"]
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if dim not in (1, -3):
        return lock_all(rec, args, kwargs, f"cat ({where}) along dimension {dim}")
    parts = tuple(part for x in tensors for part in x.parts)
    return Layout(parts, all(x.keeps_zero for x in tensors), any(x.pooled for x in tensors))


def _chunk(rec: Recorder, args: tuple, kwargs: dict, where: str) -> object:
    x = args[0]
    n = args[1] if len(args) > 1 else kwargs["chunks"]
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    if x.outside and dim in (1, -3):
        return (OUTSIDE,) * n
    if dim not in (1, -3) or not x.known or len(x.channels) % n:
        rec.lock(x, f"chunk ({where}) does not cut it into equal parts along the channels")
        return (OUTSIDE,) * n
    pieces = np.split(x.channels, n)
    for piece in pieces[1:]:
        rec.join(pieces[0], piece)
    return tuple(replace(x, parts=(piece,)) for piece in pieces)


def _index(rec: Recorder, target: object, args: tuple, where: str) -> object:
    """Shapes, tuples and slices. Whatever reads the *number* of channels locks them: it would change."""
    x = args[0]
    if target is getattr and isinstance(x, Layout):
        if args[1] == "shape":
            return _Shape(x)
        if args[1] in ("device", "dtype", "ndim"):
            return UNKNOWN
        return lock_all(rec, args, {}, f"{args[1]} of a tensor ({where}) has no rule")
    if target == "size":
        return _Shape(x) if len(args) == 1 else _index(rec, operator.getitem, (_Shape(x), args[1]), where)
    if target == "dim":
        return UNKNOWN
    if isinstance(x, _Shape):
        if args[1] not in ((0, -2) if x.layout.pooled else (0, 2, 3, -1, -2, -4)):
            rec.lock(x.layout, f"its number of channels is read ({where})")
        return UNKNOWN
    if isinstance(x, tuple):
        return x[args[1]]
    if isinstance(x, Layout):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        whole = slice(None)
        if x.pooled:
            if index == (whole, whole, None, None):
                return replace(x, pooled=False)
            return lock_all(rec, args, {}, f"indexing ({where}) of means over space")
        first_two = (whole, whole) if index[0] is Ellipsis and len(index) <= 3 else index[:2]
        if all(item == whole for item in first_two) and all(isinstance(i, slice) or i is Ellipsis for i in index):
            return x
        lock_all(rec, args, {}, f"indexing ({where}) with fixed channel numbers")
        if x.known and len(index) >= 2 and index[0] == whole and all(isinstance(i, slice) for i in index):
            return replace(x, parts=(x.channels[index[1]],))
        return OUTSIDE
    return UNKNOWN


class _Shape:
    """The shape of a tensor; reading its channel entry locks the channels."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
