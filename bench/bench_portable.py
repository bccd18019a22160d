"""The entropy networks of a decode, from hyper-latent to table rows and latent: integers against pinned float32."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import pytest
import torch
from torch import Tensor

from sparsecodec import compile_codec, load
from sparsecodec.nn.routine import Coding, drive
from sparsecodec.runtime import CompiledCodec

CPU = torch.device("cpu")
HEIGHT, WIDTH = 512, 768
ROUNDS = 15


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


@pytest.mark.parametrize("name", ["evc-tiny-sparse"])
def bench_entropy_networks(name, bench_row, benchmark, clock_of):
    """The sparse codec in float32 and its integer twin, whose entropy networks have the same channels."""
    calls = {
        "float32": _decoding(compile_codec(load(name), dtype=torch.float32)),
        "integers": _decoding(compile_codec(load(f"{name}-int8"), stream="portable", dtype=torch.float32)),
    }
    assert calls["float32"]().shape == calls["integers"]().shape
    if not benchmark.disabled:
        times = clock_of(CPU).race({label: [call] for label, call in calls.items()}, ROUNDS)
        for label, values in times.items():
            bench_row(
                op="entropy_networks",
                case=f"{name} {WIDTH}x{HEIGHT}",
                backend=label,
                dtype="int16" if label == "integers" else "float32",
                passed=True,
                t_us_p50=1e6 * median(values),
                t_us_min=1e6 * min(values),
                t_us_max=1e6 * max(values),
                n_runs=len(values),
                time_over_float32=median(values) / median(times["float32"]),
                timer="host, rounds interleaved",
            )
    benchmark.pedantic(calls["integers"], rounds=1 if benchmark.disabled else 3)
