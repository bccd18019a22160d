"""Decoding a predicted frame of DCVC-RT and DCVC-HEM on a CPU: the model's own layers, which compute what the published
software does, against the compiled codec, dense and pruned, in interleaved rounds, with all bytes coded.

The weights are random and the masks one-shot magnitudes: times and MACs are those of the published widths, the pictures
are nobody's. On one thread the clock is that thread's own CPU time, which other work on the machine hardly moves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsecodec
from sparsecodec import compile_codec
from sparsecodec.data import read_image

HEIGHT, WIDTH = 256, 512
QP = 32
SKIP = 0.12  # the published setting
SPARSITY = 0.65
PICTURE = Path(sparsecodec.__file__).parent / "data" / "pictures" / "kodim23.png"
CPU = torch.device("cpu")


def frames(once: bool) -> list[Tensor]:
    """Three frames of a pan; small ones where nothing is timed."""
    picture = read_image(PICTURE)
    height, width = (HEIGHT // 4, WIDTH // 4) if once else (HEIGHT, WIDTH)
    return [picture[:, :, 100 : 100 + height, 3 * t : 3 * t + width].contiguous() for t in range(3)]


class RT:
    """DCVC-RT's predicted frames, coded by its model or by the compiled one."""

    name = "dcvc-rt-video"
    rounds = 9
    round_to = 16  # kept channels

    def __init__(self, model: torch.nn.Module, x: Tensor) -> None:
        model.update(SKIP)
        self._model = model
        self._sps = {"height": x.shape[-2], "width": x.shape[-1], "ec_part": 0}

    def encode(self, x: Tensor, state: Any) -> tuple[bytes, Any]:
        return self._model.compress_frame(x, state, QP)

    def decode(self, payload: bytes, state: Any) -> Any:
        return self._model.decompress_frame(payload, state, self._sps, QP)[1]

    @staticmethod
    def left(state: Any) -> tuple[Tensor, ...]:
        """What the next frame needs; the encoder makes no picture."""
        return (state.feature,)


class HEM:
    """As `RT` for DCVC-HEM."""

    name = "dcvc-hem-video"
    rounds = 5
    round_to = 4  # of 64, 96 and fewer: by 16, the least that takes 65 % would take 75

    def __init__(self, model: torch.nn.Module, x: Tensor) -> None:
        self._coder, self._gains = model.coder(), model.gains(*model.q_scales(64)[QP])

    def encode(self, x: Tensor, state: Any) -> tuple[bytes, Any]:
        return self._coder.encode(x, state, *self._gains)

    def decode(self, payload: bytes, state: Any) -> Any:
        return self._coder.decode(payload, state, *self._gains)

    @staticmethod
    def left(state: Any) -> tuple[Tensor, ...]:
        return state.tensors()


def third_frame(coder: RT | HEM, start: Any, clip: list[Tensor]) -> tuple[bytes, Any, Any]:
    """(payload of the third frame, state before it, state after it)."""
    state = start
    for x in clip[1:]:
        before = state
        payload, state = coder.encode(x, before)
    return payload, before, state


FAMILIES = pytest.mark.parametrize("family", [RT, HEM], ids=lambda family: family.name)


@FAMILIES
def bench_predicted_frame(family, video_pair, bench_row, benchmark, clock_of, once):
    dense, pruned, *per_pixel = video_pair(family.name, SPARSITY, family.round_to)
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
    sizes, clip = {}, frames(once)
    with torch.inference_mode():
        for label, model in models.items():
            coder = family(model, clip[0])
            payload, before, after = third_frame(coder, dense.start(clip[0]), clip)
            decoded = coder.decode(payload, before)  # equality before time
            assert all(map(torch.equal, family.left(decoded), family.left(after))), label
            calls[label] = lambda c=coder, p=payload, s=before: c.decode(p, s)
            sizes[label] = len(payload)
        if not benchmark.disabled:
            clock = clock_of(CPU, one_thread=torch.get_num_threads() == 1)
            times = clock.race({label: [call] for label, call in calls.items()}, family.rounds)
            base = median(times["eager dense float32"])
            for label, values in times.items():
                macs = macs_pruned if "pruned" in label else macs_dense
                bench_row(
                    op="decode a predicted frame", case=f"{family.name} {WIDTH}x{HEIGHT}", backend=label,
                    dtype=label.split()[-1], passed=True, t_us_p50=1e6 * median(values), t_us_min=1e6 * min(values),
                    t_us_max=1e6 * max(values), n_runs=len(values), fps=1 / median(values), macs=macs, flops=2 * macs,
                    bytes=sizes[label], speedup_over_eager_dense=base / median(values), timer=clock.name,
                )  # fmt: skip
                print(f"{label}: {1e3 * median(values):.1f} ms, {base / median(values):.2f} x, {sizes[label]} bytes")
        benchmark.pedantic(calls["compiled pruned bfloat16"], rounds=1 if benchmark.disabled else 3)


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def bench_encode_predicted_frame(family, dtype, video_pair, bench_row, benchmark, clock_of, once):
    dense, pruned, *_ = video_pair(family.name, SPARSITY, family.round_to)
    models = {"eager dense": dense, "compiled dense": compile_codec(dense, dtype=dtype)}
    models["compiled pruned"] = compile_codec(pruned, dtype=dtype)
    clip = frames(once)
    with torch.inference_mode():
        calls = {}
        for label, model in models.items():
            coder = family(model, clip[0])
            _, before, _ = third_frame(coder, dense.start(clip[0]), clip)
            calls[label] = lambda c=coder, s=before: c.encode(clip[2], s)
        if not benchmark.disabled:
            clock = clock_of(CPU, one_thread=torch.get_num_threads() == 1)
            times = clock.race({label: [call] for label, call in calls.items()}, family.rounds)
            base = median(times["eager dense"])
            for label, values in times.items():
                bench_row(
                    op="encode a predicted frame", case=f"{family.name} {WIDTH}x{HEIGHT}", backend=label,
                    dtype="float32" if "eager" in label else str(dtype).removeprefix("torch."), passed=True,
                    t_us_p50=1e6 * median(values), n_runs=len(values), fps=1 / median(values),
                    speedup_over_eager_dense=base / median(values), timer=clock.name,
                )  # fmt: skip
        benchmark.pedantic(calls["compiled pruned"], rounds=1 if benchmark.disabled else 3)
