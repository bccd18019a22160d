"""What a training method adds to plain rate-distortion training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.training.families import family_of


class Method(nn.Module):
    """Plain training; methods override what they change. One instance lives through one phase of a run.

    Everything that a resumed phase needs stands in the state dict, which travels in the checkpoint. Per step the
    trainer calls::

        with method.applied(step):
            out, rates = method.forward(model, x)
        loss = rate_distortion(out, x, lambdas[rates]) + method.loss(out, x)
        loss.backward()
        method.update(optimizer)
    """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of the method's own parameters, ``{"params": [...], "lr": peak}``; Adam moves them."""
        return []

    @contextlib.contextmanager
    def applied(self, step: int) -> Iterator[None]:
        """Around the forward of step `step`, counted from 0."""
        yield

    def forward(self, model: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """A training forward; see `Family.forward`."""
        return family_of(model).forward(model, x)

    def loss(self, out: dict[str, Tensor], x: Tensor) -> Tensor | None:
        """What is added to the rate-distortion loss of this forward; a scalar, or None."""
        return None

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of the optimiser."""
        optimizer.step()

    def record(self) -> dict[str, float]:
        """What the log keeps of this step beside the trainer's own figures."""
        return {}
