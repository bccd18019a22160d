"""Integers against float32: the entropy networks of a picture's decode, and networks of a video codec.

Of a picture from hyper-latent to table rows and latent, against our pinned kernels; of video against torch's layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.resources import files
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecodec import compile_codec, load
from sparsecodec.data import read_image
from sparsecodec.models import create
from sparsecodec.nn.routine import Coding, drive
from sparsecodec.nn.rt_layers import DCB, blocks
from sparsecodec.quant import W8A16, freeze, observe, portable, quantize_layers, quantized_layers, set_scales
from sparsecodec.runtime import CompiledCodec
from sparsecodec.runtime.integer_network import IntegerNetwork
from sparsecodec.zoo import names

CPU = torch.device("cpu")
HEIGHT, WIDTH = 512, 768
PICTURE = files("sparsecodec") / "data" / "pictures" / "kodim23.png"
ROUNDS = 15
QP = 32


def times_of(values: list[float], float32: list[float]) -> dict[str, Any]:
    """What a row says of a contender's times, beside those of the float32 one."""
    return {
        "passed": True,
        "t_us_p50": 1e6 * median(values),
        "t_us_min": 1e6 * min(values),
        "t_us_max": 1e6 * max(values),
        "n_runs": len(values),
        "time_over_float32": median(values) / median(float32),
        "timer": "host, rounds interleaved",
    }


class Given:
    """A host that answers with the same symbols in every run."""

    def __init__(self, symbols: list[Tensor]) -> None:
        self._symbols = symbols
        self._next = 0

    def __call__(self, request: Coding, out: Tensor | None) -> Tensor:
        self._next = (self._next + 1) % len(self._symbols)
        return self._symbols[self._next - 1]


def _decoding(codec: CompiledCodec) -> Callable[[], Tensor]:
    """Everything between the coding calls of a decode but the synthesis."""
    generator = torch.Generator().manual_seed(0)
    channels = codec._latent
    z, *symbols = (
        torch.randint(-2, 3, shape, generator=generator).to(torch.int32)
        for shape in (
            (1, channels, HEIGHT // 64, WIDTH // 64),
            (1, channels // 2, HEIGHT // 16, WIDTH // 16),
            (1, channels // 2, HEIGHT // 16, WIDTH // 16),
        )
    )
    host = Given(symbols)

    @torch.inference_mode()
    def run() -> Tensor:
        return drive(codec._coder.decoding(z, codec._q_basic), host)

    return run


def _byte_share(codec: nn.Module) -> float:
    """Of the weights of the layers on integers, the share that multiplies inputs of 8 bits."""
    layers = quantized_layers(codec).values()
    weights = {bits: sum(layer.weight.numel() for layer in layers if layer.activation_bits == bits) for bits in (8, 16)}
    return weights[8] / max(sum(weights.values()), 1)


RT_NETWORKS = {  # of DCVC-RT's published widths, and the size of what they read: of a frame of 512x256
    "context 4x256": (lambda: nn.Sequential(*blocks(4, 256)), (1, 256, 32, 64)),
    "recon 256-320": (lambda: nn.Sequential(DCB(256, 320), *blocks(3, 320)), (1, 256, 32, 64)),
    "fusion 3x384": (lambda: nn.Sequential(*blocks(3, 384), nn.Conv2d(384, 384, 1)), (1, 384, 16, 32)),
}


@pytest.mark.parametrize("name", RT_NETWORKS)
def bench_rt_networks(name, bench_row, benchmark, clock_of):
    """Networks of portable DCVC-RT against torch's own float32 layers, channels_last."""
    build, shape = RT_NETWORKS[name]
    torch.manual_seed(0)
    model, x = nn.Sequential(build()).eval(), torch.randn(shape)
    layers = [path for path, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    small = quantize_layers(model, dict.fromkeys(layers, W8A16))
    set_scales(small, observe(model, layers, lambda codec: codec(x)))
    network = IntegerNetwork({"0": freeze(small)[0]})
    x = x.contiguous(memory_format=torch.channels_last)
    integers = (x * 2.0**-network.exponent).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
    model = model.to(memory_format=torch.channels_last)
    calls = {"float32": lambda: model(x), "integers": lambda: network(integers)}
    with torch.inference_mode():
        wanted, found = calls["float32"](), calls["integers"]().double() / 65536
        assert float((found - wanted).abs().max()) < 0.05 * float(wanted.abs().max())
        if not benchmark.disabled:
            times = clock_of(CPU).race({label: [call] for label, call in calls.items()}, ROUNDS)
            for label, values in times.items():
                bench_row(
                    op="rt_networks",
                    case=name,
                    backend="cpu" if label == "integers" else "torch_float32",
                    dtype="int16" if label == "integers" else "float32",
                    **times_of(values, times["float32"]),
                )
        benchmark.pedantic(calls["integers"], rounds=1 if benchmark.disabled else 3)


@pytest.mark.parametrize("name", ["dcvc-rt-tiny-sparse", "dcvc-hem-tiny-sparse", "dcvc-tiny", "fvc-tiny"])
def bench_predicted_frames(name, bench_row, benchmark, clock_of):
    """A predicted frame of a pan, decoded by integers and by the compiled float codec in float32 and bfloat16.

    What does not ship is untrained: its layers take the same time.
    """
    picture = read_image(PICTURE)[:, :, 100:356]
    frames = [picture[:, :, :, 3 * t : 3 * t + 512] for t in range(3)]
    torch.manual_seed(0)
    model = load(name) if name in names() else create(name).eval()
    codecs = {
        "integers": compile_codec(portable(model, [torch.cat(frames)[:, :, :64, :64]]), stream="portable"),
        "float32": compile_codec(model, dtype=torch.float32),
        "bfloat16": compile_codec(model, dtype=torch.bfloat16),
    }
    calls, found = {}, {}
    for label, codec in codecs.items():
        _, state = codec.intra_encode(frames[0], QP)
        _, state = codec.inter_encode(frames[1], state, QP, 1)
        payload, _ = codec.inter_encode(frames[2], state, QP, 2)
        calls[label] = partial(codec.inter_decode, payload, state, 256, 512, QP, 2)
        found[label] = calls[label]()[0]
    assert float((found["integers"] - found["float32"]).abs().mean()) < 0.02
    if not benchmark.disabled:
        times = clock_of(CPU).race({label: [call] for label, call in calls.items()}, ROUNDS)
        for label, values in times.items():
            bench_row(
                op="portable_frames",
                case=f"{name} 512x256",
                backend="cpu",
                dtype={"integers": "int16"}.get(label, label),
                **times_of(values, times["float32"]),
            )
    benchmark.pedantic(calls["integers"], rounds=1 if benchmark.disabled else 3)


@pytest.mark.parametrize("name", ["evc-tiny", "evc-tiny-sparse", "evc-tiny-sparse-feds"])
def bench_entropy_networks(name, bench_row, benchmark, clock_of):
    """A codec in float32, with inputs of 16 bits everywhere, and of 8 bits where that costs little; and as it ships."""
    x = read_image(PICTURE)[:, :, 128:192, 256:320]
    codecs = {
        "float32": load(name),
        "integers": portable(load(name), x),
        "bytes": portable(load(name), x, threshold=4e-3),
    }
    if f"{name}-portable" in names():
        codecs["shipped"] = load(f"{name}-portable")
    calls = {
        label: _decoding(
            compile_codec(codec, stream="native" if label == "float32" else "portable", dtype=torch.float32)
        )
        for label, codec in codecs.items()
    }
    assert len({call().shape for call in calls.values()}) == 1
    if not benchmark.disabled:
        times = clock_of(CPU).race({label: [call] for label, call in calls.items()}, ROUNDS)
        for label, values in times.items():
            bench_row(
                op="entropy_networks",
                case=f"{name} {WIDTH}x{HEIGHT}",
                backend=label,
                dtype={"float32": "float32", "integers": "int16"}.get(label, "int8 and int16"),
                **times_of(values, times["float32"]),
                byte_share=_byte_share(codecs[label]),
            )
    benchmark.pedantic(calls["integers"], rounds=1 if benchmark.disabled else 3)
