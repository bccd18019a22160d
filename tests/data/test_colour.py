"""Between planes and frames: nothing is lost where nothing need be, and colours are those of the recommendations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsecodec._clip_format import ClipFormat
from sparsecodec.data.colour import to_frame, to_planes
from sparsecodec.data.video import yuv_to_rgb
from sparsecodec.errors import UsageError


def noise(form: ClipFormat, low: int = 0, high: int | None = None, seed: int = 0):
    rng = np.random.default_rng(seed)
    dtype = np.uint8 if form.depth == 8 else np.uint16
    shapes = (form.height, form.width), form.chroma, form.chroma
    return tuple(rng.integers(low, (high or form.peak) + 1, shape, dtype) for shape in shapes)


@pytest.mark.parametrize("depth", [8, 10])
@pytest.mark.parametrize("size", [(16, 24), (5, 7), (1, 1), (2, 3)], ids=str)
def test_planes_survive_the_way_to_a_codec_and_back(size, depth):
    form = ClipFormat(*size, depth=depth)
    planes = noise(form)
    frame = to_frame(planes, form, "ycbcr")
    assert frame.shape == (1, 3, *size) and frame.dtype == torch.float32 and 0 <= frame.min() and frame.max() <= 1
    for before, after in zip(planes, to_planes(frame, form, "ycbcr"), strict=True):
        assert after.dtype == before.dtype and np.array_equal(before, after)


def test_every_sample_survives():
    for depth in (8, 10):
        form = ClipFormat(32, 32, depth=depth)
        values = np.arange(form.peak + 1, dtype=np.uint8 if depth == 8 else np.uint16)
        planes = (np.resize(values, (32, 32)), np.resize(values, (16, 16)), np.resize(values[::-1], (16, 16)))
        assert all(map(np.array_equal, planes, to_planes(to_frame(planes, form, "ycbcr"), form, "ycbcr")))


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
@pytest.mark.parametrize("depth", [8, 10])
def test_rgb_and_back_within_a_step(depth, matrix, full_range):
    """Middle greys with a little colour, which RGB can show."""
    form = ClipFormat(15, 20, depth=depth, matrix=matrix, full_range=full_range)
    unit = 1 << (depth - 8)
    planes = tuple(plane // 4 + 96 * unit for plane in noise(form))
    found = to_planes(to_frame(planes, form, "rgb"), form, "rgb")
    for before, after in zip(planes, found, strict=True):
        assert np.abs(before.astype(int) - after.astype(int)).max() <= (0 if before is not planes[0] else 1)


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_rgb_is_that_of_the_training_clips(matrix):
    form = ClipFormat(6, 8, matrix=matrix)
    y, u, v = noise(form)
    expected = yuv_to_rgb(y, *(c.repeat(2, 0).repeat(2, 1) for c in (u, v)), matrix)
    found = to_frame((y, u, v), form, "rgb")[0].permute(1, 2, 0).mul(255).round().numpy()
    assert np.abs(found - expected).max() <= 1


def test_white_and_black_by_range():
    for full_range, black, white in ((False, 16, 235), (True, 0, 255)):
        form = ClipFormat(2, 2, full_range=full_range)
        for value, level in ((black, 0.0), (white, 1.0)):
            planes = (np.full((2, 2), value, np.uint8), *(np.full((1, 1), 128, np.uint8),) * 2)
            assert (to_frame(planes, form, "rgb") - level).abs().max() < 1e-6


def test_chroma_is_the_mean_of_what_it_stands_for():
    form = ClipFormat(3, 3)
    frame = torch.zeros(1, 3, 3, 3)
    frame[0, 1] = torch.tensor([[0.0, 4, 10], [8, 12, 30], [50, 52, 77]]) / 255
    _, u, _ = to_planes(frame, form, "ycbcr")
    assert u.tolist() == [[6, 20], [51, 77]]


def test_wrong_sizes_and_colours_are_refused():
    form = ClipFormat(4, 4)
    with pytest.raises(UsageError, match=r"needs \[1, 3, 4, 4\]"):
        to_planes(torch.zeros(1, 3, 4, 6), form, "ycbcr")
    with pytest.raises(UsageError, match="colour='hsv'"):
        to_frame(noise(form), form, "hsv")
