"""Models that several files of tests look at."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparsecodec.models import VideoCodec, create

FRAMES = 9


@pytest.fixture(scope="session")
def hem(enlivened_hem: Callable[[VideoCodec], VideoCodec]) -> VideoCodec:
    """An untrained small DCVC-HEM; not to be written to."""
    torch.manual_seed(0)
    return enlivened_hem(create("dcvc-hem-tiny").eval().requires_grad_(False))


@pytest.fixture(scope="session")
def clip(photo: Tensor) -> list[Tensor]:
    """Frames of 64 x 128 that move."""
    return [photo[:, :, 2 * t : 2 * t + 64, 3 * t : 3 * t + 128].contiguous() for t in range(FRAMES)]
