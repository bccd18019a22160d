"""Real codecs and what they are calibrated on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparsecodec import zoo
from sparsecodec.data import read_image

RATE, LAMBDA = 2, 0.012


@pytest.fixture(scope="session")
def codec() -> nn.Module:
    """The shipped dense codec. Not to be changed."""
    return zoo.load("evc-tiny")


@pytest.fixture(scope="session")
def sparse_codec() -> nn.Module:
    """The shipped compact codec. Not to be changed."""
    return zoo.load("evc-tiny-sparse")


def _crops(folder, starts) -> Tensor:
    names = ("kodim03.png", "kodim20.png", "kodim23.png")
    pictures = [read_image(folder / name) for name in names]
    return torch.cat([x[:, :, top : top + 64, left : left + 64] for x in pictures for top, left in starts])


@pytest.fixture(scope="session")
def crops(picture_path) -> Tensor:
    """``[6, 3, 64, 64]``: to calibrate on."""
    return _crops(picture_path.parent, [(64, 128), (256, 400)])


@pytest.fixture(scope="session")
def other_crops(picture_path) -> Tensor:
    """``[6, 3, 64, 64]``: to judge by."""
    return _crops(picture_path.parent, [(160, 300), (300, 64)])


@pytest.fixture(scope="session")
def rd_loss() -> Callable[[nn.Module, Tensor], float]:
    """R + lambda * 255^2 * MSE of an EVC at one rate, as coding would have it."""

    @torch.no_grad()
    def loss(model: nn.Module, x: Tensor) -> float:
        out = model(x, model.q_scale[RATE])
        mse = (out["x_hat"] - x).square().mean((1, 2, 3))
        return float((out["bpp"] + LAMBDA * 255**2 * mse).mean())

    return loss
