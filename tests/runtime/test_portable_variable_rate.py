"""Portable codecs with a gain per rate: each rate has its thresholds, and what a file says of it is checked."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from fractions import Fraction
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from sparsecodec import zoo
from sparsecodec.entropy import Container, Header, observing
from sparsecodec.errors import BitstreamError, ModelMismatchError, UsageError
from sparsecodec.nn.integer_prior import table_rows
from sparsecodec.nn.routine import Coding, drive
from sparsecodec.ops import use_backend
from sparsecodec.quant import W8A8, W8A16, W16A16, portable
from sparsecodec.runtime import CompiledCodec, compile_codec
from sparsecodec.runtime.executor import Executor
from sparsecodec.sparsity import ChannelMasks, compact, compact_config, trace_model

from .conftest import TRANSFORMS, build_variable, portable_codec, portable_model
from .recorded_graphs import RecordedGraphs

FAMILIES = ("bmshj2018-hyperprior-vbr", "mbt2018-mean-vbr")
RATES = 8
QUALITY = [100 * rate / (RATES - 1) for rate in range(RATES)]  # of each rate


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def codec(family: str) -> CompiledCodec:
    return portable_codec(family)


@cache
def native(family: str) -> CompiledCodec:
    return compile_codec(build_variable(family), dtype=torch.float32)


@pytest.fixture(scope="module")
def known(photo: Tensor) -> list[tuple[int, bytes, str, list[Coding]]]:
    """(rate, file, its symbols, coding calls), made by the processor's usual kernels."""
    codec, x = portable_codec("mbt2018-mean-vbr"), photo[:, :, :64, :128]
    blobs = {rate: codec.encode(x, QUALITY[rate]) for rate in (0, 4, 7)}
    return [(rate, blob, symbols_of(codec, blob), calls_of(codec, x, rate)) for rate, blob in blobs.items()]


def calls_of(codec: CompiledCodec, x: Tensor, rate: int) -> list[Coding]:
    """What coding `x` at a rate asks the coder for."""
    calls: list[Coding] = []
    with torch.inference_mode():
        drive(codec._analysis(x, *codec._of_rate(rate)), lambda request, out: calls.append(request))
    return calls


def symbols_of(codec: CompiledCodec, blob: bytes) -> str:
    """SHA-256 of the symbols of a file."""
    digest = hashlib.sha256()
    with observing(lambda symbols: digest.update(symbols.astype("<i4").tobytes())):
        codec.decode(blob)
    return digest.hexdigest()


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (65, 130), (100, 77)], ids=str)
def test_batches_of_any_size_at_every_rate(codec, photo, size):
    height, width = size
    pictures = [photo[:, :, 20 * k : 20 * k + height, 30 * k : 30 * k + width] for k in range(4)]
    blobs = {rate: codec.encode_batch(pictures, QUALITY[rate]) for rate in (0, 3, 7)}
    for rate, some in blobs.items():
        assert [Header.read(blob).quality for blob in some] == [rate] * 4
        assert some == [codec.encode(x, QUALITY[rate]) for x in pictures]
    mixed = [blob for some in zip(*blobs.values(), strict=True) for blob in some]
    for order in (sum(blobs.values(), []), mixed):
        alone = [codec.decode(blob) for blob in order]
        together = codec.decode_batch(order)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
        assert all(x.shape == (1, 3, *size) and 0 <= x.min() and x.max() <= 1 for x in together)
    sizes = [sum(map(len, some)) for some in blobs.values()]
    assert sizes == sorted(set(sizes))


def test_thresholds_are_those_of_the_scale_table_over_each_gain(family):
    """Rounded down of exact quotients; no gain here is a power of two, but for the last."""
    model, stored = build_variable(family), portable_model(family).portable.thresholds
    table = [Fraction(value) for value in model.gaussian_conditional.scale_table[:-1].tolist()]
    assert stored.shape == (RATES, len(table)) and stored.dtype == torch.int32
    for row, gain in zip(stored.tolist(), model.Gain.tolist(), strict=True):
        assert row == [math.floor(65536 * value / Fraction(gain)) for value in table]


def test_rows_are_the_counts_of_the_thresholds_of_the_rate(codec, photo):
    x = photo[:, :, :64, :128]
    for rate, thresholds in enumerate(codec.portable_model.portable.thresholds):
        z, y = calls_of(codec, x, rate)
        with torch.inference_mode():
            scales, _ = codec._prior(z.symbols)
        expected = (thresholds.view(-1, 1, 1, 1, 1) < scales).sum(0)
        assert torch.equal(y.indexes, expected.to(torch.int16)) and len(expected.unique()) > 3
        asked: list[Tensor] = []

        def answer(request: Coding, out: None, asked=asked, y=y) -> Tensor:
            asked.append(request.indexes)
            return y.symbols

        with torch.inference_mode():
            drive(codec._synthesis(z.symbols, 64, 128, *codec._of_rate(rate)), answer)
        assert torch.equal(asked[0], y.indexes)


def test_files_are_as_small_as_the_float_codecs_and_the_pictures_as_good(family, codec, photo):
    """At every rate: with the thresholds of another one they would not be."""
    x = photo[:, :, :128, :192]
    for quality in QUALITY:
        ours, theirs = codec.encode(x, quality), native(family).encode(x, quality)
        assert abs(len(ours) - len(theirs)) < 0.02 * len(theirs)
        assert (codec.decode(ours) - native(family).decode(theirs)).square().mean() < 1e-4


@pytest.mark.parametrize("rate", [0, 4, 7])
def test_the_picture_is_the_models_own(family, codec, photo, rate):
    """But where a value rounds to the other side."""
    x = photo[:, :, :64, :128]
    with torch.inference_mode():
        x_hat = portable_model(family)(x, s=rate)["x_hat"].clamp(0, 1)
    decoded = codec.decode(codec.encode(x, QUALITY[rate]))
    assert x_hat.std() > 0.01 and (decoded - x_hat).abs().median() < 1e-4
    assert (decoded - x_hat).square().mean() < 0.02 * x_hat.var()


@pytest.mark.parametrize("rate", [0, 4, 7])
def test_symbols_become_values_by_compressais_rule(family, codec, photo, rate):
    """Written out: a symbol is moved towards zero by what QuantABCD says of its scale and gain."""
    model = portable_model(family)
    z, y = calls_of(codec, photo[:, :, :64, :128], rate)
    gain, symbols = model.Gain[rate], y.symbols.float()
    with torch.inference_mode():
        scales, means = codec._prior(z.symbols)
        deviations = model.gaussian_conditional.lower_bound_scale(scales.float() / 65536 * gain)
        offsets = model.QuantABCD(torch.stack([deviations, gain.expand(deviations.shape)], 4)).squeeze(4)
        values = symbols.sign() * (symbols.abs() - offsets * (symbols != 0)) / gain
        x_hat = model.g_s(values if means is None else values + means).clamp(0, 1)
        found = drive(codec._synthesis(z.symbols, 64, 128, *codec._of_rate(rate)), lambda request, out: y.symbols)
    assert len(offsets.unique()) > 3 and (found - x_hat).abs().max() < 1e-4


@pytest.mark.parametrize("rate", [8, 255, 65535])
def test_a_rate_that_the_codec_does_not_have_is_damage(codec, photo, rate):
    blob = codec.encode(photo[:, :, :64, :64], 40)
    foreign = dataclasses.replace(Container.from_bytes(blob), quality=rate).to_bytes()
    with pytest.raises(BitstreamError, match=f"at quality {rate} .* 0 to 7"):
        codec.decode(foreign)
    results = codec.decode_batch([blob, foreign, foreign, blob], on_error="status")
    assert [type(result.error) for result in results] == [type(None), BitstreamError, BitstreamError, type(None)]


def test_the_payload_of_another_rate_is_damage(codec, photo):
    blob = codec.encode(photo[:, :, :64, :128], 100)
    for rate in range(7):
        with pytest.raises(BitstreamError):
            codec.decode(dataclasses.replace(Container.from_bytes(blob), quality=rate).to_bytes())


def test_bad_qualities_are_refused(codec, photo):
    for quality in (-1, 100.5, float("nan"), "50", True):
        with pytest.raises(UsageError, match="quality"):
            codec.encode(photo[:, :, :64, :64], quality)


def test_tiles_and_regions(codec, photo):
    x = photo[:, :, :130, :100]
    blob = codec.encode(x, 20, tile=64, overlap=16)
    whole = codec.decode(blob)
    assert whole.shape == x.shape and Header.read(blob).quality == 1
    assert torch.equal(codec.decode(blob, region=(50, 10, 40, 60)), whole[:, :, 50:90, 10:70])


@pytest.mark.parametrize("precision", [W8A8, W8A16, W16A16], ids=["W8A8", "W8A16", "W16A16"])
@pytest.mark.parametrize("variant", ["dense", "compact"])
def test_a_saved_model_gives_the_same_bytes_and_pictures(family, variant, precision, photo, tmp_path):
    model, x = build_variable(family), photo[:, :, :65, :100]
    config = None
    if variant == "compact":
        graph = trace_model(model, [path for path in TRANSFORMS if hasattr(model, path)])
        masks = ChannelMasks.random(graph, sparsity=0.4, seed=0, round_to=8)
        model, config = compact(model, masks, graph), compact_config(masks, graph)
        model.update()
    made = portable(model, photo[:, :, :128, :128], precision)
    zoo.save(made, tmp_path / "made", compact=config)
    here, there = (
        compile_codec(m, stream="portable", dtype=torch.float32) for m in (made, zoo.load(tmp_path / "made"))
    )
    assert here.model_hash == there.model_hash
    for quality in (0, 60, 100):
        blob = here.encode(x, quality)
        assert there.encode(x, quality) == blob and torch.equal(there.decode(blob), here.decode(blob))


def test_stored_thresholds_count_and_not_gains(family, photo):
    """A processor that divides otherwise would find other thresholds; nobody computes them from a saved model."""
    x, made = photo[:, :, :64, :64], portable_model(family)
    other = copy.deepcopy(made)
    other.Gain[2] *= 1.5
    ours, theirs = (compile_codec(m, stream="portable", dtype=torch.float32) for m in (made, other))
    assert torch.equal(theirs.portable_model.portable.thresholds, made.portable.thresholds)
    with torch.inference_mode():
        (z, y), (_, changed) = (calls_of(codec, x, 2) for codec in (ours, theirs))
    assert torch.equal(y.indexes, changed.indexes) and not torch.equal(y.symbols, changed.symbols)
    with pytest.raises(ModelMismatchError, match="made by model"):
        theirs.decode(ours.encode(x))
    moved = copy.deepcopy(made)
    moved.portable.thresholds[2, 10] += 1
    with pytest.raises(ModelMismatchError, match="made by model"):
        compile_codec(moved, stream="portable", dtype=torch.float32).decode(ours.encode(x))


@pytest.mark.parametrize("family", ["mbt2018-mean-vbr"])
def test_the_sign_of_a_gain_does_not_count(family, codec, photo):
    """As in CompressAI's strings."""
    other = copy.deepcopy(portable_model(family))
    other.Gain[::2] *= -1
    other = compile_codec(other, stream="portable", dtype=torch.float32)
    x = photo[:, :, :64, :64]
    for quality in (0, 30):
        here, there = codec.encode(x, quality), other.encode(x, quality)
        assert Container.from_bytes(here).payloads == Container.from_bytes(there).payloads
        assert torch.equal(codec.decode(here), other.decode(there))
    model = copy.deepcopy(build_variable(family))
    model.Gain[::2] *= -1
    made = portable(model, photo[:, :, :64, :64])
    assert torch.equal(made.portable.thresholds, portable_model(family).portable.thresholds)


def test_another_rate_is_no_other_graph(family, photo):
    """Neither to encode nor to decode; recorders see torch's operations only."""
    x = photo[:, :, :64, :64]
    with use_backend("reference"):
        codec = compile_codec(portable_model(family), stream="portable", dtype=torch.float32)
        eager = [codec.encode(x, quality) for quality in QUALITY]
        pictures = [codec.decode(blob) for blob in eager]
        codec._executor = Executor(torch.device("cpu"), RecordedGraphs())
        for times in range(2):
            for quality, blob, picture in zip(QUALITY, eager, pictures, strict=True):
                assert codec.encode(x, quality) == blob and torch.equal(codec.decode(blob), picture)
                captures = codec._executor.captures
                assert (captures, codec._executor.refusals) == (5, []), f"{times}: {quality}"


def test_nothing_depends_on_instruction_set_or_threads(known, any_processor):
    codec = compile_codec(portable_model("mbt2018-mean-vbr"), stream="portable", dtype=torch.float32)
    for rate, blob, symbols, (z, y) in known:
        assert symbols_of(codec, blob) == symbols
        with torch.inference_mode():
            thresholds, _ = codec._of_rate(rate)
            scales, _ = codec._prior(z.symbols)
        assert torch.equal(table_rows(scales, thresholds), y.indexes)


def test_opens_no_native_file(family, codec, photo):
    blob = native(family).encode(photo[:, :, :64, :64], 50)
    with pytest.raises(ModelMismatchError):
        codec.decode(blob)
    same = compile_codec(portable_model(family), dtype=torch.float32)  # its integers in CompressAI's arithmetic
    with pytest.raises(ModelMismatchError, match="numerics"):
        same.decode(codec.encode(photo[:, :, :64, :64], 50))


def test_offsets_move_pictures_only(family, photo, tmp_path):
    model: nn.Module = copy.deepcopy(portable_model(family))
    model.no_quantoffset = True
    plain = compile_codec(model, stream="portable", dtype=torch.float32)
    x = photo[:, :, :64, :64]
    blob = portable_codec(family).encode(x, 30)
    assert plain.encode(x, 30) == blob
    assert (plain.decode(blob) - portable_codec(family).decode(blob)).abs().max() > 1e-4
    zoo.save(model, tmp_path / "plain")
    again = compile_codec(zoo.load(tmp_path / "plain"), stream="portable", dtype=torch.float32)
    assert torch.equal(again.decode(blob), plain.decode(blob))
