"""Clips that are folders of pictures."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from sparsecodec._clip_format import ClipFormat
from sparsecodec.data import PictureWriter, open_clip, read_image, to_frame, to_planes, to_rgb
from sparsecodec.data.colour import planes_of
from sparsecodec.data.images import to_uint8
from sparsecodec.data.picture_folders import folder_format, is_picture_folder, list_frames
from sparsecodec.errors import UsageError


def picture(seed: int, height: int = 21, width: int = 34) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def fill(folder, names, **size):
    for seed, name in enumerate(names):
        Image.fromarray(picture(seed, **size)).save(folder / name)


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    names = ["im2.png", "im10.png", "im1.png", "im11.png"]
    fill(tmp_path, names)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._im3.png").write_bytes(b"what another system leaves behind")
    assert [path.name for path in list_frames(tmp_path)] == ["im1.png", "im2.png", "im10.png", "im11.png"]
    with open_clip(tmp_path, rate=(30, 1)) as clip:
        assert clip.form == ClipFormat(21, 34, (30, 1), matrix="bt709", full_range=True) and clip.count == 4
        frames = list(clip.frames)
    assert all(np.array_equal(frame, picture(seed)) for frame, seed in zip(frames, (2, 0, 1, 3), strict=True))


@pytest.mark.parametrize("names", [["f_01_9.png", "f_01_10.png", "f_02_1.png"], ["9.png", "10.png", "a.png"]])
def test_several_numbers_and_none_in_a_name(names, tmp_path):
    fill(tmp_path, reversed(names))
    assert sorted(path.name for path in list_frames(tmp_path)) == sorted(names)
    assert [path.name for path in list_frames(tmp_path)] == names


def test_what_is_no_clip_is_told_with_its_frame(tmp_path):
    with pytest.raises(UsageError, match="no pictures in"), open_clip(tmp_path):
        pass
    assert not is_picture_folder(tmp_path)
    fill(tmp_path, ["im1.png", "im2.png"])
    Image.fromarray(picture(0, 20, 34)).save(tmp_path / "im3.png")
    with open_clip(tmp_path) as clip, pytest.raises(UsageError, match=r"frame 2, .*im3.png, is 34 x 20 \(needs 34 x"):
        list(clip.frames)
    (tmp_path / "im3.png").write_bytes(b"none")
    with open_clip(tmp_path) as clip, pytest.raises(UsageError, match="im3.png cannot be read as a picture"):
        list(clip.frames)
    Image.fromarray(picture(0)).save(tmp_path / "im3.jpg")
    with pytest.raises(UsageError, match=r"pictures \.jpg, \.png"), open_clip(tmp_path):
        pass


@pytest.mark.parametrize("colour", ["ycbcr", "rgb"])
def test_a_picture_comes_back_through_either_colour(colour, tmp_path):
    """The rounding of 8 bits is far coarser than two conversions in float32."""
    form = folder_format(picture(0))
    frame = to_frame(picture(0), form, colour)
    assert frame.shape == (1, 3, 21, 34) and frame.is_contiguous()
    assert np.array_equal(to_uint8(to_rgb(frame, form, colour)), picture(0))
    PictureWriter(tmp_path / "new" / "frames", form, colour).write(frame)
    with open_clip(tmp_path / "new" / "frames") as clip:
        assert np.array_equal(next(clip.frames), picture(0))
    assert [path.name for path in (tmp_path / "new" / "frames").iterdir()] == ["im00001.png"]


def test_the_matrix_is_that_of_the_standard():
    """Of full red BT.709 has Y = 0.2126, Cr = 1; grey has no colour."""
    red, grey = (np.full((2, 2, 3), value, np.uint8) for value in ((255, 0, 0), 51))
    y, cb, cr = to_frame(red, folder_format(red), "ycbcr")[0, :, 0, 0].tolist()
    assert (y, cb, cr) == pytest.approx((0.2126, 0.5 - 0.2126 / 1.8556, 1.0), abs=1e-6)
    assert to_frame(grey, folder_format(grey), "ycbcr")[0, :, 0, 0].tolist() == pytest.approx([0.2, 0.5, 0.5], abs=1e-6)


def test_limited_range_becomes_pictures_as_through_rgb():
    form = ClipFormat(4, 6, matrix="bt601")
    planes = np.full((4, 6), 180, np.uint8), np.full((2, 3), 90, np.uint8), np.full((2, 3), 160, np.uint8)
    expected = to_frame(planes, form, "rgb")
    assert torch.allclose(to_rgb(to_frame(planes, form, "ycbcr"), form, "ycbcr"), expected, atol=1e-6)


def test_planes_of_a_picture_have_its_mean_colour():
    form = folder_format(picture(0))
    y, u, v = planes_of(picture(0), form)
    assert y.shape == (21, 34) and u.shape == v.shape == (11, 17)
    assert all(map(np.array_equal, (y, u, v), to_planes(to_frame(picture(0), form, "ycbcr"), form, "ycbcr")))
    assert planes_of((y, u, v), form) == (y, u, v)


def test_pictures_of_another_clip_are_not_mixed_with(tmp_path):
    fill(tmp_path, ["im00007.png"])
    form = folder_format(picture(0))
    with pytest.raises(UsageError, match="holds pictures already"):
        PictureWriter(tmp_path, form, "rgb")
    with pytest.raises(UsageError, match="is a file"):
        PictureWriter(tmp_path / "im00007.png", form, "rgb")


def deep_png(colour: int, channels: int) -> bytes:
    """Of 4 x 4 pixels with 16 bits a sample; Pillow cannot write one in colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 4, 4, 16, colour, 0, 0, 0)
    rows = 4 * (b"\0" + 4 * channels * b"\x12\x34")
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "data", "mode"),
    [
        ("grey.png", deep_png(0, 1), "I;16"),
        ("rgb.png", deep_png(2, 3), "RGB;16B"),
        ("grey_alpha.png", deep_png(4, 2), "LA;16B"),
        ("rgba.png", deep_png(6, 4), "RGBA;16B"),
        ("raw.ppm", b"P6 4 4 65535\n" + 48 * b"\x12\x34", "RGB up to 65535"),
        ("plain.ppm", b"P3 4 4 1023\n" + 48 * b"1000 ", "RGB up to 1023"),
    ],
)
def test_more_than_8_bits_a_sample_are_refused(tmp_path, name, data, mode):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=f"{name} has mode '{mode}' .8 bits a sample are supported"):
        read_image(tmp_path / name)


MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
WITHOUT = {"bmp": {"LA"}, "ppm": {"LA", "P"}}  # what a format cannot hold


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        (mode, suffix)
        for suffix in ("png", "tiff", "bmp", "webp", "ppm")
        for mode in MODES
        if mode not in WITHOUT.get(suffix, ())
    ],
)
def test_8_bits_a_sample_are_taken(tmp_path, mode, suffix):
    Image.new(mode, (5, 4)).save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}").shape == (1, 3, 4, 5)
