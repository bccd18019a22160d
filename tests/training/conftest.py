"""Pictures to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
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
