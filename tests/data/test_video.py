"""Clips: every reader gives the frames that were written, and says what is wrong with what it cannot read."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from sparsecodec.data import list_clips, read_clip
from sparsecodec.data.video import Clip, yuv_to_rgb
from sparsecodec.errors import SparseCodecError, UsageError

H, W, FRAMES = 48, 64, 5
needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="the extra sparsecodec[video] is missing")


def planes(frames: int = FRAMES, height: int = H, width: int = W, seed: int = 0) -> np.ndarray:
    """Noise: ``[frames, bytes of a frame]`` uint8."""
    chroma = 2 * ((height + 1) // 2) * ((width + 1) // 2)
    return np.random.default_rng(seed).integers(0, 256, (frames, height * width + chroma), np.uint8)


def y4m(frames: np.ndarray, height: int = H, width: int = W, extra: str = " C420mpeg2") -> bytes:
    header = f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1{extra}\n".encode()
    return header + b"".join(b"FRAME\n" + frame.tobytes() for frame in frames)


def encode(path, codec, frames, pix_fmt="yuv420p", options=None):
    """Writes RGB frames ``[T, H, W, 3]`` through PyAV."""
    import av

    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("size", [(48, 64), (21, 33), (1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("form", ["yuv", "y4m"])
def test_every_plane_of_every_frame_is_what_was_written(form, size, tmp_path):
    height, width = size
    frames = planes(3, *size)
    path = tmp_path / f"noise_{width}x{height}_25fps_8bit_420_3f.{form}"
    path.write_bytes(frames.tobytes() if form == "yuv" else y4m(frames, *size))
    clip = read_clip(path)
    assert (len(clip), clip.height, clip.width) == (3, *size)
    for index in (2, 0, 1):
        assert np.array_equal(np.concatenate([plane.ravel() for plane in clip.yuv(index)]), frames[index])
        assert clip.rgb(index).shape == (height, width, 3)


def test_frames_are_read_from_the_file_when_they_are_looked_at(tmp_path):
    path = tmp_path / "a_64x48.yuv"
    path.write_bytes(planes().tobytes())
    clip = read_clip(path)
    with open(path, "r+b") as file:
        file.seek(3 * clip.frames.shape[1])
        file.write(bytes([77]))
    assert isinstance(clip.frames, np.memmap) and clip.yuv(3)[0][0, 0] == 77


@pytest.mark.parametrize(
    ("matrix", "yuv", "rgb"),
    [
        ("bt601", (16, 128, 128), (0, 0, 0)),
        ("bt601", (235, 128, 128), (255, 255, 255)),
        ("bt601", (126, 128, 128), (128, 128, 128)),
        # the colour bars of the two recommendations, from RGB by their own rounding
        ("bt601", (81, 90, 240), (255, 0, 0)),
        ("bt601", (145, 54, 34), (0, 255, 0)),
        ("bt601", (41, 240, 110), (0, 0, 255)),
        ("bt709", (63, 102, 240), (255, 0, 0)),
        ("bt709", (173, 42, 26), (0, 255, 0)),
        ("bt709", (32, 240, 118), (0, 0, 255)),
        ("bt709", (235, 128, 128), (255, 255, 255)),
        ("bt601", (0, 128, 128), (0, 0, 0)),  # below black
        ("bt601", (255, 128, 128), (255, 255, 255)),
    ],
)
def test_known_colours(matrix, yuv, rgb):
    found = yuv_to_rgb(*(np.full((1, 1), value, np.uint8) for value in yuv), matrix)
    assert found.dtype == np.uint8 and np.abs(found[0, 0].astype(int) - rgb).max() <= 2, found
    if yuv[1:] == (128, 128):
        assert tuple(found[0, 0]) == rgb


def test_chroma_lies_where_it_belongs():
    """One red and one blue 2 x 2 block in a grey picture of odd size."""
    clip = Clip(np.full((1, 5 * 7 + 2 * 3 * 4), 128, np.uint8), 5, 7, "bt601")
    _, u, v = clip.yuv(0)
    v[0, 1], u[2, 3] = 255, 255
    pixels = clip.rgb(0).astype(int)
    red, blue = pixels[..., 0] > pixels[..., 2] + 50, pixels[..., 2] > pixels[..., 0] + 50
    assert {tuple(place) for place in np.argwhere(red)} == {(0, 2), (0, 3), (1, 2), (1, 3)}
    assert {tuple(place) for place in np.argwhere(blue)} == {(4, 6)}  # the block that the edges cut


@pytest.mark.parametrize("window", [(0, 0, 5, 7), (1, 1, 3, 4), (4, 6, 1, 1), (2, 3, 2, 2), (3, 0, 2, 7)], ids=str)
def test_window_is_a_part_of_the_frame(window):
    clip = Clip(planes(2, 5, 7), 5, 7, "bt601")
    top, left, height, width = window
    part = clip.rgb(1)[top : top + height, left : left + width]
    assert np.array_equal(clip.rgb(1, top, left, height, width), part)


def test_matrix_follows_the_size_unless_it_is_given(tmp_path):
    for height, usual in ((719, "bt601"), (720, "bt709")):
        path = tmp_path / f"a_2x{height}.yuv"
        path.write_bytes(planes(1, height, 2).tobytes())
        assert read_clip(path).matrix == usual
        assert read_clip(path, "bt709").matrix == "bt709"
    with pytest.raises(UsageError, match="matrix='bt2020'.*bt601, bt709"):
        read_clip(path, "bt2020")


FRAME = H * W * 3 // 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a_64x48.yuv", b"", "is empty"),
        ("a_64x48.yuv", bytes(FRAME - 1), r"0 frames of 64x48 and 4607 bytes \(cut off"),
        ("a_64x48.yuv", bytes(2 * FRAME + 9), "2 frames of 64x48 and 9 bytes .cut off, or wrongly named"),
        ("a_64x48_3f.yuv", bytes(2 * FRAME), "2 frames, 3 in the name"),
        ("a_0x48.yuv", bytes(9), "0x48 in the name .needs at least 1x1"),
        ("a.yuv", bytes(FRAME), "0 sizes in the name .*name_416x240.yuv"),
        ("a_64x48_32x24.yuv", bytes(FRAME), "2 sizes in the name"),
        ("a_64x48_10bit.yuv", bytes(FRAME), "named 10bit .needs 8-bit 4:2:0"),
        ("a_64x48_8bit_444.yuv", bytes(FRAME), "named 444"),
        ("a_64x48_yuv420p10le.yuv", bytes(FRAME), "named yuv420p10le"),
        ("a.y4m", b"", "is empty"),
        ("a.y4m", b"RIFF" + bytes(50), "no YUV4MPEG2 header"),
        ("a.y4m", b"YUV4MPEG2 W64 H48", "no YUV4MPEG2 header"),
        ("a.y4m", y4m(planes(), extra=" C444"), "colour space 444"),
        ("a.y4m", y4m(planes(), extra=" C420p10"), "colour space 420p10"),
        ("a.y4m", y4m(planes(), extra=" C420 XCOLORRANGE=FULL"), "full range"),
        ("a.y4m", y4m(planes(), width=0), "width 0 and height 48"),
        ("a.y4m", y4m(planes())[:-1], r"4 frames of 64x48 and 4613 bytes \(cut off"),
        ("a.y4m", y4m(planes(0)), "0 frames"),
        ("a.y4m", y4m(planes()).replace(b"FRAME", b"FLAME"), "not every frame"),
        ("a.y4m", b"FLAME".join(y4m(planes()).rsplit(b"FRAME", 1)), "not every frame"),
    ],
)
def test_what_is_wrong_is_said_with_the_name(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"{name}.*{message}|{name}:.*{message}"):
        read_clip(tmp_path / name)


def test_names_in_common_use_are_understood(tmp_path):
    for name in (
        "RaceHorses_64x48_30.yuv",
        "BQ-Mall_64x48_60fps_8bit_420.yuv",
        "clip.64x48.yuv420p.yuv",
        "pass_64x48_50fps_8bit_420_2f.yuv",
    ):
        (tmp_path / name).write_bytes(planes(2).tobytes())
        assert len(read_clip(tmp_path / name)) == 2


@needs_av
@pytest.mark.parametrize("name", ["a.mkv", "a.avi"])
def test_lossless_clip_comes_back_exactly(name, tmp_path):
    """FFV1 keeps every bit, so PyAV's planes must be those that went in, at an odd width too."""
    import av

    height, width = 34, 35
    frames = planes(3, height, width)
    (tmp_path / "a.y4m").write_bytes(y4m(frames, height, width))
    with av.open(str(tmp_path / "a.y4m")) as source, av.open(str(tmp_path / name), "w") as target:
        stream = target.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in source.decode(video=0):
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    assert np.array_equal(read_clip(tmp_path / name).frames, frames)


@needs_av
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_coded_clip_has_its_frames_in_order(name, tmp_path):
    greys = (20, 90, 160, 230, 60, 120)
    frames = np.stack([np.full((H, W, 3), grey, np.uint8) for grey in greys])
    frames[:, :, : W // 2] = (200, 40, 90)
    encode(tmp_path / name, "libvpx-vp9" if name.endswith("webm") else "libx264", frames)
    clip = read_clip(tmp_path / name)
    assert len(clip) == len(greys)
    for index, grey in enumerate(greys):
        pixels = clip.rgb(index).astype(int)
        assert np.abs(pixels[:, 3 * W // 4 :] - grey).max() <= 6
        assert np.abs(pixels[:, : W // 4] - (200, 40, 90)).max() <= 8


@needs_av
def test_full_range_becomes_limited(tmp_path):
    white = np.full((1, H, W, 3), 255, np.uint8)
    clip = read_clip(encode(tmp_path / "a.avi", "mjpeg", white, "yuvj420p"))
    assert abs(int(clip.yuv(0)[0][5, 5]) - 235) <= 1 and clip.rgb(0).min() >= 253


@needs_av
def test_one_frame_is_a_clip(tmp_path):
    assert len(read_clip(encode(tmp_path / "a.mp4", "libx264", np.zeros((1, H, W, 3), np.uint8)))) == 1


@needs_av
def test_cut_off_and_foreign_files_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (12, H, W, 3), np.uint8)
    whole = encode(tmp_path / "whole.mp4", "libx264", noise, options={"movflags": "faststart"}).read_bytes()
    assert len(read_clip(tmp_path / "whole.mp4")) == 12
    for name, content, message in (
        ("half.mp4", whole[: len(whole) // 2], r"\d+ of 12 frames can be decoded|cannot be decoded"),
        ("head.mp4", whole[:100], "no video stream|cannot be decoded"),
        ("empty.mp4", b"", "is empty"),
        ("text.mkv", b"no clip" * 99, "cannot be decoded"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=f"{name}.*({message})"):
            read_clip(tmp_path / name)


@needs_av
def test_sound_alone_is_no_clip(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UsageError, match="no video stream"):
        read_clip(tmp_path / "a.mkv")


@needs_av
def test_no_room_for_decoded_frames_is_no_fault_of_the_clip(tmp_path, monkeypatch):
    encode(tmp_path / "a.mp4", "libx264", np.zeros((2, H, W, 3), np.uint8))

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def write(self, data):
            raise OSError("No space left on device")

    monkeypatch.setattr("sparsecodec.data.video.tempfile.TemporaryFile", Full)
    with pytest.raises(SparseCodecError, match="no room in .*a.mp4.*No space left") as error:
        read_clip(tmp_path / "a.mp4")
    assert not isinstance(error.value, UsageError)


def test_without_the_extra_raw_clips_open_and_coded_ones_name_it(tmp_path, monkeypatch):
    (tmp_path / "a_64x48.yuv").write_bytes(planes().tobytes())
    (tmp_path / "b.mp4").write_bytes(b"anything")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else find_spec(name))
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(read_clip(tmp_path / "a_64x48.yuv")) == FRAMES
    with pytest.raises(UsageError, match=r"b.mp4 need the extra sparsecodec\[video\]"):
        read_clip(tmp_path / "b.mp4")


def test_list_clips_is_sorted_and_complains_of_none(tmp_path):
    with pytest.raises(UsageError, match="no clips in .*y4m"):
        list_clips(tmp_path)
    for name in ("b.y4m", "a.MP4", "c_2x2.yuv", "d.png", "e.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_clips(tmp_path)] == ["a.MP4", "b.y4m", "c_2x2.yuv"]
    with pytest.raises(UsageError, match="absent is not a folder"):
        list_clips(tmp_path / "absent")
