"""Whole decodes: stock eager, compiled dense, compiled sparse, in interleaved rounds of one run, with all bytes coded.

EVC_LL and EVC_SS have random weights whose latents are scaled to a plausible rate, and one-shot magnitude masks: their
times and MACs are real, their pictures are not. The shipped evc-tiny pair is trained.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch

import sparsecodec
from sparsecodec import compile_codec, load
from sparsecodec._compat import import_compressai
from sparsecodec.data import read_image
from sparsecodec.models import create
from sparsecodec.sparsity import compact, count, magnitude_scores, masks_for_macs, trace_model

DECODER = ("hyper_dec", "y_prior_fusion", "y_spatial_prior", "dec")
SPARSITY = 0.655
ROUNDS = 7
PICTURE = Path(sparsecodec.__file__).parent / "data" / "pictures" / "kodim23.png"


def decoder_macs(model: torch.nn.Module, height: int, width: int) -> int:
    """Multiply-accumulates of one decode."""
    c, h, w = model.latent_channels, height // 16, width // 16
    shapes = {"hyper_dec": (1, c, h // 4, w // 4), "y_prior_fusion": (1, c, h, w)}
    return count(model, shapes | {"y_spatial_prior": (1, 4 * c, h, w), "dec": (1, c, h, w)}).macs


@pytest.fixture(scope="module")
def picture():
    return read_image(PICTURE)


def random_pair(name: str, picture: torch.Tensor) -> tuple[torch.nn.Module, torch.nn.Module, float]:
    """A codec with random weights, its magnitude-pruned compact twin, and a global step."""
    torch.manual_seed(0)
    dense = create(name).eval()
    with torch.no_grad():
        dense.enc[6].weight.mul_(2.0 / dense.enc(picture).std())
    graph = trace_model(dense, DECODER)
    c = dense.latent_channels
    shapes = {"hyper_dec": (1, c, 8, 8), "y_prior_fusion": (1, c, 32, 32)}
    report = count(dense, shapes | {"y_spatial_prior": (1, 4 * c, 32, 32), "dec": (1, c, 32, 32)})
    masks = masks_for_macs(report, graph, magnitude_scores(dense, graph), SPARSITY, round_to=16)
    return dense, compact(dense, masks, graph).eval(), 1.0


def trained_pair() -> tuple[torch.nn.Module, torch.nn.Module, float]:
    dense = load("evc-tiny")
    return dense, load("evc-tiny-sparse"), dense.round_q_scale(float(dense.q_scale.detach()[2]))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10(max(float((a - b).square().mean()), 1e-12))


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, one of each per round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def record(bench_row, case: str, times: dict[str, list[float]], macs: dict, sizes: dict, change: dict) -> None:
    """A row per contender; the first of `times` is the one that all are compared with."""
    base = median(next(iter(times.values())))
    for label, values in times.items():
        t = median(values)
        bench_row(
            op="decode",
            case=case,
            backend=label,
            dtype=label.split()[-1],
            passed=True,
            t_us_p50=1e6 * t,
            t_us_min=1e6 * min(values),
            t_us_max=1e6 * max(values),
            n_runs=len(values),
            fps=1 / t,
            macs=macs[label],
            flops=2 * macs[label],
            bytes=sizes[label],
            psnr_change_db=change.get(label, 0.0),
            speedup_over_eager_dense=base / t,
            timer="host, rounds interleaved",
        )


@pytest.mark.parametrize("name", ["evc-tiny", "evc-ll", "evc-ss"])
def bench_decode(name, picture, bench_row, benchmark):
    height, width = picture.shape[2:]
    dense, sparse, q_scale = trained_pair() if name == "evc-tiny" else random_pair(name, picture)
    codecs = {
        "compiled dense float32": compile_codec(dense, dtype=torch.float32),
        "compiled dense bfloat16": compile_codec(dense, dtype=torch.bfloat16),
        "compiled sparse float32": compile_codec(sparse, dtype=torch.float32),
        "compiled sparse bfloat16": compile_codec(sparse, dtype=torch.bfloat16),
    }
    payload = dense.compress(picture, q_scale)["bit_stream"]
    payload_sparse = sparse.compress(picture, q_scale)["bit_stream"]
    blobs = {label: codec.encode(picture) for label, codec in codecs.items()}

    eager = dense.decompress(payload, height, width, q_scale)["x_hat"]
    change = {}
    for label, codec in codecs.items():  # equality before time: the same strings must give the same picture
        model, string = (sparse, payload_sparse) if "sparse" in label else (dense, payload)
        reference = model.decompress(string, height, width, q_scale)["x_hat"]
        compiled = codec.decompress(string, height, width, q_scale)["x_hat"]
        assert psnr(reference, compiled) > (80 if "float32" in label else 40), label
        change[label] = psnr(picture, compiled) - psnr(picture, reference)

    calls: dict[str, Callable[[], object]] = {
        "eager dense float32": lambda: dense.decompress(payload, height, width, q_scale),
        "eager sparse float32": lambda: sparse.decompress(payload_sparse, height, width, q_scale),
    }
    if not benchmark.disabled:  # the synthesis compiled, the entropy networks as they are: their bits must not move
        inductor = copy.deepcopy(dense)
        inductor.dec = torch.compile(inductor.dec)
        calls["torch.compile dense float32"] = lambda: inductor.decompress(payload, height, width, q_scale)
    calls |= {label: (lambda c=codec, b=blobs[label]: c.decode(b)) for label, codec in codecs.items()}
    assert eager.shape == picture.shape
    if not benchmark.disabled:
        macs = {label: decoder_macs(sparse if "sparse" in label else dense, height, width) for label in calls}
        sizes = {label: len(blobs.get(label, payload)) for label in calls}
        record(bench_row, f"{name} {width}x{height}", interleaved(calls, ROUNDS), macs, sizes, change)
    benchmark.pedantic(calls["compiled sparse bfloat16"], rounds=1 if benchmark.disabled else 3)


@pytest.mark.parametrize("name", ["bmshj2018-hyperprior", "mbt2018-mean"])
def bench_compressai_decode(name, picture, bench_row, benchmark):
    """CompressAI's own `decompress` against the compiled one, on the same strings; random weights."""
    import_compressai()
    from compressai.zoo import image_models

    torch.manual_seed(0)
    dense = image_models[name](quality=3, pretrained=False).eval()
    with torch.no_grad():
        dense.g_a[-1].weight.mul_(2.0 / dense.g_a(picture).std())
    dense.update()
    graph = trace_model(dense, ("g_s",))
    latent = {"g_s": (1, dense.M, picture.shape[2] // 16, picture.shape[3] // 16)}
    masks = masks_for_macs(count(dense, latent), graph, magnitude_scores(dense, graph), SPARSITY, round_to=16)
    sparse = compact(dense, masks, graph).eval()
    codecs = {
        "compiled dense float32": compile_codec(dense, dtype=torch.float32),
        "compiled dense bfloat16": compile_codec(dense, dtype=torch.bfloat16),
        "compiled sparse float32": compile_codec(sparse, dtype=torch.float32),
        "compiled sparse bfloat16": compile_codec(sparse, dtype=torch.bfloat16),
    }
    with torch.no_grad():
        strings = dense.compress(picture)
        reference = dense.decompress(**strings)["x_hat"]
    for label in ("compiled dense float32", "compiled dense bfloat16"):
        decoded = codecs[label].decompress(**strings)["x_hat"]
        assert psnr(reference, decoded) > (80 if "float32" in label else 40), label
    calls: dict[str, Callable[[], object]] = {"CompressAI eager dense float32": lambda: _eager(dense, strings)}
    calls |= {label: (lambda c=codec: c.decompress(**strings)) for label, codec in codecs.items()}
    if not benchmark.disabled:
        macs = {label: count(sparse if "sparse" in label else dense, latent).macs for label in calls}
        sizes = dict.fromkeys(calls, sum(len(string[0]) for string in strings["strings"]))
        record(bench_row, f"{name} {picture.shape[3]}x{picture.shape[2]}", interleaved(calls, ROUNDS), macs, sizes, {})
    benchmark.pedantic(calls["compiled sparse bfloat16"], rounds=1 if benchmark.disabled else 3)


def _eager(model: torch.nn.Module, strings: dict) -> object:
    with torch.no_grad():
        return model.decompress(**strings)
