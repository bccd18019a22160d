"""Compiled scalable EVC against the model itself, and its choice of a prefix on whole files."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from sparsecodec import UsageError, zoo
from sparsecodec.cli import main
from sparsecodec.data import read_image, write_image
from sparsecodec.models import EVC, ScalableEVC
from sparsecodec.ops import use_backend
from sparsecodec.runtime import CompiledCodec, compile_codec
from sparsecodec.runtime.adapters import EVCCodec, ScalableEVCCodec
from sparsecodec.runtime.executor import Executor

from .test_executor import RecordedGraphs

Q_SCALE = 1.0


@pytest.fixture(scope="module")
def model() -> ScalableEVC:
    torch.manual_seed(3)
    model = ScalableEVC("tiny-s", "tiny", 3).eval().requires_grad_(False)
    for k, encoder in enumerate(model.encs):  # prefixes 1 and 2 double the latent, and halve it
        encoder[6].weight *= (6, 18, -15)[k]
    model.hyper_enc[3].weight *= 5
    return model


@pytest.fixture(scope="module")
def codec(model: ScalableEVC) -> CompiledCodec:
    return compile_codec(model, dtype=torch.float32)


@pytest.fixture(scope="module")
def x(photo: Tensor) -> Tensor:
    return photo[:, :, :64, :128].contiguous()


def test_every_encoder_runs_on_kernels(codec: CompiledCodec):
    assert isinstance(codec, ScalableEVCCodec)
    transforms = {row.transform for row in codec.report.rows}
    assert {"encs.0", "encs.1", "encs.2", "hyper_enc", "dec"} <= transforms
    assert {row.backend for row in codec.report.rows} == {"cpu"}


@pytest.fixture(scope="module")
def plain() -> CompiledCodec:
    return compile_codec(EVC("tiny-s", "tiny"), dtype=torch.float32)


def test_decoder_macs_are_those_of_plain_evc(codec: CompiledCodec, plain: CompiledCodec):
    assert codec.report.macs == plain.report.macs > 0


@pytest.mark.parametrize("prefix", [0, 1, 2, None])
def test_streams_interchange_with_the_models(model: ScalableEVC, codec: CompiledCodec, x: Tensor, prefix: int | None):
    ours, theirs = codec.compress(x, Q_SCALE, prefix), model.compress(x, Q_SCALE, prefix)
    assert ours["prefix"] == theirs["prefix"]
    for coded in (ours, theirs):
        decoded = [c.decompress(coded["bit_stream"], 64, 128, Q_SCALE)["x_hat"] for c in (codec, model)]
        torch.testing.assert_close(*decoded, rtol=0, atol=1e-5)
        torch.testing.assert_close(coded["x_hat"], decoded[0], rtol=0, atol=1e-5)


def test_streams_are_the_models_byte_for_byte(model: ScalableEVC, x: Tensor):
    compiled = compile_codec(model, dtype=torch.float32)
    for path in compiled.ANALYSIS:
        compiled._transforms[path] = model.get_submodule(path)
    for prefix in (0, 1, 2, None):
        coded = compiled.compress(x, Q_SCALE, prefix)["bit_stream"]
        assert coded == model.compress(x, Q_SCALE, prefix)["bit_stream"], prefix


@pytest.mark.parametrize(("size", "best"), [((50, 90), 1), ((64, 64), 1), ((1, 1), 2)], ids=str)
def test_file_of_the_choice_is_the_cheapest_on_the_visible_picture(
    model: ScalableEVC, codec: CompiledCodec, x: Tensor, size: tuple[int, int], best: int
):
    """White, where more bytes come nearer: worth it for 64 x 64, but not for the one pixel that is seen of them."""
    x = x[:, :, :50, :90] if size == (50, 90) else torch.ones(1, 3, *size)
    step = codec._q_scale(30)
    blobs = [codec.encode(x, 30, prefix=k) for k in range(3)]
    pictures = [codec.decode(blob) for blob in blobs]
    # the container is 32 bytes for every prefix
    costs = [model.cost(blob[32:], picture, x, step) for blob, picture in zip(blobs, pictures, strict=True)]
    assert costs.index(min(costs)) == best and len(set(costs)) == 3
    assert codec.encode(x, 30) == blobs[best]


def test_captured_routines_make_the_same_choice(model: ScalableEVC, x: Tensor):
    with use_backend("reference"):
        eager, captured = (compile_codec(model, dtype=torch.float32) for _ in range(2))
        captured._executor = Executor(torch.device("cpu"), RecordedGraphs())
        for picture, quality in ((x, 30), (x.flip(3), 80), (x.flip(2), 10)):
            assert captured.encode(picture, quality) == eager.encode(picture, quality)
    assert captured._executor.refusals == []
    assert captured._executor.captures == 1 + 4  # the encoders, and the four stretches of coding, once for all prefixes


def test_plain_codecs_have_no_prefix(plain: CompiledCodec, x: Tensor):
    assert type(plain) is EVCCodec
    with pytest.raises(TypeError, match="prefix"):
        plain.encode(x, prefix=0)


@pytest.mark.parametrize("prefix", [-1, 3])
def test_a_prefix_that_does_not_exist_is_refused(codec: CompiledCodec, x: Tensor, prefix: int):
    for call in (lambda: codec.encode(x, prefix=prefix), lambda: codec.compress(x, Q_SCALE, prefix)):
        with pytest.raises(UsageError, match=f"prefix={prefix}.*0 to 2"):
            call()


def test_pictures_are_still_checked(codec: CompiledCodec, x: Tensor):
    with pytest.raises(UsageError, match="quality=101"):
        codec.encode(x, 101, prefix=0)
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        codec.encode(x + 1, prefix=0)
    with pytest.raises(UsageError, match="multiples of 64"):
        codec.compress(x[:, :, :40], Q_SCALE)


def test_command_line_chooses_a_prefix(model: ScalableEVC, x: Tensor, tmp_path):
    zoo.save(model, tmp_path / "codec")
    write_image(x, tmp_path / "x.png")
    zoo.save(EVC("nano", "nano"), tmp_path / "plain")

    def encode(name: str, *options: str) -> int:
        return main(["encode", str(tmp_path / "x.png"), str(tmp_path / "x.spc"), "-m", str(tmp_path / name), *options])

    sizes = {}
    for prefix in ("0", "2"):
        assert encode("codec", "--prefix", prefix) == 0
        sizes[prefix] = (tmp_path / "x.spc").stat().st_size
    assert sizes["0"] != sizes["2"]
    assert encode("codec", "--prefix", "3") == UsageError.exit_code
    assert encode("plain", "--prefix", "0") == UsageError.exit_code


def test_command_line_measures_a_prefix(model: ScalableEVC, codec: CompiledCodec, x: Tensor, tmp_path, capsys):
    zoo.save(model, tmp_path / "codec")
    zoo.save(EVC("nano", "nano"), tmp_path / "plain")
    for folder in ("pictures", "clips"):
        (tmp_path / folder).mkdir()
    write_image(x, tmp_path / "pictures" / "x.png")
    (tmp_path / "clips" / "x.y4m").touch()
    saved = read_image(tmp_path / "pictures" / "x.png")

    def evaluate(name: str, *options: str, folder: str = "pictures") -> int:
        return main(["eval", name, str(tmp_path / folder), "-q", "50", "--dtype", "float32", "--json", *options])

    for prefix in (0, 2, None):
        options = () if prefix is None else ("--prefix", str(prefix))
        assert evaluate(str(tmp_path / "codec"), *options) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["prefix"] == prefix
        coded = codec.encode(saved, 50, prefix=prefix)
        assert result["results"]["bpp_file"] == [8 * len(coded) / (64 * 128)]

    plain, jpeg = str(tmp_path / "plain"), "jpeg"
    assert evaluate(plain) == 0
    assert "prefix" not in json.loads(capsys.readouterr().out)
    for name in (plain, jpeg):
        assert evaluate(name, "--prefix", "0") == UsageError.exit_code
        assert "has one encoder" in capsys.readouterr().err
    assert evaluate(str(tmp_path / "codec"), "--prefix", "3") == UsageError.exit_code
    assert "0 to 2" in capsys.readouterr().err
    assert evaluate("x265", "--prefix", "0", folder="clips") == UsageError.exit_code
    assert "--prefix is for pictures" in capsys.readouterr().err
