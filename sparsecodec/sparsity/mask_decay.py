"""Mask decay: one scalar mask per channel, driven to zero until a space has the width that is asked for.

After EVC (arXiv 2302.05071). Every channel of a space has a mask ``m >= 0``, at first 1. It multiplies the filters and
biases of all layers that make the channel, and the biases of the depthwise layers that carry it. Behind activations
with ``f(m x) = m f(x)`` (ReLU, LeakyReLU) that is a factor on the space's tensors: behind the depthwise convolution of
a block, and behind each residual addition at once. Other activations see the masked channel (GDN, too, whose other
channels then no longer see it); where a zero does not stay zero, as behind a sigmoid, the readers' weights are
multiplied as well. So the masks are folded into the weights exactly, and a channel of mask 0 may be cut out.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.sparsity.channel_graph import ChannelGraph
from sparsecodec.sparsity.energy import listening, readers_of, summed
from sparsecodec.sparsity.gating import Gating, replaced
from sparsecodec.sparsity.masks import ChannelMasks
from sparsecodec.sparsity.schedules import MaskDecayConfig, Penalty, psi

ZERO = 0.01
"""A mask below becomes 0 for good, while its space is too wide; else it rests here."""
MEASURED_EVERY = 8
"""Steps between measurements of the energies: one costs a quarter of a step (evc-tiny, one CPU core, 2026-11)."""
MEMORY = 0.7
"""Of the running mean of the channels' energies, from one measurement to the next."""


class MaskDecay(nn.Module):
    """Learns which channels of a model to drop, down to given widths, while the model trains.

    ``loss = rate_distortion + mu(t) sum_g (K_g - K*_g) sum_{c in P_g} psi(m_c)``: K_g live channels of space g, K*_g
    the width it is to have, P_g the K_g - K*_g channels of least importance. A space that has its width feels nothing.

    Importance is mask times the energy that an unmasked channel has in the outputs of its readers, a running mean over
    the training batches. The mask alone would not do: at first all masks are 1, and later ``m / 2`` with filters twice
    as large is the same codec; the product does not see that change. Measured on evc-tiny cut at once to the widths of
    tiny-m, R + lambda D: encoder 2.2 and decoder 1.5 by energy, 12 and 50 by the norms of the filters (dense: 0.95;
    2026-11).

    The model itself is never changed: its parameters stay dense, `applied` puts the masked ones in their place for a
    forward pass. Per step::

        decay.set_step(step)
        with decay.applied():
            out = model(x)
        loss = rate_distortion(out) + decay.penalty()
        loss.backward()
        decay.step(optimizer)          # with decay.parameter_group(lr) among the optimiser's groups

    After ``config.t1`` every space has its width and the masks no longer move; ``fold`` and ``compact(model,
    decay.masks(), graph)`` give a codec that computes the same. Masks stay on the CPU, wherever the model is.
    State dict: masks (0 = dropped), energies, whether they are final, how many were forced. With those of model and
    optimiser, training resumes exactly.

    Args:
        model: holds the layers of `graph`.
        graph: its channel graph.
        targets: width by space; see `student_targets` and `uniform_targets`.
        config: schedule and penalty.

    Raises:
        GraphError: a target is for no space, for a branch, for a locked space, or wider than the space.
        UsageError: a width below 1, or nothing to drop.
    """

    energy: Tensor  # [W] float32; -1 until it is measured
    frozen: Tensor
    forced: Tensor  # channels that still lived at t1 and had to go

    def __init__(self, model: nn.Module, graph: ChannelGraph, targets: Mapping[str, int], config: MaskDecayConfig):
        super().__init__()
        _check(graph, targets)
        object.__setattr__(self, "model", model)  # not a submodule: its state is its own
        self.graph, self.config = graph, config
        narrower = [name for name, space in graph.spaces.items() if targets.get(name, space.width) < space.width]
        self.targets = {name: targets[name] for name in narrower}
        self.gating = Gating(graph, list(self.targets))
        self.mask = nn.Parameter(torch.ones(self.gating.size))
        self.register_buffer("energy", torch.full((self.gating.size,), -1.0))
        self.register_buffer("frozen", torch.tensor(False))
        self.register_buffer("forced", torch.tensor(0))
        self._readers = readers_of(self.gating)
        self.step_index = 0

    # --- the training loop's side ---

    def parameter_group(self, lr: float) -> dict[str, Any]:
        """An optimiser group for the masks: no weight decay."""
        return {"params": [self.mask], "lr": lr, "weight_decay": 0.0}

    @torch.no_grad()
    def set_step(self, step: int) -> None:
        """Start of a step. From ``config.t1`` on every space has its width: what is left over is dropped now."""
        self.step_index = step
        if self.frozen or step < self.config.t1:
            return
        before = self.live
        self._drop(self.mask > 0)
        self.forced.fill_(before - self.live)
        self.frozen.fill_(True)

    @contextlib.contextmanager
    def applied(self, model: nn.Module | None = None) -> Iterator[None]:
        """Within the context the model computes with masked filters; afterwards its parameters are back in place.

        Everything that uses the weights must run inside, recomputation of checkpointed activations included. With
        gradient, the forward also measures the channels' energies, in every eighth step.

        Args:
            model: another model of the same architecture, such as an average of the weights; default: the trained one.
        """
        model = self.model if model is None else model
        mask = self.mask.detach() if self.frozen else self.mask
        masked = ((name, key, parameter * gate) for name, key, parameter, gate in self._gated(model, mask))
        due = self.step_index % MEASURED_EVERY == 0 or bool((self.energy < 0).any())
        measuring = due and torch.is_grad_enabled() and not self.frozen
        with replaced(model, masked), self._measured(model) if measuring else contextlib.nullcontext():
            yield

    def penalty(self) -> Tensor:
        """Scalar: the penalty of the present step; its gradient reaches the surplus channels of least importance only.

        Raises:
            UsageError: no forward ran under `applied` yet.
        """
        if self.frozen:
            return self.mask.new_zeros(())
        surplus = torch.zeros_like(self.mask)
        importance = self.gating.sections(self._importance())
        for name, weights in self.gating.sections(surplus).items():  # views
            count = int((importance[name] > 0).sum()) - self.targets[name]
            if count > 0:
                weights[_least(importance[name], count)] = count
        return self.config.mu(self.step_index) * (surplus * self._penalised()).sum()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """``optimizer.step()``; then masks below `ZERO` become 0 where the space is too wide, and zeros stay zeros."""
        before = self.mask.detach().clone()
        optimizer.step()
        with torch.no_grad():
            if self.frozen:
                self.mask.copy_(before)
                return
            self.mask.copy_(torch.where(before > 0, self.mask.clamp(min=ZERO), 0.0))
            self._drop(self.mask <= ZERO)

    # --- what was learnt ---

    @property
    def live(self) -> int:
        """Channels whose mask is not zero, over all spaces."""
        return int((self.mask > 0).sum())

    def masks(self) -> ChannelMasks:
        """Which channels live, by space."""
        return ChannelMasks(self.gating.sections(self.mask.detach() > 0))

    @torch.no_grad()
    def fold(self, model: nn.Module | None = None) -> None:
        """Multiply the masks into the parameters of a model: it then computes alone what it did under `applied`."""
        model = self.model if model is None else model
        for _, _, parameter, gate in self._gated(model, self.mask):
            parameter.mul_(gate)

    # --- inside ---

    def _gated(self, model: nn.Module, mask: Tensor) -> Iterator[tuple[str, str, nn.Parameter, Tensor]]:
        """(layer, "weight" or "bias", the parameter, what to multiply it by)."""
        device = model.get_submodule(self.gating.layers[0].name).weight.device
        for name, key, gate in self.gating.gates(model, mask.to(device)):
            parameter = model.get_submodule(name)._parameters[key]
            yield name, key, parameter, gate.to(parameter.dtype)

    def _penalised(self) -> Tensor:
        """``[W]`` penalty of each channel, before its weight."""
        kind = Penalty(self.config.penalty)
        if kind is Penalty.PSI:
            return psi(self.mask, self.config.e(self.step_index))
        if kind is Penalty.GROUP_LASSO:
            norms = self.gating.norms(self.model)
            means = [section.mean().expand_as(section) for section in self.gating.sections(norms.detach()).values()]
            return self.mask * norms / torch.cat(means)
        return self.mask.abs() if kind is Penalty.L1 else self.mask.square()

    def _importance(self) -> Tensor:
        """``[W]`` float32, 0 for dropped channels; see the class."""
        if (self.energy < 0).any():
            raise UsageError("no forward ran under applied(), so the importance of the channels is not known")
        mask = self.mask.detach()
        # a live channel that never says anything must still count as live: hence the tiny lift
        return torch.where(mask > 0, mask * self.energy.sqrt() + torch.finfo(mask.dtype).tiny, 0.0)

    def _drop(self, candidates: Tensor) -> None:
        """Zero candidates, the least important first, as long as their space is too wide."""
        importance = self.gating.sections(self._importance())
        candidates = self.gating.sections(candidates)
        for name, mask in self.gating.sections(self.mask.data).items():  # views
            live = mask > 0
            chosen = live & candidates[name]
            count = min(int(live.sum()) - self.targets[name], int(chosen.sum()))
            if count > 0:
                mask[_least(torch.where(chosen, importance[name], 0.0), count)] = 0.0

    @contextlib.contextmanager
    def _measured(self, model: nn.Module) -> Iterator[None]:
        """Within the context, forwards of `model` move the running mean of the energies."""
        with listening(model, self._readers) as heard:
            yield
        if heard:
            with torch.no_grad():
                live = self.mask > 0
                now = summed(heard, self.gating.size) / torch.where(live, self.mask, 1.0).square()
                moved = torch.where(self.energy < 0, now, self.energy.lerp(now, 1 - MEMORY))
                self.energy.copy_(torch.where(live, moved, 0.0))


def _least(importance: Tensor, count: int) -> Tensor:
    """Indices of the `count` smallest entries that are not zero; ties go to the lower index."""
    return torch.where(importance > 0, importance, torch.inf).argsort(stable=True)[:count]


def _check(graph: ChannelGraph, targets: Mapping[str, int]) -> None:
    for name, width in targets.items():
        space = graph.spaces.get(name)
        if space is None:
            near = difflib.get_close_matches(name, graph.spaces, 3)
            hint = f"; did you mean {', '.join(near)}?" if near else f"; there are {len(graph.spaces)} others"
            raise GraphError(f"no channel space {name!r} in transforms {list(graph.transforms)}{hint}")
        if space.joined is not None:
            raise GraphError(f"{name!r} keeps the width of what it is added into (give a target for {space.joined!r})")
        if width < 1:
            raise UsageError(f"target width {width} of {name!r} (needs at least 1)")
        if width > space.width:
            raise GraphError(f"target width {width} of {name!r}: the space has {space.width} channels")
        if space.locked is not None and width != space.width:
            raise GraphError(f"target width {width} of {name!r}: it is locked at {space.width}, because {space.locked}")
    if all(width == graph.spaces[name].width for name, width in targets.items()):
        raise UsageError(f"{len(targets)} targets drop nothing: no space becomes narrower")
