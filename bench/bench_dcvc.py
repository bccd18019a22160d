"""DCVC (2021) decoded position by position: the Python loop against native calls, on one core, in interleaved rounds.

Full widths with random weights whose latents take about five bits: times are real, pictures are not. The published
loop takes part where SPARSECODEC_DCVC_CHECKOUT names a checkout; its coder is ours (`sparsecodec.entropy.dropin`).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest
import torch
from torch import Tensor

from sparsecodec import compile_codec
from sparsecodec.entropy import dropin
from sparsecodec.models import DCVC, create

CPU = torch.device("cpu")
POSITIONS = (16, 32)  # of a frame of 256 x 512
ROUNDS = 5
PUBLISHED = "published loop"


@pytest.fixture(scope="module")
def model() -> DCVC:
    torch.manual_seed(0)
    model = create("dcvc").eval().requires_grad_(False)
    for parameters in (model.entropy_parameters, model.entropy_parameters_mv):
        parameters[-1].bias[len(parameters[-1].bias) // 2 :] += 2
    return model


@pytest.fixture(scope="module")
def published(model: DCVC) -> torch.nn.Module | None:
    """The published class with the same weights."""
    checkout = os.environ.get("SPARSECODEC_DCVC_CHECKOUT")
    if checkout is None:
        return None
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(checkout) / "DCVC-family" / "DCVC"))
        transforms = ModuleType("torchvision.transforms")  # which it imports for its script only
        transforms.ToPILImage = transforms.ToTensor = object
        patch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
        patch.setitem(sys.modules, "torchvision.transforms", transforms)
        dropin.install("dcvc")
        theirs = importlib.import_module("src.models.DCVC_net").DCVC_net().eval().requires_grad_(False)
        theirs.load_dict(model.state_dict())
        theirs.update(force=True)
        for name in [name for name in sys.modules if name.partition(".")[0] == "src"]:
            del sys.modules[name]
    return theirs


@pytest.mark.parametrize("part", ["_mv", ""], ids=["motion", "frame"])
def bench_positions(part, model, published, bench_row, benchmark, clock_of, once):
    """One latent of 16 x 32 positions."""
    rows, columns = (6, 9) if once else POSITIONS
    generator = torch.Generator().manual_seed(1)
    context, parameters, _ = model.entropy_networks(part)
    channels = parameters[0].in_channels - context.out_channels
    y = 3 * torch.randn(1, context.in_channels, rows, columns, generator=generator)
    prior = torch.randn(1, channels, rows, columns, generator=generator)
    coders = {
        "plain loop": model.coder(),
        "native rows": compile_codec(model, original=True).coder(),
        "native waves": compile_codec(model, dtype=torch.float32).coder(),
    }
    calls: dict[str, Callable[[], Tensor]] = {}
    sizes = {}
    for label, coder in coders.items():
        string, y_hat = coder.coders[part].encode(y, prior)
        calls[label] = lambda c=coder.coders[part], s=string: c.decode(s, prior)
        sizes[label] = len(string)
        if label == "native rows":
            assert coder.coders[part].native, "torch adds otherwise here than the native rows"
        assert torch.equal(calls[label](), y_hat)  # equality before time
        if label == "plain loop":
            plain = string, y_hat
    assert torch.equal(calls["native rows"](), plain[1]) and sizes["native rows"] == sizes["plain loop"]
    if published is not None:
        height, width = 16 * rows, 16 * columns

        def loop() -> Tensor:
            with torch.no_grad():
                arguments = (plain[0], context.in_channels, height, width, 16, 5, context, prior, parameters)
                return published.decompress_ar(*arguments)

        calls[PUBLISHED], sizes[PUBLISHED] = loop, sizes["plain loop"]
        assert torch.equal(loop(), plain[1])
    if not benchmark.disabled:
        clock = clock_of(CPU, one_thread=True)
        times = clock.race({label: [call] for label, call in calls.items()}, ROUNDS)
        count, base = rows * columns, {label: median(values) for label, values in times.items()}
        case = f"dcvc {'motion' if part else 'frame'} {rows}x{columns}"
        for label, values in times.items():
            over = {"speedup_over_plain_loop": base["plain loop"] / base[label]}
            if PUBLISHED in base:
                over["speedup_over_published_loop"] = base[PUBLISHED] / base[label]
            bench_row(
                op="decode_positions", case=case, backend=label, dtype="float32", passed=True,
                t_us_p50=1e6 * base[label], t_us_min=1e6 * min(values), n_runs=ROUNDS, bytes=sizes[label],
                us_per_position=1e6 * base[label] / count, timer=clock.name, **over,
            )  # fmt: skip
    benchmark.pedantic(calls["native waves"], rounds=1)
