"""N:M sparsity: N weights kept of every M along the input channels, learnt while the codec trains, and packed.

Nothing here makes a codec faster. Compiled on a CPU, a layer with N:M zeros runs the dense kernel in the dense time;
GPU libraries run 2:4 as matrix products only, and win from about 256 channels on, if at all. What shrinks is the packed
weight.

Variants (MdGf, SdGf: arXiv 2402.04744; SR-STE: arXiv 2102.04010; m = mask, W = dense weight, g = gradient of W~):

=================== ======================= ========================= ==============================================
variant             forward W~              backward dL/dW            schedule
=================== ======================= ========================= ==============================================
mdgf_linear         W * (m + (1 - m)*kappa) g                         kappa from 1 at t0 to 0 at t1
mdgf_exponential    the same                g                         kappa = exp(-c*(t - t0)), 0.01 at t1
sdgf_stepwise       W * m                   g                         (M-1):M, M/2:M, M/4:M, ... N:M
sdgf_geometric      W * m                   g                         8N:8M, 4N:4M, 2N:2M, N:M
sr_ste              W * m                   g + factor*(1 - m)*W      none; factor 0 is the straight-through estimator
gradient_decay      W * m                   (m + (1 - m)*beta) * g    beta from 1 at t0 to 0 at t1
=================== ======================= ========================= ==============================================
"""

from __future__ import annotations

import contextlib
import enum
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.sparsity.gating import replaced
from sparsecodec.sparsity.schedules import ApplyTo

KAPPA_END = 0.01  # of the exponential schedule at t1, where it is cut to 0
WIDEST = 8  # the geometric schedule starts with groups of this many times M


@dataclass(frozen=True)
class NM:
    """`n` kept of every `m` weights that neighbour along the input channels; ``NM(2, 4)`` is 2:4."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise UsageError(f"pattern {self.n}:{self.m} (needs 1 <= n <= m)")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """Fraction of weights removed."""
        return 1 - self.n / self.m

    def halved_to_fit(self, channels: int) -> NM:
        """This pattern, or the largest halving of it, both numbers alike, whose groups divide `channels`."""
        pattern = self
        while channels % pattern.m:
            if pattern.n % 2 or pattern.m % 2:
                raise UsageError(f"{channels} input channels cannot be grouped for {self}")
            pattern = NM(pattern.n // 2, pattern.m // 2)
        return pattern


class NMVariant(enum.Enum):
    """How a layer comes to its pattern; see the table above."""

    MDGF_LINEAR = "mdgf_linear"
    MDGF_EXPONENTIAL = "mdgf_exponential"
    SDGF_STEPWISE = "sdgf_stepwise"
    SDGF_GEOMETRIC = "sdgf_geometric"
    SR_STE = "sr_ste"
    GRADIENT_DECAY = "gradient_decay"


@dataclass(frozen=True)
class NMConfig:
    """Settings of `NMTraining`; JSON-able values.

    Attributes:
        n, m: the pattern at the end.
        t0: step from which kappa, beta or the pattern change. Until then MdGf and SdGf are dense, the others are not.
        t1: step from which the masks are frozen and masked weights neither count nor learn.
        variant: a value of `NMVariant`.
        factor: of SR-STE's pull of masked weights towards 0.
        apply_to: where beta acts, a value of `ApplyTo`.
    """

    n: int
    m: int
    t0: int
    t1: int
    variant: str = NMVariant.MDGF_LINEAR.value
    factor: float = 2e-4
    apply_to: str = ApplyTo.UPDATE.value

    def __post_init__(self) -> None:
        NM(self.n, self.m)
        if not 0 <= self.t0 < self.t1:
            raise UsageError(f"t0={self.t0}, t1={self.t1} (needs 0 <= t0 < t1)")
        if not (math.isfinite(self.factor) and self.factor >= 0):
            raise UsageError(f"factor={self.factor} (needs a number from 0 on)")
        for name, value, accepted in (("variant", self.variant, NMVariant), ("apply_to", self.apply_to, ApplyTo)):
            if value not in [member.value for member in accepted]:
                raise UsageError(f"{name}={value!r} (needs one of {', '.join(m.value for m in accepted)})")

    @property
    def pattern(self) -> NM:
        """The one at the end."""
        return NM(self.n, self.m)

    @property
    def patterns(self) -> tuple[NM, ...]:
        """Those that take equal parts of the time from t0 to t1."""
        if self.variant == NMVariant.SDGF_STEPWISE.value:
            halvings = [self.m >> i for i in range(1, self.m.bit_length())]
            counts = dict.fromkeys(count for count in (self.m - 1, *halvings) if count > self.n)
            return (*(NM(count, self.m) for count in counts), self.pattern)
        if self.variant == NMVariant.SDGF_GEOMETRIC.value:
            times = [WIDEST >> i for i in range(WIDEST.bit_length())]
            return tuple(NM(self.n * time, self.m * time) for time in times)
        return (self.pattern,)

    def pattern_at(self, step: int) -> NM | None:
        """The pattern in force; None as long as nothing is masked."""
        if self.variant not in (NMVariant.SDGF_STEPWISE.value, NMVariant.SDGF_GEOMETRIC.value) or step >= self.t1:
            return self.pattern
        if step < self.t0:
            return None
        return self.patterns[len(self.patterns) * (step - self.t0) // (self.t1 - self.t0)]

    def kappa(self, step: int) -> float:
        """Factor of masked weights in the forward."""
        if not self.variant.startswith("mdgf") or step >= self.t1:
            return 0.0
        done = max(step - self.t0, 0) / (self.t1 - self.t0)
        return 1 - done if self.variant == NMVariant.MDGF_LINEAR.value else KAPPA_END**done

    def beta(self, step: int) -> float:
        """Factor of the gradient of masked weights."""
        if step >= self.t1:
            return 0.0
        if self.variant != NMVariant.GRADIENT_DECAY.value or step <= self.t0:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - self.t0) / (self.t1 - self.t0)))


class _Masked(torch.autograd.Function):
    """The table's forward and backward; the product is in here, or autograd would mask the gradient a second time."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, keep: Tensor, kappa: float, beta: float, factor: float) -> Tensor:
        ctx.save_for_backward(keep, weight)
        ctx.beta, ctx.factor = beta, factor
        return torch.where(keep, weight, kappa * weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        keep, weight = ctx.saved_tensors
        masked = ctx.beta * grad if ctx.beta != 1 else grad
        masked = masked + ctx.factor * weight if ctx.factor else masked
        return torch.where(keep, grad, masked), None, None, None, None


def nm_masked(weight: Tensor, keep: Tensor, kappa: float = 0.0, beta: float = 1.0, factor: float = 0.0) -> Tensor:
    """``W * (m + (1 - m)*kappa)``, whose gradient is ``(m + (1 - m)*beta) * g + factor*(1 - m)*W``.

    Args:
        weight: any shape, floating point.
        keep: bool, shape of `weight`.
        kappa, beta: in [0, 1].
        factor: at least 0.
    """
    return _Masked.apply(weight, keep, kappa, beta, factor)


def nm_mask(weight: Tensor, pattern: NM, dim: int = 1) -> Tensor:
    """The n largest ``|W|`` of each m along `dim`; of equal ones those of the lower channels.

    Args:
        weight: floating point, any shape: ``[O, I, Kh, Kw]`` or ``[O, I]`` with ``dim=1``, transposed convolutions
            ``[I, O, Kh, Kw]`` with ``dim=0``.
        pattern: of each group.
        dim: of the input channels.

    Returns:
        bool, shape of `weight`.

    Raises:
        UsageError: the channels are no multiple of m, or a weight is not finite.
    """
    groups = grouped(weight.detach(), pattern, dim).abs()
    if not torch.isfinite(groups).all():
        raise UsageError("a weight is not finite: its group cannot be ranked")
    order = groups.argsort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., : pattern.n], True)
    return keep.flatten(-2).movedim(-1, dim)


def grouped(weight: Tensor, pattern: NM, dim: int) -> Tensor:
    """``[..., I/m, m]``: input channels last, in groups."""
    if weight.shape[dim] % pattern.m:
        raise UsageError(f"{weight.shape[dim]} input channels (needs a multiple of {pattern.m} for {pattern})")
    return weight.movedim(dim, -1).unflatten(-1, (-1, pattern.m))


def input_dim(layer: nn.Module) -> int:
    """The dimension of input channels in the weight of a layer that `nm_layers` accepts."""
    return 0 if isinstance(layer, nn.ConvTranspose2d) else 1


def nm_layers(
    model: nn.Module, paths: Iterable[str], pattern: NM, min_channels: int = 256, max_kernel: int = 1
) -> tuple[list[str], dict[str, str]]:
    """Which layers get the pattern, and why the others stay dense.

    Args:
        model: any codec.
        paths: of its transforms.
        pattern: of the groups.
        min_channels: the least number of both input and output channels; below 256 GPU libraries gain nothing.
        max_kernel: the largest side of a kernel; 1 takes what is a matrix product.

    Returns:
        Names in order of the model; and name -> reason for every other convolution and linear layer.

    Raises:
        GraphError: no layer is left; the message says why.
    """
    chosen, dense = [], {}
    for path in paths:
        for name, layer in model.get_submodule(path).named_modules(prefix=path):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                reason = _why_dense(layer, pattern, min_channels, max_kernel)
                if reason is None:
                    chosen.append(name)
                else:
                    dense[name] = reason
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(dense.items())[:8])
        raise GraphError(f"no layer of {', '.join(paths)} can be {pattern}: {reasons or 'there are none'}")
    return chosen, dense


def _why_dense(layer: nn.Module, pattern: NM, min_channels: int, max_kernel: int) -> str | None:
    if getattr(layer, "groups", 1) > 1:
        return f"{layer.groups} groups"
    kernel = getattr(layer, "kernel_size", (1, 1))
    if max(kernel) > max_kernel:
        return f"kernel of {kernel[0]} x {kernel[1]} (max_kernel={max_kernel})"
    dim = input_dim(layer)
    c_in, c_out = layer.weight.shape[dim], layer.weight.shape[1 - dim]
    if min(c_in, c_out) < min_channels:
        return f"{c_in} to {c_out} channels (min_channels={min_channels})"
    return f"{c_in} input channels are no multiple of {pattern.m}" if c_in % pattern.m else None


class NMTraining(nn.Module):
    """Learns N:M masks while the model trains.

    The model itself is never changed: its parameters stay dense, `applied` puts the masked ones in their place for a
    forward pass. Per step::

        training.set_step(step)
        with training.applied():
            out = model(x)
        loss(out).backward()
        training.step(optimizer)

    From ``config.t1`` on the masks rest. State dict: the masks, and whether they are frozen.

    Args:
        model: holds the layers.
        layers: their names, as `nm_layers` gives them.
        config: pattern and schedule.
    """

    keep: Tensor
    frozen: Tensor

    def __init__(self, model: nn.Module, layers: Sequence[str], config: NMConfig) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)  # not a submodule: its state is its own
        self.layers, self.config, self.step_index = tuple(layers), config, 0
        self._sizes = [model.get_submodule(name).weight.numel() for name in self.layers]
        device = model.get_submodule(self.layers[0]).weight.device
        self.register_buffer("keep", torch.ones(sum(self._sizes), dtype=torch.bool, device=device))
        self.register_buffer("frozen", torch.tensor(False))

    @torch.no_grad()
    def set_step(self, step: int) -> None:
        """Start of a step: masks from the present weights, or, at t1 and once, the masks that stay."""
        self.step_index = step
        if self.frozen:
            return
        pattern = self.config.pattern_at(step)
        if pattern is None:
            self.keep.fill_(True)
            return
        for name, keep in self._masks():
            layer = self.model.get_submodule(name)
            dim = input_dim(layer)
            keep.copy_(nm_mask(layer.weight, pattern.halved_to_fit(layer.weight.shape[dim]), dim))
        self.frozen.fill_(step >= self.config.t1)

    @property
    def kappa(self) -> float:
        return 0.0 if self.frozen else self.config.kappa(self.step_index)

    @property
    def beta(self) -> float:
        return 0.0 if self.frozen else self.config.beta(self.step_index)

    @property
    def sparsity(self) -> float:
        """Fraction of the layers' weights that is masked."""
        return 1 - float(self.keep.float().mean())

    def masks(self) -> dict[str, Tensor]:
        """Name -> bool, shape of the layer's weight; copies."""
        return {name: keep.clone() for name, keep in self._masks()}

    @contextlib.contextmanager
    def applied(self, model: nn.Module | None = None) -> Iterator[None]:
        """Within the context the model computes with its masked weights; afterwards its parameters are back in place.

        Args:
            model: another model of the same architecture, such as an average of the weights; default: the trained one.
        """
        model = self.model if model is None else model
        config = self.config
        beta = self.beta if self.frozen or config.apply_to == ApplyTo.GRADIENT.value else 1.0
        factor = config.factor if config.variant == NMVariant.SR_STE.value and not self.frozen else 0.0
        masked = (
            (name, "weight", nm_masked(model.get_submodule(name).weight, keep, self.kappa, beta, factor))
            for name, keep in self._masks()
        )
        with replaced(model, masked):
            yield

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """``optimizer.step()``, with the movement of masked weights scaled by beta where it acts on the update.

        Frozen, they rest whatever momentum and weight decay would do.
        """
        beta = self.beta
        if beta == 1 or (self.config.apply_to == ApplyTo.GRADIENT.value and not self.frozen):
            optimizer.step()
            return
        weights = [self.model.get_submodule(name).weight for name in self.layers]
        before = [weight.detach().clone() for weight in weights]
        optimizer.step()
        with torch.no_grad():
            for weight, old, (_, keep) in zip(weights, before, self._masks(), strict=True):
                weight.copy_(torch.where(keep, weight, old.lerp(weight, beta)))

    @torch.no_grad()
    def bake(self, model: nn.Module | None = None) -> None:
        """Writes the zeros of the masks into the model's own weights."""
        model = self.model if model is None else model
        for name, keep in self._masks():
            model.get_submodule(name).weight.mul_(keep)

    def _masks(self) -> Iterator[tuple[str, Tensor]]:
        for name, flat in zip(self.layers, self.keep.split(self._sizes), strict=True):
            yield name, flat.view(self.model.get_submodule(name).weight.shape)
