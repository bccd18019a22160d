"""What is said of the coding of a clip: seconds, bytes and totals are of the frames that come out."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from sparsecodec._clip_format import ClipFormat
from sparsecodec.cli.progress import Progress

from .conftest import run
from .toy_video import FORM, ToyVideo, stdin

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def clock(monkeypatch):
    """A clock on which each frame takes the toy a second, and nothing else takes time."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr("time.perf_counter", lambda: now.s)

    def in_a_second(code):
        def slowly(*arguments):
            now.s += 1
            return code(*arguments)

        return slowly

    for name in ("_encode", "_decode"):
        monkeypatch.setattr(ToyVideo, name, in_a_second(getattr(ToyVideo, name)))
    return now


@pytest.mark.parametrize("frames", [1, 3])
def test_the_first_frame_takes_time_too(frames, clip, clock, capsys, tmp_path):
    arguments = ("-m", "toy", "--start", 2, "--frames", frames, "--json")
    values = json.loads(run(capsys, "encode", clip, tmp_path / "a.spv", *arguments)[1])
    assert (values["frames"], values["seconds"], values["coding_fps"]) == (frames, frames, 1)


@pytest.mark.parametrize("pipe", [False, True])
def test_frames_on_the_way_to_the_start_do_not_count(pipe, coded, clock, capsys, monkeypatch, tmp_path):
    def values(*part) -> dict:
        if pipe:
            stdin(monkeypatch, coded.read_bytes())
        arguments = ("decode", "-" if pipe else coded, tmp_path / "out.y4m", "-m", "toy", "--json", *part)
        return json.loads(run(capsys, *arguments)[1])

    whole = values()
    assert (whole["frames"], whole["seconds"]) == (12, 12)
    sizes = [values("--frames", n)["bytes"] for n in (6, 8)]
    part = values("--start", 6, "--frames", 2)  # frame 4 is an I frame
    assert (part["frames"], part["seconds"], part["coding_fps"]) == (2, 2, 1)
    assert part["bytes"] == sizes[1] - sizes[0]
    assert part["bpp"] == pytest.approx(8 * part["bytes"] / (2 * FORM.height * FORM.width))


@pytest.mark.parametrize(("part", "total"), [((), 12), (("--start", 5), 7), (("--start", 5, "--frames", 2), 2)])
def test_the_total_of_a_file_is_known(part, total, coded, capsys, monkeypatch, tmp_path):
    assert f"/{total} [" in run(capsys, "decode", coded, tmp_path / "out.y4m", "-m", "toy", *part)[2]
    stdin(monkeypatch, coded.read_bytes())
    known = "--frames" in part
    assert (f"/{total} [" in run(capsys, "decode", "-", tmp_path / "out.y4m", "-m", "toy", *part)[2]) == known


@pytest.mark.parametrize("total", [None, 4])
def test_slow_coding_is_told_in_frames_per_second(total, monkeypatch, capsys):
    monkeypatch.setattr("time.perf_counter", lambda: 8.0)
    with Progress("encoded", ClipFormat(8, 8), total, begun=0.0) as progress:
        progress.add(100)
    line = capsys.readouterr().err.splitlines()[-1].split("\r")[-1]
    assert "0.12 frames/s" in line and "s/ frames" not in line and "20.0 kbit/s" in line, line
