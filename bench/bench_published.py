"""Decoding a predicted frame by the classes of the published software, in float32 as they run on a CPU, against ours.

``SPARSECODEC_DCVC_CHECKOUT`` names a checkout of their repository; our coder stands for their compiled one. Weights are
random and masks one-shot magnitudes, as in `bench_video`; the frame is the first one behind a picture.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import sparsecodec
from sparsecodec import compile_codec
from sparsecodec.data import read_image

PICTURE = Path(sparsecodec.__file__).parent / "data" / "pictures" / "kodim23.png"
CPU = torch.device("cpu")
HEIGHT, WIDTH = 256, 512
QP, SKIP, SPARSITY = 32, 0.12, 0.65  # the second is the published setting
CHECKOUT = os.environ.get("SPARSECODEC_DCVC_CHECKOUT")
ROUNDS = 5
STEP = 1.0  # global, of DCVC-HEM's motion and latent
CLOSE = 1e-3  # of pixels: what another order of float32 sums may change, where no symbol moved


def _importing() -> ModuleType:
    """What makes the published packages importable without their extensions: that of their tests."""
    path = Path(__file__).parents[1] / "tests" / "official" / "conftest.py"
    spec = importlib.util.spec_from_file_location("official_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def decoding_rt(model: nn.Module, first: Tensor, x: Tensor) -> tuple[int, Callable[[], Tensor]]:
    """(bytes of `x` behind the picture `first`, what decodes them to the frame) by DCVC-RT's own calls."""
    model.update(SKIP)
    model.set_use_two_entropy_coders(False)
    sps = {"height": x.shape[2], "width": x.shape[3], "ec_part": 0, "use_ada_i": 0, "sps_id": 0}

    def begin() -> None:
        model.set_curr_poc(0)
        model.clear_dpb()
        model.add_ref_frame(None, first)

    begin()
    payload = model.compress(x, QP)["bit_stream"]

    def decode() -> Tensor:
        begin()
        return model.decompress(payload, sps, QP)["x_hat"]

    return len(payload), decode


def decoding_hem(model: nn.Module, first: Tensor, x: Tensor) -> tuple[int, Callable[[], Tensor]]:
    """As `decoding_rt`, by DCVC-HEM's."""
    model.update(force=True)
    dpb = {"ref_frame": first, "ref_feature": None, "ref_y": None, "ref_mv_y": None}
    payload = model.compress(x, dpb, STEP, STEP)["bit_stream"]
    size = tuple(x.shape[2:])
    return len(payload), lambda: model.decompress(dict(dpb), payload, *size, STEP, STEP)["dpb"]["ref_frame"]


FAMILIES = {"rt": ("dcvc-rt-video", 16, decoding_rt), "hem": ("dcvc-hem-video", 4, decoding_hem)}


@pytest.mark.skipif(CHECKOUT is None, reason="SPARSECODEC_DCVC_CHECKOUT names no checkout of the published software")
@pytest.mark.parametrize("family", FAMILIES)
def bench_published_frame(family, video_pair, bench_row, benchmark, clock_of, once):
    name, round_to, decoding = FAMILIES[family]
    dense, pruned, *macs = video_pair(name, SPARSITY, round_to)
    height, width = (HEIGHT // 4, WIDTH // 4) if once else (HEIGHT, WIDTH)
    first, x = (read_image(PICTURE)[:, :, 100 : 100 + height, left : left + width].contiguous() for left in (0, 3))
    with _importing().importing(family, Path(CHECKOUT)) as official, torch.inference_mode():
        theirs = official("models.video_model").DMC().eval().requires_grad_(False)
        theirs.load_state_dict(dense.state_dict())
        models = {
            "published float32": theirs,
            "compiled dense float32": compile_codec(dense, dtype=torch.float32),
            "compiled dense bfloat16": compile_codec(dense, dtype=torch.bfloat16),
            "compiled pruned float32": compile_codec(pruned, dtype=torch.float32),
            "compiled pruned bfloat16": compile_codec(pruned, dtype=torch.bfloat16),
        }
        coded = {label: decoding(model, first, x) for label, model in models.items()}
        calls = {label: call for label, (_, call) in coded.items()}
        wanted, found = calls["published float32"](), calls["compiled dense float32"]()  # equality before time
        assert float((wanted - found).abs().median()) < CLOSE
        if not benchmark.disabled:
            clock = clock_of(CPU, one_thread=torch.get_num_threads() == 1)
            times = clock.race({label: [call] for label, call in calls.items()}, ROUNDS)
            base = median(times["published float32"])
            for label, values in times.items():
                count = HEIGHT * WIDTH * macs["pruned" in label]
                bench_row(
                    op="decode a predicted frame, published classes", case=f"{name} {WIDTH}x{HEIGHT}", backend=label,
                    dtype=label.split()[-1], passed=True, t_us_p50=1e6 * median(values), t_us_min=1e6 * min(values),
                    t_us_max=1e6 * max(values), n_runs=len(values), macs=count, flops=2 * count, bytes=coded[label][0],
                    speedup_over_published=base / median(values), timer=clock.name,
                )  # fmt: skip
                print(f"{label}: {1e3 * median(values):.1f} ms, {base / median(values):.2f} x, {coded[label][0]} bytes")
        benchmark.pedantic(calls["compiled pruned bfloat16"], rounds=1 if benchmark.disabled else 3)
