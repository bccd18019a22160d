"""Gradient decay inside the training loop: masks that are learnt while the codec trains beside its dense self."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.distill import LayerwiseDistillation, blocks_of
from sparsecodec.sparsity import ChannelMasks, DecayConfig, GradientDecay, compact, compact_config, count, trace_model
from sparsecodec.training.recipe import Recipe

DECODER = ("hyper_dec", "y_prior_fusion", "y_spatial_prior", "dec")
THETA_LR = 5e-3


def decoder_shapes(model: nn.Module, side: int = 256) -> dict[str, tuple[int, int, int, int]]:
    """Input shape of each transform that decoding runs, for a picture of `side` x `side`."""
    c, h = model.latent_channels, side // 16
    return {
        "hyper_dec": (1, c, h // 4, h // 4),
        "y_prior_fusion": (1, c, h, h),
        "y_spatial_prior": (1, 4 * c, h, h),
        "dec": (1, c, h, h),
    }


class DecoderPruning(nn.Module):
    """Learns which channels of the decoder to drop, and holds the rest close to the dense codec, block by block.

    Args:
        model: the codec that is trained; starts from dense weights.
        recipe: with `pruning` set; a run of ``recipe.steps`` steps.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        settings = recipe.pruning
        self.weight = settings.distillation_weight
        self.graph = trace_model(model, DECODER)
        self.decay = GradientDecay(
            model,
            self.graph,
            count(model, decoder_shapes(model)),
            DecayConfig(
                sparsity=settings.mac_reduction,
                t0=int(settings.decay_start * recipe.steps),
                t1=int(settings.decay_end * recipe.steps),
                ramp=int(settings.decay_start * recipe.steps),
                penalty=settings.sparsity_weight,
                round_to=settings.round_to,
            ),
        )
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self.distillation = LayerwiseDistillation(model, teacher, blocks_of(model, DECODER))

    def parameter_group(self) -> dict[str, Any]:
        """The optimiser group of the thresholds."""
        group = self.decay.parameter_group(THETA_LR)
        return {"params": group["params"], "lr": THETA_LR, "peak": THETA_LR, "betas": (0.0, 0.99), "muon": False}

    @contextlib.contextmanager
    def applied(self, step: int) -> Iterator[None]:
        """Within the context the model computes with its masks, and its blocks are compared with the dense ones."""
        self.decay.set_step(step)
        distilled = self.distillation.watching() if self.distilling else contextlib.nullcontext()
        with self.decay.applied(), distilled:
            yield

    @property
    def distilling(self) -> bool:
        """Until the masks are frozen; what follows is plain fine-tuning."""
        return not bool(self.decay.frozen)

    def loss(self) -> Tensor:
        """What the last forward adds to the loss."""
        penalty = self.decay.penalty()
        return penalty + self.weight * self.distillation.loss() if self.distilling else penalty

    def masks(self) -> ChannelMasks:
        return self.decay.masks()

    @torch.no_grad()
    def compacted(self, model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        """`model` without the masked channels, and the configuration to rebuild its architecture from."""
        return compact(model, self.masks(), self.graph), compact_config(self.masks(), self.graph)

    def record(self) -> dict[str, float]:
        """What the log keeps of a step."""
        return {"beta": self.decay.beta, "mac_reduction": float(self.decay.mac_reduction)}
