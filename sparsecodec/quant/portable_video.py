"""Portable video codecs: everything that a decoder computes, on dyadic integers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.quant.calibration import HEADROOM_16, correct_biases, observe, set_scales
from sparsecodec.quant.fixed_point import dyadic
from sparsecodec.quant.model import find_layers, freeze, quantize_layers, quantized_layers
from sparsecodec.quant.precision import Precision
from sparsecodec.quant.video_families import VideoFamily, family_of

LEAST_FRAMES = 3  # a frame alone, one predicted from a picture, one predicted from a feature
LEAST_SIDE = 64


def is_video(model: nn.Module) -> bool:
    """Whether `model` is a video codec of a family that has a portable form."""
    return family_of(model) is not None


def is_portable_video(model: nn.Module) -> bool:
    """Whether `model` stores its integer tables and its decoder holds dyadic integers only."""
    family = family_of(model)
    if family is None:
        return False
    stored = all(
        isinstance(getattr(model.get_submodule(part), "portable", None), kind) for part, kind in family.tables.items()
    )
    return stored and not float_layers(model)


def float_layers(model: nn.Module) -> list[str]:
    """Layers of the decoder that are yet to be quantised.

    Raises:
        UsageError: a layer is on other integers, or there is no integer rule for one.
    """
    on_integers = quantized_layers(model)
    networks = family_of(model).decoder_networks(model)
    for name, layer in on_integers.items():
        if name.startswith(networks) and not (layer.precision.dyadic and layer.frozen):
            raise UsageError(f"{name} is quantised, but not to frozen dyadic integers: start from the float codec")
    found, left = find_layers(model, networks, required=False, dyadic=True)
    reasons = {name: reason for name, reason in left.items() if name not in on_integers}
    if reasons:
        raise UsageError(f"no integer rule for {reasons}")
    return [name for name in found if name not in on_integers]


def portable_video(
    model: nn.Module,
    clips: Tensor | Sequence[Tensor] | None,
    precision: Precision,
) -> nn.Module:
    """A copy of a video codec whose decoder is integers, from the bytes to the pictures; see `quant.portable`.

    Args:
        model: `VideoCodec` of DCVC-RT's or DCVC-HEM's models, or of EVC and DCVC (2021) or FVC; dense or compact, its
            decoder float or portable.
        clips: ``[N, T, 3, H, W]`` floating point in [0, 1], YCbCr or RGB as the codec takes it, T >= 3, at least
            64 x 64; or a sequence of ``[T, 3, H, W]``. Not needed if no layer is float.
        precision: bits of weights and activations, dyadic.

    Raises:
        UsageError: clips that are missing, of a wrong shape, dtype or range, or too short.
    """
    names = float_layers(model)
    if not names:
        return model
    if clips is None:
        raise UsageError(f"{len(names)} layers of the decoder are float: give calibration clips")
    family = family_of(model)
    checked = _checked(clips, family.stride)
    run, judge = (partial(_roll_out, family=family, clips=some) for some in (checked, checked[:1]))
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for part in family.networks:
            for name in (*family.factors.get(part, ()), *family.fixed_factors.get(part, ())):
                _snap(getattr(getattr(model, part), name))
    exponents = {
        part: _exponents(model, [f"{part}.{path}" for path in factors.values()], run)
        for part, factors in family.factors.items()
    }
    model = _calibrated(model, names, run, judge, precision)
    for part in family.networks:
        child = getattr(model, part)
        child.portable = family.stored(child, exponents.get(part))
    return freeze(model).requires_grad_(False)


def _snap(bank: nn.Parameter) -> None:
    """Factors -> the nearest that integers can multiply by, in place."""
    bank.copy_(torch.where(bank == 0, 0.0, dyadic(bank.abs().clamp(min=2.0**-20)) * bank.sign()))


def _exponents(model: nn.Module, paths: list[str], run: Callable[[nn.Module], float]) -> Tensor:
    """Of int16 tensors that hold what these modules give, with `HEADROOM_16` to spare; int32."""
    largest = dict.fromkeys(paths, 0.0)

    def note(path: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        largest[path] = max(largest[path], float(output.abs().max()))

    hooks = [model.get_submodule(path).register_forward_hook(partial(note, path)) for path in paths]
    try:
        run(model)
    finally:
        for hook in hooks:
            hook.remove()
    values = [math.ceil(math.log2(max(HEADROOM_16 * value, 2.0**-8) / (2**15 - 1))) for value in largest.values()]
    return torch.tensor(values, dtype=torch.int32)


def _calibrated(
    model: nn.Module,
    names: list[str],
    run: Callable[[nn.Module], float],
    judge: Callable[[nn.Module], float],
    precision: Precision,
) -> nn.Module:
    """`model` with those layers on integers, not yet frozen; `judge` says whether corrected biases are the better."""
    with torch.no_grad():
        small = quantize_layers(model, dict.fromkeys(names, precision))
        set_scales(small, observe(model, names, run))
        corrected = copy.deepcopy(small)
        correct_biases(corrected, model, run)
        return corrected if judge(corrected) < judge(small) else small


@torch.no_grad()
def _roll_out(model: nn.Module, family: type[VideoFamily], clips: list[Tensor]) -> float:
    """Codes the clips, each frame from the codec's own state.

    Returns:
        The sum over clips and qualities of log2(bits) + log2(mean squared error).
    """
    total = 0.0
    for clip in clips:
        clip = clip.to(next(model.parameters()).device)
        for quality in family.qualities:
            coded = model.intra(clip[:1], family.rate(model, quality, 0))
            bits, error = float(coded["bit"]), float((coded["x_hat"] - clip[:1]).square().mean())
            state = model.inter.start(coded["x_hat"])
            for index in range(1, len(clip)):
                frame = clip[index : index + 1]
                coded = model.inter(frame, state, family.rate(model, quality, index))
                bits, state = bits + float(coded["bit"]), coded["state"]
                error += float((coded["x_hat"] - frame).square().mean())
            total += math.log2(max(bits, 1.0)) + math.log2(max(error, 2.0**-40))
    return total


def _checked(clips: Tensor | Sequence[Tensor], stride: int) -> list[Tensor]:
    """Each ``[T, 3, H, W]`` float32, cut to multiples of the stride."""
    clips = list(clips)
    if not clips:
        raise UsageError("calibration: no clip")
    checked = []
    for index, x in enumerate(clips):
        where = f"calibration clip {index}"
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            kind = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(f"{where}: {kind} (needs [T, 3, H, W] floating point)")
        if len(x) < LEAST_FRAMES or min(x.shape[2:]) < LEAST_SIDE:
            raise UsageError(
                f"{where}: {len(x)} frames of {x.shape[2]} x {x.shape[3]} "
                f"(needs {LEAST_FRAMES} of {LEAST_SIDE} x {LEAST_SIDE} at least)"
            )
        low, high = float(x.min()), float(x.max())
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise UsageError(f"{where}: values in [{low:g}, {high:g}] (needs [0, 1], no NaN)")
        checked.append(x[:, :, : x.shape[2] // stride * stride, : x.shape[3] // stride * stride].float())
    return checked
