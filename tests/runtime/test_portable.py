"""Portable codecs: the same symbols whatever computes them."""

from __future__ import annotations

import copy
import hashlib
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from sparsecodec import zoo
from sparsecodec.entropy import Container, Header
from sparsecodec.errors import BitstreamError, ModelMismatchError, ResourceLimitError, UsageError
from sparsecodec.nn.dual_prior import PASSES
from sparsecodec.nn.integer_prior import SYMBOL_LIMIT, as_float, fixed_point, narrowed, row_finder, table_rows
from sparsecodec.nn.routine import Coding, drive
from sparsecodec.ops import entropy_parameters, evc_scale_thresholds
from sparsecodec.ops._registry import use_backend
from sparsecodec.quant.tables import in_fixed_point
from sparsecodec.runtime import CompiledCodec, compile_codec

from .conftest import TRITON, build, portable_codec, portable_model

WITH_NETWORKS = ("evc", "bmshj2018-hyperprior", "mbt2018-mean", "bmshj2018-hyperprior-vbr", "mbt2018-mean-vbr")
FAMILIES = (*WITH_NETWORKS, "bmshj2018-factorized")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def codec(family: str) -> CompiledCodec:
    return portable_codec(family)


@pytest.fixture(scope="module")
def batch(photo: Tensor) -> Tensor:
    """``[4, 3, 64, 128]``."""
    return torch.cat([photo[:, :, top : top + 64, left : left + 128] for top in (0, 128) for left in (0, 100)])


class Record:
    """A host that keeps what it is asked to code, and answers what it was given."""

    def __init__(self, answers: list[Tensor] | None = None) -> None:
        self.calls: list[Coding] = []
        self._answers = answers

    def __call__(self, request: Coding, out: Tensor | None) -> Tensor | None:
        self.calls.append(Coding(request.tables, request.indexes.clone(), request.symbols))
        return None if self._answers is None else self._answers[len(self.calls) - 1]


def encoded(codec: CompiledCodec, x: Tensor) -> list[Coding]:
    """What coding `x` asks the coder for."""
    host = Record()
    with torch.inference_mode():
        if hasattr(codec, "_coder"):
            drive(codec._analysis(x, codec._q_basic * 1.0, codec._coder, False), host)
        else:
            drive(codec._analysis(x, *_of_usual_rate(codec)), host)
    return host.calls


def _of_usual_rate(codec: CompiledCodec) -> tuple[Tensor, ...]:
    return codec._of_rate(codec._nearest_rate(None))


def rows_of(codec: CompiledCodec, calls: list[Coding]) -> list[Tensor]:
    """The table rows that a decoder finds for these symbols."""
    host = Record([call.symbols for call in calls[1:]])
    first = calls[0].symbols
    with torch.inference_mode():
        if hasattr(codec, "_coder"):
            drive(codec._coder.decoding(first, codec._q_basic * 1.0), host)
        else:
            drive(codec._synthesis(first, 64, 128, *_of_usual_rate(codec)), host)
    return [call.indexes for call in host.calls]


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (100, 77), (65, 130)])
def test_decodes_what_it_encoded(codec, photo, size):
    x = photo[:, :, : size[0], : size[1]]
    decoded = codec.decode(codec.encode(x))
    assert decoded.shape == x.shape and decoded.min() >= 0 and decoded.max() <= 1


def test_the_picture_is_that_of_the_float_codec(photo):
    """Within what a slightly other quantisation of the latent moves."""
    x = photo[:, :, :128, :192]
    native = compile_codec(zoo.load("evc-tiny-sparse-int8"), dtype=torch.float32)
    for quality in (10, 90):
        ours, theirs = portable_codec("evc").encode(x, quality), native.encode(x, quality)
        errors = [(c.decode(b) - x).square().mean() for c, b in ((portable_codec("evc"), ours), (native, theirs))]
        assert len(ours) < 1.05 * len(theirs) + 32 and errors[0] < 1.05 * errors[1]


@pytest.mark.parametrize("backend", ["reference", "cpu", TRITON])
@pytest.mark.parametrize("family", WITH_NETWORKS)
def test_every_backend_finds_the_same_rows(family, batch, backend):
    x = batch[:1, :, :64, :64]
    calls = encoded(portable_codec(family), x)
    other = compile_codec(portable_model(family), stream="portable", dtype=torch.float32)
    with use_backend(backend) if backend != "triton" else _integers_on_triton(other):
        found = rows_of(other, calls)
    assert [len(rows.unique()) > 1 for rows in found].count(True), "nothing was chosen"
    for rows, call in zip(found, calls[1:], strict=True):
        assert torch.equal(rows, call.indexes)


class _integers_on_triton:
    """The integer networks on Triton, whatever else on what it was: other ops' kernels are tested elsewhere."""

    def __init__(self, codec: CompiledCodec) -> None:
        self._networks = [codec._transforms[path] for path in codec.ENTROPY]

    def __enter__(self) -> None:
        for network in self._networks:
            network._bound.clear()
            run = network._run

            def on_triton(*args, run=run):
                with use_backend("triton"):
                    return run(*args)

            network._run = on_triton

    def __exit__(self, *error: object) -> None:
        for network in self._networks:
            del network._run
            assert network.backends == {"triton"}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 4])
def test_batch_and_threads_change_nothing(codec, batch, threads, n):
    """Encoded as a batch, each item's symbols give the same rows to a decoder of one thread and one picture."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        calls = encoded(codec, batch[:n])
    finally:
        torch.set_num_threads(before)
    for item in range(n):
        alone = [Coding(c.tables, c.indexes[item : item + 1], c.symbols[item : item + 1]) for c in calls]
        for rows, call in zip(rows_of(codec, alone), alone[1:], strict=True):
            assert torch.equal(rows, call.indexes)


def _any_symbols(codec: CompiledCodec, limit: int, seed: int) -> list[Coding]:
    """Answers for a picture of 64 x 64: symbols in ``[-limit, limit)``."""
    generator = torch.Generator().manual_seed(seed)
    first = codec._latent if hasattr(codec, "_coder") else codec._hyper_latent
    halves = [(codec._latent // 2, 4)] * 2 if hasattr(codec, "_coder") else [(codec._latent, 4)]
    return [
        Coding(None, None, torch.randint(-limit, limit, (1, c, side, side), generator=generator).to(torch.int32))
        for c, side in ((first, 1), *halves)
    ]


@pytest.mark.parametrize("family", WITH_NETWORKS)
def test_hostile_symbols_saturate(family):
    """Whatever a damaged stream holds, the rows are defined, on every backend the same."""
    calls = _any_symbols(portable_codec(family), 2**31, seed=0)
    expected = rows_of(portable_codec(family), calls)
    with use_backend("reference"):
        other = compile_codec(portable_model(family), stream="portable", dtype=torch.float32, strict=False)
        assert all(torch.equal(a, b) for a, b in zip(rows_of(other, calls), expected, strict=True))


def test_no_symbol_leaves_the_range_that_files_promise(codec, photo, monkeypatch):
    """Encoders write none beyond +-16383 (docs/portable.md, section 3), whatever the analysis gives."""
    for path in codec.ANALYSIS:
        analysis = codec._transforms[path]
        monkeypatch.setitem(codec._transforms, path, lambda x, run=analysis: 1e9 * run(x))
    calls = encoded(codec, photo[:, :, :64, :64])
    assert {int(call.symbols.abs().max()) for call in calls} == {SYMBOL_LIMIT - 1}


def test_the_rows_are_those_of_every_version():
    """Golden: another digest is another stream, which no file made before opens."""
    digest = hashlib.sha256()
    for seed in range(3):
        for rows in rows_of(portable_codec("evc"), _any_symbols(portable_codec("evc"), 4 ** (seed + 1), seed)):
            digest.update(rows.numpy().astype("<i2").tobytes())
    assert digest.hexdigest().startswith("47c62c9c4f55b56f")


def test_the_report_says_what_is_guaranteed(codec):
    text = str(codec.report)
    assert "the same symbols on every device and backend" in text
    assert "integer_conv2d" in text or not codec.ENTROPY
    assert codec.numerics.tag == 2


def test_the_report_of_a_codec_whose_transforms_are_float_claims_no_other():
    codec = compile_codec(zoo.load("evc-tiny-sparse-portable"), stream="portable", dtype=torch.float32)
    assert "analysis and synthesis in float32, entropy networks in integers" in str(codec.report)


def test_native_and_portable_files_are_told_apart(photo):
    x = photo[:, :, :64, :64]
    native = compile_codec(portable_model("evc"), dtype=torch.float32)
    assert native.numerics.tag != portable_codec("evc").numerics.tag
    with pytest.raises(ModelMismatchError, match="numerics"):
        native.decode(portable_codec("evc").encode(x))
    with pytest.raises(ModelMismatchError, match="numerics"):
        portable_codec("evc").decode(native.encode(x))


def test_other_integers_are_another_model(photo):
    data = portable_codec("evc").encode(photo[:, :, :64, :64])
    other = copy.deepcopy(portable_model("evc"))
    other.portable.thresholds[100] += 1
    with pytest.raises(ModelMismatchError, match="made by model"):
        compile_codec(other, stream="portable", dtype=torch.float32).decode(data)


def test_stored_tables_count_not_floats(photo):
    """A processor whose sigmoid rounds otherwise would compute other tables; nobody computes them."""
    model = copy.deepcopy(portable_model("evc"))
    codec = compile_codec(model, stream="portable", dtype=torch.float32)
    with torch.no_grad():
        codec._model.bit_estimator_z.f1.b.add_(1)
    recompiled = type(codec)(codec._model, codec.device, codec.dtype, True)
    assert recompiled._coder._z_tables.digest == codec._coder._z_tables.digest
    assert recompiled._coder._z_tables.digest == model.portable.tables().digest


def test_damage_is_noticed(codec, photo):
    data = bytearray(codec.encode(photo[:, :, :64, :64]))
    data[-3] ^= 4
    with pytest.raises(BitstreamError):
        codec.decode(bytes(data))


def test_a_picture_of_more_symbols_than_a_payload_holds_exceeds_a_limit(codec, photo):
    """Whatever pixels the caller allows; a header may promise 16777215 x 16777215."""
    data = codec.encode(photo[:, :, :64, :64])
    header = Header.read(data)
    side = 2**24 - 1
    fields = (header.model_hash, header.numerics, side, side, header.quality, header.payloads(data))
    promised = Container(*fields, exact=header.exact).to_bytes()
    with pytest.raises(ResourceLimitError, match="symbols"):
        codec.decode(promised, max_pixels=2**60)
    first, second, third = codec.decode_batch([promised, promised, data], max_pixels=2**60, on_error="status")
    assert isinstance(first.error, ResourceLimitError) and isinstance(second.error, ResourceLimitError)
    assert third.picture is not None


def test_has_no_strings_of_the_family(codec, photo):
    with pytest.raises(UsageError, match="stream='native'"):
        codec.compress(photo[:, :, :64, :64])
    with pytest.raises(UsageError, match="stream='native'"):
        codec.decompress([[b""]], (1, 1))


def test_compiles_a_float_model_with_pictures(photo):
    codec = compile_codec(
        build("mbt2018-mean", "compact"), stream="portable", calibration=[photo[:, :, :64, :64]], dtype=torch.float32
    )
    x = photo[:, :, 64:128, :64]
    again = compile_codec(codec.portable_model, stream="portable", dtype=torch.float32)
    data = codec.encode(x)
    assert torch.equal(again.decode(data), codec.decode(data))


def test_refuses_what_cannot_be_portable(photo):
    with pytest.raises(UsageError, match="calibration images"):
        compile_codec(zoo.load("evc-tiny-sparse"), stream="portable")
    with pytest.raises(UsageError, match="stream='native'"):
        compile_codec(build("mbt2018", "dense"), stream="portable", calibration=photo)
    with pytest.raises(UsageError, match="calibration is for"):
        compile_codec(zoo.load("evc-tiny-sparse"), calibration=photo)
    with pytest.raises(UsageError, match="on integers already"):
        compile_codec(portable_model("evc"), stream="portable", calibration=photo)
    with pytest.raises(UsageError, match="stream='exact'"):
        compile_codec(zoo.load("evc-tiny-sparse"), stream="exact")


@pytest.mark.parametrize("exponent", [-20, -16, -9, 0, 5, 14])
def test_narrowing_rounds_halves_up_and_saturates(exponent):
    values = torch.tensor([-(2**30), -98304, -32769, -32768, -1, 0, 1, 127, 128, 32767, 98303, 2**30 - 1]).int()
    exact = [int(v) * Fraction(2) ** (-16 - exponent) for v in values]
    expected = [max(min(math.floor(v + Fraction(1, 2)), 2**15 - 1), -(2**15)) for v in exact]
    assert narrowed(values, exponent).tolist() == expected


def test_sums_saturate():
    top = 2**30 - 1
    symbols = torch.tensor([0, 3, -3, SYMBOL_LIMIT, 2**31 - 1, -(2**31), SYMBOL_LIMIT - 1]).int()
    means = torch.tensor([5, 1, -1, top, top, -top - 1, top]).int()
    assert fixed_point(symbols, means).tolist() == [5, 196609, -196609, top, top, -top - 1, top]
    assert as_float(fixed_point(symbols[1:2])).tolist() == [3.0]


@pytest.mark.parametrize("top", [2**24 - 1, 2**24, 2**30 - 1])
def test_rows_are_exact_where_float32_is_not(top):
    thresholds = torch.tensor([-(2**31), 0, 2**24 - 1, top]).int()
    near = torch.tensor([0, 2**24, top, 2**30 - 2])[:, None] + torch.arange(-3, 4)
    scales = near.clamp(max=2**30 - 1).view(1, -1, 1, 1).int()
    expected = (thresholds.long().view(-1, 1) < scales.flatten().long()).sum(0)
    assert row_finder(thresholds)(scales).flatten().tolist() == expected.tolist()


def test_rows_are_those_of_the_float_rule():
    torch.manual_seed(0)
    scales = torch.rand(2, 6, 5, 4).mul(6).sub(4).exp().mul(65536).round()  # exact in fixed point
    scales[0, 0, 0, :3] = torch.tensor([0.0, -70000.0, 70 * 65536])
    thresholds = evc_scale_thresholds()
    for part in ("all", *PASSES):
        expected = entropy_parameters(scales / 65536, thresholds, part=part)
        found = table_rows(scales.to(torch.int32), in_fixed_point(thresholds), part)
        assert torch.equal(row_finder(in_fixed_point(thresholds), part)(scales.to(torch.int32)), found)
        assert found.dtype == torch.int16 and found.is_contiguous() and torch.equal(found, expected)
