"""Clips as streams: what is written is read again, and what is wrong is named with its frame."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import replace

import numpy as np
import pytest

from sparsecodec._clip_format import ClipFormat
from sparsecodec.data.video_io import ClipWriter, open_clip, read_stream
from sparsecodec.errors import UsageError

from .test_colour import noise
from .test_video import encode, needs_av

FORM = ClipFormat(5, 7, (30000, 1001), (4, 3), siting="left")


def written(form: ClipFormat, frames, raw: bool = False) -> bytes:
    file = io.BytesIO()
    writer = ClipWriter(file, form, raw)
    for planes in frames:
        writer.write(planes)
    return file.getvalue()


def same(a, b) -> bool:
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True))


FORMATS = [
    FORM,
    ClipFormat(16, 24, siting="center"),
    ClipFormat(1, 1, full_range=True, siting="top-left"),
    ClipFormat(2, 3, (25, 1), (1, 1)),
    ClipFormat(6, 4, depth=10),
]


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_y4m_that_was_written_is_read_again(form):
    frames = [noise(form, seed=seed) for seed in range(3)]
    data = written(form, frames)
    stream = read_stream(io.BytesIO(data), "clip")
    assert stream.form == form and stream.count == 3
    assert all(map(same, stream.frames, frames))


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_raw_that_was_written_is_read_again(form, tmp_path):
    frames = [noise(form, seed=seed) for seed in range(3)]
    data = written(form, frames, raw=True)
    assert len(data) == 3 * form.frame_bytes
    assert all(map(same, read_stream(io.BytesIO(data), "clip", form).frames, frames))
    path = tmp_path / f"a_{form.width}x{form.height}_{form.depth}bit_60fps.yuv"
    path.write_bytes(data)
    with open_clip(path) as stream:
        assert (stream.form.rate, stream.form.depth, stream.count) == ((60, 1), form.depth, 3)
        assert all(map(same, stream.frames, frames))


@needs_av
@pytest.mark.parametrize("form", FORMATS[:2] + FORMATS[4:], ids=str)
def test_ffmpeg_reads_what_we_write(form, tmp_path):
    import av

    frames = [noise(form, seed=seed) for seed in range(3)]
    (tmp_path / "a.y4m").write_bytes(written(form, frames))
    with av.open(str(tmp_path / "a.y4m")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == form.rate[0] / form.rate[1] or stream.average_rate.denominator == 1001
        names = [frame.format.name for frame in container.decode(stream)]
    assert names == ["yuv420p" if form.depth == 8 else "yuv420p10le"] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "clip is empty"),
        (lambda data: b"RIFF" + data, "clip is no y4m"),
        (lambda data: data[:-1], "frame 2 is cut off, 58 of 59 bytes"),
        (lambda data: data[: data.rindex(b"FRAME") + 6], "frame 2 is cut off, 0 of 59"),
        (lambda data: data[: data.rindex(b"FRAME") + 3], "frame 2 begins with b'FRA'"),
        (lambda data: b"FLAME".join(data.rsplit(b"FRAME", 1)), "frame 2 begins with b'FLAME"),
        (lambda data: data[: data.index(b"FRAME")], "clip has no frames"),
        (lambda data: data.replace(b"C420mpeg2", b"C422"), "colour space 422 .needs 8-bit or 10-bit 4:2:0"),
        (lambda data: data.replace(b" Ip", b" It"), "interlaced, It"),
        (lambda data: data.replace(b"F30000:1001", b"F0:1"), "0:1 frames per second"),
        (lambda data: data.replace(b"F30000:1001", b"Fast"), "ast frames per second"),
        (lambda data: data.replace(b"W7", b"W-7"), "width -7"),
        (lambda data: data.replace(b"W7", b"W99999999"), "width = 99999999"),
    ],
)
def test_damaged_y4m_is_named_with_its_frame(change, message):
    data = change(written(FORM, [noise(FORM, seed=seed) for seed in range(3)]))
    with pytest.raises(UsageError, match=message):
        list(read_stream(io.BytesIO(data), "clip").frames)


@pytest.mark.parametrize("rate", [b"F0:0 ", b""])
def test_an_unknown_rate_is_25(rate):
    data = written(FORM, [noise(FORM)]).replace(b"F30000:1001 ", rate)
    assert read_stream(io.BytesIO(data), "clip").form == replace(FORM, rate=(25, 1))


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("a_7x5_59.94fps.yuv", (2997, 50)),
        ("a_7x5_59_94fps.yuv", (2997, 50)),
        ("a-7x5-29-97fps-8bit.yuv", (2997, 100)),
        ("a_7x5_97fps.yuv", (97, 1)),
        ("a_7x5_23.976fps_8bit.yuv", (2997, 125)),
        ("a_7x5_50fps_420.yuv", (50, 1)),
        ("a_7x5.yuv", (25, 1)),
    ],
)
def test_the_name_of_a_raw_file_has_its_rate(name, rate, tmp_path):
    (tmp_path / name).write_bytes(bytes(FORM.frame_bytes))
    with open_clip(tmp_path / name) as stream:
        assert stream.form == ClipFormat(5, 7, rate)


def test_headers_beyond_the_format_are_named_with_their_file():
    data = written(FORM, [noise(FORM)])
    assert read_stream(io.BytesIO(data.replace(b"A4:3", b"A9999999999:1")), "clip").form.aspect == (0, 0)
    with pytest.raises(UsageError, match=r"clip: rate\[0\] = 9999999999 .needs a whole number"):
        read_stream(io.BytesIO(data.replace(b"F30000:1001", b"F9999999999:1")), "clip")


@pytest.mark.parametrize("sample", [1024, 40000])
def test_samples_in_the_upper_bits_are_refused_with_their_frame(sample):
    form = ClipFormat(6, 4, depth=10)
    data = written(form, [noise(form)] * 2)[:-2] + sample.to_bytes(2, "little")
    frames = read_stream(io.BytesIO(data), "clip").frames
    assert same(next(frames), noise(form))
    with pytest.raises(UsageError, match=f"clip: frame 1 holds {sample} .needs at most 1023: 10 bits"):
        next(frames)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 25}, r"rate = 25 .needs a fraction as two whole numbers, as \(25, 1\)"),
        ({"rate": (25,)}, r"rate = \(25,\) .needs a fraction"),
        ({"rate": (25.5, 1)}, r"rate\[0\] = 25.5 .needs a whole number, 1 to"),
        ({"rate": (25, 0)}, r"rate\[1\] = 0 .needs a whole number, 1 to"),
        ({"aspect": None}, "aspect = None .needs a fraction"),
        ({"height": "8"}, "height = '8' .needs a whole number"),
        ({"height": 1.5}, "height = 1.5 .needs a whole number"),
        ({"width": True}, "width = True .needs a whole number"),
        ({"width": 1 << 24}, "width = 16777216 .needs a whole number, 1 to 16777215"),
        ({"depth": 8.0}, "depth = 8.0 .needs one of 8, 10"),
        ({"matrix": []}, r"matrix = \[\] .needs one of None, bt601"),
    ],
    ids=str,
)
def test_formats_that_are_none_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        ClipFormat(**{"height": 8, "width": 8, **values})
    assert ClipFormat(np.int64(8), 8).chroma == (4, 4)


def test_frames_beyond_all_memory_are_refused(tmp_path):
    data = written(FORM, [noise(FORM)])
    (tmp_path / "a.y4m").write_bytes(data.replace(b"W7 H5", b"W16777215 H16777215"))
    with (
        pytest.raises(UsageError, match="16777215x16777215.*does not fit into memory"),
        open_clip(tmp_path / "a.y4m") as clip,
    ):
        list(clip.frames)


def test_parameters_of_a_frame_are_skipped():
    frames = [noise(FORM), noise(FORM, seed=1)]
    data = written(FORM, frames).replace(b"FRAME\n", b"FRAME Ip\n")
    assert all(map(same, read_stream(io.BytesIO(data), "clip").frames, frames))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("a_7x5.yuv", 58, "58 bytes .frames have 59"),
        ("a_7x5_2f.yuv", 59, "59 bytes"),
        ("a.yuv", 59, "0 sizes in the name"),
        ("a_7x5_444.yuv", 59, "named 444 .needs 8-bit or 10-bit 4:2:0"),
        ("a_7x5_8bit_10bit.yuv", 59, "several depths"),
        ("a_7x5_0fps.yuv", 59, "a_7x5_0fps.yuv: .*0 frames per second"),
    ],
)
def test_wrongly_named_raw_files_are_refused(name, size, message, tmp_path):
    (tmp_path / name).write_bytes(bytes(size))
    with pytest.raises(UsageError, match=message), open_clip(tmp_path / name) as stream:
        list(stream.frames)


def test_a_size_that_does_not_fit_a_raw_file_is_refused(tmp_path):
    """Before the first of what would be frames of garbage."""
    (tmp_path / "a.yuv").write_bytes(bytes(2 * 59 + 22))
    with (
        pytest.raises(UsageError, match="140 bytes .frames have 59: another size"),
        open_clip(tmp_path / "a.yuv", FORM),
    ):
        pass
    with open_clip(tmp_path / "a.yuv", ClipFormat(2, 23)) as stream:
        assert len(list(stream.frames)) == 2


@needs_av
@pytest.mark.parametrize(("name", "full", "depth"), [("yuv420p", False, 8), ("yuv420p10le", False, 10)])
def test_coded_clips_keep_samples_rate_and_depth(name, full, depth, tmp_path):
    import av

    form = ClipFormat(34, 36, (24, 1), depth=depth)
    frames = [noise(form, seed=seed) for seed in range(4)]
    (tmp_path / "a.y4m").write_bytes(written(form, frames))
    with av.open(str(tmp_path / "a.y4m")) as source, av.open(str(tmp_path / "a.mkv"), "w") as target:
        stream = target.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = 34, 36, name
        for frame in source.decode(video=0):
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    with open_clip(tmp_path / "a.mkv") as stream:
        assert (stream.form.rate, stream.form.depth, stream.form.full_range) == ((24, 1), depth, full)
        assert all(map(same, stream.frames, frames))


@needs_av
def test_full_range_stays(tmp_path):
    white = np.full((1, 48, 64, 3), 255, np.uint8)
    with open_clip(encode(tmp_path / "a.avi", "mjpeg", white, "yuvj420p")) as stream:
        assert stream.form.full_range
        assert next(stream.frames)[0].min() >= 253


@needs_av
def test_coded_clips_that_cannot_be_read_are_named(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    whole = encode(tmp_path / "whole.mp4", "libx264", frames, options={"movflags": "faststart"}).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mkv").write_bytes(b"no clip" * 99)
    for name, message in (("half.mp4", "of 12 frames|cannot be decoded"), ("text.mkv", "cannot be decoded")):
        with pytest.raises(UsageError, match=f"{name}.*({message})"), open_clip(tmp_path / name) as stream:
            list(stream.frames)
    with pytest.raises(UsageError, match="absent.mp4 does not exist"), open_clip(tmp_path / "absent.mp4"):
        pass


def test_without_the_extra_its_name_is_said(tmp_path, monkeypatch):
    (tmp_path / "b.mp4").write_bytes(b"anything")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else find_spec(name))
    with pytest.raises(UsageError, match=r"sparsecodec\[video\]"), open_clip(tmp_path / "b.mp4"):
        pass
