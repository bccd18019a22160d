"""Pictures to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    paths = []
    for i in range(3):
        smooth = Image.fromarray(draw.integers(0, 255, (12, 15, 3), np.uint8)).resize((150, 120), Image.BICUBIC)
        paths.append(folder / f"{i}.png")
        smooth.save(paths[-1])
    return paths


@pytest.fixture(autouse=True)
def one_thread():
    """On tensors this small, two threads wait for each other longer than they work, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
