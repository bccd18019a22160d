"""Whole decodes on a CPU: stock eager, compiled dense, compiled sparse, in interleaved rounds, with all bytes coded.

EVC_LL and EVC_SS have random weights whose latents are scaled to a plausible rate, and one-shot magnitude masks: their
times and MACs are real, their pictures are not. The shipped evc-tiny pair is trained.
"""

from __future__ import annotations

import copy
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
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.sparsity import compact, count, magnitude_scores, masks_for_macs, trace_model

CPU = torch.device("cpu")
SPARSITY = 0.655
ROUNDS = 7
PICTURE = Path(sparsecodec.__file__).parent / "data" / "pictures" / "kodim23.png"


@pytest.fixture(scope="module")
def picture(once):
    whole = read_image(PICTURE)
    return whole[:, :, 100:228, 200:392].contiguous() if once else whole


def trained_pair() -> tuple[torch.nn.Module, torch.nn.Module, float]:
    dense = load("evc-tiny")
    return dense, load("evc-tiny-sparse"), dense.round_q_scale(float(dense.q_scale.detach()[2]))


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


PORTABLE = "compiled sparse bfloat16, portable stream"


@pytest.mark.parametrize("name", ["evc-tiny", "evc-ll", "evc-ss"])
def bench_decode(name, picture, evc_pair, decoder_macs, psnr, bench_row, benchmark, clock_of):
    height, width = picture.shape[2:]
    dense, sparse, q_scale = trained_pair() if name == "evc-tiny" else (*evc_pair(name, picture, SPARSITY), 1.0)
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
    crop = picture[:, :, :256, :256]
    portable = compile_codec(sparse, dtype=torch.bfloat16, stream="portable", calibration=[crop])
    codecs[PORTABLE], blobs[PORTABLE] = portable, portable.encode(picture)
    native, ours = (codecs[label].decode(blobs[label]) for label in ("compiled sparse bfloat16", PORTABLE))
    assert psnr(native, ours) > 40, PORTABLE  # other means, other roundings
    change[PORTABLE] = psnr(picture, ours) - psnr(picture, native)

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
        times = clock_of(CPU).race({label: [call] for label, call in calls.items()}, ROUNDS)
        record(bench_row, f"{name} {width}x{height}", times, macs, sizes, change)
    benchmark.pedantic(calls["compiled sparse bfloat16"], rounds=1 if benchmark.disabled else 3)


@pytest.mark.parametrize("name", ["bmshj2018-hyperprior", "mbt2018-mean"])
def bench_compressai_decode(name, picture, psnr, bench_row, benchmark, clock_of):
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
        times = clock_of(CPU).race({label: [call] for label, call in calls.items()}, ROUNDS)
        record(bench_row, f"{name} {picture.shape[3]}x{picture.shape[2]}", times, macs, sizes, {})
    benchmark.pedantic(calls["compiled sparse bfloat16"], rounds=1 if benchmark.disabled else 3)


@pytest.mark.parametrize("name", ["mbt2018", "cheng2020-anchor"])
def bench_autoregressive_decode(name, picture, psnr, bench_row, benchmark, clock_of):
    """CompressAI's own `decompress`, a Python loop over positions, against the same strings and our files."""
    import_compressai()
    from compressai.zoo import image_models

    torch.manual_seed(0)
    dense = image_models[name](quality=3, pretrained=False).eval().requires_grad_(False)
    last = [layer for layer in dense.g_a.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
    last.weight.mul_(2.0 / dense.g_a(picture).std())
    dense.update()
    codecs = {dtype: compile_codec(dense, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    latent = {"g_s": (1, dense.M, picture.shape[2] // 16, picture.shape[3] // 16)}
    strings = codecs[torch.float32].compress(picture)
    reference = dense.decompress(**strings)["x_hat"]
    calls: dict[str, Callable[[], object]] = {"CompressAI eager float32": lambda: _eager(dense, strings)}
    sizes = {"CompressAI eager float32": sum(len(string[0]) for string in strings["strings"])}
    for dtype, codec in codecs.items():  # equality before time
        assert psnr(reference, codec.decompress(**strings)["x_hat"]) > (80 if dtype == torch.float32 else 40)
        data, label = codec.encode(picture), str(dtype).removeprefix("torch.")
        calls[f"compiled strings {label}"] = lambda c=codec: c.decompress(**strings)
        calls[f"compiled file {label}"] = lambda c=codec, b=data: c.decode(b)
        sizes |= {f"compiled strings {label}": sizes["CompressAI eager float32"], f"compiled file {label}": len(data)}
    if not benchmark.disabled:
        macs = dict.fromkeys(calls, count(dense, latent).macs)
        times = clock_of(CPU).race({label: [call] for label, call in calls.items()}, 3)
        record(bench_row, f"{name} {picture.shape[3]}x{picture.shape[2]}", times, macs, sizes, {})
    benchmark.pedantic(calls["compiled file bfloat16"], rounds=1 if benchmark.disabled else 3)


def _eager(model: torch.nn.Module, strings: dict) -> object:
    with torch.no_grad():
        return model.decompress(**strings)


@pytest.mark.parametrize("name", ["evc-ll", "evc-ss"])
def bench_synthesis(name, bench_row, benchmark, clock_of):
    """The dense synthesis of 768x512 alone, in bfloat16, against torch's channels_last bfloat16 layers."""
    torch.manual_seed(0)
    model = create(name).eval()
    y_hat = torch.randn(1, model.latent_channels, 32, 48).to(torch.bfloat16, memory_format=torch.channels_last)
    stock = copy.deepcopy(model.dec).to(torch.bfloat16, memory_format=torch.channels_last)
    compiled = CompiledTransform(model.dec, "dec", torch.bfloat16)
    with torch.inference_mode():
        exact = model.dec(y_hat.float())
        errors = [float((net(y_hat).float() - exact).abs().max()) for net in (compiled, stock)]
        assert errors[0] <= 2 * errors[1]
        calls = {"kernel": [lambda: compiled(y_hat)], "torch channels_last": [lambda: stock(y_hat)]}
        if not benchmark.disabled:
            times = clock_of(CPU).race(calls, ROUNDS)
            ours, theirs = (median(times[label]) for label in calls)
            macs = count(model, {"dec": tuple(y_hat.shape)}).macs
            bench_row(
                op="synthesis", case=f"{name} 768x512", backend="cpu", dtype="bfloat16", passed=True, macs=macs,
                err=errors[0], err_ref=errors[1], flops=2 * macs, n_runs=ROUNDS, t_us_p50=1e6 * ours,
                t_us_reference_p50=1e6 * theirs, speedup_over_reference=theirs / ours, timer="host, rounds interleaved",
            )  # fmt: skip
        benchmark.pedantic(calls["kernel"][0], rounds=1)
