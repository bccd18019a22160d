"""Rate and quality of clips: what is counted, what is compared, and the anchors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sparsecodec._clip_format import ClipFormat
from sparsecodec.cli.main import main
from sparsecodec.data.video_io import open_clip
from sparsecodec.errors import SparseCodecError, UsageError
from sparsecodec.metrics import CLIP_ANCHORS, evaluate_clips, yuv_psnr

FORM = ClipFormat(48, 64, (10, 1))
av = pytest.importorskip("av")


def planes(seed: int, height: int = 48, width: int = 64) -> tuple[np.ndarray, ...]:
    """A smooth frame that moves with `seed`."""
    y, x = np.mgrid[:height, :width]
    luma = (110 + 60 * np.sin((x + 3 * seed) / 9) * np.cos(y / 7)).astype(np.uint8)
    return luma, luma[::2, ::2] // 2 + 60, 190 - luma[::2, ::2] // 2


@pytest.fixture
def folder(tmp_path):
    """Two clips of 10 frames a second, of 4 and of 3 frames."""
    for name, count in (("a_64x48_10fps", 4), ("b_64x48_10fps", 3)):
        frames = [np.concatenate([plane.ravel() for plane in planes(t)]) for t in range(count)]
        (tmp_path / f"{name}.yuv").write_bytes(np.concatenate(frames).tobytes())
    return tmp_path


class Shifted:
    """Stores frames whole, 100 bytes ahead of the first; decoded luma is off by qp."""

    def __init__(self, lost: int = 0) -> None:
        self.lost = lost

    def encode(self, form, frames, qp):
        self.qp, self.frames = qp, list(frames)
        for number, frame in enumerate(self.frames):
            yield bytes(100 if number == 0 else 0) + b"".join(plane.tobytes() for plane in frame)

    def decode(self, data, form):
        for y, u, v in self.frames[: len(self.frames) - self.lost]:
            yield y + np.uint8(self.qp), u, v


def test_psnr_of_a_frame_is_that_of_its_planes_at_6_1_1():
    source = planes(0)
    decoded = (source[0] + np.uint8(2), source[1] + np.uint8(1), source[2] + np.uint8(4))
    of_two, of_one, of_four = (20 * math.log10(255 / error) for error in (2, 1, 4))
    assert yuv_psnr(decoded, source, 255) == pytest.approx(
        ((6 * of_two + of_one + of_four) / 8, of_two, of_one, of_four)
    )
    wide = tuple(plane.astype(np.uint16) * 4 for plane in source)
    assert yuv_psnr((wide[0] + 8, wide[1] + 4, wide[2] + 16), wide, 1023)[1] == pytest.approx(20 * math.log10(1023 / 8))
    assert yuv_psnr(source, source, 255) == (math.inf,) * 4


def test_bits_are_those_of_whole_files_and_times_of_the_format(folder):
    clips = sorted(folder.iterdir())
    result = evaluate_clips(Shifted(), clips, (3, 1), name="shifted")
    first = result["per_clip"][0]
    assert first["clip"] == "a_64x48_10fps.yuv" and first["results"]["frames"] == [4, 4]
    frame = 64 * 48 * 3 // 2
    assert first["results"]["bits"] == [[8 * (frame + 100), 8 * frame, 8 * frame, 8 * frame]] * 2
    assert first["results"]["bpp_file"][0] == pytest.approx(8 * (4 * frame + 100) / (4 * 64 * 48))
    assert first["results"]["kbit_s"][0] == pytest.approx(8 * (4 * frame + 100) / 4 * 10 / 1000)
    assert first["results"]["psnr-y"] == pytest.approx([20 * math.log10(255 / 3), 20 * math.log10(255)])
    assert result["results"]["bpp_file"][0] == pytest.approx(
        np.mean([row["results"]["bpp_file"][0] for row in result["per_clip"]])
    )
    part = evaluate_clips(Shifted(), clips[:1], (2,), frames=2)
    assert part["per_clip"][0]["results"]["frames"] == [2]


def test_lost_frames_end_the_evaluation(folder):
    with pytest.raises(SparseCodecError, match="a_64x48_10fps.yuv at qp 1: 3 of 4 frames come back"):
        evaluate_clips(Shifted(lost=1), [folder / "a_64x48_10fps.yuv"], (1,))
    with pytest.raises(UsageError, match="at least one clip"):
        evaluate_clips(Shifted(), [], (1,))


@pytest.mark.parametrize("name", CLIP_ANCHORS)
def test_anchors_give_a_packet_a_frame_and_one_intra_frame(folder, name):
    anchor = CLIP_ANCHORS[name]
    if anchor.why_not():
        pytest.skip(anchor.why_not())
    with open_clip(folder / "a_64x48_10fps.yuv") as clip:
        frames = list(clip.frames)
    good, small = (list(anchor.encode(FORM, frames, qp)) for qp in (20, 45))
    assert len(good) == len(small) == 4
    assert len(good[0]) > 1.5 * max(map(len, good[1:])) and sum(map(len, good)) > sum(map(len, small))
    quality = [
        np.mean(
            [
                yuv_psnr(mine, theirs, 255)[0]
                for mine, theirs in zip(anchor.decode(b"".join(data), FORM), frames, strict=True)
            ]
        )
        for data in (good, small)
    ]
    assert quality[0] > 38 and quality[0] > quality[1] + 5
    with pytest.raises(UsageError, match="qp 52"):
        list(anchor.encode(FORM, frames, 52))


@pytest.mark.parametrize("size", [(1, 1), (7, 64), (47, 63), (48, 15)], ids=str)
@pytest.mark.parametrize("name", CLIP_ANCHORS)
def test_anchors_take_any_size(name, size, tmp_path, capsys):
    if CLIP_ANCHORS[name].why_not():
        pytest.skip(CLIP_ANCHORS[name].why_not())
    height, width = size
    frames = []
    for t in range(3):
        y, u, v = planes(t)
        half = slice((height + 1) // 2), slice((width + 1) // 2)
        frames += [plane.tobytes() for plane in (y[:height, :width], u[half], v[half])]
    (tmp_path / f"a_{width}x{height}.yuv").write_bytes(b"".join(frames))
    assert main(["eval", name, str(tmp_path), "-q", "12", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (quality,) = result["results"]["psnr-yuv"]  # null: one sample is met exactly
    assert result["per_clip"][0]["results"]["frames"] == [3] and (quality is None or quality > 42)


def test_eval_and_bdrate_of_clips_on_the_command_line(folder, tmp_path, capsys):
    if CLIP_ANCHORS["x264"].why_not():
        pytest.skip("no x264")
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    assert main(["eval", "x264", str(folder), "-q", "15,20,25,30,35", "-o", str(one), "--per-picture"]) == 0
    assert main(["eval", "x264", str(folder / "a_64x48_10fps.yuv"), "-q", "15,20,25,30,35", "-o", str(other)]) == 0
    table = capsys.readouterr().out
    assert "a_64x48_10fps.yuv" in table and "mean" in table
    result = json.loads(one.read_text())
    assert [len(bits) for bits in result["per_clip"][0]["results"]["bits"]] == [4] * 5
    assert "bits" not in json.loads(other.read_text())["per_clip"][0]["results"]
    assert main(["bdrate", str(one), str(other), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["metric"] == "psnr-yuv" and list(values["per_clip"]) == ["a_64x48_10fps.yuv"]
    assert values["bd_rate"] == pytest.approx(0) and values["bd_psnr"] == pytest.approx(0)
    assert set(values["per_clip"]["a_64x48_10fps.yuv"]) == {"bd_rate", "bd_psnr"}
    assert main(["bdrate", str(one), str(other), "--metric", "psnr-y", "--json"]) == 0
    assert "bd_psnr_y" in json.loads(capsys.readouterr().out)
    assert main(["eval", "evc-tiny", str(folder)]) == UsageError.exit_code
    assert "is a codec for pictures" in capsys.readouterr().err
