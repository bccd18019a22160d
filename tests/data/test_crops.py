"""Training crops: pure functions of seed, step and place, from pictures and clips alike, whatever else lies around."""

from __future__ import annotations

import importlib.util
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from sparsecodec.data import RandomClips, RandomCrops, list_training_files, read_clip
from sparsecodec.errors import UsageError


def smooth(height: int, width: int, seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Two pictures, a raw clip of 6 frames and a y4m of one; of the clip, frame t is grey of 16 + 30 t."""
    smooth(120, 150, 0).save(tmp_path / "b.png")
    smooth(131, 97, 1).save(tmp_path / "a.png")
    greys = np.repeat(np.arange(16, 196, 30, dtype=np.uint8), 144 * 130 * 3 // 2).reshape(6, -1)
    greys[:, 144 * 130 :] = 128
    (tmp_path / "c_144x130_6f.yuv").write_bytes(greys.tobytes())
    frame = np.random.default_rng(2).integers(16, 236, 101 * 99 + 2 * 51 * 50, np.uint8).tobytes()
    (tmp_path / "d.y4m").write_bytes(b"YUV4MPEG2 W101 H99 F25:1\nFRAME\n" + frame)
    return tmp_path


def damaged(folder) -> list[str]:
    """Adds files that cannot be used, and gives their names."""
    Image.new("RGB", (20, 200)).save(folder / "narrow.png")
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no picture")
    whole = (folder / "b.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((100, 100), np.uint16)).save(folder / "deep.png")
    (folder / "header.ppm").write_bytes(b"P6\nx 99\n255\n" + bytes(999))  # a ValueError of Pillow
    Image.new("RGB", (100, 100)).save(folder / "bomb.bmp")  # a DecompressionBombError
    with open(folder / "bomb.bmp", "r+b") as file:
        file.seek(18)
        file.write(struct.pack("<ii", 40000, 40000))
    (folder / "empty_64x64.yuv").touch()
    (folder / "cut_64x64.yuv").write_bytes(bytes(6145))
    (folder / "sizeless.yuv").write_bytes(bytes(6144))
    (folder / "narrow_32x640.yuv").write_bytes(bytes(32 * 640 * 3 // 2))
    (folder / "cut.y4m").write_bytes((folder / "d.y4m").read_bytes()[:-1])
    pictures = ["narrow.png", "empty.jpg", "text.png", "cut.png", "deep.png", "header.ppm", "bomb.bmp"]
    return [*pictures, "empty_64x64.yuv", "cut_64x64.yuv", "sizeless.yuv", "narrow_32x640.yuv", "cut.y4m"]


def test_batch_depends_on_seed_and_step_alone(folder):
    paths = list_training_files([folder])
    first, second = RandomCrops(paths, 48, seed=1), RandomCrops(paths, 48, seed=1)
    first.batch(0, 4)
    batch = first.batch(7, 4)
    assert batch.shape == (4, 3, 48, 48) and batch.dtype == torch.float32 and batch.is_contiguous()
    assert 0 <= batch.min() and batch.max() <= 1
    assert torch.equal(batch, second.batch(7, 4))
    assert not torch.equal(batch, first.batch(8, 4))
    assert not torch.equal(batch, RandomCrops(paths, 48, seed=2).batch(7, 4))


def test_processes_draw_their_parts_of_one_batch(folder):
    paths = list_training_files([folder])
    whole = RandomCrops(paths, 48).batch(3, 8)
    parts = [RandomCrops(paths, 48).batch(3, size, start) for size, start in ((3, 0), (1, 3), (4, 4))]
    assert torch.equal(torch.cat(parts), whole)
    assert len({crop.numpy().tobytes() for crop in RandomCrops(paths[:2], 48).batch(3, 8)}) == 8
    clips = RandomClips(paths, 48, 2)
    assert torch.equal(torch.cat([clips.batch(3, 2), clips.batch(3, 2, 2)]), clips.batch(3, 4))


def test_what_is_drawn_ahead_is_what_is_drawn_when_asked(folder):
    """In any order of steps, and with another size or place in between."""
    paths = list_training_files([folder])
    calls = [
        (0, 2, 0),
        (1, 2, 0),
        (2, 2, 0),
        (3, 2, 2),
        (4, 3, 2),
        (4, 2, 0),
        (4, 2, 0),
        (9, 2, 0),
        (10, 2, 0),
        (2, 2, 0),
    ]
    crops = RandomCrops(paths, 48)
    for call in calls:
        assert torch.equal(crops.batch(*call), RandomCrops(paths, 48).batch(*call)), call
    crops.batch(5, 2)
    assert crops._drawn.result().shape == (2, 1, 48, 48, 3)  # it is there before anyone asks


def test_every_file_and_every_frame_is_drawn(folder):
    """The grey clip's crops say which frame they are of; 200 draws miss a frame with probability 6 (1 - 1/24)^200."""
    crops = RandomCrops(list_training_files([folder]), 64)
    assert [len(source) for source in crops.sources] == [1, 1, 6, 1]
    batch = crops.batch(0, 200)
    flat = batch[(batch.amax((1, 2, 3)) - batch.amin((1, 2, 3))) < 1 / 255]
    greys = {round(float(crop.mean() * 255)) for crop in flat}
    assert greys == {round((luma - 16) * 255 / 219) for luma in range(16, 196, 30)}
    assert 20 < len(flat) < 90


def test_crop_of_a_frame_lies_in_the_frame(folder):
    clip = read_clip(folder / "d.y4m")
    whole = clip.rgb(0)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (64, 64), (0, 1)).transpose(0, 1, 3, 4, 2)
    for crop in RandomCrops([folder / "d.y4m"], 64).batch(0, 6):  # 99 rows: too small to be halved
        pixels = crop.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        matches = [(windows == candidate).all((2, 3, 4)).sum() for candidate in (pixels, pixels[:, ::-1])]
        assert sum(matches) == 1


def test_crops_reach_every_edge(tmp_path):
    """2 x 4 places for the window, told apart by the colours of the edges."""
    corners = np.zeros((64, 66, 3), np.uint8)
    corners[0], corners[-1], corners[:, 0], corners[:, -1] = 60, 120, 180, 240
    Image.fromarray(corners).save(tmp_path / "a.png")
    batch = RandomCrops([tmp_path / "a.png"], 63).batch(0, 80).mul(255).round()
    assert {(float(crop[0, 0, 30]), float(crop[0, -1, 30])) for crop in batch} == {(60, 0), (0, 120)}
    sides = {(float(crop[0, 30, 0]), float(crop[0, 30, -1])) for crop in batch}
    assert sides == {(180, 0), (0, 180), (0, 0), (0, 240), (240, 0)}  # and mirrored


def test_half_of_the_crops_are_halved_where_there_is_room(tmp_path):
    """In a picture of one-pixel stripes a halved crop is grey."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    spread = RandomCrops([tmp_path / "a.png"], 64).batch(0, 100).std((1, 2, 3))
    assert 30 < int((spread < 0.1).sum()) < 70
    assert int((RandomCrops([tmp_path / "a.png"], 65).batch(0, 100).std((1, 2, 3)) < 0.1).sum()) == 0


def test_a_picture_just_as_large_as_the_crop_is_used(tmp_path):
    smooth(40, 50, 0).save(tmp_path / "a.png")
    assert RandomCrops([tmp_path / "a.png"], 40).batch(0, 2).shape == (2, 3, 40, 40)
    with pytest.raises(UsageError, match="none of 1"):
        RandomCrops([tmp_path / "a.png"], 41)


def test_unusable_files_are_named_and_skipped(folder, caplog):
    names = damaged(folder)
    crops = RandomCrops(list_training_files([folder]), 64)
    assert len(crops.sources) == 4
    assert len(caplog.messages) == len(names)
    for name in names:
        assert sum(f"{name}" in message for message in caplog.messages) >= 1, name
    assert (
        all(message.startswith("skipped: ") for message in caplog.messages)
        and "200, smaller than the crop of 64" in caplog.text
    )


def test_nothing_left_is_an_error(folder, caplog):
    names = damaged(folder)
    with pytest.raises(UsageError, match=f"none of {len(names)} files can be used for crops of 1 x 64 x 64"):
        RandomCrops([folder / name for name in names], 64)
    with pytest.raises(UsageError, match="none of 0 files"):
        RandomCrops([], 64)


def test_pictures_beyond_the_limit_are_read_again(folder):
    paths = [folder / "a.png", folder / "b.png"]
    held, first, none = (RandomCrops(paths, 48, held_bytes=size) for size in (1 << 30, 131 * 97 * 3, 0))
    assert [[source.pixels is not None for source in crops.sources] for crops in (held, first, none)] == [
        [True, True],
        [True, False],
        [False, False],
    ]
    for step in range(3):
        assert torch.equal(held.batch(step, 4), none.batch(step, 4))
        assert torch.equal(held.batch(step, 4), first.batch(step, 4))
    paths[0].unlink(), paths[1].unlink()
    for step in (0, 1, 2):  # drawn at once, and ahead
        with pytest.raises(UsageError, match=r"[ab]\.png does not exist"):
            none.batch(step, 1)


def test_clips_are_consecutive_frames_cropped_alike(folder, caplog):
    clips = RandomClips([folder / "c_144x130_6f.yuv", folder / "d.y4m"], 64, 3, seed=4)
    assert len(clips.sources) == 1  # the clip of one frame is named and left out
    assert "d.y4m has 1 frames, fewer than the 3" in caplog.text
    batch = clips.batch(0, 60)
    assert batch.shape == (60, 3, 3, 64, 64) and batch.is_contiguous()
    firsts = set()
    for clip in batch:
        lumas = [round(float(frame.mean()) * 219) + 16 for frame in clip]
        assert np.diff(lumas).tolist() == [30, 30]
        firsts.add(lumas[0])
    assert firsts == {16, 46, 76, 106}
    assert torch.equal(batch[:5], RandomClips([folder / "c_144x130_6f.yuv"], 64, 3, seed=4).batch(0, 5))


def test_frames_of_a_run_share_window_scale_and_mirror(tmp_path):
    """Every frame is the same noise, so every frame of a crop must be."""
    frame = np.random.default_rng(0).integers(16, 236, 150 * 140 * 3 // 2, np.uint8).tobytes()
    (tmp_path / "a_140x150.yuv").write_bytes(4 * frame)
    batch = RandomClips([tmp_path / "a_140x150.yuv"], 64, 4).batch(0, 10)
    assert (batch == batch[:, :1]).all()
    assert not torch.equal(batch[0], batch[1])


def test_clips_shorter_than_a_run_leave_nothing(folder):
    with pytest.raises(UsageError, match="none of 1 files can be used for crops of 7 x 64 x 64"):
        RandomClips([folder / "c_144x130_6f.yuv"], 64, 7)


def test_a_missing_package_is_an_error_before_anything_is_read(folder, monkeypatch):
    (folder / "e.mp4").write_bytes(b"anything")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else find_spec(name))
    with pytest.raises(UsageError, match=r"e.mp4 need the extra sparsecodec\[video\]"):
        RandomCrops(list_training_files([folder]), 64)


def test_training_files_are_those_of_all_folders_in_order(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    with pytest.raises(UsageError, match="no pictures or clips in .*png.*y4m"):
        list_training_files([folder, other])
    for name in ("z.JPG", "k.mkv", "notes.txt"):
        (other / name).touch()
    names = [path.name for path in list_training_files([other, folder])]
    assert names == ["k.mkv", "z.JPG", "a.png", "b.png", "c_144x130_6f.yuv", "d.y4m"]
    with pytest.raises(UsageError, match="a.png is not a folder"):
        list_training_files([folder / "a.png"])
