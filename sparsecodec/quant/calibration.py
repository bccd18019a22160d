"""Scales from a few pictures: what each layer reads, and the clipping that costs it the least squared error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.quant.gdn import QuantGDN
from sparsecodec.quant.layers import QuantLayer
from sparsecodec.quant.model import quantized_layers

SAMPLES = 2**14  # values kept of a layer's inputs, at most twice as many, spread evenly over calls and positions
CALL_SAMPLES = 2**11
LOWS = (1.0, 0.8, 0.6, 0.45, 0.3, 0.15)  # candidates, as fractions of the extremes
HIGHS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.35, 0.28, 0.2)
WEIGHT_RATIOS = 41
LEAST_WHOLE = 15.0  # range of 16-bit inputs that are whole numbers in calibration, at least
# 16 bits have room to spare, and what lies beyond it is clipped: with twice the extremes of four small clips, few of
# which had a hyper-latent, DCVC-RT took nearly twice the bits of another clip.
HEADROOM_16 = 8.0


@dataclass(frozen=True)
class Observation:
    """What one layer reads during calibration.

    Attributes:
        inputs: ``[< 2 * SAMPLES]`` float32, on the CPU.
        low, high: extremes of all inputs, low <= 0 <= high.
    """

    inputs: Tensor
    low: float
    high: float


@torch.no_grad()
def observe(model: nn.Module, layers: Sequence[str], run: Callable[[nn.Module], Any]) -> dict[str, Observation]:
    """Runs `model` on calibration pictures and records the named layers.

    Args:
        model: float or quantised; not modified.
        layers: paths of convolutions.
        run: computes the model on the pictures; the result is not used.

    Raises:
        UsageError: a layer never runs, or reads something that is not finite; the message names it.
    """
    recorders = {name: _Recorder(name) for name in layers}
    hooks = [model.get_submodule(name).register_forward_hook(recorder) for name, recorder in recorders.items()]
    try:
        run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: recorder.observation() for name, recorder in recorders.items()}


class _Recorder:
    """A forward hook that keeps a sample of a layer's inputs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._samples: list[Tensor] = []
        self._low = self._high = 0.0

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach().flatten().float()
        low, high = float(x.min()), float(x.max())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):  # also false for NaN
            raise UsageError(f"{self.name} reads values in [{low}, {high}] during calibration (needs finite ones)")
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._samples.append(x[:: max(len(x) // CALL_SAMPLES, 1)].cpu())

    def observation(self) -> Observation:
        if not self._samples:
            raise UsageError(f"{self.name} does not run during calibration")
        values = torch.cat(self._samples)
        values = values[:: max(len(values) // SAMPLES, 1)]
        return Observation(values, self._low, self._high)


def set_scales(model: nn.Module, observations: dict[str, Observation], rule: str = "mse") -> None:
    """Sets all scales of a quantised model, in place; frozen layers keep theirs.

    Args:
        model: from `quantize_layers`, not frozen.
        observations: of the float model, for every quantised layer.
        rule: ``"max"``: symmetric ranges that clip nothing; ``"mse"``: the clipping of the least squared error, per
            layer for the inputs and per output channel for the weights.

    Raises:
        UsageError: another rule.
    """
    if rule not in ("max", "mse"):
        raise UsageError(f"rule={rule!r} (needs 'max' or 'mse')")
    for name, layer in quantized_layers(model).items():
        if layer.frozen:
            continue
        seen = observations[name]
        if isinstance(layer, QuantGDN):
            layer.set_input_range(*_range_16(seen))
            continue
        if rule == "max":
            extreme = max(-seen.low, seen.high)
            layer.set_input_range(-extreme, extreme)
            largest = layer.weight.detach().abs().movedim(layer.OUT_DIM, 0).flatten(1).amax(1)
            layer.set_weight_scale(largest / layer.weight_max)
            continue
        if layer.activation_bits == 16:
            layer.set_input_range(*_range_16(seen))
        else:
            layer.set_input_range(*best_range(layer, seen))
        layer.set_weight_scale(best_weight_scale(layer))
        if layer.precision.dyadic:
            layer.coarsen()  # here, so that what is calibrated next sees what freezing will give


def _range_16(seen: Observation) -> tuple[float, float]:
    """With room to spare; more of it for whole numbers, which are those of a rounded hyper-latent.

    Hardly one of them may differ from zero in a few small pictures, and many in others. And without any the unit of
    the layer's bias, which is that of the input times that of the weights, would be far too coarse.
    """
    low, high = HEADROOM_16 * seen.low, HEADROOM_16 * seen.high
    if bool((seen.inputs == seen.inputs.round()).all()):
        return min(low, -LEAST_WHOLE), max(high, LEAST_WHOLE)
    return low, high


@torch.no_grad()
def best_range(layer: QuantLayer, seen: Observation) -> tuple[float, float]:
    """The range of an 8-bit input with the least squared error on the sample, both ends searched.

    Rare large values may be missing in the sample, so the extremes are weighed in as if they were as frequent as the
    rest: to clip them costs a codec more than their number says, for they stand together, at edges and highlights.
    """
    x = torch.cat([seen.inputs, torch.tensor([seen.low, seen.high])])
    best = (float("inf"), seen.low, seen.high)
    levels = 2**layer.activation_bits - 1
    for low in sorted({seen.low * ratio for ratio in LOWS}):
        for high in sorted({seen.high * ratio for ratio in HIGHS}, reverse=True):
            scale = (high - low) / levels or 1.0
            least = max(round(low / scale), -levels)
            error = float((x - (x / scale).round_().clamp_(least, least + levels) * scale).square_().sum())
            best = min(best, (error, low, high), key=lambda entry: entry[0])
    return best[1:]


@torch.no_grad()
def best_weight_scale(layer: QuantLayer) -> Tensor:
    """``[C_out]``: per output channel the scale with the least squared error of its weights."""
    weight = layer.weight.detach().movedim(layer.OUT_DIM, 0).flatten(1)
    largest = weight.abs().amax(1)
    best_error, best_scale = torch.full_like(largest, float("inf")), largest / layer.weight_max
    for ratio in torch.linspace(1.0, 0.4, WEIGHT_RATIOS).tolist():
        scale = torch.where(largest > 0, largest * ratio / layer.weight_max, 1.0)[:, None]
        rounded = (weight / scale).round_().clamp_(-layer.weight_max, layer.weight_max) * scale
        error = (weight - rounded).square_().sum(1)
        best_scale = torch.where(error < best_error, scale[:, 0], best_scale)
        best_error = torch.minimum(error, best_error)
    return torch.where(largest > 0, best_scale, 0.0)


@torch.no_grad()
def correct_biases(model: nn.Module, reference: nn.Module, run: Callable[[nn.Module], Any]) -> None:
    """Adds to every bias what rounding its layer's weights and inputs takes from the mean of its outputs, in place.

    Frozen layers keep theirs.

    Each layer is compared with the float one on the float one's own inputs, so the layers do not correct each other.

    Args:
        model: quantised, with scales, not frozen.
        reference: the float model.
        run: as for `observe`.
    """
    layers = {name: layer for name, layer in quantized_layers(model).items() if not layer.frozen}
    shifts = {name: _Shift(layer) for name, layer in layers.items() if layer.bias is not None}
    hooks = [reference.get_submodule(name).register_forward_hook(shift) for name, shift in shifts.items()]
    try:
        run(reference)
    finally:
        for hook in hooks:
            hook.remove()
    for shift in shifts.values():
        shift.layer.bias.add_(shift.mean())


class _Shift:
    """A forward hook on a float layer that keeps the mean difference to its quantised twin."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self._sum: Tensor | float = 0.0
        self._positions = 0

    def __call__(self, float_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._sum = self._sum + (output - self.layer(*inputs)).double().sum((0, 2, 3))
        self._positions += output[:, 0].numel()

    def mean(self) -> Tensor:
        return (self._sum / self._positions).to(self.layer.bias)
