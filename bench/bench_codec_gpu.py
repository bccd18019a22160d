"""Whole decodes on a GPU, bytes to picture: dense and sparse, compiled and as torch runs them, interleaved.

A row has the whole call on the host's clock, the networks alone (the captured graphs, replayed without the coder), the
time within the coder, kernel launches and waits of one decode, peak memory, and joules where the driver tells them.

EVC has random weights and one-shot magnitude masks: times and MACs are real, pictures are not. Where there is no GPU,
``--benchmark-disable`` runs all this once on the CPU with a small picture, so that it does not rot.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from statistics import median

import pytest
import torch
import torch.nn.functional as F

from sparsecodec import compile_codec
from sparsecodec._compat import import_compressai
from sparsecodec.errors import UsageError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.float16 if DEVICE.type == "cuda" else torch.bfloat16
SPARSITY = 0.655
ROUNDS = 20
if DEVICE.type == "cuda":
    SIZES = {"768x512": (512, 768), "1080p": (1080, 1920), "4K": (2160, 3840)}
    EVC, COMPRESSAI = ["evc-ll", "evc-mm", "evc-ss"], ["mbt2018-mean", "cheng2020-anchor"]
else:
    SIZES = {"128x64": (64, 128)}
    EVC, COMPRESSAI = ["evc-tiny"], ["mbt2018-mean"]
BY_WORTH = sorted(SIZES, key=lambda size: size != "1080p")  # of every model before the next: time may run out


@pytest.fixture(autouse=True)
def needs_a_gpu(benchmark):
    if DEVICE.type != "cuda" and not benchmark.disabled:
        pytest.skip("no CUDA device")


def picture_of(size: str) -> torch.Tensor:
    """Smooth noise ``[1, 3, H, W]`` in [0, 1]."""
    height, width = SIZES[size]
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).to(DEVICE)


@contextmanager
def half_precision():
    """Stock models in float16, as their users run them."""
    with (
        torch.inference_mode(),
        torch.autocast(DEVICE.type, torch.float16 if DEVICE.type == "cuda" else torch.bfloat16),
    ):
        yield


def stock(model: torch.nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """A decode by the model itself, of what it coded itself, everything in half precision."""
    height, width = x.shape[2:]
    padded = F.pad(x, (0, -width % 64, 0, -height % 64), mode="replicate")
    with half_precision():
        payload = model.compress(padded, 1.0)["bit_stream"]

    def decode() -> torch.Tensor:
        with half_precision():
            return model.decompress(payload, height, width, 1.0)["x_hat"]

    return decode


def inductor(model: torch.nn.Module) -> torch.nn.Module:
    """The same with each network compiled by torch, CUDA graphs included."""
    model = copy.deepcopy(model)
    for path in ("enc", "dec", "hyper_enc", "hyper_dec", "y_prior_fusion", "y_spatial_prior"):
        network = torch.compile(model.get_submodule(path), mode="reduce-overhead", dynamic=False)
        setattr(model, path, _Cloned(network))
    return model


class _Cloned(torch.nn.Module):
    """A compiled network whose result outlives the next one's graph."""

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).clone()


@pytest.mark.parametrize("name", EVC)
@pytest.mark.parametrize("size", BY_WORTH)
def bench_evc(name, size, evc_pair, decoder_macs, psnr, bench_row, benchmark, clock_of, synchronised, routine_facts):
    x = picture_of(size)
    height, width = x.shape[2:]
    small = x.cpu()[:, :, : height // 64 * 64 or 64, : width // 64 * 64 or 64][:, :, :512, :768]
    dense, sparse = (model.to(DEVICE) for model in evc_pair(name, small, SPARSITY))
    codecs = {
        "compiled dense": compile_codec(dense, DEVICE, HALF, sample=x),
        "compiled sparse": compile_codec(sparse, DEVICE, HALF, sample=x),
    }
    blobs = {label: codec.encode(x) for label, codec in codecs.items()}
    calls = {label: synchronised(lambda c=c, b=blobs[label]: c.decode(b)) for label, c in codecs.items()}
    for label, model in (("compiled dense", dense), ("compiled sparse", sparse)):  # equality before time
        padded = F.pad(x, (0, -width % 64, 0, -height % 64), mode="replicate")
        ours = codecs[label].compress(padded, 1.0)
        again = codecs[label].decompress(ours["bit_stream"], *padded.shape[2:], 1.0)["x_hat"]
        assert torch.equal(ours["x_hat"], again), label
        with torch.inference_mode():
            theirs = model.decompress(ours["bit_stream"], *padded.shape[2:], 1.0)["x_hat"]
        assert psnr(again, theirs) > 40, label
    calls["eager dense"] = synchronised(stock(dense, x))

    def row(label: str, t: float, base: float, **more: float) -> None:
        macs = decoder_macs(sparse if "sparse" in label else dense, height, width)
        bench_row(
            op="decode", case=f"{name} {size}", backend=label, dtype="float16", passed=True, macs=macs, flops=2 * macs,
            bytes=len(blobs.get(label, b"")), t_us_p50=1e6 * t, n_runs=ROUNDS, fps=1 / t,
            speedup_over_eager_dense=base / t, timer="host, synchronised, rounds interleaved", **more,
        )  # fmt: skip

    if not benchmark.disabled:
        clock = clock_of(torch.device("cpu"))
        times = clock.race({label: [call] for label, call in calls.items()}, ROUNDS)
        base = median(times["eager dense"])
        for label, values in times.items():
            codec = codecs.get(label)
            more = routine_facts(codec._executor, codec.keepers, calls[label], DEVICE) if codec else {}
            row(label, median(values), base, **more)
    elif DEVICE.type == "cpu":
        codec = codecs["compiled sparse"]
        assert routine_facts(codec._executor, codec.keepers, calls["compiled sparse"], DEVICE)["coder_us"] > 0
    benchmark.pedantic(calls["compiled sparse"], rounds=1)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="no CUDA device")
def bench_torch_compile_of_networks(evc_pair, decoder_macs, bench_row, benchmark, clock_of, synchronised):
    """The dense model as torch compiles its networks, on its own because that takes minutes."""
    name, size = EVC[-1], "1080p"
    x = picture_of(size)
    dense, _ = evc_pair(name, x.cpu()[:, :, :512, :768], SPARSITY)
    dense = dense.to(DEVICE)
    calls = {"eager": synchronised(stock(dense, x)), "compiled": synchronised(stock(inductor(dense), x))}
    if not benchmark.disabled:
        times = clock_of(torch.device("cpu")).race({label: [call] for label, call in calls.items()}, ROUNDS)
        t, macs = median(times["compiled"]), decoder_macs(dense, *x.shape[2:])
        bench_row(
            op="decode", case=f"{name} {size}", backend="torch.compile dense", dtype="float16", passed=True, macs=macs,
            flops=2 * macs, t_us_p50=1e6 * t, n_runs=ROUNDS, fps=1 / t,
            speedup_over_eager_dense=median(times["eager"]) / t, timer="host, synchronised, rounds interleaved",
        )  # fmt: skip
    benchmark.pedantic(calls["compiled"], rounds=1)


@pytest.mark.parametrize("size", list(SIZES)[:2])
@pytest.mark.parametrize("name", COMPRESSAI)
def bench_compressai(name, size, psnr, bench_row, benchmark, clock_of, synchronised):
    """CompressAI's own `decompress` in float32 against the compiled one, on the same strings."""
    if name.startswith("cheng") and size != "768x512":
        pytest.skip("decoding position by position takes minutes at this size")
    try:
        import_compressai()
    except UsageError as error:
        pytest.skip(str(error))
    from compressai.zoo import image_models

    torch.manual_seed(0)
    x = F.interpolate(picture_of(size), [side // 64 * 64 or 64 for side in picture_of(size).shape[2:]])
    model = image_models[name](quality=3, pretrained=False).eval().to(DEVICE)
    with torch.inference_mode():
        model.update()
        codec = compile_codec(model, DEVICE, HALF)
        strings = model.compress(x)
        theirs, ours = model.decompress(**strings)["x_hat"], codec.decompress(**strings)["x_hat"]
        assert psnr(ours, theirs) > 40
        calls = {
            "compressai": synchronised(lambda: model.decompress(**strings)),
            "compiled dense": synchronised(lambda: codec.decompress(**strings)),
        }
        if not benchmark.disabled:
            rounds = 3 if name.startswith("cheng") else ROUNDS
            times = clock_of(torch.device("cpu")).race({label: [call] for label, call in calls.items()}, rounds)
            for label, values in times.items():
                t = median(values)
                bench_row(
                    op="decode", case=f"{name} {size}", backend=label, dtype="float16", passed=True, n_runs=rounds,
                    t_us_p50=1e6 * t, fps=1 / t, speedup_over_compressai=median(times["compressai"]) / t,
                    timer="host, synchronised, rounds interleaved",
                )  # fmt: skip
        benchmark.pedantic(calls["compiled dense"], rounds=1)
