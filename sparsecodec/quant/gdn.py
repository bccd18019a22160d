"""Divisive normalisation on integers, calibrated and not trained: what DCVC's layers become in a portable codec."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.nn.dcvc_layers import PlainGDN
from sparsecodec.ops.integer_gdn import NORM_LIMIT, SQUARE_LIMIT
from sparsecodec.quant.precision import Precision

POWERS = (-16, 15)  # of 2 in units of a root, where gamma is very large or very small


class KeepsTypes:
    """A layer that leaves every tensor in its type: a codec that is cast to half computes the same."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        def keep_type(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_type, recurse)


class QuantGDN(KeepsTypes, PlainGDN):
    """A `PlainGDN` on integers: of an int16 input sums of weighed squares up to 2^52, and integer roots of them::

        q[n,i,h,w]    = clip(round(x / input_scale), -2^15, 2^15 - 1)
        root[n,i,h,w] = floor(sqrt(beta[i] + sum_j gamma[i,j] q[n,j,h,w]^2)) input_scale sqrt(gamma_scale[i])

    State before freezing: ``beta``, ``gamma``, ``input_log2 []``, float32 parameters. State when frozen: ``beta [C]``
    int64, ``gamma [C, C]`` int32, ``gamma_scale [C]`` float32, powers of 4, ``input_scale []`` float32, a power of 2.

    Attributes:
        precision: dyadic. Inputs have 16 bits, gamma what fits, whatever it says.
        frozen: the weights are integers.
    """

    activation_bits = 16
    bias = None
    precision: Precision
    frozen: bool

    @property
    def out_channels(self) -> int:
        return len(self.beta)

    @property
    def weight_bits(self) -> int:
        return self.precision.weight_bits

    def begin(self, precision: Precision) -> None:
        """Turns a float layer into one that is calibrated."""
        self.precision, self.frozen = precision, False
        self.input_log2 = nn.Parameter(self.beta.detach().new_zeros(()))

    @torch.no_grad()
    def set_input_range(self, low: float, high: float) -> None:
        """Clips the input to ``[low, high]`` or a little less, low <= 0 <= high; a constant zero gets the scale 1."""
        scale = max(high, -low) / (2**15 - 1) or 1.0
        self.input_log2.copy_(torch.tensor(scale, dtype=torch.float64).log2().ceil())

    def scales(self) -> tuple[Tensor, Tensor]:
        """``input_scale`` and ``gamma_scale``."""
        if self.frozen:
            return self.input_scale, self.gamma_scale
        return self._chosen()[2:]

    def integers(self) -> tuple[Tensor, Tensor]:
        """``gamma`` and ``beta``."""
        return (self.gamma, self.beta) if self.frozen else self._chosen()[:2]

    def _chosen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """gamma, beta and their scales: of each channel the finest whose norm stays within its limit for any input."""
        with torch.no_grad():
            scale = self.input_log2.detach().round().exp2()
            gamma, beta = self.gamma_reparam(self.gamma).double(), self.beta_reparam(self.beta).double()
            gamma, beta = gamma.clamp(min=0), beta.clamp(min=0) / scale.double() ** 2
            power = torch.full((len(beta),), POWERS[1], dtype=torch.float64, device=beta.device)
            for _ in range(POWERS[1] - POWERS[0] + 1):
                units = 4.0**power
                weights, offsets = (gamma * units[:, None]).round(), (beta * units).round()
                large = weights.sum(1) * SQUARE_LIMIT + offsets > NORM_LIMIT
                if not bool(large.any()):
                    return weights.to(torch.int32), offsets.to(torch.int64), scale, (1 / units).float()
                power = power - large.double()
        raise UsageError(f"{self}: beta or gamma is too large for integers, or the input's range is too small")

    def forward(self, x: Tensor) -> Tensor:
        """As the float layer's, on integers."""
        scale, gamma_scale = self.scales()
        gamma, beta = self.integers()
        q = (x.double() / scale.double()).round().clamp(-(2.0**15), 2.0**15 - 1)
        norm = nn.functional.conv2d(q * q, gamma.double()[:, :, None, None], beta.double())
        root = norm.sqrt().floor() * (gamma_scale.double().sqrt() * scale.double()).view(-1, 1, 1)
        q = q * scale.double()
        if self.inverse:
            return (q * root).to(x.dtype)
        least = gamma_scale.double().sqrt() * scale.double()
        return (q / torch.maximum(root, least.view(-1, 1, 1))).to(x.dtype)

    @torch.no_grad()
    def freeze(self) -> None:
        """Replaces the float weights by integers, for good."""
        if self.frozen:
            return
        if not all(bool(p.isfinite().all()) for p in self.parameters()):
            raise UsageError(f"{self}: a weight or scale is not finite")
        gamma, beta, input_scale, gamma_scale = self._chosen()
        for name in ("gamma", "beta", "input_log2"):
            delattr(self, name)
        for name, value in (("gamma", gamma), ("beta", beta), ("input_scale", input_scale)):
            self.register_buffer(name, value)
        self.register_buffer("gamma_scale", gamma_scale)
        self.frozen = True

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        errors = args[-1]
        if self.frozen:
            for name in ("gamma", "beta"):
                value, wanted = state_dict.get(prefix + name), getattr(self, name).dtype
                if value is not None and value.dtype != wanted:
                    errors.append(f"{prefix}{name} is {value.dtype} (needs {wanted})")
                    return
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.frozen:
            errors += [f"{prefix}{reason}" for reason in self._faults()]

    def _faults(self) -> list[str]:
        """What is wrong with the values."""
        faults = []
        least = min((int(values.min()) for values in (self.gamma, self.beta) if values.numel()), default=0)
        bound = self.gamma.double().sum(1) * SQUARE_LIMIT + self.beta.double()  # 64 bits could overflow
        if least < 0 or bool((bound > NORM_LIMIT).any()):
            faults.append("gamma, beta: not in 0 <= beta + 2^30 sum gamma <= 2^52")
        for name, base in (("input_scale", 1), ("gamma_scale", 2)):
            scale = getattr(self, name).double()
            power = torch.frexp(scale)
            fine = scale.isfinite() & (power.mantissa == 0.5) & ((power.exponent - 1) % base == 0)
            if not bool(fine.all()):
                faults.append(f"{name}: not all powers of {2**base}")
        return faults

    def extra_repr(self) -> str:
        return f"{self.out_channels}, inverse={self.inverse}, dyadic"
