"""Pictures to train on, and what holds of every method that trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsecodec.training import Trainer


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


def resumed(trainer_in: Callable[[Path], Trainer], tmp_path: Path) -> Trainer:
    """Trains in one go and, from the same start, with an interruption after two steps: both end alike.

    Returns the trainer that was not interrupted.
    """
    whole = trainer_in(tmp_path / "whole")
    whole.run()
    first = trainer_in(tmp_path / "parts")
    for _ in range(2):
        first.train_step()
        first.step += 1
    first.save()
    torch.manual_seed(12345)
    second = trainer_in(tmp_path / "parts")
    assert second.step == 2
    second.run()
    for name, module in whole._modules().items():
        state = second._modules()[name].state_dict()
        for key, value in module.state_dict().items():
            assert torch.equal(value, state[key]), f"{name}.{key}"
    return whole
