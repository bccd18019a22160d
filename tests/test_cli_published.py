"""Files of the published test scripts on the command line: checkpoints in, ``.bin`` files in and out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sparsecodec import load
from sparsecodec._compat import import_compressai
from sparsecodec.data.colour import to_frame, to_rgb
from sparsecodec.data.images import to_uint8
from sparsecodec.data.picture_folders import folder_format
from sparsecodec.entropy import FrameFile, NalFrame, NalReader, NalWriter
from sparsecodec.entropy.computed_tables import computed_gaussian16_tables
from sparsecodec.models import DCVC, VideoCodec, create
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage, HEMImageWidths
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo, HEMVideoWidths
from sparsecodec.models.dcvc_rt import SHIFT_OF_FRAME
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.zoo import save

from .conftest import complaint, run
from .toy_video import moving

HEIGHT, WIDTH, FRAMES, QP, RESET = 40, 50, 6, 40, 4


def _rt() -> VideoCodec:
    intra = DCVCRTImage(RTImageWidths(16, 8, 16, 1, 1, fusion_blocks=1, spatial_blocks=1))
    inter = DCVCRTVideo(RTVideoWidths(16, 8, 16, 16, shared_blocks=1, context_blocks=1, recon_blocks=1))
    with torch.no_grad():
        for layer in (intra.enc.enc_2[-1], inter.encoder.down):
            layer.weight *= 8
    return VideoCodec(intra, inter).eval()


def _hem() -> VideoCodec:
    widths = HEMVideoWidths(mv=16, channels=16, latent=16, decoded=16, unet=(8, 8, 16), flow=(8, 8, 8, 8))
    return VideoCodec(DCVCHEMImage(HEMImageWidths(16, 8, (8, 8, 16))), DCVCHEMVideo(widths)).eval()


def checkpoint(model: torch.nn.Module, path: Path) -> Path:
    """As a training script saves it: wrapped, and in parallel."""
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``rt`` and ``hem`` converted from checkpoints, ``other``: RT of other weights; and a clip of pictures."""
    folder = tmp_path_factory.mktemp("published")
    for name, make in (("rt", _rt), ("other", _rt), ("hem", _hem)):
        torch.manual_seed(len(name))
        model = make()
        save(model, folder / f"direct-{name}")
        for half in ("intra", "inter"):
            checkpoint(model.get_submodule(half), folder / f"{name}-{half}.pth.tar")
    frames = folder / "frames"
    frames.mkdir()
    for number, x in enumerate(moving(FRAMES, HEIGHT, WIDTH), 1):
        Image.fromarray(to_uint8(x)).save(frames / f"im{number}.png")
    return folder


@pytest.fixture(scope="module")
def codecs(folder) -> Path:
    from sparsecodec.cli import main

    for name in ("rt", "other", "hem"):
        halves = [str(folder / f"{name}-{half}.pth.tar") for half in ("inter", "intra")]
        assert main(["convert", *halves, "-o", str(folder / name)]) == 0
    return folder


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.array(Image.open(path)) for path in sorted(folder.iterdir())]


def as_the_rt_script_does(model: VideoCodec, frames: Path) -> tuple[bytes, list[torch.Tensor]]:
    """The bytes of a clip, by the calls that the script makes on the models; and what decoding gives."""
    intra, inter, writer = model.intra, model.inter, NalWriter("rt")
    for half in (intra, inter):
        half.take_tables(computed_gaussian16_tables())
        half.update(0.12)
        half.half()
    data, decoded, last_qp = b"", [], 0
    for index in range(FRAMES):
        picture = np.array(Image.open(frames / f"im{index + 1}.png"))
        r, g, b = torch.from_numpy(picture).permute(2, 0, 1)[None].float().div(255).chunk(3, 1)
        y = 0.2126 * r + 0.7152 * g + 0.0722 * b
        x = torch.cat([y, 0.5 * (b - y) / (1 - 0.0722) + 0.5, 0.5 * (r - y) / (1 - 0.2126) + 0.5], 1).clamp(0, 1)
        x = F.pad(x.half(), (0, -WIDTH % 16, 0, -HEIGHT % 16), mode="replicate")
        reset, qp = False, QP
        if index == 0:
            coded = intra.compress(x, QP)
            payload, decoded = coded["bit_stream"], [coded["x_hat"]]
            inter.clear_dpb()
            inter.add_ref_frame(None, coded["x_hat"])
        else:
            reset, qp = index % RESET == 1, inter.shift_qp(QP, SHIFT_OF_FRAME[index % 8])
            if reset:
                inter.prepare_feature_adaptor_i(last_qp)
            payload = inter.compress(x, qp)["bit_stream"]
            decoded.append(inter.picture(inter.dpb[0].feature, qp))
            last_qp = qp
        data += writer.write(NalFrame(index == 0, HEIGHT, WIDTH, qp, payload, 1, reset))
    return data, [x[:, :, :HEIGHT, :WIDTH].float() for x in decoded]


SETTINGS = ("--qp", QP, "--reset-interval", RESET, "--force-zero-thres", 0.12)


@pytest.fixture(scope="module")
def coded(codecs) -> Path:
    from sparsecodec.cli import main

    out = codecs / "clip.bin"
    assert main(list(map(str, ["encode", codecs / "frames", out, "-m", codecs / "rt", *SETTINGS]))) == 0
    return out


# --- checkpoints ---------------------------------------------------------------------------------------------------


def test_checkpoints_become_the_codec_that_they_are_of(codecs, capsys):
    for name in ("rt", "hem"):
        mine, expected = load(codecs / name), load(codecs / f"direct-{name}")
        assert type(mine.intra) is type(expected.intra) and type(mine.inter) is type(expected.inter)
        weights = expected.state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in mine.state_dict().items())
    code, out, _ = run(capsys, "convert", codecs / "hem-intra.pth.tar", "-o", codecs / "half", "--json")
    assert code == 0 and json.loads(out)["families"] == ["dcvc-hem-image"]
    assert isinstance(load(codecs / "half"), DCVCHEMImage)


def test_image_codecs_and_a_pair_with_dcvc(tmp_path, capsys):
    checkpoint(create("evc-tiny"), tmp_path / "evc.pth")
    checkpoint(DCVC("tiny"), tmp_path / "model_dcvc_quality_0_psnr.pth")
    paths = (tmp_path / "model_dcvc_quality_0_psnr.pth", tmp_path / "evc.pth")
    code, out, _ = run(capsys, "convert", *paths, "-o", tmp_path / "pair", "--json")
    assert code == 0 and json.loads(out)["families"] == ["evc", "dcvc"]
    (tmp_path / "clip.y4m").write_bytes(b"not looked at before the codec")
    code, message = complaint(capsys, "encode", tmp_path / "clip.y4m", tmp_path / "bins", "-m", tmp_path / "pair")
    assert code == 2 and "CompressAI" in message and not (tmp_path / "bins").exists()


@pytest.mark.parametrize("intra", ["Cheng2020Anchor", "JointAutoregressiveHierarchicalPriors"])
def test_dcvc_files_behind_compressai(intra, tmp_path, capsys):
    """I frames are what CompressAI itself makes of them."""
    torch.manual_seed(0)
    widths = (16,) if intra == "Cheng2020Anchor" else (16, 24)
    first, inter = getattr(import_compressai().models, intra)(*widths).eval(), DCVC("tiny").eval()
    with torch.no_grad():
        for parameter in inter.parameters():
            parameter *= 1.5
    paths = checkpoint(first, tmp_path / "intra.pth"), checkpoint(inter, tmp_path / "inter.pth")
    code, out, message = run(capsys, "convert", *paths, "-o", tmp_path / "dcvc", "--json")
    assert code == 0, message
    (tmp_path / "frames").mkdir()
    frames = moving(4, 64, 128)
    for index, x in enumerate(frames, 1):
        Image.fromarray(to_uint8(x)).save(tmp_path / "frames" / f"im{index:05}.png")
    options = ("-m", tmp_path / "dcvc", "--threads", 1)
    code, _, message = run(capsys, "encode", tmp_path / "frames", tmp_path / "bins", "--intra-period", 3, *options)
    assert code == 0, message
    first.update()
    for index, x in enumerate(frames):
        data = (tmp_path / "bins" / f"{index}.bin").read_bytes()
        file = FrameFile.from_bytes("dcvc-inter" if index % 3 else "dcvc-intra", data)
        if index % 3 == 0:
            (y,), (z,) = first.compress(torch.from_numpy(to_uint8(x)).permute(2, 0, 1)[None] / 255)["strings"]
            assert file == FrameFile("dcvc-intra", {"height": 64, "width": 128}, (y, z))
    assert run(capsys, "decode", tmp_path / "bins", tmp_path / "out", *options)[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == len(frames)
    assert run(capsys, "verify", tmp_path / "bins", *options)[0] == 0
    damaged = tmp_path / "bins" / "2.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, message = complaint(capsys, "decode", tmp_path / "bins", tmp_path / "cut.y4m", *options)
    assert code == 3 and "frame 2: " in message


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_what_is_no_checkpoint_of_a_known_family_is_refused(codecs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}, protocol=2))
    torch.save({"weight": torch.ones(2)}, tmp_path / "linear.pth")
    torch.save({"y_q_enc": torch.ones(2), "mv_y_q_enc": torch.ones(2)}, tmp_path / "fm.pth")
    torch.save({"state_dict": dict(list(_rt().inter.state_dict().items())[:-3])}, tmp_path / "short.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_bytes(b"hi\n")
    before = set(tmp_path.iterdir())
    rt, hem = ((codecs / f"{name}-inter.pth.tar", codecs / f"{name}-intra.pth.tar") for name in ("rt", "hem"))
    for names, words in (
        (["evil.pth"], "no checkpoint of plain tensors (needs a whole file of torch.save's)"),
        (["linear.pth"], "with 1 tensors (weight, ...)"),
        (["fm.pth"], "DCVC-FM (video), which has no model here"),
        (["short.pth"], "short.pth"),
        (["empty.pth"], "empty.pth"),
        (["text.pth"], "no checkpoint of plain tensors"),
        (["absent.pth"], "absent.pth"),
        ([rt[0], hem[1]], "P frames of dcvc-rt-video need I frames of dcvc-rt-image"),
        ([rt[0], rt[0]], "2 of them code P frames"),
        ([rt[1], hem[1]], "0 of them code P frames"),
        ([*rt, hem[0]], "3 checkpoints"),
    ):
        code, message = complaint(capsys, "convert", *names, "-o", "out")
        assert code == 2 and words in message and "weights_only" not in message, message
    assert set(tmp_path.iterdir()) == before


# --- DCVC-RT -------------------------------------------------------------------------------------------------------


def test_the_bytes_are_those_of_the_calls_of_the_script(codecs, coded):
    expected, _ = as_the_rt_script_does(load(codecs / "rt"), codecs / "frames")
    assert coded.read_bytes() == expected
    with open(coded, "rb") as file:
        units = list(NalReader("rt", file))
    assert [unit.intra for unit in units] == [True] + [False] * 5
    assert [unit.reset for unit in units] == [False, True, False, False, False, True]
    assert [unit.qp - QP for unit in units] == [0, 8, 0, 4, 0, 4]


def test_decoding_gives_the_encoders_pictures(codecs, coded, capsys, tmp_path):
    _, expected = as_the_rt_script_does(load(codecs / "rt"), codecs / "frames")
    options = ("-m", codecs / "rt", "--force-zero-thres", 0.12, "--fps", 30)
    code, out, err = run(capsys, "decode", coded, tmp_path / "out", *options, "--json")
    assert code == 0, err
    values = json.loads(out)
    assert values["frames"] == FRAMES and values["bytes"] == coded.stat().st_size and values["fps"] == 30
    found = pictures(tmp_path / "out")
    form = folder_format(found[0])
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [f"im{i:05d}.png" for i in range(1, 7)]
    for picture, x in zip(found, expected, strict=True):
        assert np.array_equal(picture, to_uint8(to_rgb(x, form, "ycbcr")))
    assert run(capsys, "decode", coded, tmp_path / "out.y4m", *options)[0] == 0
    assert (tmp_path / "out.y4m").read_bytes().startswith(b"YUV4MPEG2 W50 H40 F30:1 ")
    luma = np.frombuffer((tmp_path / "out.y4m").read_bytes().split(b"FRAME\n")[3][: HEIGHT * WIDTH], np.uint8)
    assert np.array_equal(luma.reshape(HEIGHT, WIDTH), (expected[2][0, 0] * 255).round().byte().numpy())
    assert run(capsys, "decode", coded, tmp_path / "part", *options, "--start", 3, "--frames", 2)[0] == 0
    part = pictures(tmp_path / "part")
    assert len(part) == 2 and all(map(np.array_equal, part, found[3:5]))


def test_info_and_verify(codecs, coded, capsys, tmp_path):
    code, out, _ = run(capsys, "info", coded, "--json")
    values = json.loads(out)
    assert code == 0 and values["families"] == ["dcvc-rt"] and values["complete"] and values["frames"] == FRAMES
    assert (values["width"], values["height"], values["intra_frames"]) == (WIDTH, HEIGHT, 1)
    assert values["qp_field"] == [QP, QP + 8] and values["bytes"] == coded.stat().st_size
    assert run(capsys, "verify", coded)[0] == 0
    options = ("-m", codecs / "rt", "--force-zero-thres", 0.12)
    assert run(capsys, "verify", coded, *options, "--sums", tmp_path / "sums")[0] == 0
    assert run(capsys, "verify", coded, *options, "--against", tmp_path / "sums")[0] == 0
    assert run(capsys, "verify", coded, "-m", codecs / "rt", "--against", tmp_path / "sums")[0] == 3
    cut = tmp_path / "cut.bin"
    cut.write_bytes(coded.read_bytes()[:-3])
    code, out, err = run(capsys, "info", cut, "--json")
    assert code == 3 and json.loads(out)["frames"] == 5 and json.loads(out)["complete"] is False
    assert "frame 5: before byte" in err and run(capsys, "verify", cut)[0] == 3


def test_what_is_wrong_is_told_with_its_frame(codecs, coded, capsys, tmp_path):
    data, bad, out = coded.read_bytes(), tmp_path / "bad.bin", tmp_path / "out.y4m"
    options = ("-m", codecs / "rt", "--force-zero-thres", 0.12)
    for content, words, frames in (
        (data[:-3], "frame 5: before byte", 5),
        (data + b"\x30\x00", "frame 6: before byte", 6),
        (data + b"\x90", "a unit of type 9", 6),
        (b"", "frame 0: there is none", 0),
        (b"\x20" + data, "frame 0: before byte 1", 0),
    ):
        out.unlink(missing_ok=True)
        bad.write_bytes(content)
        code, message = complaint(capsys, "decode", bad, out, *options)
        assert code == 3 and words in message, message
        assert (out.read_bytes().count(b"FRAME\n") if out.exists() else 0) == frames
    code, message = complaint(capsys, "decode", coded, out, "-m", codecs / "other", "--force-zero-thres", 0.12)
    assert code == 3 and "frame 0" in message and "other weights" in message
    code, message = complaint(capsys, "decode", coded, out, "-m", codecs / "rt")
    assert code == 3 and "settings" in message
    assert complaint(capsys, "decode", coded, tmp_path / "b.y4m", *options, "--max-pixels", 40 * 50 - 1)[0] == 5
    assert not (tmp_path / "b.y4m").exists()


# --- DCVC-HEM ------------------------------------------------------------------------------------------------------


def test_hem_writes_a_file_for_each_frame(codecs, capsys, tmp_path):
    bins, options = tmp_path / "bins", ("-m", codecs / "hem")
    code, _, err = run(
        capsys, "encode", codecs / "frames", bins, *options, "--rates", 4, "--qp", 1, "--intra-period", 4
    )
    assert code == 0, err
    assert sorted(path.name for path in bins.iterdir()) == [f"{i}.bin" for i in range(FRAMES)]
    model = load(codecs / "hem")
    frames = [to_frame(picture, folder_format(picture), "rgb") for picture in pictures(codecs / "frames")]
    expected, dpb = [], None
    steps = [float(scale.detach().flatten()[1]) for scale in (model.inter.mv_y_q_scale, model.inter.y_q_scale)]
    for index, frame in enumerate(frames):
        x = F.pad(frame, (0, 14, 0, 24))
        path = tmp_path / "one.bin"
        size = {"pic_width": WIDTH, "pic_height": HEIGHT}
        if index % 4 == 0:
            x_hat = model.intra.encode_decode(x, float(model.intra.q_scale.detach().flatten()[1]), str(path), **size)[
                "x_hat"
            ]
            dpb = {"ref_frame": x_hat.clamp(0, 1), "ref_feature": None, "ref_y": None, "ref_mv_y": None}
        else:
            settings = {"mv_y_q_scale": steps[0], "y_q_scale": steps[1]}
            dpb = model.inter.encode_decode(x, dpb, str(path), **size, **settings)["dpb"]
        assert (bins / f"{index}.bin").read_bytes() == path.read_bytes(), index
        expected.append(to_uint8(dpb["ref_frame"][:, :, :HEIGHT, :WIDTH].clamp(0, 1)))
    assert run(capsys, "decode", bins, tmp_path / "out", *options)[0] == 0
    assert all(map(np.array_equal, pictures(tmp_path / "out"), expected)) and len(expected) == FRAMES
    code, out, _ = run(capsys, "info", bins, "--json")
    values = json.loads(out)
    assert code == 0 and values["families"] == ["dcvc-hem"] and (values["frames"], values["intra_frames"]) == (6, 2)
    assert run(capsys, "verify", bins, *options)[0] == 0

    (bins / "3.bin").write_bytes((bins / "3.bin").read_bytes()[:-1])
    code, message = complaint(capsys, "decode", bins, tmp_path / "cut.y4m", *options)
    assert code == 3 and "frame 3: " in message and "3 frames before it were decoded" in message
    (bins / "3.bin").unlink()
    code, message = complaint(capsys, "decode", bins, tmp_path / "gap.y4m", *options)
    assert code == 3 and "frame 3: " in message and "is missing" in message
    code, message = complaint(capsys, "encode", codecs / "frames", bins, *options)
    assert code == 2 and "holds .bin files already" in message


def test_an_intra_file_is_told_from_an_inter_file(codecs, tmp_path):
    """Neither says what it is; a P file whose I reading would ask for other lengths is a P file."""
    from sparsecodec.entropy.published_clips import read_frame_file

    intra = FrameFile("hem-intra", {"height": 64, "width": 64, "step": 80}, (b"x" * 40,))
    inter = FrameFile("hem-inter", {"mv_step": 100, "step": 80}, (b"y" * 40,))
    for file in (intra, inter):
        assert read_frame_file("dcvc-hem", file.to_bytes(), 1 << 20) == file


# --- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "{frames}", "a.bin"], "need -m"),
        (["decode", "{coded}", "a.y4m"], "need -m"),
        (["decode", "absent.bin", "a.y4m", "-m", "{rt}"], "absent.bin does not exist"),
        (["info", "absent.bin"], "absent.bin does not exist"),
        (["decode", "{coded}", "a.mp4", "-m", "{rt}"], "needs .y4m or .yuv, a folder"),
        (["decode", "{coded}", "{frames}", "-m", "{rt}"], "holds pictures already"),
        (["decode", "{coded}", "a", "-m", "{rt}", "--raw"], "--raw is for planes"),
        (["decode", "{coded}", "a.y4m", "-m", "{rt}", "--force-zero-thres", "0.12", "--start", "6"], "--start 6"),
        (["decode", "{coded}", "a.y4m", "-m", "{hem}", "--force-zero-thres", "0.1"], "only DCVC-RT"),
        (["decode", "{coded}", "a.y4m", "-m", "evc-tiny"], "writes no files of a published script"),
        (["encode", "{frames}", "a.bin", "-m", "{hem}"], "needs a folder"),
        (["encode", "{frames}", "a", "-m", "{rt}"], "dcvc-rt writes one file"),
        (["encode", "{frames}", "a", "-m", "{hem}", "--rates", "4", "--qp", "4"], "qp=4 of 4 rates"),
        (["encode", "{frames}", "a.bin", "-m", "{rt}", "--qp", "64"], "qp=64"),
        (["encode", "{frames}", "a.bin", "-m", "{rt}", "--rates", "4"], "--rates is for dcvc-hem"),
        (["encode", "{frames}", "a.bin", "-m", "{rt}", "--quality", "4"], "--quality is for pictures"),
        (["encode", "{frames}", "a.bin", "-m", "{rt}", "--intra-period", "-1"], "--intra-period -1"),
        (["encode", "{frames}", "a.spv", "-m", "{rt}", "--reset-interval", "4"], "--reset-interval is for .bin"),
        (["encode", "empty", "a.bin", "-m", "{rt}"], "no pictures in empty"),
        (["encode", "absent", "a.bin", "-m", "{rt}"], "absent does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_usage_is_2_and_writes_nothing(arguments, words, codecs, coded, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    names = {"frames": codecs / "frames", "coded": coded, "rt": codecs / "rt", "hem": codecs / "hem"}
    code, message = complaint(capsys, *(argument.format(**names) for argument in arguments))
    assert code == 2 and words in message, message
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "empty"]
