"""Synthetic motion: what moves, moves as its path says; nothing is shown that is not in the photo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sparsecodec.data import RandomClips
from sparsecodec.data.motion import Path, moving_clip, number_of_pieces


def photo(height: int, width: int, seed: int = 0, low: int = 40) -> np.ndarray:
    """Smooth noise without a dark pixel: what a frame shows from outside of it would be black."""
    small = np.random.default_rng(seed).integers(low, 256, (height // 8, width // 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


def window_of(pixels: np.ndarray):
    def window(top: int, left: int, height: int, width: int) -> np.ndarray:
        return pixels[top : top + height, left : left + width]

    return window, *pixels.shape[:2]


def test_a_path_reads_where_it_says():
    """A picture whose red is its column and green its row: the frame tells where each of its pixels was read."""
    columns = np.broadcast_to(np.arange(64, dtype=np.uint8), (64, 64))
    source = Image.fromarray(np.stack([columns * 3, columns.T * 3, columns], 2))
    path = Path((2.5, -1.0), (0.0, 0.0), 0.0, 0.0, 0.0)
    frame = source.transform((32, 32), Image.Transform.AFFINE, path.affine(2, 64, (16, 16)), Image.Resampling.BICUBIC)
    pixels = np.asarray(frame)[16, 16]
    assert pixels[0] / 3 == pytest.approx(32 + 5, abs=0.4)  # 32 is the centre of the source
    assert pixels[1] / 3 == pytest.approx(32 - 2, abs=0.4)


def test_zoom_and_turn_keep_the_centre():
    path = Path((0.0, 0.0), (0.0, 0.0), 0.1, 0.05, 0.02)
    for t in (0, 3):
        a, b, c, d, e, f = path.affine(t, 100, (20, 20))
        assert (a * 20 + b * 20 + c, d * 20 + e * 20 + f) == pytest.approx((50, 50))
        assert a * e - b * d == pytest.approx(np.exp(2 * 0.05 * t))  # the area it covers


def test_frames_never_show_what_lies_outside_the_photo():
    for seed in range(12):
        draw = np.random.default_rng(seed)
        clip = moving_clip(draw, [window_of(photo(70 + 5 * seed, 100))], 64, 5)
        assert clip.shape == (5, 64, 64, 3) and clip.dtype == np.uint8
        assert np.median(clip.min(axis=(1, 2, 3))) > 15, seed  # noise may darken a pixel, a border would be 0


def test_a_photo_without_margin_stands_still():
    draw = np.random.default_rng(3)
    clip = moving_clip(draw, [window_of(photo(64, 64))], 64, 3)
    differences = np.abs(np.diff(clip.astype(int), axis=0)).max(axis=(1, 2, 3))
    assert (differences < 25).all()  # noise and drift alone


def test_clips_move_at_different_speeds_and_pieces_cover_the_background():
    photos = [window_of(photo(200, 240, seed)) for seed in range(3)]
    moved = []
    for seed in range(20):
        clip = moving_clip(np.random.default_rng(seed), photos[:1], 64, 3).astype(int)
        moved.append(np.abs(clip[2] - clip[0]).mean())
    assert min(moved) < 1 < np.median(moved)
    alone = moving_clip(np.random.default_rng(5), photos[:1], 64, 1).astype(int)
    covered = moving_clip(np.random.default_rng(5), photos, 64, 1).astype(int)
    assert np.abs(alone - covered).mean() > 3
    counts = [number_of_pieces(np.random.default_rng(seed)) for seed in range(60)]
    assert set(counts) == {0, 1, 2}


def test_photos_and_clips_give_runs_of_frames_that_depend_on_seed_step_and_place_alone(tmp_path):
    for seed in range(2):
        Image.fromarray(photo(120, 130, seed)).save(tmp_path / f"{seed}.png")
    frame = np.random.default_rng(0).integers(16, 236, 96 * 96 * 3 // 2, np.uint8).tobytes()
    (tmp_path / "grain_96x96.yuv").write_bytes(3 * frame)
    paths = sorted(tmp_path.iterdir())
    clips = RandomClips(paths, 64, 3, seed=7)
    assert len(clips.sources) == 3
    batch = clips.batch(4, 12)
    assert batch.shape == (12, 3, 3, 64, 64) and batch.is_contiguous()
    assert torch.equal(batch[5:7], RandomClips(paths, 64, 3, seed=7).batch(4, 2, start=5))
    assert torch.equal(batch, RandomClips(paths, 64, 3, seed=7, held_bytes=0).batch(4, 12))
    assert not torch.equal(batch, clips.batch(5, 12))
    still = (batch == batch[:, :1]).flatten(1).all(1)
    assert 0 < int(still.sum()) < 12  # the clip stands still, photos do not all
