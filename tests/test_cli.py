"""The command line: what it prints where, its exit codes, and that nothing is half-written."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from sparsecodec import compile_codec, load
from sparsecodec.cli import main
from sparsecodec.data import read_image, write_image
from sparsecodec.runtime import CompiledCodec

from .conftest import complaint, run


def test_file_of_one_process_opens_in_another(stream, codec_files, tmp_path):
    command = [
        sys.executable,
        "-m",
        "sparsecodec",
        "decode",
        stream,
        tmp_path / "out.png",
        "-m",
        codec_files / "sparse",
    ]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == "", result.stderr
    expected = compile_codec(load(codec_files / "sparse")).decode(stream.read_bytes())
    assert expected.shape == (1, 3, 65, 71)
    assert (read_image(tmp_path / "out.png") - expected).abs().max() <= 0.5001 / 255


def test_json_is_the_only_thing_on_stdout(picture, codec_files, capsys, tmp_path):
    target = tmp_path / "x.spc"
    code, out, _ = run(capsys, "encode", picture, target, "-m", codec_files / "dense", "--json")
    values = json.loads(out)
    assert code == 0 and values["bytes"] == target.stat().st_size
    assert values["bpp"] == 8 * values["bytes"] / (65 * 71)


def test_quality_reaches_the_codec(picture, codec_files, tmp_path):
    sizes = []
    for level in (0, 50, 100):
        main(
            ["encode", str(picture), str(tmp_path / "x.spc"), "-m", str(codec_files / "dense"), "--quality", str(level)]
        )
        sizes.append((tmp_path / "x.spc").stat().st_size)
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "absent.png", "out.spc", "-m", "{dense}"],
        ["encode", "{picture}", "absent/out.spc", "-m", "{dense}"],
        ["encode", "{picture}", "out.spc", "-m", "evc-gigantic"],
        ["encode", "{picture}", "out.spc", "-m", "{dense}", "--qp", "0"],
        ["encode", "{picture}", "out.spc", "-m", "{dense}", "--device", "abacus"],
        ["decode", "absent.spc", "out.png"],
        ["decode", "{stream}", "out.docx", "-m", "{sparse}"],
        ["info", "absent.spc"],
        ["verify", "{stream}", "--against", "absent.sums"],
        ["eval", "{dense}", "absent"],
        ["bdrate", "absent.json", "absent.json"],
        ["plot", "{picture}"],
        ["train", "absent.toml", ".", "--out", "run"],
        ["train", "{picture}", ".", "--out", "run"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_wrong_usage_is_2_and_writes_nothing(arguments, picture, stream, codec_files, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"picture": picture, "stream": stream, "dense": codec_files / "dense", "sparse": codec_files / "sparse"}
    before = sorted(tmp_path.rglob("*"))
    code, message = complaint(capsys, *(argument.format(**names) for argument in arguments))
    assert code == 2, message
    assert any(word in message for word in ("absent", "gigantic", "abacus", "docx", "photo.png"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["conjure"],
        ["encode", "a", "b", "--quality", "101"],
        ["encode", "a", "b", "--tile", "0"],
        ["encode", "a", "b", "--threads", "100000"],
        ["encode", "a", "b", "--max-memory", "2X"],
        ["encode", "a", "b", "--max-memory", "0"],
        ["decode", "a", "b", "--region", "1,2,3"],
        ["decode", "a", "b", "--region", "1,2,3,x"],
        ["verify"],
        ["demo", "--repeats", "0"],
    ],
)
def test_unparsable_command_lines_are_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("sparsecodec: " if arguments else "usage: ")
    if arguments:  # one line, and where to read on
        assert err.count("\n") == 1 and err.endswith("--help)\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "{picture}", "{picture}"], "(needs .spc;"),
        (["encode", "{picture}", "-"], "(needs .spc;"),
        (["encode", "{picture}", "folder"], "folder is a folder (needs the name of a file)"),
        (["encode", "{picture}", "absent/x.spc"], "absent/x.spc cannot be written: there is no folder absent"),
        (["decode", "{stream}", "{stream}"], "(needs the suffix of a picture, as .png)"),
        (["decode", "{stream}", "-"], "(needs the suffix of a picture, as .png)"),
        (["decode", "{stream}", "folder"], "folder is a folder"),
        (["decode", "{stream}", "absent/x.png"], "there is no folder absent"),
        (["eval", "folder", "-o", "absent/x.json"], "there is no folder absent"),
    ],
)
def test_outputs_are_checked_before_a_model_is_loaded(arguments, words, picture, stream, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    model = ["evc-gigantic"] if arguments[0] == "eval" else ["-m", "evc-gigantic"]
    command, *rest = (argument.format(picture=picture, stream=stream) for argument in arguments)
    code, message = complaint(capsys, command, *model, *rest)
    assert code == 2 and words in message, message
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_damaged_stream_is_3_and_leaves_no_picture(stream, codec_files, capsys, tmp_path):
    good = stream.read_bytes()
    damaged = [good[:-1], good[: len(good) // 2], b"", b"\x89PNG", good + b"\0"]
    for position in (0, 5, len(good) // 2, len(good) - 1):
        damaged.append(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
    for data in damaged:
        stream.write_bytes(data)
        for command in (["decode", stream, tmp_path / "out.png", "-m", codec_files / "sparse"], ["info", stream]):
            code, message = complaint(capsys, *command)
            assert code == 3, (len(data), message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "photo.spc"]


def test_stream_of_another_model_is_4(stream, codec_files, capsys, tmp_path):
    code, message = complaint(capsys, "decode", stream, tmp_path / "out.png", "-m", codec_files / "dense")
    assert code == 4 and not (tmp_path / "out.png").exists()
    code, message = complaint(capsys, "decode", stream, tmp_path / "out.png")
    assert code == 4 and "name its files with -m" in message


def test_more_pixels_than_allowed_is_5(stream, codec_files, capsys, tmp_path):
    pixels = 65 * 71
    command = ["decode", stream, tmp_path / "out.png", "-m", codec_files / "sparse", "--max-pixels"]
    code, _ = complaint(capsys, *command, pixels - 1)
    assert code == 5
    assert run(capsys, *command, pixels)[0] == 0


def test_failed_write_keeps_the_old_file(picture, codec_files, capsys, tmp_path, monkeypatch):
    (tmp_path / "x.spc").write_bytes(b"old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("sparsecodec._files.os.replace", fail)
    code, message = complaint(capsys, "encode", picture, tmp_path / "x.spc", "-m", codec_files / "dense")
    assert code == 2 and "disk full" in message
    assert (tmp_path / "x.spc").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "x.spc"]


def test_info_of_the_installation(capsys):
    code, out, _ = run(capsys, "info", "--json")
    values = json.loads(out)
    assert code == 0 and set(values["backends"]) == {"cuda", "triton", "cpu", "reference"}
    assert values["backends"]["reference"] is None and values["torch"] == torch.__version__
    code, out, _ = run(capsys, "info")
    assert code == 0 and "reference  available" in out


def test_info_of_a_file(stream, capsys):
    code, out, _ = run(capsys, "info", stream, "--json")
    values = json.loads(out)
    assert code == 0
    assert (values["width"], values["height"], values["bytes"]) == (71, 65, stream.stat().st_size)


def test_eval_bdrate_and_plot(picture, codec_files, capsys, tmp_path):
    code, out, _ = run(
        capsys, "eval", "jpeg", picture.parent, "-q", "10,30,50,80", "-o", tmp_path / "jpeg.json", "--json"
    )
    result = json.loads(out)
    assert code == 0 and result == json.loads((tmp_path / "jpeg.json").read_text())
    assert result["name"] == "jpeg" and set(result["results"]) >= {"psnr-rgb", "bpp", "decoding_time"}

    half = json.loads((tmp_path / "jpeg.json").read_text())
    half["results"]["bpp_file"] = [0.8 * rate for rate in half["results"]["bpp_file"]]
    (tmp_path / "half.json").write_text(json.dumps(half))
    code, out, _ = run(capsys, "bdrate", tmp_path / "jpeg.json", tmp_path / "half.json", "--json")
    assert code == 0 and json.loads(out)["bd_rate"] == pytest.approx(-20)
    assert run(capsys, "plot", tmp_path / "jpeg.json", tmp_path / "half.json", "-o", tmp_path / "rd.png")[0] == 0
    assert read_image(tmp_path / "rd.png").shape[1] == 3

    code, out, _ = run(capsys, "eval", codec_files / "sparse", picture.parent, "-q", "20,80", "--json")
    result = json.loads(out)
    assert code == 0 and len(result["results"]["bpp"]) == 2 and result["mac_per_pixel"] > 0
    assert all(a < b for a, b in zip(result["results"]["bpp"], result["results"]["bpp_file"], strict=True))


def demo_arguments(picture, codec_files, out) -> list:
    models = ["--dense", codec_files / "dense", "--sparse", codec_files / "sparse"]
    return ["demo", "--image", picture, "--out", out, *models, "--repeats", 2]


def test_demo(photo, codec_files, capsys, tmp_path):
    picture = tmp_path / "photo.png"
    write_image(photo[:, :, :161, :193], picture)  # MS-SSIM needs as much
    code, out, err = run(capsys, *demo_arguments(picture, codec_files, tmp_path / "demo"), "--json")
    assert code == 0, err
    result = json.loads(out)
    for key in ("dense", "sparse", "sparse_same_precision"):
        assert result[key]["macs"] > 0 and result[key]["decode_ms"] > 0 and result[key]["psnr"] > 0
        assert result[key]["bpp"] == 8 * result[key]["bytes"] / (161 * 193)
        assert 0 < result[key]["ms_ssim"] < 1
    assert result["mac_reduction"] == pytest.approx(1 - result["sparse"]["macs"] / result["dense"]["macs"])
    assert 0.2 < result["mac_reduction"] < 0.9
    assert result["speedup"] == pytest.approx(result["dense"]["decode_ms"] / result["sparse"]["decode_ms"])
    assert result["sparse_same_precision"]["dtype"] == result["dense"]["dtype"] == "float32"
    assert json.loads((tmp_path / "demo" / "demo.json").read_text()) == result
    for name in result["files"]:
        assert (tmp_path / "demo" / name).stat().st_size > 0
    assert read_image(tmp_path / "demo" / "side_by_side.png").shape[3] > 3 * 193
    assert (tmp_path / "demo" / "sparse.spc").stat().st_size == result["sparse"]["bytes"]


def test_demo_prints_a_table(picture, codec_files, capsys, tmp_path):
    code, out, err = run(capsys, *demo_arguments(picture, codec_files, tmp_path / "demo"))
    assert code == 0, err
    lines = out.splitlines()
    assert "GMAC" in lines[2] and [line.split(",")[0] for line in lines[3:8]] == ["dense"] * 2 + ["sparse"] * 3
    assert "decoding" in err


def test_demo_says_what_it_left_out(picture, codec_files, capsys, tmp_path, monkeypatch):
    reason = "plots need the extra sparsecodec[plot]"
    monkeypatch.setattr("sparsecodec.cli.demo.why_no_plot", lambda: reason)
    code, out, err = run(capsys, *demo_arguments(picture, codec_files, tmp_path / "demo"), "--json")
    assert code == 0 and json.loads(out)["dense"]["ms_ssim"] is None
    assert f"left out: {reason}" in err and "left out: MS-SSIM of a picture of 65 x 71" in err
    assert not (tmp_path / "demo" / "rd.png").exists()


def test_demo_refuses_to_time_a_decoder_that_gives_another_picture(picture, codec_files, capsys, tmp_path, monkeypatch):
    decode = CompiledCodec.decode
    monkeypatch.setattr(CompiledCodec, "decode", lambda *args, **kwargs: decode(*args, **kwargs).mul(0.7))
    code, message = complaint(capsys, *demo_arguments(picture, codec_files, tmp_path / "demo"))
    assert code == 1 and "dB" in message
    assert not (tmp_path / "demo" / "demo.json").exists()


def test_prune_by_a_recipe_gives_a_codec_that_opens(photo, codec_files, capsys, tmp_path):
    (tmp_path / "photos").mkdir()
    write_image(photo, tmp_path / "photos" / "a.png")
    recipe = f"""
        model = "evc-tiny"
        start_from = "{codec_files / "dense"}"
        steps = 2
        batch = 1
        crop = 64
        [gradient_decay]
        mac_reduction = 0.3
        finetune_steps = 1
    """
    (tmp_path / "small.toml").write_text(recipe)
    arguments = (tmp_path / "small.toml", tmp_path / "photos", "--out", tmp_path / "run", "--half", "--seed", "3")
    code, out, err = run(capsys, "train", *arguments)
    assert code == 2 and "does not train (run it by: sparsecodec prune)" in err
    code, out, err = run(capsys, "prune", *arguments)
    assert code == 0 and out == "", err
    assert json.loads((tmp_path / "run" / "small.json").read_text())["info"]["recipe"]["seed"] == 3
    small, dense = load(tmp_path / "run" / "small"), load(codec_files / "dense")
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in dense.parameters())


def test_without_the_extension_info_works_and_coding_says_what_is_missing(tmp_path, picture_path):
    hidden = "import sys; sys.modules['sparsecodec._C'] = None; from sparsecodec.cli import main; sys.exit(main())"

    def command(*arguments):
        return subprocess.run([sys.executable, "-c", hidden, *arguments], capture_output=True, text=True)

    info = command("info")
    assert info.returncode == 0 and "sparsecodec._C cannot be imported" in info.stdout
    encode = command("encode", str(picture_path), str(tmp_path / "a.spc"))
    assert encode.returncode == 1 and "Traceback" not in encode.stderr
    assert "entropy coding needs sparsecodec._C" in encode.stderr
    assert not list(tmp_path.iterdir())
