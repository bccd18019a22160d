"""What containers say of frames beside their samples: which of them are shown, and which way up."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from sparsecodec.data import open_clip, read_clip, to_frame
from sparsecodec.data.video import has_video
from sparsecodec.errors import UsageError

from .test_video import encode, needs_av

pytestmark = needs_av
GREYS = (20, 45, 70, 95, 120, 145, 170, 195)


def mp4(path: Path) -> Path:
    """Eight grey frames of noise, recognised by their mean."""
    noise = np.random.default_rng(0).integers(-20, 21, (len(GREYS), 48, 64, 1))
    frames = np.repeat(noise + np.reshape(GREYS, (-1, 1, 1, 1)), 3, 3).astype(np.uint8)
    return encode(path, "libx264", frames, options={"movflags": "faststart"})


def cut_at(source: Path, target: Path, frames: int) -> Path:
    """As ``ffmpeg -ss -c copy`` cuts: what lies before the cut stays in the file, at times before 0."""
    import av

    with av.open(str(source)) as whole, av.open(str(target), "w", options={"movflags": "faststart"}) as part:
        stream = part.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.pts -= round(frames / 25 / packet.time_base)
                packet.dts -= round(frames / 25 / packet.time_base)
                packet.stream = stream
                part.mux(packet)
    return target


def greys(path: Path) -> tuple[int | None, list[int]]:
    """The frames that are promised, and those that come, by the nearest of `GREYS`."""
    with open_clip(path) as clip:
        found = [int(np.abs(np.array(GREYS) - (float(y.mean()) - 16) * 255 / 219).argmin()) for y, _, _ in clip.frames]
        return clip.count, found


def test_frames_before_a_cut_are_hidden_not_lost(tmp_path):
    path = cut_at(mp4(tmp_path / "whole.mp4"), tmp_path / "part.mp4", 3)
    assert greys(tmp_path / "whole.mp4") == (8, list(range(8)))
    assert greys(path) == (5, [3, 4, 5, 6, 7])
    assert len(read_clip(path)) == 5


def test_frames_behind_the_end_of_an_edit_are_hidden_not_lost(tmp_path):
    data = bytearray(mp4(tmp_path / "whole.mp4").read_bytes())
    struct.pack_into(">I", data, data.index(b"elst") + 12, 160)  # ms that are shown, four frames
    (tmp_path / "part.mp4").write_bytes(data)
    assert greys(tmp_path / "part.mp4") == (4, [0, 1, 2, 3])
    assert len(read_clip(tmp_path / "part.mp4")) == 4


@pytest.mark.parametrize("cut", [0, 3])
def test_a_file_that_is_cut_off_is_refused_also_with_an_edit_list(cut, tmp_path):
    data = cut_at(mp4(tmp_path / "whole.mp4"), tmp_path / "part.mp4", cut).read_bytes()
    last = max(_offsets(tmp_path / "part.mp4"))
    for end in (len(data) - 10, last, last - 10):  # inside the last packet, between two, inside another
        (tmp_path / "off.mp4").write_bytes(data[:end])
        for read in (greys, read_clip):
            with pytest.raises(UsageError, match=rf"off.mp4: (\d of {8 - cut} frames|frame \d cannot) .*decoded"):
                read(tmp_path / "off.mp4")


def _offsets(path: Path) -> list[int]:
    import av

    with av.open(str(path)) as container:
        return [packet.pos for packet in container.demux(video=0) if packet.size]


MATRICES = {
    "90": ((0, 1, -1, 0), lambda plane: np.rot90(plane, -1)),  # clockwise, a phone that is held upright
    "180": ((-1, 0, 0, -1), lambda plane: np.rot90(plane, 2)),
    "270": ((0, -1, 1, 0), np.rot90),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), np.transpose),
}


def turned(path: Path, matrix: tuple[float, float, float, float]) -> Path:
    """Writes the matrix into the header of the track of an MP4."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (round(value * 65536) for value in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.with_name("turned.mp4").write_bytes(data)
    return path.with_name("turned.mp4")


@pytest.mark.parametrize(("matrix", "expected"), MATRICES.values(), ids=MATRICES)
def test_frames_are_turned_as_players_turn_them(matrix, expected, tmp_path):
    path = mp4(tmp_path / "a.mp4")
    with open_clip(path) as clip, open_clip(turned(path, matrix)) as other:
        assert (other.form.height, other.form.width) == ((64, 48) if matrix[0] == 0 else (48, 64))
        for before, after in zip(clip.frames, other.frames, strict=True):
            assert all(np.array_equal(expected(x), y) for x, y in zip(before, after, strict=True))
            assert to_frame(after, other.form, "ycbcr").shape[2:] == (other.form.height, other.form.width)
    for before, after in zip(read_clip(path).yuv(2), read_clip(tmp_path / "turned.mp4").yuv(2), strict=True):
        assert np.array_equal(expected(before), after)


def test_pixels_are_turned_with_the_picture(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for frame in (av.VideoFrame(64, 48, "yuv420p"), None):
            container.mux(stream.encode(frame))
    with open_clip(tmp_path / "a.mp4") as clip:
        assert clip.form.aspect == (4, 3)
    with open_clip(turned(tmp_path / "a.mp4", MATRICES["90"][0])) as clip:
        assert clip.form.aspect == (3, 4)


def test_other_angles_are_refused(tmp_path):
    path = turned(mp4(tmp_path / "a.mp4"), (0.8, 0.6, -0.6, 0.8))
    for read in (greys, read_clip):
        with pytest.raises(UsageError, match="turned.mp4 is to be shown turned by -3[67] degrees.*multiple of 90"):
            read(path)


def test_a_title_in_another_encoding_than_utf8_is_no_obstacle(tmp_path):
    """As old cameras and editors write it into AVI."""
    import av

    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Caf\u00e9"
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        for frame in (av.VideoFrame(64, 48, "yuvj420p"), None):
            container.mux(stream.encode(frame))
    data = path.read_bytes()
    assert data.count(b"Caf\xc3\xa9") == 1
    path.write_bytes(data.replace(b"Caf\xc3\xa9", b"Caf\xe9 "))
    assert has_video(path) and len(read_clip(path)) == 1
    with open_clip(path) as clip:
        assert len(list(clip.frames)) == 1
