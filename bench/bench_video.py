"""Decoding a predicted frame of DCVC-RT on a CPU: the model's own layers, which compute what the published software
does, against the compiled codec, dense and pruned, in interleaved rounds, with all bytes coded.

The weights are random and the masks one-shot magnitudes: times and MACs are those of the published widths, the pictures
are nobody's. On one thread the clock is that thread's own CPU time, which other work on the machine hardly moves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor

import sparsecodec
from sparsecodec import compile_codec
from sparsecodec.data import read_image
from sparsecodec.nn.rt_state import RTState

HEIGHT, WIDTH = 256, 512
QP = 32
SKIP = 0.12  # the published setting
SPARSITY = 0.65
ROUNDS = 9
SPS = {"height": HEIGHT, "width": WIDTH, "ec_part": 0}
PICTURE = Path(sparsecodec.__file__).parent / "data" / "pictures" / "kodim23.png"
CPU = torch.device("cpu")


def frames() -> list[Tensor]:
    """Three frames of a pan."""
    picture = read_image(PICTURE)
    return [picture[:, :, 100 : 100 + HEIGHT, 3 * t : 3 * t + WIDTH].contiguous() for t in range(3)]


def third_frame(model: torch.nn.Module, clip: list[Tensor]) -> tuple[bytes, RTState, RTState]:
    """(payload of the third frame, state before it, state after it)."""
    state = model.start(clip[0])
    for x in clip[1:]:
        before = state
        payload, state = model.compress_frame(x, before, QP)
    return payload, before, state


def bench_predicted_frame(rt_pair, bench_row, benchmark, clock_of):
    dense, pruned, *per_pixel = rt_pair("dcvc-rt-video", SPARSITY, SKIP)
    macs_dense, macs_pruned = (HEIGHT * WIDTH * macs for macs in per_pixel)
    models = {
        "eager dense float32": dense,
        "eager pruned float32": pruned,
        "compiled dense float32": compile_codec(dense, dtype=torch.float32),
        "compiled dense bfloat16": compile_codec(dense, dtype=torch.bfloat16),
        "compiled pruned float32": compile_codec(pruned, dtype=torch.float32),
        "compiled pruned bfloat16": compile_codec(pruned, dtype=torch.bfloat16),
    }
    calls: dict[str, Callable[[], object]] = {}
    sizes, clip = {}, frames()
    with torch.inference_mode():
        for label, model in models.items():
            payload, before, after = third_frame(model, clip)
            _, decoded = model.decompress_frame(payload, before, SPS, QP)  # equality before time
            assert torch.equal(decoded.feature, after.feature), label
            calls[label] = lambda m=model, p=payload, s=before: m.decompress_frame(p, s, SPS, QP)
            sizes[label] = len(payload)
        if not benchmark.disabled:
            clock = clock_of(CPU, one_thread=torch.get_num_threads() == 1)
            times = clock.race({label: [call] for label, call in calls.items()}, ROUNDS)
            base = median(times["eager dense float32"])
            for label, values in times.items():
                macs = macs_pruned if "pruned" in label else macs_dense
                bench_row(
                    op="decode a predicted frame", case=f"dcvc-rt-video {WIDTH}x{HEIGHT}", backend=label,
                    dtype=label.split()[-1], passed=True, t_us_p50=1e6 * median(values), t_us_min=1e6 * min(values),
                    t_us_max=1e6 * max(values), n_runs=len(values), fps=1 / median(values), macs=macs, flops=2 * macs,
                    bytes=sizes[label], speedup_over_eager_dense=base / median(values), timer=clock.name,
                )  # fmt: skip
                print(f"{label}: {1e3 * median(values):.1f} ms, {base / median(values):.2f} x, {sizes[label]} bytes")
        benchmark.pedantic(calls["compiled pruned bfloat16"], rounds=1 if benchmark.disabled else 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def bench_encode_predicted_frame(dtype, rt_pair, bench_row, benchmark, clock_of):
    dense, pruned, *_ = rt_pair("dcvc-rt-video", SPARSITY, SKIP)
    models = {"eager dense": dense, "compiled dense": compile_codec(dense, dtype=dtype)}
    models["compiled pruned"] = compile_codec(pruned, dtype=dtype)
    clip = frames()
    with torch.inference_mode():
        calls = {}
        for label, model in models.items():
            _, before, _ = third_frame(model, clip)
            calls[label] = lambda m=model, s=before: m.compress_frame(clip[2], s, QP)
        if not benchmark.disabled:
            clock = clock_of(CPU, one_thread=torch.get_num_threads() == 1)
            times = clock.race({label: [call] for label, call in calls.items()}, 5)
            base = median(times["eager dense"])
            for label, values in times.items():
                bench_row(
                    op="encode a predicted frame", case=f"dcvc-rt-video {WIDTH}x{HEIGHT}", backend=label,
                    dtype="float32" if "eager" in label else str(dtype).removeprefix("torch."), passed=True,
                    t_us_p50=1e6 * median(values), n_runs=len(values), fps=1 / median(values),
                    speedup_over_eager_dense=base / median(values), timer=clock.name,
                )  # fmt: skip
        benchmark.pedantic(calls["compiled pruned"], rounds=1 if benchmark.disabled else 3)
