"""Clips on the command line, with the toy codec in the place of a real one."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sparsecodec._clip_format import ClipFormat
from sparsecodec.cli.main import main
from sparsecodec.data.colour import to_frame, to_planes
from sparsecodec.data.video_io import ClipWriter, open_clip
from sparsecodec.entropy import VideoReader

from .conftest import complaint, run
from .data.test_video import needs_av
from .toy_video import FORM, ToyVideo, moving, stdin, y4m

pytestmark = pytest.mark.usefixtures("toy")
TESTS = Path(__file__).parent


def stdout(monkeypatch) -> io.BytesIO:
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=file, isatty=lambda: False, flush=lambda: None))
    return file


def planes_of(path: Path) -> tuple[ClipFormat, list[np.ndarray]]:
    with open_clip(path) as stream:
        return stream.form, [np.concatenate([plane.ravel() for plane in planes]) for planes in stream.frames]


def test_a_clip_comes_back_in_its_format(clip, coded, capsys, tmp_path):
    code, out, err = run(capsys, "decode", coded, tmp_path / "out.y4m", "-m", "toy", "--json")
    values = json.loads(out)
    assert code == 0 and values["frames"] == 12 and (values["height"], values["width"]) == (33, 50)
    assert "decoded: " in err and "frames" in err
    form, frames = planes_of(tmp_path / "out.y4m")
    assert form == FORM and len(frames) == 12
    data = coded.read_bytes()
    expected = [to_planes(x, FORM, "ycbcr") for x in ToyVideo().decoder(data)]
    for planes, found in zip(expected, frames, strict=True):
        assert np.array_equal(np.concatenate([plane.ravel() for plane in planes]), found)
    assert run(capsys, "decode", coded, tmp_path / "out_50x33.yuv", "-m", "toy")[0] == 0
    assert (tmp_path / "out_50x33.yuv").read_bytes() == b"".join(frame.tobytes() for frame in frames)


def test_json_says_what_was_written(clip, capsys, tmp_path):
    code, out, err = run(capsys, "encode", clip, tmp_path / "a.spv", "-m", "toy", "--json", "--qp", 40)
    values, size = json.loads(out), (tmp_path / "a.spv").stat().st_size
    assert code == 0 and values["bytes"] == size and values["frames"] == 12 and values["qp"] == 40
    assert values["bpp"] == pytest.approx(8 * size / (12 * 33 * 50))
    assert values["kbit_s"] == pytest.approx(8e-3 * size * 30000 / 1001 / 12)
    assert "kbit/s" in err and "encoded" in err


def test_pipes_on_both_sides(clip, coded, capsys, monkeypatch, tmp_path):
    stdin(monkeypatch, clip.read_bytes())
    file = stdout(monkeypatch)
    assert run(capsys, "encode", "-", "-", "-m", "toy", "--intra-period", 4)[0] == 0
    assert file.getvalue() == coded.read_bytes()
    stdin(monkeypatch, coded.read_bytes())
    file = stdout(monkeypatch)
    assert run(capsys, "decode", "-", "-", "-m", "toy")[0] == 0
    monkeypatch.undo()
    (tmp_path / "piped.y4m").write_bytes(file.getvalue())
    assert planes_of(tmp_path / "piped.y4m")[0] == FORM and len(planes_of(tmp_path / "piped.y4m")[1]) == 12


@pytest.mark.parametrize("depth", [8, 10])
def test_raw_frames_by_pipe_and_by_name(depth, capsys, monkeypatch, tmp_path):
    form = ClipFormat(33, 50, (24, 1), depth=depth)
    file = io.BytesIO()
    writer = ClipWriter(file, form, raw=True)
    for frame in moving(3):
        writer.write(to_planes(frame, form, "ycbcr"))
    (tmp_path / f"a_50x33_24fps_{depth}bit.yuv").write_bytes(file.getvalue())
    stdin(monkeypatch, file.getvalue())
    options = ("--size", "50x33", "--rate", 24, "--depth", depth, "-m", "toy")
    assert run(capsys, "encode", "-", tmp_path / "a.spv", *options)[0] == 0
    assert run(capsys, "encode", tmp_path / f"a_50x33_24fps_{depth}bit.yuv", tmp_path / "b.spv", "-m", "toy")[0] == 0
    assert (tmp_path / "a.spv").read_bytes() == (tmp_path / "b.spv").read_bytes()
    assert run(capsys, "decode", tmp_path / "a.spv", tmp_path / "out.y4m", "-m", "toy")[0] == 0
    assert planes_of(tmp_path / "out.y4m")[0] == form


@needs_av
def test_a_coded_clip_is_encoded(capsys, tmp_path):
    from .data.test_video import encode

    frames = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), np.uint8)
    encode(tmp_path / "a.mp4", "libx264", frames)
    assert run(capsys, "encode", tmp_path / "a.mp4", tmp_path / "a.spv", "-m", "toy")[0] == 0
    with open(tmp_path / "a.spv", "rb") as file:
        form = VideoReader(file).header.form
    assert (form.height, form.width, form.rate) == (48, 64, (25, 1))


@needs_av
@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [("a.flv", "flv", "flv"), ("a.gif", "gif", "gif"), ("a.m2ts", "libx264", "mpegts"), ("clip", "ffv1", "matroska")],
)
def test_whatever_pyav_reads_becomes_a_clip(name, codec, form, capsys, tmp_path):
    import av

    with av.open(str(tmp_path / name), "w", format=form) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb8" if codec == "gif" else "yuv420p"
        for grey in (20, 120, 220):
            pixels = np.full((48, 64, 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    code, out, err = run(capsys, "encode", tmp_path / name, tmp_path / "a.spv", "-m", "toy", "--json")
    assert code == 0, err
    assert (json.loads(out)["frames"], json.loads(out)["width"]) == (3, 64)


@needs_av
@pytest.mark.parametrize(
    ("name", "words"), [("a", "cannot be decoded"), ("a.mkw", "cannot be decoded"), ("a.txt", ".spv is for clips")]
)
def test_what_pyav_does_not_read_is_2(name, words, capsys, tmp_path):
    (tmp_path / name).write_bytes(b"no clip\n" * 99)
    code, message = complaint(capsys, "encode", tmp_path / name, tmp_path / "a.spv", "-m", "toy")
    assert code == 2 and words in message and not (tmp_path / "a.spv").exists()


def test_parts_of_a_clip(clip, coded, capsys, tmp_path):
    whole = tmp_path / "whole.y4m"
    run(capsys, "decode", coded, whole, "-m", "toy")
    code, out, _ = run(capsys, "decode", coded, tmp_path / "b.y4m", "-m", "toy", "--start", 6, "--frames", 3, "--json")
    assert code == 0 and json.loads(out)["frames"] == 3
    found, expected = planes_of(tmp_path / "b.y4m")[1], planes_of(whole)[1][6:9]
    assert len(found) == 3 and all(map(np.array_equal, found, expected))
    code, out, _ = run(capsys, "encode", clip, tmp_path / "c.spv", "-m", "toy", "--start", 8, "--frames", 9, "--json")
    assert code == 0 and json.loads(out)["frames"] == 4
    first = next(iter(ToyVideo().decoder((tmp_path / "c.spv").read_bytes())))
    with open_clip(clip) as stream:
        frames = list(stream.frames)
    assert (to_frame(frames[8], FORM, "ycbcr") - first).abs().mean() < (
        to_frame(frames[0], FORM, "ycbcr") - first
    ).abs().mean()


def test_info_of_a_clip(coded, capsys):
    code, out, _ = run(capsys, "info", coded, "--json")
    values = json.loads(out)
    assert code == 0 and values["bytes"] == coded.stat().st_size
    assert (values["frames"], values["intra_frames"], values["complete"]) == (12, 3, True)
    assert (values["width"], values["height"], values["qp"], values["depth"]) == (50, 33, [32, 32], 8)
    assert values["fps"] == pytest.approx(29.97, abs=1e-3) and values["pixel_aspect"] == "4:3"
    coded.write_bytes(coded.read_bytes()[:-30])
    code, out, err = run(capsys, "info", coded, "--json")
    values = json.loads(out)
    assert code == 3 and values["complete"] is False and values["frames"] >= 10 and "cut off" in err


def test_verify_of_clips_and_of_their_symbols(coded, capsys, tmp_path):
    code, out, _ = run(capsys, "verify", coded.parent, "-m", "toy", "--sums", tmp_path / "sums")
    result = json.loads(out)
    assert code == 0 and result["ok"] == 1 and len(result["files"][0]["symbols_sha256"]) == 64
    assert run(capsys, "verify", coded, "-m", "toy", "--against", tmp_path / "sums")[0] == 0
    data = bytearray(coded.read_bytes())
    data[len(data) // 2] ^= 1
    coded.write_bytes(data)
    code, out, err = run(capsys, "verify", coded)
    assert code == 3 and "frame " in json.loads(out)["files"][0]["error"]


def test_a_cut_clip_is_decoded_up_to_the_cut_and_is_3(coded, capsys, tmp_path):
    whole = tmp_path / "whole.y4m"
    run(capsys, "decode", coded, whole, "-m", "toy")
    coded.write_bytes(coded.read_bytes()[: coded.stat().st_size // 2])
    code, message = complaint(capsys, "decode", coded, tmp_path / "out.y4m", "-m", "toy")
    assert code == 3 and "cut off, or still being written" in message
    found, expected = planes_of(tmp_path / "out.y4m")[1], planes_of(whole)[1]
    assert 3 < len(found) < 9 and all(map(np.array_equal, found, expected))
    assert f"{len(found)} frames before it were decoded" in message


def test_drift_is_4(coded, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsecodec.cli.files.compile_codec", lambda *args, **kwargs: ToyVideo(drift=1e-6))
    code, message = complaint(capsys, "decode", coded, tmp_path / "out.y4m", "-m", "toy")
    assert code == 4 and "frame 1: decoding leaves the state" in message and "1 frames before it" in message


def test_nothing_is_written_where_nothing_can_be_had(coded, capsys, tmp_path):
    data = coded.read_bytes()
    for name, content in (("a.spv", data[:20]), ("b.spv", b"SPVx" + data[4:]), ("c.spv", data[:40]), ("d.spv", b"")):
        (tmp_path / name).write_bytes(content)
        code, message = complaint(capsys, "decode", tmp_path / name, tmp_path / "out.y4m", "-m", "toy")
        assert code == 3, message
        assert not (tmp_path / "out.y4m").exists()
    code, _ = complaint(capsys, "decode", coded, tmp_path / "out.y4m", "-m", "toy", "--max-pixels", 33 * 50 - 1)
    assert code == 5 and not (tmp_path / "out.y4m").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "{clip}", "out.y4m", "-m", "toy"], "needs .spv"),
        (["encode", "{clip}", "out/"], "out/ names a folder"),
        (["encode", "{picture}", "out.spv"], ".spv is for clips"),
        (["encode", "absent.mp4", "out.spv", "-m", "toy"], "absent.mp4"),
        (["encode", "{clip}", "absent/out.spv", "-m", "toy"], "absent/out.spv"),
        (["encode", "{clip}", "out.spv", "-m", "toy", "--quality", "50"], "--quality is for pictures"),
        (["encode", "{clip}", "out.spv", "-m", "toy", "--tile", "64"], "--tile is for pictures"),
        (["encode", "{clip}", "out.spv", "-m", "toy", "--qp", "64"], "qp=64"),
        (["encode", "{clip}", "out.spv", "-m", "toy", "--intra-period", "-1"], "intra_period=-1"),
        (["encode", "{clip}", "out.spv", "-m", "toy", "--start", "12"], "--start 12"),
        (["encode", "{clip}", "out.spv", "-m", "toy", "--rate", "25"], "--size"),
        (["encode", "{clip}", "-", "-m", "toy", "--json"], "--json"),
        (["encode", "{folder}", "out.spv", "-m", "toy", "--size", "8x8"], "is a folder"),
        (["encode", "{picture}", "out.spc", "--qp", "3"], "--qp is for clips"),
        (["decode", "{coded}", "out.mp4", "-m", "toy"], "needs .y4m or .yuv"),
        (["decode", "{coded}", "out.png", "-m", "toy"], "needs .y4m or .yuv"),
        (["decode", "{coded}", "out.y4m", "-m", "toy", "--region", "1,2,3,4"], "--region is for pictures"),
        (["decode", "{coded}", "out.y4m", "-m", "toy", "--start", "12"], "frame 12"),
        (["decode", "absent.spv", "out.y4m", "-m", "toy"], "absent.spv"),
        (["decode", "{clip}", "out.y4m", "-m", "toy"], "clip.y4m is not coded"),
        (["decode", "{clip}", "-", "-m", "toy"], "clip.y4m is not coded"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_usage_is_2_and_writes_nothing(arguments, words, clip, coded, picture, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, message = complaint(
        capsys, *(a.format(clip=clip, coded=coded, picture=picture, folder=picture.parent) for a in arguments)
    )
    assert code == 2 and words in message, message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["--frames", "--start"])
def test_numbers_beyond_the_machine_are_2(option, clip, capsys, tmp_path):
    with pytest.raises(SystemExit) as error:
        main(["encode", str(clip), str(tmp_path / "a.spv"), option, "9" * 20])
    assert error.value.code == 2 and f"argument {option}: {'9' * 20} (needs at most" in capsys.readouterr().err


def test_a_clip_that_breaks_off_leaves_its_frames(clip, capsys, tmp_path):
    clip.write_bytes(clip.read_bytes()[:-100])
    code, message = complaint(capsys, "encode", clip, tmp_path / "a.spv", "-m", "toy")
    assert code == 2 and "frame 11 is cut off" in message
    assert len(list(ToyVideo().decoder((tmp_path / "a.spv").read_bytes()))) == 11


def test_an_interrupted_encode_leaves_a_whole_file(clip, capsys, tmp_path, monkeypatch):
    calls = []

    def push(self, x, state, qp, index):
        calls.append(index)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return encode(self, x, state, qp, index)

    encode = ToyVideo.inter_encode
    monkeypatch.setattr(ToyVideo, "inter_encode", push)
    assert run(capsys, "encode", clip, tmp_path / "a.spv", "-m", "toy")[0] == 130
    assert len(list(ToyVideo().decoder((tmp_path / "a.spv").read_bytes()))) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is a device of Linux")
@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_full_disk_is_named(command, clip, coded, capsys, tmp_path):
    full = tmp_path / ("full.spv" if command == "encode" else "full.y4m")
    full.symlink_to("/dev/full")
    code, message = complaint(capsys, command, clip if command == "encode" else coded, full, "-m", "toy")
    assert code == 1 and message == f"sparsecodec: {full} cannot be written: No space left on device"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_interrupt_while_a_pipe_is_full_leaves_whole_frames(unbuffered, coded):
    form = ClipFormat(240, 320)
    (coded.parent / "long.y4m").write_bytes(y4m(40, form))
    run_in = ("encode", coded.parent / "long.y4m", coded.parent / "long.spv", "-m", "toy")
    subprocess.run(script(*run_in), check=True, capture_output=True)
    with subprocess.Popen(
        script("decode", coded.parent / "long.spv", "-", "-m", "toy"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    ) as process:
        head = process.stdout.readline()
        time.sleep(2)  # the pipe holds less than a frame: the writer waits inside one
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        data = process.stdout.read()
        assert process.wait() == 130, process.stderr.read()
    assert head.startswith(b"YUV4MPEG2") and data and len(data) % (form.frame_bytes + len(b"FRAME\n")) == 0


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}]
import sparsecodec.cli.encoders as encoders, sparsecodec.cli.files as files
from toy_video import ToyVideo
for module in (encoders, files):
    module.load = lambda name: name
    module.compile_codec = lambda *args, **kwargs: ToyVideo()
encoders.usual_stream = lambda model: "native"
from sparsecodec.cli import main
code = main({arguments!r})
{after}
sys.exit(code)
"""
PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"


def script(*arguments, after: str = "") -> list[str]:
    text = SCRIPT.format(tests=str(TESTS), arguments=[str(argument) for argument in arguments], after=after)
    return [sys.executable, "-c", text]


def test_decoding_in_another_process_through_a_pipe(coded, tmp_path, capsys):
    run(capsys, "decode", coded, tmp_path / "here.y4m", "-m", "toy")
    done = subprocess.run(script("decode", "-", "-", "-m", "toy"), input=coded.read_bytes(), capture_output=True)
    assert done.returncode == 0 and done.stdout == (tmp_path / "here.y4m").read_bytes(), done.stderr


def test_a_reader_that_has_seen_enough_ends_it_quietly(coded):
    form = ClipFormat(240, 320)
    (coded.parent / "long.y4m").write_bytes(y4m(40, form))
    encoder = subprocess.run(script("encode", coded.parent / "long.y4m", "-", "-m", "toy"), capture_output=True)
    with subprocess.Popen(
        script("decode", "-", "-", "-m", "toy"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdin.write(encoder.stdout)
        process.stdin.close()
        assert process.stdout.read(100).startswith(b"YUV4MPEG2")
        process.stdout.close()
        error = process.stderr.read().decode()
        assert process.wait() == 1 and "Traceback" not in error and "Exception ignored" not in error, error


def test_memory_does_not_grow_with_the_clip(tmp_path):
    """Frames of 240 x 320 are 115 kB as y4m and 1 MB as tensors: 160 more of them would be seen."""
    peaks = {}
    for frames in (40, 200):
        source = tmp_path / f"{frames}.y4m"
        form = ClipFormat(240, 320)
        with open(source, "wb") as file:
            writer = ClipWriter(file, form)
            some = [to_planes(frame, form, "ycbcr") for frame in moving(8, 240, 320)]
            for number in range(frames):
                writer.write(some[number % 8])
        coded = source.with_suffix(".spv")
        for command, *files in (("encode", source, coded), ("decode", coded, tmp_path / "out.y4m")):
            process = script(command, *files, "-m", "toy", after=PEAK)
            done = subprocess.run(process, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            peaks[command, frames] = int(done.stderr.split()[-1])  # KiB
    for command in ("encode", "decode"):
        assert peaks[command, 200] < peaks[command, 40] + 8 * 1024, peaks
