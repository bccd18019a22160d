"""Decoding a predicted frame of DCVC-RT on a GPU, bytes to picture: dense and with 65 % fewer MACs, compiled in float16
and as torch runs the model's own layers in float16, interleaved.

The weights are random and the masks one-shot magnitudes: times and MACs are those of the published widths, the pictures
are nobody's. A row has the whole call on the host's clock, the networks alone (the captured graphs, replayed without
the coder), the time within the coder, kernel launches and waits, peak memory, and joules where the driver tells them.
Fingerprints of states are a session's work and not in the times. Where there is no GPU, ``--benchmark-disable`` runs
all this once on the CPU with a small model, so that it does not rot.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec import compile_codec
from sparsecodec.nn.rt_state import RTState
from sparsecodec.runtime.executor import Executor
from sparsecodec.runtime.transform import CompiledTransform

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
HALF = torch.float16 if ON_GPU else torch.bfloat16
QP = 32
SKIP = 0.12  # the published setting
SPARSITY = 0.65
ROUND_TO = 16  # kept channels
ROUNDS = 20
NAME, SIZES = ("dcvc-rt-video", [(1088, 1920), (720, 1280)]) if ON_GPU else ("dcvc-rt-tiny", [(64, 128)])


@pytest.fixture(autouse=True)
def needs_a_gpu(benchmark):
    if not ON_GPU and not benchmark.disabled:
        pytest.skip("no CUDA device")


def frames(height: int, width: int) -> list[Tensor]:
    """Three frames of a pan over smooth noise, ``[1, 3, H, W]`` in [0, 1]."""
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 3, generator=torch.Generator().manual_seed(0))
    wide = F.interpolate(coarse, (height, width + 16), mode="bicubic").clamp(0, 1).to(DEVICE)
    return [wide[:, :, :, 3 * t : 3 * t + width].contiguous() for t in range(3)]


def third_frame(model: nn.Module, clip: list[Tensor], dtype: torch.dtype) -> tuple[bytes, RTState, RTState]:
    """(payload of the third frame, state before it, state after it)."""
    state = model.start(clip[0].to(dtype))
    for x in clip[1:]:
        before = state
        payload, state = model.compress_frame(x.to(dtype), before, QP)
    return payload, before, state


def held_by(codec: nn.Module) -> tuple[Executor, list[CompiledTransform | Executor]]:
    """What runs its routines, and all that holds memory between frames."""
    networks = codec._networks
    return networks.executor, [*networks.transforms, networks.executor]


@pytest.mark.parametrize("height, width", SIZES)
def bench_predicted_frame_on_gpu(
    height, width, video_pair, bench_row, benchmark, clock_of, synchronised, routine_facts
):
    dense, pruned, *per_pixel = video_pair(NAME, SPARSITY, ROUND_TO)
    for model in (dense, pruned):
        model.update(SKIP)
    macs_dense, macs_pruned = (height * width * macs for macs in per_pixel)
    compiled = {
        f"compiled {label}": compile_codec(m, DEVICE, HALF) for label, m in (("dense", dense), ("pruned", pruned))
    }
    for model in compiled.values():
        model.update(SKIP)
    plain = {f"eager {label}": copy.deepcopy(m).to(DEVICE, HALF) for label, m in (("dense", dense), ("pruned", pruned))}
    sps = {"height": height, "width": width, "ec_part": int(height * width > 1280 * 720)}
    calls: dict[str, Callable[[], None]] = {}
    sizes, clip = {}, frames(height, width)
    with torch.inference_mode():
        for label, model in (compiled | plain).items():
            model.set_use_two_entropy_coders(bool(sps["ec_part"]))
            payload, before, after = third_frame(model, clip, torch.float32 if label in compiled else HALF)
            _, decoded = model.decompress_frame(payload, before, sps, QP)  # equality before time
            assert torch.equal(decoded.feature, after.feature), label
            calls[label] = synchronised(lambda m=model, p=payload, s=before: m.decompress_frame(p, s, sps, QP))
            calls[label]()  # the third of the same kind: captured by now
            sizes[label] = len(payload)
        if not benchmark.disabled:
            times = clock_of(torch.device("cpu")).race({label: [call] for label, call in calls.items()}, ROUNDS)
            base = median(times["eager dense"])
            for label, values in times.items():
                t, macs = median(values), macs_pruned if "pruned" in label else macs_dense
                codec = compiled.get(label)
                more = routine_facts(*held_by(codec), calls[label], DEVICE) if codec else {}
                bench_row(
                    op="decode a predicted frame", case=f"{NAME} {width}x{height}", backend=label,
                    dtype=str(HALF).removeprefix("torch."), passed=True, macs=macs, flops=2 * macs, bytes=sizes[label],
                    t_us_p50=1e6 * t, t_us_min=1e6 * min(values), t_us_max=1e6 * max(values), n_runs=len(values),
                    fps=1 / t, speedup_over_eager_dense=base / t,
                    timer="host, synchronised, rounds interleaved", **more,
                )  # fmt: skip
        elif not ON_GPU:
            facts = routine_facts(*held_by(compiled["compiled pruned"]), calls["compiled pruned"], DEVICE)
            assert facts["coder_us"] > 0
        benchmark.pedantic(calls["compiled pruned"], rounds=1)
