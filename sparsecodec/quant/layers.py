"""Layers on integers: the same module trains with straight-through gradients and, frozen, holds int8 weights.

A layer computes, with one scale for its input and one per output channel for its weight::

    q[n,i,h,w] = clip(round(x / s_x), low, low + 2^a - 1)                  a = activation_bits, low <= 0
    v[o,i,k,l] = clip(round(w / s_w[o]), -(2^(b-1) - 1), 2^(b-1) - 1)       b = weight_bits
    acc = conv(q, v) + round(bias / (s_x s_w))                             an integer below 2^31
    y = acc s_x s_w

Zero stands for zero, so padding is exact; `low` is 0 behind a ReLU. The integers are carried in float32 where every
partial sum stays below 2^24 and in float64 elsewhere, so the result has no rounding but the last multiplication, and
does not depend on device, threads, batch or layout.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from sparsecodec.errors import UsageError
from sparsecodec.nn.dcvc_layers import MaskedConv2d, PlainGDN
from sparsecodec.nn.fvc_layers import DeformableConv2d, PatchScore
from sparsecodec.nn.likelihood import round_ste
from sparsecodec.ops import deform_conv2d
from sparsecodec.quant import native
from sparsecodec.quant.fixed_point import (
    ACCUMULATOR_BITS,
    accumulator_bound,
    dyadic,
    pack_nibbles,
    quantize_ste,
    unpack_nibbles,
)
from sparsecodec.quant.gdn import KeepsTypes, QuantGDN
from sparsecodec.quant.precision import Precision

STORED = {4: torch.uint8, 8: torch.int8, 16: torch.int16}  # type of a frozen weight in a file, by its bits
COARSER = 0.125  # in log2 of a scale: step in which it grows until an accumulator fits
FLOAT32_LIMIT = 2**24
OVERFLOW = 2.0 ** (ACCUMULATOR_BITS - 1)
CLIPPED = -OVERFLOW, OVERFLOW  # biases beyond it are caught by the overflow bound


class _OnIntegers(KeepsTypes):
    """What a quantised layer adds to torch's class.

    State while it trains: ``weight``, ``bias`` float32, ``weight_log2 [C_out]``, ``input_log2 []`` (parameters: log2 of
    the scales, which keeps them positive), ``input_low []`` int32. State when frozen: ``weight`` int8 (uint8, two to a
    byte, for 4 bits; int16 for 16), ``bias`` int32, ``weight_scale [C_out]``, ``input_scale []`` float32,
    ``input_low []`` int32.

    Attributes:
        precision: bits and kind of scales.
        active: False computes the float layer; only before freezing.
        frozen: the weights are integers.
    """

    OUT_DIM = 0  # of the weight
    OVER_OUTPUT = (-1, 1, 1)  # a value per output channel as it multiplies the output
    precision: Precision
    active: bool
    frozen: bool
    _float32_is_exact: bool
    _kernel: native.Convolution | None

    @property
    def weight_bits(self) -> int:
        return self.precision.weight_bits

    @property
    def activation_bits(self) -> int:
        return self.precision.activation_bits

    @property
    def weight_max(self) -> int:
        return 2 ** (self.weight_bits - 1) - 1

    @property
    def input_range(self) -> tuple[int, int]:
        low = int(self.input_low)
        return low, low + 2**self.activation_bits - 1

    def begin(self, precision: Precision) -> None:
        """Turns a float layer into one that trains on integers, with scales that clip nothing of its weights."""
        self.precision, self.active, self.frozen = precision, True, False
        self._float32_is_exact, self._kernel = False, None
        like = self.weight.detach()
        low = 0 if precision.activation_bits == 8 else -(2 ** (precision.activation_bits - 1))
        self.weight_log2 = nn.Parameter(like.new_zeros(self.out_channels))
        self.input_log2 = nn.Parameter(like.new_zeros(()))
        self.register_buffer("input_low", torch.tensor(low, dtype=torch.int32, device=like.device))
        self.set_weight_scale(like.abs().movedim(self.OUT_DIM, 0).flatten(1).amax(1) / self.weight_max)

    @torch.no_grad()
    def set_input_range(self, low: float, high: float) -> None:
        """Clips the input to about ``[low, high]``, low <= 0 <= high; a constant zero gets the scale 1."""
        levels = 2**self.activation_bits - 1
        if self.activation_bits == 8:
            scale = (high - low) / levels or 1.0
            self.input_low.fill_(max(round(low / scale), -levels))
        else:
            scale = max(high / (levels // 2), -low / (levels // 2 + 1)) or 1.0
        exponent = torch.tensor(scale, dtype=torch.float64).log2()
        self.input_log2.copy_(exponent.ceil() if self.precision.dyadic else exponent)

    @torch.no_grad()
    def set_weight_scale(self, scale: Tensor) -> None:
        """Sets ``s_w``, ``[C_out]``; a channel of zeros gets the scale 1, a large bias raises the scale it needs."""
        if self.bias is not None:  # the bias must not take the room of the accumulator, whose unit is s_x s_w
            room = 2.0 ** (22 if self.activation_bits == 8 else ACCUMULATOR_BITS - 3)
            scale = torch.maximum(scale, self.bias.detach().abs() / (self.scales()[0] * room))
        self.weight_log2.copy_(torch.where(scale > 0, scale, 1.0).log2())

    def scales(self) -> tuple[Tensor, Tensor]:
        """``s_x []`` and ``s_w [C_out]``, float32."""
        if self.frozen:
            return self.input_scale, self.weight_scale
        s_x, s_w = self.input_log2.exp2(), self.weight_log2.exp2()
        if not self.precision.dyadic:
            return s_x, s_w
        return dyadic(round_ste(self.input_log2).exp2(), bits=1), dyadic(s_w)

    def integers(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as integers: in float32 before freezing, as stored after it."""
        if self.frozen:
            return self.weight, self.bias
        s_x, s_w = self.scales()
        s_w = _reduced_gradient(s_w, self.weight.numel() / self.out_channels * self.weight_max)
        weight = quantize_ste(self.weight, self._per_channel(s_w), -self.weight_max, self.weight_max)
        return weight, None if self.bias is None else quantize_ste(self.bias, (s_x * s_w).detach(), *CLIPPED)

    def accumulator_bound(self) -> Tensor:
        """``[C_out]`` float64: what no partial sum exceeds, for any input."""
        weight, bias = self.integers()
        return accumulator_bound(weight.detach(), bias, *self.input_range, self.OUT_DIM)

    @torch.no_grad()
    def coarsen(self) -> None:
        """Raises ``s_w`` of each channel until its accumulator fits, for any input."""
        while not bool((fits := self.accumulator_bound() < OVERFLOW).all()):
            self.weight_log2.add_((~fits).float() * COARSER)

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """As the float layer's, on integers; computes in float32 or float64 whatever autocast says."""
        if not self.active:
            return super().forward(x, *args)
        lowered = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False) if lowered else contextlib.nullcontext():
            return self._on_integers(x.float(), *args).to(x.dtype)

    def _on_integers(self, x: Tensor, *args: Any) -> Tensor:
        s_x, s_w = self.scales()
        weight, bias = self.integers()
        if not self.frozen:
            levels = 2.0 ** (self.activation_bits - 1)
            s_x = _reduced_gradient(s_x, x.numel() * levels)
            s_w = _reduced_gradient(s_w, self.weight.numel() / self.out_channels * self.weight_max)
        q = quantize_ste(x, s_x, self.input_low, self.input_low + (2**self.activation_bits - 1))
        dtype = torch.float32 if self._exact_in_float32(q) else torch.float64
        if dtype == torch.float32 and self._takes_kernel(q):
            self._kernel = self._kernel or native.accumulate(self, weight, int(self.input_low))
            sums = self._kernel(q)
        else:
            sums = self._convolve(q.to(dtype), weight.to(dtype), *args)
        if dtype == torch.float64:
            sums = round_ste(sums)  # whatever the algorithm, its error is far below 1/2
        scale = (s_x * s_w).to(dtype).view(self.OVER_OUTPUT)
        bias = torch.zeros_like(scale) if bias is None else bias.to(dtype).view(self.OVER_OUTPUT)
        if torch.is_grad_enabled():
            return ((sums + bias) * scale).float()
        return sums.add_(bias).mul_(scale).float()

    def _exact_in_float32(self, q: Tensor) -> bool:
        """Whether float32 holds every partial sum; on a GPU its convolution may be one that divides (Winograd)."""
        if q.is_meta or isinstance(q, FakeTensor):
            return True  # only the shape is wanted
        if q.is_cuda or self.activation_bits > 8:
            return False
        return self._float32_is_exact if self.frozen else bool(self.accumulator_bound().max() < FLOAT32_LIMIT)

    def _takes_kernel(self, q: Tensor) -> bool:
        """Whether the processor's 8-bit products can compute it; to the same bits, so nobody needs to ask for them."""
        if not self.frozen or not isinstance(self, nn.Conv2d) or isinstance(self.padding, str) or q.requires_grad:
            return False
        real_cpu = q.device.type == "cpu" and not isinstance(q, FakeTensor) and self.weight_bits < 16
        return real_cpu and q.numel() > 0 and native.why_unavailable() is None

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.view([-1 if dim == self.OUT_DIM else 1 for dim in range(self.weight.dim())])

    @torch.no_grad()
    def freeze(self) -> None:
        """Replaces the float weights by integers, for good; where an accumulator could overflow, by coarser ones."""
        if self.frozen:
            return
        if not all(bool(p.isfinite().all()) for p in self.parameters()):
            raise UsageError(f"{self}: a weight or scale is not finite")
        self.coarsen()
        (s_x, s_w), (weight, bias) = self.scales(), self.integers()
        for name in ("weight", "weight_log2", "input_log2", *(["bias"] if bias is not None else [])):
            delattr(self, name)
        self.register_buffer("weight", weight.to(torch.int16 if self.weight_bits == 16 else torch.int8))
        if bias is not None:
            self.register_buffer("bias", bias.to(torch.int32))
        self.register_buffer("weight_scale", s_w.detach().clone())
        self.register_buffer("input_scale", s_x.detach().clone())
        self.active, self.frozen = True, True
        self._refresh()

    def _refresh(self) -> float:
        bound = float(self.accumulator_bound().max()) if self.weight.numel() else 0.0
        self._float32_is_exact, self._kernel = bound < FLOAT32_LIMIT, None
        return bound

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._kernel = None
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.frozen and self.weight_bits == 4:
            destination[prefix + "weight"] = pack_nibbles(self.weight)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        key, errors = prefix + "weight", args[-1]
        if self.frozen and key in state_dict:
            expected = STORED[self.weight_bits]
            if state_dict[key].dtype != expected:
                errors.append(f"{key} is {state_dict[key].dtype} (a {self.weight_bits}-bit layer needs {expected})")
                return
            if expected == torch.uint8 and state_dict[key].shape == (-(-self.weight.numel() // 2),):
                state_dict = {**state_dict, key: unpack_nibbles(state_dict[key], self.weight.shape)}
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.frozen:
            if self._refresh() >= OVERFLOW:
                errors.append(f"{key}: an accumulator of {ACCUMULATOR_BITS} bits can overflow")
            if not -(2**self.activation_bits) < self.input_range[0] <= 0:
                errors.append(f"{prefix}input_low is {self.input_range[0]}: the range must hold 0")
            if not all(bool((s.isfinite() & (s > 0)).all()) for s in self.scales()):
                errors.append(f"{prefix}weight_scale, input_scale: not all positive and finite")

    def extra_repr(self) -> str:
        kind = ", dyadic" if self.precision.dyadic else ""
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}, activation_bits={self.activation_bits}{kind}"


def _reduced_gradient(scale: Tensor, values: float) -> Tensor:
    """`scale` itself; its gradient, a sum over `values` terms, is divided by their root (LSQ, section 2.2)."""
    share = values**-0.5
    return scale.detach() + share * (scale - scale.detach())


class QuantConv2d(_OnIntegers, nn.Conv2d):
    """A `Conv2d`, also depthwise or grouped, on integers."""

    def _convolve(self, q: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(q, weight, None, self.stride, self.padding, self.dilation, self.groups)


class QuantConvTranspose2d(_OnIntegers, nn.ConvTranspose2d):
    """A `ConvTranspose2d` of one group on integers."""

    OUT_DIM = 1

    def _convolve(self, q: Tensor, weight: Tensor, output_size: list[int] | None = None) -> Tensor:
        geometry = (self.stride, self.padding, self.kernel_size)
        output_padding = self._output_padding(q, output_size, *geometry, 2, self.dilation)
        return F.conv_transpose2d(q, weight, None, *geometry[:2], output_padding, self.groups, self.dilation)


class QuantLinear(_OnIntegers, nn.Linear):
    """A `Linear` of ``[N, C_in]`` on integers."""

    OVER_OUTPUT = (-1,)

    @property
    def out_channels(self) -> int:
        return self.out_features

    def _convolve(self, q: Tensor, weight: Tensor) -> Tensor:
        return F.linear(q, weight)


class QuantMaskedConv2d(_OnIntegers, MaskedConv2d):
    """A `MaskedConv2d` on integers; what the mask hides is 0."""

    def begin(self, precision: Precision) -> None:
        self.hide()
        super().begin(precision)

    def _convolve(self, q: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(q, weight * self.mask.to(weight), None, self.stride, self.padding)


class QuantPatchScore(_OnIntegers, PatchScore):
    """A `PatchScore` on integers."""

    def _convolve(self, q: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(q, weight[:, self.in_channels // 2 :])

    def _takes_kernel(self, q: Tensor) -> bool:
        return False


class QuantDeformableConv2d(_OnIntegers, DeformableConv2d):
    """A `DeformableConv2d` on integers: its samples lie between those of the input and are not rounded here."""

    @property
    def out_channels(self) -> int:
        return len(self.weight)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, offset, mask)

    def _convolve(self, q: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        return deform_conv2d(q, offset, weight, mask=mask)


QuantLayer = (
    QuantConv2d
    | QuantConvTranspose2d
    | QuantLinear
    | QuantMaskedConv2d
    | QuantPatchScore
    | QuantDeformableConv2d
    | QuantGDN
)
QUANTIZED = {nn.Conv2d: QuantConv2d, nn.ConvTranspose2d: QuantConvTranspose2d, nn.Linear: QuantLinear}
DYADIC = {  # some have no other form
    **QUANTIZED,
    MaskedConv2d: QuantMaskedConv2d,
    PlainGDN: QuantGDN,
    PatchScore: QuantPatchScore,
    DeformableConv2d: QuantDeformableConv2d,
}


def why_float(module: nn.Module, dyadic: bool = False) -> str | None:
    """Why a layer cannot be quantised, to dyadic integers if `dyadic`; None if it can."""
    if type(module) not in (DYADIC if dyadic else QUANTIZED):
        return f"{type(module).__name__} has no integer rule"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding_mode={module.padding_mode!r} (needs 'zeros')"
    if isinstance(module, nn.ConvTranspose2d) and module.groups != 1:
        return f"a transposed convolution of {module.groups} groups"
    return None


def quantized(layer: nn.Module, precision: Precision) -> nn.Module:
    """A copy of a float layer that computes on integers and can be trained; `layer` itself is not modified.

    Whatever else the layer carries (hooks, remarks of `compact`) stays with it.

    Raises:
        UsageError: the layer has no integer rule.
    """
    reason = why_float(layer, precision.dyadic)
    if reason is not None:
        raise UsageError(f"cannot be quantised: {reason}")
    result = copy.deepcopy(layer)
    result.__class__ = DYADIC[type(layer)]
    result.begin(precision)
    return result
