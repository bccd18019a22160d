"""The float32 CPU kernels give the same bits on every instruction set, thread count, batch and crop."""

from __future__ import annotations

import pytest
import torch

from sparsecodec.ops import bind, depth_conv_block, pointwise, use_backend
from sparsecodec.testing import CASES, run_eager

PINNED_OPS = ("pointwise", "conv2d_act", "conv_transpose2d_act", "depth_conv_block", "gdn")
PINNED = [pytest.param(case, id=f"{case.op}-{case.id}") for case in CASES if case.op in PINNED_OPS and not case.bench]


def _run(case):
    return run_eager(case, "cpu", torch.float32)[0]


@pytest.mark.parametrize("case", PINNED)
def test_bits_do_not_depend_on_the_instruction_set(case, instruction_sets, monkeypatch):
    results = []
    for isa in instruction_sets:
        monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
        results.append(_run(case))
    monkeypatch.delenv("SPARSECODEC_CPU_ISA")
    results.append(_run(case))
    assert all(torch.equal(results[0].view(torch.int32), other.view(torch.int32)) for other in results[1:])


@pytest.mark.parametrize("case", PINNED)
def test_bits_do_not_depend_on_threads(case):
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(_run(case))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("case", PINNED)
def test_bits_do_not_depend_on_the_batch(case):
    arguments = case.arguments(torch.float32)
    free = {name: value for name, value in arguments.items() if name not in case.spec.constants and value is not None}
    with torch.no_grad():
        run = bind(case.spec, **arguments).run
        single = run(**free)
        triple = {name: torch.cat([v.neg(), v, v]) for name, v in free.items() if v.dim() == 4}
        batched = run(**free | {name: v.contiguous(memory_format=torch.channels_last) for name, v in triple.items()})
    n = single.shape[0]
    assert torch.equal(batched[n : 2 * n], single) and torch.equal(batched[2 * n :], single)


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0, 3.0, -0.5])
def test_bits_of_special_values(slope, instruction_sets, monkeypatch):
    """NaN, infinities, zeros and denormals pass the activations alike, in a product and in the depthwise layer."""
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, -1e-45, -1e-38, 2.0, -2.0])
    x = special.repeat_interleave(17).view(1, 17, 2, 5).to(memory_format=torch.channels_last)
    taps, nothing = torch.zeros(17, 1, 3, 3), torch.zeros(0, 17)
    taps[:, :, 1, 1] = 1
    block = {"dw": taps, "w1": torch.eye(17), "w2": torch.eye(17), "w3": nothing, "w4": nothing.T}
    block |= {f"b{i}": None for i in range(1, 5)} | {
        "db": torch.full((17,), -0.0),
        "slopes": (1.0, slope, slope, 1.0, 1.0),
    }
    results = []
    for isa in instruction_sets:
        monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
        with torch.no_grad(), use_backend("cpu"):
            results.append(
                torch.cat(
                    [
                        pointwise(
                            x,
                            torch.ones(17, 1),
                            torch.full((17,), -0.0),
                            torch.tensor([3]),
                            None,
                            None,
                            None,
                            "leaky_relu",
                            slope,
                        ),
                        depth_conv_block(x, **block),
                    ]
                )
            )
    assert all(torch.equal(results[0].view(torch.int32), other.view(torch.int32)) for other in results[1:])


def test_sums_run_from_the_bias_over_taps_then_channels():
    """acc = bias; acc = fma(x, w, acc), in float64 rounded to float32 at each step (exact for these small integers)."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randint(-8, 9, (1, 5, 4, 6), generator=generator).float() * 2.0**12
    weight = torch.randint(-8, 9, (3, 5, 3, 3), generator=generator).float() + 2.0**-9
    bias = torch.tensor([2.0**-10, 3.0, -(2.0**20)])
    spec = next(case.spec for case in CASES if case.op == "conv2d_act")
    x = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        result = bind(spec, x, weight, bias, padding=1).run(x)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    expected = bias.view(1, 3, 1, 1).expand(1, 3, 4, 6)
    for ky in range(3):
        for kx in range(3):
            for k in range(5):
                factor = padded[:, k : k + 1, ky : ky + 4, kx : kx + 6].double()
                product = factor * weight[:, k, ky, kx].double().view(1, 3, 1, 1)
                expected = (expected.double() + product).float()
    assert torch.equal(result, expected)


def test_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("SPARSECODEC_CPU_ISA", "neon")
    case = next(case for case in CASES if case.op == "pointwise")
    with pytest.raises(ValueError, match="SPARSECODEC_CPU_ISA=neon"):
        _run(case)
