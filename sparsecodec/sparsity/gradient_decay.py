"""Gradient decay: train masks whose masked filters keep learning at first, then less and less, then are frozen.

A channel is kept while its score, the norm of its filters or its energy, lies above the learnable threshold of its
space. The forward uses ``m * W``; the backward scales what a masked filter receives by ``beta``, which goes from 1
(straight-through) to 0 (hard mask) (arXiv 2312.02605). A penalty on the MACs of the whole decoder moves the thresholds
until the target is met.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.sparsity.channel_graph import ChannelGraph
from sparsecodec.sparsity.freeze import freeze_masks
from sparsecodec.sparsity.gating import Gating, replaced
from sparsecodec.sparsity.macs import MacReport, MacShares, masked_macs
from sparsecodec.sparsity.masks import ChannelMasks, top
from sparsecodec.sparsity.schedules import ApplyTo, DecayConfig

logger = logging.getLogger(__name__)

LIFT = 1e-30
"""Bias of a masked filter while it may still learn. It vanishes in every sum, but at 0 itself the derivative of a ReLU
is 0 (and that of a LeakyReLU its slope), so that no gradient would reach the filter and it could never come back."""

BISECTIONS = 12
SLACK = 1e-3  # of an initial threshold below the smallest score of its space, in units of the mean score
FORCED = 0.03  # of the MACs: a freeze that has to remove more than this beyond what the thresholds did warns


class _Gate(torch.autograd.Function):
    """``keep * weight``; the product is in here, or autograd would mask the gradient a second time."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, keep: Tensor, beta: float, masked: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.beta = beta
        return torch.where(keep, weight, masked) if masked else weight * keep

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.beta == 1:
            return grad, None, None, None
        (keep,) = ctx.saved_tensors
        return torch.where(keep, grad, ctx.beta * grad), None, None, None


def gate(weight: Tensor, keep: Tensor, beta: float, masked: float = 0.0) -> Tensor:
    """`weight` where kept, `masked` elsewhere; the gradient is ``(keep + beta * (1 - keep)) * g``.

    Args:
        weight: any shape, floating point.
        keep: bool, broadcasts to `weight`.
        beta: in [0, 1].
        masked: value of what is not kept.
    """
    return _Gate.apply(weight, keep, beta, masked)


class GradientDecay(nn.Module):
    """Learns which channels of a model to drop, while the model trains.

    The model itself is never changed: its parameters stay dense, `applied` puts the masked ones in their place for a
    forward pass. Per step::

        decay.set_step(step)
        with decay.applied():
            out = model(x)
        loss = rate_distortion(out) + decay.penalty()
        loss.backward()
        decay.step(optimizer)          # with decay.parameter_group(lr) among the optimiser's groups

    At first every channel lies above its threshold. From halfway between ``config.t0`` and ``config.t1`` on kept widths
    are whole tiles. After ``config.t1`` the masks no longer move, and ``compact(model, decay.masks(), graph)`` computes
    the same as the trained forward. Thresholds and masks stay on the CPU, wherever the model is.
    State dict: thresholds, masks, gains, whether the masks are frozen, how many channels that dropped. With those of
    model and optimiser, training resumes exactly.

    Args:
        model: holds the layers of `graph`.
        graph: its channel graph.
        report: MACs of everything that is to count, on the dense model; see `count`.
        config: schedule and target.
        energies: ``[width]`` by prunable space and branch, from `channel_energies` on the model as it is now. A score
            is then the root of the energy, and follows the norm of the filters from there on; None: the norm alone, as
            published.

    Raises:
        GraphError: nothing can be pruned, or no layer of `graph` is in `report`.
        UsageError: the target cannot be met with one tile per space.
    """

    keep: Tensor
    frozen: Tensor
    forced: Tensor  # channels that the freeze dropped though they lay above their thresholds
    gain: Tensor  # [W] float32: score of a channel per norm of its filters
    mac_reduction: float  # fraction of the counted MACs that the masks in force remove

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        report: MacReport,
        config: DecayConfig,
        energies: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        units = list(graph.prunable.values())
        if not units or not any(layer.name in graph.layers for layer in report.layers):
            raise GraphError(
                f"transforms {list(graph.transforms)} have {len(units)} prunable spaces, or none is counted"
            )
        object.__setattr__(self, "model", model)  # not a submodule: its state is its own
        self.graph, self.report, self.config = graph, report, config
        self.names = [unit.name for unit in units]
        self.gating = Gating(graph, self.names)
        self.unit_of = self.gating.unit_of
        self.register_buffer("keep", torch.ones(self.gating.size, dtype=torch.bool))
        self.register_buffer("frozen", torch.tensor(False))
        self.register_buffer("forced", torch.tensor(0))
        self.register_buffer("gain", self._gain(energies))
        self._shares = MacShares(graph, report, self.names)
        self.step_index = 0
        self.register_load_state_dict_post_hook(lambda module, _: module._refresh())
        self._refresh()
        self.scores = self._score()
        least, largest = self._extreme_per_unit("amin"), self._extreme_per_unit("amax")
        self.theta = nn.Parameter(torch.minimum(config.theta * largest, least - SLACK))
        tiles = freeze_masks(
            graph, report, self.gating.sections(self.scores), dict.fromkeys(self.names, 1), 0.0, config.round_to
        )
        reachable = 1 - masked_macs(report, graph, tiles) / report.macs
        if reachable < config.sparsity:
            raise UsageError(
                f"sparsity={config.sparsity}: with {config.round_to} channels in every space only {reachable:.3f} of "
                f"the MACs are removed (trace more transforms, or lower round_to); {graph.locks}"
            )

    # --- the training loop's side ---

    def parameter_group(self, lr: float) -> dict[str, Any]:
        """An optimiser group for the thresholds: no weight decay, no momentum (they must stop at the target)."""
        return {"params": [self.theta], "lr": lr, "weight_decay": 0.0, "momentum": 0.0, "betas": (0.0, 0.99)}

    @torch.no_grad()
    def distance(self) -> float:
        """How far the thresholds, all alike, would have to rise for the target to be met by the present scores."""
        highest = float(self.scores.max() - self.theta.min())
        return self._least(lambda rise: self.theta + rise, highest, self.config.sparsity)

    @torch.no_grad()
    def set_step(self, step: int) -> None:
        """Start of a step: update the masks from the weights, or freeze them when their time has come."""
        self.step_index = step
        if self.frozen:
            return
        self.scores = self._score()
        self.keep.copy_(self._masks_at(self.theta))
        if step >= self.config.t1:
            self._freeze()
        self._refresh()

    def _freeze(self) -> None:
        """Moves tiles until the target is met, and tells what that took."""
        learnt, removed = self.keep.clone(), self._reduction(self.keep)
        self.keep.copy_(self._whole_tiles(self.theta, self.config.sparsity))
        self.forced.fill_(int((learnt & ~self.keep).sum()))
        self.frozen.fill_(True)
        if (by_force := self._reduction(self.keep) - removed) > FORCED:
            logger.warning(
                "step %d: the thresholds removed %.3f of the MACs of %.3f that are to go; the freeze removed %.3f at "
                "once, %d channels of %d (more steps, or a lower mac_reduction, leave less to it)",
                self.step_index, removed, self.config.sparsity, by_force, int(self.forced), len(self.keep),
            )  # fmt: skip

    @property
    def beta(self) -> float:
        return 0.0 if self.frozen else self.config.beta(self.step_index)

    @contextlib.contextmanager
    def applied(self, model: nn.Module | None = None) -> Iterator[None]:
        """Within the context the model computes with masked filters; afterwards its parameters are back in place.

        Everything that uses the weights must run inside, recomputation of checkpointed activations included. Without
        gradient (``with torch.no_grad(), decay.applied()``) masked channels are exactly zero, otherwise see `LIFT`.

        Args:
            model: another model of the same architecture, such as an average of the weights; default: the trained one.
        """
        model = self.model if model is None else model
        lift = LIFT if self.beta > 0 and torch.is_grad_enabled() else 0.0
        # What no longer learns must not count in the norm of the gradient, nor in Muon's direction, either.
        beta = self.beta if self.config.apply_to == ApplyTo.GRADIENT.value or not self.beta else 1.0
        gated = (
            (name, key, gate(model.get_submodule(name)._parameters[key], keep, beta, lift if key == "bias" else 0.0))
            for name, key, keep in self._active
        )
        with replaced(model, gated):
            yield

    def penalty(self) -> Tensor:
        """``max(0, target - S)^2``, S the MAC reduction of the hard masks with the soft one's gradient.

        It has no weight: thresholds get a gradient from here alone, and Adam's steps do not depend on its scale.
        """
        if self.frozen:
            return self.theta.new_zeros(())
        soft = torch.sigmoid((self.scores - self.theta[self.unit_of]) / self.config.temperature)
        fractions = self._mean_per_unit(soft)
        estimate = self._shares.reduction(fractions)
        reduction = self.mac_reduction + (estimate - estimate.detach())
        return torch.relu(self.config.target(self.step_index) - reduction).square()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """``optimizer.step()``, with the movement of masked filters scaled by beta (`ApplyTo.UPDATE`, or once frozen).

        What moves masked filters beside the gradient, weight decay and momentum, is scaled too; at beta 0 they rest.
        Thresholds stop where they meet the present target, for nothing would take them back.
        """
        theta = self.theta.detach().clone()
        self._move(optimizer)
        if not self.frozen and not torch.equal(self.theta, theta):
            self._stop_at_target(theta)

    def _move(self, optimizer: torch.optim.Optimizer) -> None:
        beta = self.beta
        if beta == 1 or (self.config.apply_to == ApplyTo.GRADIENT.value and not self.frozen):
            optimizer.step()
            return
        before = []
        for name, key, keep in self._active:
            parameter = self.model.get_submodule(name)._parameters[key]
            before.append((parameter, keep, parameter.detach().clone()))
        optimizer.step()
        with torch.no_grad():
            for parameter, keep, old in before:
                parameter.copy_(torch.where(keep, parameter, old.lerp(parameter, beta)))

    @torch.no_grad()
    def _stop_at_target(self, before: Tensor) -> None:
        """Takes the thresholds back on the way that they came from `before`, if they went too far."""
        target, after = self.config.target(self.step_index), self.theta.clone()
        if self._reduction(self._masks_at(after)) > target:
            self.theta.copy_(before.lerp(after, self._least(lambda share: before.lerp(after, share), 1.0, target)))

    # --- what was learnt ---

    def masks(self) -> ChannelMasks:
        """The masks in force; rounded to ``config.round_to`` from ``config.rounding`` on."""
        return ChannelMasks(self.gating.sections(self.keep))

    @torch.no_grad()
    def bake(self, model: nn.Module | None = None) -> None:
        """Write the masked weights into the model's own parameters, for instance before it is saved uncompacted."""
        model = self.model if model is None else model
        for name, key, keep in self._active:
            model.get_submodule(name)._parameters[key].mul_(keep)

    # --- tables ---

    def _refresh(self) -> None:
        """Everything that follows from `keep`: the reduction, and which parameters are masked how."""
        self.mac_reduction = self._reduction(self.keep)
        self._active = [
            (name, key, keep.to(self.model.get_submodule(name).weight.device))
            for name, key, keep in self.gating.gates(self.model, self.keep)
            if not keep.all()
        ]

    def _reduction(self, keep: Tensor) -> float:
        return 1 - masked_macs(self.report, self.graph, self.gating.sections(keep)) / self.report.macs

    def _extreme_per_unit(self, which: str) -> Tensor:
        return torch.zeros(len(self.names)).scatter_reduce(0, self.unit_of, self.scores, which, include_self=False)

    def _mean_per_unit(self, flat: Tensor) -> Tensor:
        widths = torch.tensor(self.gating.widths, dtype=torch.float32)
        return torch.zeros_like(widths).index_add(0, self.unit_of, flat) / widths

    @torch.no_grad()
    def _gain(self, energies: Mapping[str, Tensor] | None) -> Tensor:
        if energies is None:
            return torch.ones(self.gating.size)
        roots = torch.cat([energies[name].sqrt() for name in self.names])
        return roots / self.gating.norms(self.model, self.config.p).clamp(min=1e-12)

    @torch.no_grad()
    def _score(self) -> Tensor:
        """``[sum of widths]`` score of every channel, in units of its space's mean score."""
        total = self.gating.norms(self.model, self.config.p) * self.gain
        return total / self._mean_per_unit(total).clamp(min=1e-12)[self.unit_of]

    def _least(self, thresholds: Callable[[float], Tensor], high: float, target: float) -> float:
        """The least number up to `high` whose thresholds remove `target` of the MACs, those of `high` doing so."""
        low = 0.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            reached = self._reduction(self._masks_at(thresholds(middle))) >= target
            low, high = (low, middle) if reached else (middle, high)
        return high

    def _masks_at(self, theta: Tensor) -> Tensor:
        """``[sum of widths]`` bool: what thresholds `theta` keep at the present step."""
        if self.step_index < self.config.rounding:
            return self._threshold(self.scores, theta)
        return self._whole_tiles(theta, 0.0)

    def _whole_tiles(self, theta: Tensor, sparsity: float) -> Tensor:
        """The same in whole tiles; `sparsity` as of `freeze_masks`."""
        kept = self.gating.sections(self._threshold(self.scores, theta))
        counts = {name: int((mask & self.graph.allowed(name, kept)).sum()) for name, mask in kept.items()}
        margins = self.gating.sections(self.scores - theta.detach()[self.unit_of])
        masks = freeze_masks(self.graph, self.report, margins, counts, sparsity, self.config.round_to)
        return torch.cat([masks[name] for name in self.names])

    def _threshold(self, scores: Tensor, theta: Tensor) -> Tensor:
        """``[sum of widths]`` bool: score above the threshold, and at least one tile of every space and branch."""
        keep = scores > theta[self.unit_of]
        if not torch.isfinite(scores).all():
            raise UsageError("a weight is not finite: the scores of its channels cannot be compared")
        masks = self.gating.sections(keep)
        by_name = self.gating.sections(scores)
        for name, mask in masks.items():  # views of `keep`; spaces come before their branches
            allowed = self.graph.allowed(name, masks)
            least = min(self.config.round_to, int(allowed.sum()))
            if int((mask & allowed).sum()) < least:
                mask |= top(by_name[name], allowed, least)
            mask |= top(by_name[name], allowed, 0, self.graph.parts(name))
        return keep
