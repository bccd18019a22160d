"""What training takes from a folder, and that what it does not take is named."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from sparsecodec.data import RandomClips, RandomCrops, list_training_files
from sparsecodec.errors import UsageError

from .test_video import encode, needs_av


def coded(path, codec, pix_fmt="yuv420p"):
    grey = np.arange(0, 160, 40, np.uint8)[:, None, None, None]
    return encode(path, codec, np.broadcast_to(grey, (4, 96, 128, 3)).copy(), pix_fmt)


def frames_in(folder, names, size=(96, 128)):
    """Frame i is grey of 20 i."""
    folder.mkdir()
    for value, name in enumerate(names):
        Image.new("RGB", size[::-1], (20 * value,) * 3).save(folder / name)
    return folder


@needs_av
def test_any_suffix_that_holds_video_is_a_clip_and_the_rest_is_named(tmp_path, caplog):
    coded(tmp_path / "a.flv", "flv1")
    coded(tmp_path / "b.gif", "gif", "rgb8")
    coded(tmp_path / "c.wmv", "wmv2")
    (tmp_path / "d.xyz").write_text("no video")
    (tmp_path / "notes.txt").write_text("not tried")
    (tmp_path / ".hidden").write_text("not named")
    (tmp_path / "inside").mkdir()
    paths = list_training_files([tmp_path])
    assert [path.name for path in paths] == ["a.flv", "b.gif", "c.wmv"]
    (message,) = caplog.messages
    for said in ("d.xyz (PyAV finds no video in it)", "notes.txt (no picture or clip)", "inside (a folder without"):
        assert said in message
    assert str(tmp_path) in message and "hidden" not in message
    assert [len(source) for source in RandomClips(paths, 64, 3).sources] == [4, 4, 4]


@needs_av
def test_a_song_or_a_list_of_links_is_not_opened(tmp_path, monkeypatch):
    import av

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for name in ("a.m3u8", "a.mp3", "a.json", "a.safetensors", "LICENSE"):
        (tmp_path / name).write_text("#EXTM3U\nhttp://localhost/a.ts\n")

    def opened(*_, **__):
        raise AssertionError("opened")

    monkeypatch.setattr(av, "open", opened)
    assert [path.name for path in list_training_files([tmp_path])] == ["a.png"]


def test_an_unknown_suffix_without_pyav_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.flv").write_bytes(b"FLV")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else find_spec(name))
    with pytest.raises(UsageError, match=r"no pictures or clips in .*a\.flv need the extra sparsecodec\[video\]"):
        list_training_files([tmp_path])


def test_many_files_that_are_not_taken_make_one_line(tmp_path, caplog):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for number in range(30):
        (tmp_path / f"{number:02d}.txt").touch()
    list_training_files([tmp_path])
    (message,) = caplog.messages
    assert "00.txt" in message and "19.txt" in message and "20.txt" not in message and "10 more" in message


def test_folders_of_frames_are_clips_where_crops_have_frames(tmp_path, caplog):
    frames_in(tmp_path / "0001", [f"im{i}.png" for i in range(1, 12)])
    Image.new("RGB", (128, 96)).save(tmp_path / "photo.png")
    assert [path.name for path in list_training_files([tmp_path])] == ["photo.png"]
    assert "0001 (a folder inside, a clip only for recipes with frames >= 2)" in caplog.text
    paths = list_training_files([tmp_path], frames=3)
    assert [path.name for path in paths] == ["0001", "photo.png"]
    for clip in RandomClips(paths[:1], 64, 3).batch(0, 20):
        greys = [round(float(frame.mean()) * 255) for frame in clip]
        assert np.diff(greys).tolist() == [20, 20]  # im2 before im10
        assert all(frame.amax() - frame.amin() < 1 / 255 for frame in clip)
    assert RandomClips(paths, 64, 3).batch(0, 4).shape == (4, 3, 3, 64, 64)
    assert torch.equal(RandomClips(paths[:1], 64, 3).batch(1, 2), RandomClips(paths[:1], 64, 3).batch(1, 2))


def test_folders_that_are_no_clip_say_why(tmp_path, caplog):
    frames_in(tmp_path / "good", ["im1.png", "im2.png"])
    frames_in(tmp_path / "mixed", ["im1.png", "im2.jpg"])
    frames_in(tmp_path / "named", ["cat.png", "dog.png"])
    frames_in(tmp_path / "short", ["im1.png"])
    frames_in(tmp_path / "small", ["im1.png", "im2.png"], size=(60, 128))
    frames_in(tmp_path / "uneven", ["im1.png", "im2.png"])
    Image.new("RGB", (64, 64)).save(tmp_path / "uneven" / "im3.png")
    frames_in(tmp_path / "broken", ["im1.png", "im2.png"])
    (tmp_path / "broken" / "im2.png").write_text("no picture")
    paths = list_training_files([tmp_path], frames=2)
    assert [path.name for path in paths] == ["broken", "good", "short", "small", "uneven"]
    assert [len(source) for source in RandomClips(paths, 64, 2).sources] == [2]
    for said in (
        "mixed (a folder of pictures of several suffixes)",
        "named (a folder of pictures that are not numbered alike)",
        "short has 1 frames, fewer than the 2",
        "small is 128 x 60, smaller than the crop",
        "im3.png is 64 x 64 (needs 128 x 96, as the first frame)",
        "im2.png cannot be read as a picture",
    ):
        assert said in caplog.text


def test_a_folder_of_frames_itself_holds_pictures(tmp_path):
    folder = frames_in(tmp_path / "0001", ["im1.png", "im2.png"])
    paths = list_training_files([folder], frames=2)
    assert [path.name for path in paths] == ["im1.png", "im2.png"]
    assert len(RandomCrops(paths, 64).sources) == 2
