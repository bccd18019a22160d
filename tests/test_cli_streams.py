"""The commands that write, read and check files: tiles, regions, memory, folders, verify, portable streams."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from sparsecodec import compile_codec, load, save
from sparsecodec._compat import import_compressai
from sparsecodec.cli import files as cli_files
from sparsecodec.cli.options import memory, resident_bytes
from sparsecodec.data import read_image, write_image
from sparsecodec.entropy import Container, observing

from .conftest import complaint, run


def test_info_of_a_file_with_tiles(picture, codec_files, capsys, tmp_path):
    target = tmp_path / "x.spc"
    arguments = ("encode", picture, target, "-m", codec_files / "sparse", "--tile", "64", "--overlap", "16", "--json")
    code, out, err = run(capsys, *arguments)
    assert code == 0 and json.loads(out)["tiles"] == [2, 2], err
    values = json.loads(run(capsys, "info", target, "--json")[1])
    assert values["version"] == 2 and values["reconstruction"] == "float" and values["model"] is None
    assert values["tiles"] == "2 x 2 of 64, sharing 16" and "fma32" in values["numerics_name"]
    assert values["header_bytes"] + sum(map(sum, values["payload_bytes"])) == values["bytes"] == target.stat().st_size
    code, out, _ = run(capsys, "info", target)
    assert code == 0 and "2 x 2 of 64" in out


def test_a_region_of_a_file(picture, codec_files, capsys, tmp_path):
    files, target, out_path = codec_files / "sparse", tmp_path / "x.spc", tmp_path / "out.png"
    run(capsys, "encode", picture, target, "-m", files, "--tile", "64", "--overlap", "16")
    arguments = ("decode", target, out_path, "-m", files, "--region", "60,3,5,68", "--json")
    code, out, err = run(capsys, *arguments)
    assert code == 0 and json.loads(out)["height"] == 5 and json.loads(out)["width"] == 68, err
    whole = compile_codec(load(files)).decode(target.read_bytes())
    assert (read_image(out_path) - whole[:, :, 60:65, 3:71]).abs().max() <= 0.5001 / 255
    out_path.unlink()
    code, message = complaint(capsys, "decode", target, out_path, "-m", files, "--region", "60,3,6,68")
    assert code == 2 and "71 x 65" in message and not out_path.exists()


def test_memory_is_limited(picture, stream, codec_files, capsys, tmp_path):
    files = codec_files / "sparse"
    for limit, reason in (("1M", "already"), (str(resident_bytes() + 2**20), "needs about|already")):
        code, message = complaint(capsys, "encode", picture, tmp_path / "x.spc", "-m", files, "--max-memory", limit)
        assert code == 5 and re.search(reason, message)
        code, message = complaint(capsys, "decode", stream, tmp_path / "x.png", "-m", files, "--max-memory", limit)
        assert code == 5 and re.search(reason, message)
    assert run(capsys, "encode", picture, tmp_path / "x.spc", "-m", files, "--max-memory", "64G")[0] == 0
    assert run(capsys, "decode", stream, tmp_path / "x.png", "-m", files, "--max-memory", "64G")[0] == 0
    assert (tmp_path / "x.spc").read_bytes() == stream.read_bytes()


@pytest.mark.parametrize(
    ("text", "value"), [("2G", 2 << 30), ("512M", 512 << 20), ("1.5k", 1536), ("123", 123), ("1e9", 10**9)]
)
def test_sizes_of_memory(text, value):
    assert memory(text) == value


def test_files_without_an_end_are_not_read_to_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli_files, "MAX_BYTES", 3 * cli_files.PIECE)
    long = tmp_path / "long.spc"
    with long.open("wb") as file:
        file.write(b"SPC")
        file.truncate(1 << 40)
    for path in ("/dev/zero", long):
        for command in (("decode", path, tmp_path / "x.png"), ("info", path)):
            code, message = complaint(capsys, *command)
            assert code == 5 and f"{path} has more than" in message
        code, values, _ = verified(capsys, path)
        assert code == 5 and "has more than" in values["files"][0]["error"]


def test_transparency_is_dropped_aloud(codec_files, capsys, tmp_path):
    for mode, told in (("RGB", False), ("RGBA", True)):
        Image.new(mode, (20, 10)).save(tmp_path / "x.png")
        code, _, err = run(capsys, "encode", tmp_path / "x.png", tmp_path / "x.spc", "-m", codec_files / "sparse")
        assert code == 0 and ("transparency is dropped" in err) == told


def test_folders(picture, codec_files, capsys, tmp_path):
    files, photos = codec_files / "sparse", tmp_path / "photos"
    photos.mkdir()
    x = read_image(picture)
    write_image(x, photos / "a.png")
    write_image(x[:, :, :20, :30], photos / "b.bmp")
    code, out, err = run(capsys, "encode", photos, tmp_path / "out", "-m", files, "--json")
    assert code == 0 and [Path(row["output"]).name for row in json.loads(out)["files"]] == ["a.spc", "b.spc"], err
    assert run(capsys, "decode", tmp_path / "out", tmp_path / "back", "-m", files)[0] == 0
    assert read_image(tmp_path / "back" / "a.png").shape == x.shape
    assert read_image(tmp_path / "back" / "b.png").shape == (1, 3, 20, 30)

    (photos / "0.png").write_bytes(b"no picture")  # the first one; the others are coded all the same
    code, message = complaint(capsys, "encode", photos, tmp_path / "again", "-m", files, "--json")
    assert code == 2 and "1 of 3 files failed" in message and "0.png" in message
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["a.spc", "b.spc"]
    damaged = (tmp_path / "again" / "a.spc").read_bytes()
    (tmp_path / "again" / "a.spc").write_bytes(damaged[:-1])
    code, message = complaint(capsys, "decode", tmp_path / "again", tmp_path / "back", "-m", files)
    assert code == 3 and f"{tmp_path / 'again' / 'a.spc'}: the payloads have" in message
    write_image(x, photos / "a.jpg")
    code, message = complaint(capsys, "encode", photos, tmp_path / "twice", "-m", files)
    assert code == 2 and "a.spc" in message and not (tmp_path / "twice").exists()
    assert complaint(capsys, "decode", photos, tmp_path / "none", "-m", files)[0] == 2
    code, message = complaint(capsys, "encode", photos, tmp_path / "x.mp4", "-m", files)
    assert code == 2 and ".spv" in message and not (tmp_path / "x.mp4").exists()


def test_half_precision_is_for_gpus(picture, stream, codec_files, capsys, tmp_path):
    for command in (("encode", picture, tmp_path / "x.spc"), ("decode", stream, tmp_path / "x.png")):
        code, message = complaint(capsys, *command, "-m", codec_files / "sparse", "--dtype", "float16")
        assert code == 2 and "needs a GPU" in message and "bfloat16" in message


def verified(capsys, *arguments) -> tuple[int, dict, list[str]]:
    """Exit code, the object on stdout, and the lines on stderr."""
    code, out, err = run(capsys, "verify", *arguments)
    return code, json.loads(out), [line for line in err.splitlines() if not line.startswith("sparsecodec: ")]


def test_verify(picture, stream, codec_files, capsys, tmp_path):
    good, other = stream.read_bytes(), tmp_path / "other.spc"
    run(capsys, "encode", picture, other, "-m", codec_files / "sparse", "--tile", "64", "--overlap", "0")
    code, values, lines = verified(capsys, stream, other)
    assert code == 0 and (values["ok"], values["failed"]) == (2, 0)
    assert lines == [f"{stream}: ok, checksums only", f"{other}: ok, checksums only"]
    for damaged in (good[:-1], good[:60] + bytes([good[60] ^ 1]) + good[61:], b""):
        stream.write_bytes(damaged)
        code, values, lines = verified(capsys, tmp_path)
        assert code == 3 and (values["ok"], values["failed"]) == (1, 1)
        assert [row["ok"] for row in values["files"]] == [True, False] and values["files"][1]["error"] in lines[1]


def test_verify_decodes(stream, codec_files, capsys, tmp_path):
    """A file whose checksums are right and whose stream is not."""
    there = Container.from_bytes(stream.read_bytes())
    (payload,) = there.payloads
    wrong = dataclasses.replace(there, payloads=(payload[:-4] + bytes(4),))
    stream.write_bytes(wrong.to_bytes())
    assert verified(capsys, stream)[0] == 0
    code, values, _ = verified(capsys, stream, "-m", codec_files / "sparse")
    assert code == 3 and not values["files"][0]["ok"]
    stream.write_bytes(there.to_bytes())
    assert verified(capsys, stream, "-m", codec_files / "dense")[0] == 4
    code, values, _ = verified(
        capsys, stream, "-m", codec_files / "sparse", "--max-pixels", there.height * there.width - 1
    )
    assert code == 5 and "limit" in values["files"][0]["error"]


def test_verify_compares_symbols(stream, codec_files, capsys, tmp_path):
    files, sums = codec_files / "sparse", tmp_path / "sums.sha256"
    code, values, _ = verified(capsys, stream, "-m", files, "--sums", sums)
    codec, symbols = compile_codec(load(files)), []  # compiling decodes, too
    with observing(lambda some: symbols.append(some.tobytes())):
        codec.decode(stream.read_bytes())
    digest = hashlib.sha256(b"".join(symbols)).hexdigest()
    assert code == 0 and values["files"][0]["symbols_sha256"] == digest and sum(map(len, symbols)) > 4 * 1000
    assert sums.read_text() == f"{digest}  photo.spc\n"
    assert verified(capsys, stream, "-m", files, "--against", sums)[0] == 0
    sums.write_text(f"{'0' * 64}  photo.spc\n")
    code, values, _ = verified(capsys, stream, "-m", files, "--against", sums)
    assert code == 3 and digest in values["files"][0]["error"]
    assert values["files"][0]["symbols_sha256"] == digest
    sums.write_text(f"{digest}  another.spc\n")
    assert "no line" in verified(capsys, stream, "-m", files, "--against", sums)[1]["files"][0]["error"]
    sums.write_text("garbage\n")
    code, message = complaint(capsys, "verify", stream, "-m", files, "--against", sums)
    assert code == 2 and "line 1" in message
    code, message = complaint(capsys, "verify", stream, tmp_path, "-m", files, "--sums", tmp_path / "twice")
    assert code == 2 and "2 files are called photo.spc" in message and not (tmp_path / "twice").exists()


def test_portable_streams(picture, codec_files, capsys, tmp_path):
    dense, made, target = codec_files / "dense", tmp_path / "portable", tmp_path / "x.spc"
    code, message = complaint(capsys, "encode", picture, target, "-m", dense, "--stream", "portable")
    assert code == 2 and "--calibration FOLDER" in message
    for incomplete in (["--calibration", tmp_path], ["--stream", "portable", "--calibration", tmp_path]):
        code, message = complaint(capsys, "encode", picture, target, "-m", dense, *incomplete)
        assert code == 2 and "--save-model PATH" in message
    code, message = complaint(capsys, "encode", picture, target, "-m", dense, "--save-model", made)
    assert code == 2 and "--calibration" in message and not target.exists()

    options = ("--stream", "portable", "--calibration", tmp_path, "--save-model", made)
    code, _, err = run(capsys, "encode", picture, target, "-m", dense, *options)
    assert code == 0, err
    assert "integers" in json.loads(run(capsys, "info", target, "--json")[1])["numerics_name"]
    again = tmp_path / "again.spc"
    assert run(capsys, "encode", picture, again, "-m", made)[0] == 0  # the integers are there: nothing to ask for
    assert again.read_bytes() == target.read_bytes()
    assert run(capsys, "decode", target, tmp_path / "out.png", "-m", made)[0] == 0
    assert read_image(tmp_path / "out.png").shape == (1, 3, 65, 71)
    tiled = ("--tile", "64", "--max-memory", "64G")
    assert run(capsys, "encode", picture, again, "-m", made, *tiled)[0] == 0
    assert verified(capsys, target, again, "-m", made)[0] == 0
    code, message = complaint(capsys, "decode", target, tmp_path / "out.png", "-m", dense)
    assert code == 4 and "portable" in message


def test_portable_streams_of_a_codec_of_variable_rate(picture, capsys, tmp_path):
    torch.manual_seed(0)
    model = import_compressai().models.MeanScaleHyperpriorVbr(16, 24).eval()
    with torch.no_grad():
        model.g_a[-1].weight *= 30  # so that the latent has symbols to tell rates by
    save(model, tmp_path / "float")
    made, first = tmp_path / "made", tmp_path / "first.spc"
    options = ("--stream", "portable", "--calibration", tmp_path, "--save-model", made, "--quality", "30")
    code, _, err = run(capsys, "encode", picture, first, "-m", tmp_path / "float", *options)
    assert code == 0, err
    sizes = []
    for quality, field in ((0, 0), (30, 2), (50, 4), (100, 7)):
        target = tmp_path / f"{quality}.spc"
        assert run(capsys, "encode", picture, target, "-m", made, "--quality", quality)[0] == 0
        values = json.loads(run(capsys, "info", target, "--json")[1])
        assert values["quality_field"] == field and "integers" in values["numerics_name"]
        assert run(capsys, "decode", target, tmp_path / "out.png", "-m", made)[0] == 0
        assert read_image(tmp_path / "out.png").shape == (1, 3, 65, 71)
        sizes.append(target.stat().st_size)
    assert (tmp_path / "30.spc").read_bytes() == first.read_bytes() and sizes == sorted(set(sizes))
    assert verified(capsys, *sorted(tmp_path.glob("*.spc")), "-m", made)[1]["ok"] == 5
    code, message = complaint(capsys, "decode", first, tmp_path / "out.png", "-m", tmp_path / "float")
    assert code == 4
    container = Container.from_bytes(first.read_bytes())
    first.write_bytes(dataclasses.replace(container, quality=8).to_bytes())
    code, message = complaint(capsys, "decode", first, tmp_path / "out.png", "-m", made)
    assert code == 3 and "0 to 7" in message
