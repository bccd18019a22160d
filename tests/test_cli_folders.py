"""Folders of pictures as clips on the command line, and outputs that cannot be written; with the toy codec."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsecodec.cli.evaluate_clips import holds_clips
from sparsecodec.data.colour import to_frame, to_rgb
from sparsecodec.data.images import to_uint8
from sparsecodec.data.picture_folders import folder_format
from sparsecodec.entropy import VideoReader

from .conftest import complaint, run
from .test_cli_video import script
from .toy_video import ToyVideo, moving, stdin

pytestmark = pytest.mark.usefixtures("toy")
FRAMES = 12


@pytest.fixture
def frames(tmp_path) -> Path:
    (tmp_path / "frames").mkdir()
    for number, x in enumerate(moving(FRAMES), 1):
        Image.fromarray(to_uint8(x)).save(tmp_path / "frames" / f"im{number}.png")
    return tmp_path / "frames"


def test_a_folder_becomes_a_clip_and_back(frames, capsys, tmp_path):
    coded, options = tmp_path / "clip.spv", ("-m", "toy", "--qp", 63)
    code, out, err = run(capsys, "encode", frames, coded, *options, "--fps", 30, "--json")
    assert code == 0 and json.loads(out)["frames"] == FRAMES, err
    with open(coded, "rb") as file:
        form = VideoReader(file).header.form
    assert form.rate == (30, 1) and form.full_range and form.matrix == "bt709"
    decoded = list(ToyVideo().decoder(coded.read_bytes()))
    first = np.array(Image.open(frames / "im1.png"))
    assert (decoded[0] - to_frame(first, folder_format(first), "ycbcr")).abs().mean() < 0.1
    assert run(capsys, "decode", coded, tmp_path / "out", "-m", "toy")[0] == 0
    for number, x in enumerate(decoded, 1):
        picture = np.array(Image.open(tmp_path / "out" / f"im{number:05d}.png"))
        assert np.array_equal(picture, to_uint8(to_rgb(x, form, "ycbcr")))
    assert run(capsys, "decode", coded, tmp_path / "out.y4m", "-m", "toy")[0] == 0
    assert b"XCOLORRANGE=FULL" in (tmp_path / "out.y4m").read_bytes()[:200]
    assert run(capsys, "encode", frames, tmp_path / "part.spv", "-m", "toy", "--start", 9, "--frames", 2)[0] == 0
    assert len(list(ToyVideo().decoder((tmp_path / "part.spv").read_bytes()))) == 2


def test_pictures_of_two_sizes_end_the_clip_with_their_names(frames, capsys, tmp_path):
    Image.new("RGB", (50, 31)).save(frames / "im4.png")
    code, message = complaint(capsys, "encode", frames, tmp_path / "clip.spv", "-m", "toy")
    assert code == 2 and "frame 3, " in message and "im4.png, is 50 x 31 (needs 50 x 33" in message
    assert len(list(ToyVideo().decoder((tmp_path / "clip.spv").read_bytes()))) == 3


def test_an_interrupted_decode_leaves_whole_frames(frames, capsys, tmp_path, monkeypatch):
    run(capsys, "encode", frames, tmp_path / "clip.spv", "-m", "toy")
    decode, calls = ToyVideo.inter_decode, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) % 4 == 0:
            raise KeyboardInterrupt
        return decode(self, *arguments)

    monkeypatch.setattr(ToyVideo, "inter_decode", interrupted)
    assert run(capsys, "decode", tmp_path / "clip.spv", tmp_path / "out", "-m", "toy")[0] == 130
    pictures = sorted((tmp_path / "out").iterdir())
    assert len(pictures) == 4 and all(Image.open(path).size == (50, 33) for path in pictures)
    assert run(capsys, "decode", tmp_path / "clip.spv", tmp_path / "out.y4m", "-m", "toy")[0] == 130
    marks = (tmp_path / "out.y4m").read_bytes().split(b"FRAME\n")[1:]
    assert len(marks) == 4 and {len(frame) for frame in marks} == {33 * 50 + 2 * 17 * 25}


def test_eval_takes_pictures_for_a_clip_where_the_codec_codes_clips(frames, monkeypatch):
    assert holds_clips(frames, "x264") and holds_clips(frames.parent, "x265")
    assert not holds_clips(frames, "jpeg") and not holds_clips(frames, "evc-tiny")
    assert holds_clips(frames, "dcvc-rt-tiny") and not holds_clips(frames / "im1.png", "dcvc-rt-tiny")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "{empty}", "a.spv", "-m", "toy"], "no pictures in"),
        (["encode", "absent", "a.spv", "-m", "toy"], "absent does not exist"),
        (["encode", "{frames}", "a.spv", "-m", "toy", "--depth", "8"], "--size"),
        (["encode", "{frames}", "a.spv", "-m", "toy", "--fps", "0"], "0 frames per second"),
        (["encode", "{frames}", "{empty}/", "--qp", "3"], "--qp is for clips"),
        (["decode", "{coded}", "{frames}", "-m", "toy"], "holds pictures already"),
        (["decode", "{coded}", "{frames}/im1.png/x", "-m", "toy"], "cannot be made"),
        (["decode", "{coded}", "out", "-m", "toy", "--raw"], "--raw is for planes"),
        (["decode", "{coded}", "a.y4m", "-m", "toy", "--fps", "3"], "--rate is for .bin"),
        (["decode", "{frames}", "a.y4m", "-m", "toy"], "no .spc files in"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_usage_is_2(arguments, words, frames, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(capsys, "encode", frames, "clip.spv", "-m", "toy")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    names = {"frames": frames, "empty": tmp_path / "empty", "coded": "clip.spv"}
    code, message = complaint(capsys, *(argument.format(**names) for argument in arguments))
    assert code == 2 and words in message, message
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_output_of_a_pipe_is_written_over(frames, capsys, tmp_path, monkeypatch):
    """`-` is no file to compare the output with."""
    run(capsys, "encode", frames, tmp_path / "clip.spv", "-m", "toy")
    (tmp_path / "out.y4m").write_bytes(b"old")
    stdin(monkeypatch, (tmp_path / "clip.spv").read_bytes())
    assert run(capsys, "decode", "-", tmp_path / "out.y4m", "-m", "toy")[0] == 0
    assert (tmp_path / "out.y4m").read_bytes().count(b"FRAME\n") == FRAMES


def test_outputs_that_take_nothing_are_told_without_a_traceback(frames, capsys, tmp_path):
    """Stdout that a shell closed, and a full disk where the system has one to try with."""
    run(capsys, "encode", frames, tmp_path / "clip.spv", "-m", "toy")
    command = script("decode", tmp_path / "clip.spv", "-", "-m", "toy")
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: os.close(1))
    assert done.returncode == 2 and "- is stdout, which is closed" in done.stderr and "Traceback" not in done.stderr
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            command = [sys.executable, "-m", "sparsecodec", "info"]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1 and "No space left" in done.stderr and "Exception" not in done.stderr
