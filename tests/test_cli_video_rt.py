"""A clip on the command line with untrained, small codecs: encoded here, decoded by another process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsecodec
from sparsecodec import compile_codec, load
from sparsecodec._clip_format import ClipFormat
from sparsecodec.cli.clips import _calibration
from sparsecodec.cli.options import DEFAULT_VIDEO_MODEL
from sparsecodec.data import open_clip, read_image
from sparsecodec.data.colour import to_frame, to_planes
from sparsecodec.data.video_io import ClipWriter
from sparsecodec.entropy import observing
from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage, HEMImageWidths
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo, HEMVideoWidths
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.models.video import VideoCodec
from sparsecodec.zoo import save

from .conftest import complaint, run
from .toy_video import moving

FORM = ClipFormat(50, 70, (24, 1))
PICTURES = Path(sparsecodec.__file__).parent / "data" / "pictures"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rt")
    torch.manual_seed(0)
    intra = DCVCRTImage(RTImageWidths(16, 8, 24, 1, 1, fusion_blocks=1, spatial_blocks=1))
    inter = DCVCRTVideo(RTVideoWidths(16, 8, 24, 16, shared_blocks=1, context_blocks=1, recon_blocks=1))
    save(VideoCodec(intra, inter).eval(), folder / "rt")
    intra = DCVCHEMImage(HEMImageWidths(16, 8, (8, 8, 16), 16))
    inter = DCVCHEMVideo(HEMVideoWidths(8, 8, 16, 8, (8, 8, 16), (8, 8, 8, 8)))
    save(VideoCodec(intra, inter).eval(), folder / "hem")
    file = io.BytesIO()
    writer = ClipWriter(file, FORM)
    for frame in moving(7, 50, 70):
        writer.write(to_planes(frame, FORM, "ycbcr"))
    (folder / "clip.y4m").write_bytes(file.getvalue())
    return folder


def test_a_clip_opens_in_another_process_and_from_its_middle(folder, capsys):
    coded, model = folder / "clip.spv", folder / "rt"
    code, out, err = run(capsys, "encode", folder / "clip.y4m", coded, "-m", model, "--intra-period", 4, "--json")
    assert code == 0 and json.loads(out)["frames"] == 7, err
    command = [sys.executable, "-m", "sparsecodec", "decode", coded, folder / "out.y4m", "-m", model, "--threads", 2]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert run(capsys, "decode", coded, folder / "here.y4m", "-m", model)[0] == 0
    assert (folder / "here.y4m").read_bytes() == (folder / "out.y4m").read_bytes()
    assert run(capsys, "decode", coded, folder / "rest.yuv", "-m", model, "--start", 5)[0] == 0
    frames = (folder / "here.y4m").read_bytes().split(b"FRAME\n")[1:]
    assert (folder / "rest.yuv").read_bytes() == b"".join(frames[5:])
    code, out, _ = run(capsys, "verify", coded, "-m", model)
    codec, symbols = compile_codec(load(model)), []  # compiling decodes, too
    with observing(lambda some: symbols.append(some.tobytes())):
        list(codec.decoder(coded.read_bytes()))
    assert code == 0 and json.loads(out)["files"][0]["symbols_sha256"] == sha256(b"".join(symbols)).hexdigest()


def test_codecs_of_pictures_and_clips_are_not_mixed_up(folder, picture, codec_files, capsys, tmp_path):
    code, message = complaint(capsys, "encode", folder / "clip.y4m", tmp_path / "a.spv", "-m", codec_files / "dense")
    assert code == 2 and "no codec for clips" in message
    code, message = complaint(capsys, "encode", picture, tmp_path / "a.spc", "-m", folder / "rt")
    assert code == 2 and "no codec for pictures" in message
    coded = tmp_path / "clip.spv"
    run(capsys, "encode", folder / "clip.y4m", coded, "-m", folder / "rt", "--frames", 2)
    code, message = complaint(capsys, "decode", coded, tmp_path / "out.y4m", "-m", codec_files / "dense")
    assert code == 4 and "no codec for clips" in message


@pytest.mark.parametrize("family", ["rt", "hem"])
def test_a_portable_clip_is_calibrated_saved_and_exact(folder, family, capsys, tmp_path):
    """The float model becomes a portable one; frames coded with it are the same for every arithmetic."""
    (tmp_path / "clips").mkdir()
    form = ClipFormat(64, 64)
    with open(tmp_path / "clips" / "a.y4m", "wb") as file:
        writer = ClipWriter(file, form)
        for frame in moving(4, 64, 64):
            writer.write(to_planes(frame, form, "ycbcr"))
    saved, coded = tmp_path / "portable", tmp_path / "a.spv"
    made = ("--stream", "portable", "--calibration", tmp_path / "clips", "--save-model", saved)
    clip = ("encode", folder / "clip.y4m", coded, "--frames", 3)
    code, message = complaint(capsys, *clip, "-m", folder / family, "--stream", "portable")
    assert code == 2 and "FOLDER of clips" in message
    assert run(capsys, *clip, "-m", folder / family, *made)[0] == 0
    first = coded.read_bytes()
    assert run(capsys, *clip, "-m", saved)[0] == 0 and coded.read_bytes() == first
    values = json.loads(run(capsys, "info", coded, "--json")[1])
    assert values["reconstruction"] == "exact" and values["numerics"] == "0x0003"
    assert run(capsys, "decode", coded, tmp_path / "out.y4m", "-m", saved)[0] == 0
    code, message = complaint(capsys, "decode", coded, tmp_path / "out.y4m", "-m", folder / family)
    assert code == 4 and "float model" in message


def test_calibration_reads_clips_as_the_model_does(folder, tmp_path):
    """DCVC-RT's Y, Cb, Cr; DCVC-HEM's R, G, B; of others there is nothing to calibrate."""
    form, file = ClipFormat(64, 80), io.BytesIO()
    writer = ClipWriter(file, form)
    for frame in moving(4, 64, 80):
        writer.write(to_planes(frame, form, "ycbcr"))
    (tmp_path / "clip.y4m").write_bytes(file.getvalue())
    rt, hem = (_calibration(str(tmp_path), load(folder / name))[0] for name in ("rt", "hem"))
    assert rt.shape == hem.shape == (4, 3, 64, 80)
    with open_clip(tmp_path / "clip.y4m") as clip:
        first = next(clip.frames)
    for found, colour in ((rt, "ycbcr"), (hem, "rgb")):
        assert torch.equal(found[:1], to_frame(first, clip.form, colour))
    with pytest.raises(UsageError, match="FVC has no portable stream of clips"):  # without an image codec
        _calibration(str(tmp_path), create("fvc-tiny").inter)
    (tmp_path / "small.y4m").write_bytes((folder / "clip.y4m").read_bytes())
    with pytest.raises(UsageError, match="small.y4m: 4 frames of 70x50 .calibration needs 3 of 64x64 at least"):
        _calibration(str(tmp_path), load(folder / "hem"))


def test_without_a_model_the_shipped_integers_code_a_clip(tmp_path, capsys):
    form, file = ClipFormat(96, 128, (24, 1)), io.BytesIO()
    writer = ClipWriter(file, form)
    picture = read_image(PICTURES / "kodim23.png")[:, :, 100:196]
    for t in range(4):
        writer.write(to_planes(picture[:, :, :, 2 * t : 2 * t + 128].contiguous(), form, "rgb"))
    (tmp_path / "clip.y4m").write_bytes(file.getvalue())
    code, _, err = run(capsys, "encode", tmp_path / "clip.y4m", tmp_path / "clip.spv", "--qp", 63)
    assert code == 0, err
    code, out, err = run(capsys, "decode", tmp_path / "clip.spv", tmp_path / "decoded.y4m", "--json")
    assert code == 0 and json.loads(out)["model"] == DEFAULT_VIDEO_MODEL, err
    clips = [(tmp_path / name).read_bytes().split(b"FRAME\n")[1:] for name in ("clip.y4m", "decoded.y4m")]
    for before, after in zip(*clips, strict=True):
        error = np.frombuffer(before, np.uint8).astype(float) - np.frombuffer(after, np.uint8)
        assert np.sqrt((error**2).mean()) < 14
