"""Pictures from integers alone: the same bits whatever decodes them."""

from __future__ import annotations

import hashlib
from functools import cache

import pytest
import torch
from torch import Tensor

from sparsecodec import zoo
from sparsecodec.entropy.bitstream import Header
from sparsecodec.errors import UsageError
from sparsecodec.nn.integer_prior import LIMIT, ONE, scaled
from sparsecodec.nn.routine import Coding, drive
from sparsecodec.ops import use_backend
from sparsecodec.quant import is_exact, is_portable, portable
from sparsecodec.runtime import CompiledCodec, compile_codec
from sparsecodec.runtime.integer_network import IntegerNetwork

from .conftest import INTERPRETED, build, portable_model

SIZE = (64, 128)


@cache
def codec_on(backend: str | None = None) -> CompiledCodec:
    model = zoo.load("evc-tiny-sparse-exact")
    if backend is None:
        return compile_codec(model, stream="portable", dtype=torch.float32)
    with use_backend(backend):
        return compile_codec(model, stream="portable", dtype=torch.float32, strict=False)


@pytest.fixture(scope="module")
def blob(photo: Tensor) -> bytes:
    return codec_on().encode(photo[:, :, : SIZE[0] - 7, : SIZE[1] - 3], 70)


@pytest.fixture(scope="module")
def x_hat(blob: bytes) -> Tensor:
    """The picture in it, by the kernels and threads that are usual here."""
    return codec_on().decode(blob)


def picture(codec: CompiledCodec, symbols: list[Tensor], q_scale: float = 1.0) -> Tensor:
    """What a decoder makes of these symbols: of the hyper-latent, then of both passes."""
    answers = iter(symbols[1:])

    def host(request: Coding, out: Tensor | None) -> Tensor:
        return next(answers)

    with torch.inference_mode():
        routine = codec._synthesis(symbols[0], codec._gain(q_scale), codec._coder, *SIZE)
        return drive(routine, host)


def any_symbols(limit: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = SIZE[0] // 64, SIZE[1] // 64
    shapes = [(1, 96, rows, columns), *2 * [(1, 48, 4 * rows, 4 * columns)]]
    return [torch.randint(-limit, limit, shape, generator=generator).to(torch.int32) for shape in shapes]


def test_nothing_depends_on_instruction_set_or_threads(any_processor, blob, x_hat):
    assert torch.equal(codec_on().decode(blob), x_hat)


def test_nothing_depends_on_the_backend(blob, x_hat):
    with use_backend("reference"):
        found = codec_on("reference").decode(blob)
    assert torch.equal(found, x_hat)
    assert 0.1 < float(((found > 0) & (found < 1)).float().mean())


@INTERPRETED
def test_nothing_depends_on_triton():
    """Of a latent of 2 x 2: the interpreter takes small tensors."""
    dec = zoo.load("evc-tiny-sparse-exact").dec
    y_hat = torch.randint(-(2**15), 2**15, (1, 96, 2, 2), generator=torch.Generator().manual_seed(3)).to(torch.int16)
    y_hat = y_hat.contiguous(memory_format=torch.channels_last)
    expected = IntegerNetwork({"dec": dec})(y_hat)
    with use_backend("triton"):
        network = IntegerNetwork({"dec": dec})
        assert torch.equal(network(y_hat), expected)
    assert network.backends == {"triton"} and expected.unique().numel() > 100


@pytest.mark.parametrize("limit", [3, 40, 2**31])
def test_whatever_a_stream_holds_has_one_picture(limit):
    symbols = any_symbols(limit, seed=limit % 97)
    with use_backend("reference"):
        expected = picture(codec_on("reference"), symbols, 600.0)
    assert torch.equal(picture(codec_on(), symbols, 600.0), expected)


def test_pictures_are_those_of_every_version():
    """Golden: another digest, and files that were made before show other pictures."""
    digest = hashlib.sha256()
    for q_scale in (0.3, 1.0, 2.57):
        x = picture(codec_on(), any_symbols(4, seed=5), q_scale)
        digest.update((x * ONE).to(torch.int32).numpy().tobytes())
    assert digest.hexdigest()[:32] == "7d8cd9026d34dd9da31c574c1428861a"


def test_the_picture_is_nearly_that_of_the_float_synthesis(photo):
    x = photo[:, :, :128, :192]
    for quality in (0, 100):
        ours, theirs = codec_on(), compile_codec(zoo.load("evc-tiny-sparse"), dtype=torch.float32)
        blobs = ours.encode(x, quality), theirs.encode(x, quality)
        errors = [(c.decode(b) - x).square().mean() for c, b in zip((ours, theirs), blobs, strict=True)]
        assert len(blobs[0]) < 1.02 * len(blobs[1]) + 32 and errors[0] < 1.02 * errors[1]


def test_files_say_so(blob, photo):
    assert Header.read(blob).exact and codec_on().exact_pictures and is_exact(zoo.load("evc-tiny-sparse-exact"))
    others = [zoo.load("evc-tiny-sparse-portable"), zoo.load("evc-tiny-sparse-int8"), portable_model("mbt2018-mean")]
    for other in others:
        assert is_portable(other) and not is_exact(other)
    plain = compile_codec(zoo.load("evc-tiny-sparse-portable"), stream="portable", dtype=torch.float32)
    assert not Header.read(plain.encode(photo[:, :, :64, :64])).exact


def test_a_portable_codec_becomes_exact_with_the_symbols_that_it_had(photo):
    before = zoo.load("evc-tiny-sparse-portable")
    after = portable(before, photo[:, :, :128, :128], exact=True)
    assert is_exact(after) and not is_exact(before)
    codecs = [compile_codec(model, stream="portable", dtype=torch.float32) for model in (before, after)]
    x = photo[:, :, 64:128, :64]
    headers = len(codecs[0].encode(x)) - len(codecs[1].encode(x))
    assert headers == 0
    first, second = (codec.decode(codec.encode(x)) for codec in codecs)
    assert float((first - second).abs().max()) < 0.03


def test_what_cannot_be_exact_is_refused(photo):
    with pytest.raises(UsageError, match="no form with exact pictures"):
        portable(build("mbt2018-mean", "dense"), photo, exact=True)
    with pytest.raises(UsageError, match="not to frozen dyadic integers"):
        portable(zoo.load("evc-tiny-sparse-int8"), photo, exact=True)
    with pytest.raises(UsageError, match="give calibration images"):
        portable(zoo.load("evc-tiny-sparse-portable"), exact=True)


def test_products_are_rounded_to_the_nearest_and_saturate():
    values = [0, 1, -1, 3, LIMIT - 1, -LIMIT, 12345678, -7654321]
    factors = [0, 1, ONE // 2, ONE, 3 * ONE + 1, 2**32 - 1]
    found = scaled(torch.tensor(values, dtype=torch.int32).view(-1, 1), torch.tensor(factors))
    for row, value in zip(found.tolist(), values, strict=True):
        for result, factor in zip(row, factors, strict=True):
            assert result == min(max((value * factor + ONE // 2) // ONE, -LIMIT), LIMIT - 1)
