"""The entropy coder against CompressAI's and constriction's, and lanes against its streams; rounds interleaved.

Symbols have the statistics of a trained model: scales log-uniform between 0.11 and 8 in random order, symbols drawn
from them, 192 channels at 1/16 of 768 x 512; for lanes also those of a picture. One thread each unless the case says
otherwise. Every case is decoded and compared before it is timed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch

import sparsecodec
import sparsecodec.runtime.adapters.evc
from sparsecodec import compile_codec, load
from sparsecodec._compat import import_compressai
from sparsecodec.data import read_image
from sparsecodec.entropy import (
    Decoder,
    Encoder,
    EntropyTables,
    LaneDecoder,
    LaneEncoder,
    decode,
    encode,
    evc_gaussian_tables,
)
from sparsecodec.entropy.lanes_cuda import CudaLaneDecoder, lane_words

# All coders run in the calling thread and never wait, so that its CPU time is what a call takes on an idle machine; on
# the wall, other processes would hit the slower coder more often. Only calls of microseconds need the finer clock.
pytestmark = pytest.mark.benchmark(timer=time.thread_time)
CLOCKS = {time.thread_time: "thread CPU time", time.perf_counter: "host"}

LATENT = (1, 192, 32, 48)
ROUNDS = 20


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def race(request, benchmark, bench_row):
    """Times `ours`, and before each of its rounds every peer once; a row each."""
    clock = request.node.get_closest_marker("benchmark").kwargs["timer"]

    def run(
        op: str, case: str, ours: Callable, peers: dict[str, Callable], symbols: int, rounds: int = ROUNDS, **fields
    ):
        times: dict[str, list[float]] = {name: [] for name in peers}

        def time_peers() -> None:
            for name, call in peers.items():
                start = clock()
                call()
                times[name].append(clock() - start)

        ours()
        benchmark.pedantic(ours, setup=time_peers, rounds=rounds)
        mine, best = (
            (benchmark.stats.stats.median, benchmark.stats.stats.min) if benchmark.stats else (math.nan, math.nan)
        )
        fields |= {
            "symbols": symbols,
            "dtype": "int32",
            "passed": True,
            "timer": f"{CLOCKS[clock]}, rounds interleaved",
        }
        speedups = {f"speedup_over_{name}": median(values) / mine for name, values in times.items()}
        rate = {"msym_s": symbols / mine / 1e6, "t_us_min": 1e6 * best}
        bench_row(op=op, case=case, backend="cpu", **rate, **speedups, **fields)
        for name, values in times.items():
            t = median(values)
            rate = {"msym_s": symbols / t / 1e6, "t_us_min": 1e6 * min(values)}
            bench_row(op=op, case=case, backend=name, t_us_p50=1e6 * t, n_runs=len(values), **rate, **fields)

    return run


@pytest.fixture(scope="module")
def model():
    """CompressAI's Gaussian conditional, and a latent as mbt2018-mean codes it: (y, scales, means)."""
    import_compressai()
    from compressai.entropy_models import GaussianConditional
    from compressai.models.google import get_scale_table

    conditional = GaussianConditional(None)
    conditional.update_scale_table(get_scale_table())
    generator = torch.Generator().manual_seed(0)
    scales = 0.11 * (8 / 0.11) ** torch.rand(LATENT, generator=generator)
    means = torch.randn(LATENT, generator=generator)
    return conditional, torch.randn(LATENT, generator=generator) * scales + means, scales, means


def _tables(conditional) -> EntropyTables:
    return EntropyTables(conditional.quantized_cdf, conditional.cdf_length, conditional.offset)


def bench_decompress_mbt2018_mean(race, model):
    """The whole call, from strings to the float latent with its means; the indexes are given, as in CompressAI."""
    conditional, y, scales, means = model
    tables, indexes = _tables(conditional), conditional.build_indexes(scales)
    strings = conditional.compress(y, indexes, means)

    def ours():
        return decode(strings[0], indexes, tables).to(means.dtype).add_(means)

    def theirs():
        return conditional.decompress(strings, indexes, means=means)

    assert torch.equal(ours(), theirs())
    rate = len(strings[0]) * 8 / y.numel()
    race("rans_decode", "mbt2018-mean-768x512", ours, {"compressai": theirs}, y.numel(), bits_per_symbol=rate)


def bench_compress_mbt2018_mean(race, model):
    conditional, y, scales, means = model
    tables, indexes = _tables(conditional), conditional.build_indexes(scales)

    def ours():
        return [encode((y - means).round_().int(), indexes, tables)]

    def theirs():
        return conditional.compress(y, indexes, means)

    assert ours() == theirs()
    rate = len(ours()[0]) * 8 / y.numel()
    race("rans_encode", "mbt2018-mean-768x512", ours, {"compressai": theirs}, y.numel(), bits_per_symbol=rate)


@pytest.mark.benchmark(timer=time.perf_counter)
@pytest.mark.parametrize("count", [192, 12_288])
def bench_small_calls(race, model, count):
    """What a call costs beside its symbols: a position of an autoregressive model, the hyper-latent of a picture."""
    conditional, y, scales, means = model
    tables, indexes = _tables(conditional), conditional.build_indexes(scales)[0].flatten()[None, :count, None, None]
    strings = conditional.compress((y - means)[0].flatten()[None, :count, None, None], indexes)

    def ours():
        return decode(strings[0], indexes, tables)

    def theirs():
        return conditional.decompress(strings, indexes)

    assert torch.equal(ours().float(), theirs())
    race("rans_decode", f"call-of-{count}", ours, {"compressai": theirs}, count, rounds=10 * ROUNDS)


def _evc_latent(shape: tuple[int, ...] = LATENT) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Symbols int32, indexes int16, and the scales those indexes stand for, float64."""
    generator = torch.Generator().manual_seed(0)
    count = math.prod(shape)
    step = math.log(64 / 0.11) / 255
    highest = math.log(8 / 0.11) / step
    indexes = (torch.rand(count, generator=generator) * highest).to(torch.int16)
    scales = 0.11 * torch.exp(indexes.double() * step)
    return (torch.randn(count, generator=generator) * scales).round().int(), indexes, scales.numpy()


@pytest.mark.parametrize("streams", [1, 2])
def bench_decode_evc(race, streams):
    """The 256-row Gaussian table: one stream, and the two of EVC. constriction computes its Gaussians as it goes."""
    import constriction

    symbols, indexes, scales = _evc_latent()
    tables, out = evc_gaussian_tables(), torch.empty_like(symbols)
    encoder = Encoder(streams)
    encoder.push(symbols, indexes, tables)
    payload = encoder.finish()
    family = constriction.stream.model.QuantizedGaussian(-50, 50)
    zeros = np.zeros_like(scales)
    ans = constriction.stream.stack.AnsCoder()
    ans.encode_reverse(symbols.clamp(-50, 50).numpy(), family, zeros, scales)
    words = ans.get_compressed()

    def ours():
        decoder = Decoder(payload, streams)
        decoder.decode(indexes, tables, out=out)
        decoder.finish()

    def theirs():
        return constriction.stream.stack.AnsCoder(words).decode(family, zeros, scales)

    ours()
    assert torch.equal(out, symbols)
    assert np.array_equal(theirs(), symbols.clamp(-50, 50).numpy())
    rate = len(payload) * 8 / len(symbols)
    race("rans_decode", f"evc-streams-{streams}", ours, {"constriction": theirs}, len(symbols), bits_per_symbol=rate)


@pytest.mark.parametrize("streams", [1, 2])
def bench_encode_evc(race, streams):
    import constriction

    symbols, indexes, scales = _evc_latent()
    tables = evc_gaussian_tables()
    family = constriction.stream.model.QuantizedGaussian(-50, 50)
    zeros, clamped = np.zeros_like(scales), symbols.clamp(-50, 50).numpy()

    def ours():
        encoder = Encoder(streams)
        encoder.push(symbols, indexes, tables)
        return encoder.finish()

    def theirs():
        ans = constriction.stream.stack.AnsCoder()
        ans.encode_reverse(clamped, family, zeros, scales)
        return ans.get_compressed()

    assert torch.equal(Decoder(ours(), streams).decode(indexes, tables), symbols)
    rate = len(ours()) * 8 / len(symbols)
    race("rans_encode", f"evc-streams-{streams}", ours, {"constriction": theirs}, len(symbols), bits_per_symbol=rate)


Calls = list[tuple[torch.Tensor, torch.Tensor, EntropyTables]]


def _random_calls(shape: tuple[int, ...]) -> Calls:
    symbols, indexes, _ = _evc_latent(shape)
    return [(symbols, indexes, evc_gaussian_tables())]


def _picture_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the shipped sparse codec codes of a Kodak picture: z, and y in two parts."""
    calls: Calls = []

    class Recorder(Encoder):
        def push(self, symbols, indexes, tables):
            calls.append((symbols.flatten().clone(), indexes.flatten().clone(), tables))
            super().push(symbols, indexes, tables)

    monkeypatch.setattr(sparsecodec.runtime.adapters.evc, "Encoder", Recorder)
    picture = Path(sparsecodec.__file__).parent / "data" / "pictures" / "kodim23.png"
    compile_codec(load("evc-tiny-sparse")).encode(read_image(picture))
    return calls


def _encoded(encoder: Encoder | LaneEncoder, calls: Calls) -> bytes:
    for call in calls:
        encoder.push(*call)
    return encoder.finish()


def _decoding(make: Callable[[], Decoder | LaneDecoder], calls: Calls, isa: str = "") -> Callable[[], None]:
    outs = [torch.empty_like(symbols) for symbols, _, _ in calls]

    def run() -> None:
        os.environ["SPARSECODEC_CPU_ISA"] = isa
        decoder = make()
        for (_, indexes, tables), out in zip(calls, outs, strict=True):
            decoder.decode(indexes, tables, out)
        decoder.finish()

    run()
    assert all(torch.equal(out, symbols) for out, (symbols, _, _) in zip(outs, calls, strict=True))
    return run


# 768x512: one group of 16 lanes; 3840x2160: 16 groups of 32, 320 channels; kodim23: 8 lanes, most symbols zero.
LANE_CASES = {
    "768x512": (lambda monkeypatch: _random_calls(LATENT), ROUNDS),
    "3840x2160": (lambda monkeypatch: _random_calls((1, 320, 136, 240)), 7),
    "evc-tiny-sparse-kodim23": (_picture_calls, ROUNDS),
}


@pytest.mark.parametrize("case", list(LANE_CASES))
def bench_decode_lanes(race, monkeypatch, case):
    monkeypatch.setenv("SPARSECODEC_CPU_ISA", "")
    make_calls, rounds = LANE_CASES[case]
    calls = make_calls(monkeypatch)
    total = sum(len(symbols) for symbols, _, _ in calls)
    lanes, streams = _encoded(LaneEncoder(total), calls), _encoded(Encoder(2), calls)
    peers = {isa: _decoding(lambda: LaneDecoder(lanes, total), calls, isa) for isa in ("scalar", "avx2")}
    peers["native-streams-2"] = _decoding(lambda: Decoder(streams, 2), calls)
    ours = _decoding(lambda: LaneDecoder(lanes, total), calls)
    sizes = {"bytes_coded": len(lanes), "bytes_streams": len(streams), "bits_per_symbol": len(lanes) * 8 / total}
    race("lanes_decode", case, ours, peers, total, rounds, **sizes)


@pytest.mark.benchmark(timer=time.perf_counter)
def bench_decode_lanes_on_two_threads(race, monkeypatch):
    """Groups on threads, against one thread; wall time, since that is what threads save."""
    monkeypatch.setenv("SPARSECODEC_CPU_ISA", "")
    calls = _random_calls((1, 320, 136, 240))
    total = len(calls[0][0])
    payload = _encoded(LaneEncoder(total), calls)
    decode_all = _decoding(lambda: LaneDecoder(payload, total), calls)

    def on(threads: int) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(threads)
            decode_all()

        return run

    race("lanes_decode", "3840x2160-threads-2", on(2), {"one-thread": on(1)}, total, 7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.benchmark(timer=time.perf_counter)
@pytest.mark.parametrize("case", ["768x512", "3840x2160"])
def bench_decode_lanes_on_gpu(race, case):
    """Rows and symbols on the GPU: a warp for each group, against the host's threads and the way there and back."""
    calls = [(symbols, indexes.cuda(), tables) for symbols, indexes, tables in LANE_CASES[case][0](None)]
    total = sum(len(symbols) for symbols, _, _ in calls)
    payload = _encoded(LaneEncoder(total), [(symbols, indexes.cpu(), tables) for symbols, indexes, tables in calls])

    def on_device() -> list[torch.Tensor]:
        decoder = CudaLaneDecoder(lane_words([payload], total).to(torch.device("cuda")), total)
        decoded = [decoder.decode(indexes, tables) for _, indexes, tables in calls]
        decoder.finish()
        return decoded

    def on_host() -> list[torch.Tensor]:
        decoder = LaneDecoder(payload, total)
        decoded = [decoder.decode(indexes.cpu(), tables).cuda() for _, indexes, tables in calls]
        decoder.finish()
        torch.cuda.synchronize()
        return decoded

    for found in (on_device(), on_host()):
        assert all(torch.equal(one.cpu(), symbols) for one, (symbols, _, _) in zip(found, calls, strict=True))
    race("lanes_decode", f"{case}-gpu", on_device, {"host": on_host}, total, 15)


@pytest.mark.parametrize("case", ["768x512", "evc-tiny-sparse-kodim23"])
def bench_encode_lanes(race, monkeypatch, case):
    make_calls, rounds = LANE_CASES[case]
    calls = make_calls(monkeypatch)
    total = sum(len(symbols) for symbols, _, _ in calls)
    peers = {"native-streams-2": lambda: _encoded(Encoder(2), calls)}
    race("lanes_encode", case, lambda: _encoded(LaneEncoder(total), calls), peers, total, rounds)


@pytest.mark.benchmark(timer=time.perf_counter)
@pytest.mark.parametrize("direction", ["encode", "decode"])
def bench_small_calls_of_lanes(race, direction):
    """A payload of one call of 192 symbols from beginning to end, and the same with a stream."""
    symbols, indexes, _ = _evc_latent()
    calls = [(symbols[:192], indexes[:192], evc_gaussian_tables())]
    if direction == "encode":
        ours, theirs = lambda: _encoded(LaneEncoder(192), calls), lambda: _encoded(Encoder(1), calls)
    else:
        lanes, stream = _encoded(LaneEncoder(192), calls), _encoded(Encoder(1), calls)
        ours = _decoding(lambda: LaneDecoder(lanes, 192), calls)
        theirs = _decoding(lambda: Decoder(stream), calls)
    race(f"lanes_{direction}", "call-of-192", ours, {"native-stream": theirs}, 192, rounds=10 * ROUNDS)
