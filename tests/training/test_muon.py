"""The optimiser: Muon's step for matrices, Adam's for the rest, and which parameter is which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsecodec.training.muon import Muon, orthogonalize


def _gradients(shape: tuple[int, ...], steps: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=draw) for _ in range(steps)]


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (32, 8, 1, 1)])  # wide, and tall: four times as many rows
def test_matrices_move_by_their_orthogonalised_nesterov_momentum(shape) -> None:
    weight = nn.Parameter(torch.zeros(shape))
    optimizer = Muon([weight], [weight], lr=0.1, momentum=0.9)
    momentum, expected = torch.zeros(shape), torch.zeros(shape)
    rows, columns = shape[0], weight[0].numel()
    for gradient in _gradients(shape, 3):
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + gradient
        direction = orthogonalize((gradient + 0.9 * momentum).flatten(1)[None])[0].view(shape)
        expected -= 0.1 * max(1.0, rows / columns) ** 0.5 * direction
        torch.testing.assert_close(weight.detach(), expected)


def test_the_rest_moves_as_by_adam() -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    optimizer = Muon([ours], [], adam_lr=0.05, betas=(0.9, 0.99))
    reference = torch.optim.Adam([theirs], lr=0.05, betas=(0.9, 0.99), eps=1e-8)
    for gradient in _gradients((7,), 5):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs)


def test_dense_filters_are_matrices_however_large() -> None:
    shapes = {"dense": (8, 4, 3, 3), "large": (512, 1024, 1, 1), "depthwise": (8, 1, 3, 3), "bias": (8,)}
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    bank = nn.Parameter(torch.zeros(4, 8, 1, 1))  # shaped like a filter, and none
    everything = [*parameters.values(), bank]
    muon, adam = Muon(everything, parameters.values()).param_groups
    assert muon["muon"] and [id(p) for p in muon["params"]] == [id(parameters[name]) for name in ("dense", "large")]
    assert not adam["muon"] and len(adam["params"]) == 3
    (alone,) = Muon(everything, parameters.values(), lr=None).param_groups
    assert not alone["muon"] and len(alone["params"]) == 5
