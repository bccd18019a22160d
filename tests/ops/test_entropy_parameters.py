"""Index rules against the software that defined them, and the round trip of a dual spatial prior."""

from __future__ import annotations

import math

import pytest
import torch

from sparsecodec._compat import import_compressai
from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.ops import (
    bind,
    entropy_parameters,
    evc_scale_thresholds,
    laplace_scale_thresholds,
    quantize_latent,
    restore_latent,
    rt_scale_thresholds,
    scale_table_thresholds,
    uf_scale_thresholds,
    use_backend,
    why_unavailable,
)
from sparsecodec.ops._registry import bind_arguments
from sparsecodec.ops.entropy_parameters import ENTROPY_PARAMETERS
from sparsecodec.ops.quantize_latent import QUANTIZE_LATENT
from sparsecodec.ops.restore_latent import RESTORE_LATENT

TRITON = pytest.param(
    "triton",
    marks=[
        pytest.mark.skipif(why_unavailable("triton") is not None, reason=str(why_unavailable("triton"))),
        pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter"),
    ],
)
PASSES = {"dual": ("even", "odd"), "quad": ("quarter0", "quarter1", "quarter2", "quarter3")}


def _neighbours(thresholds: torch.Tensor, reach: int = 300) -> torch.Tensor:
    """The floats up to `reach` units around each threshold, and many between."""
    bits = thresholds.view(torch.int32)
    near = bits[:, None] + torch.arange(-reach, reach + 1, dtype=torch.int32)
    coarse = torch.arange(1, 0x7F800001, 4099, dtype=torch.int32)
    return torch.cat([near.flatten(), coarse]).view(torch.float32)


def _look_up(scales: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Indexes of a flat list on the CPU kernel."""
    with use_backend("cpu"), torch.no_grad():
        return entropy_parameters(scales.view(1, 1, 1, -1), thresholds).flatten()


def _evc_rule(scales):  # the index rules in torch's float32 arithmetic
    step = (math.log(64.0) - math.log(0.11)) / 255
    return ((scales.clamp(min=1e-5).log() - math.log(0.11)) / step).clamp(0, 255).to(torch.int16)


def _laplace_rule(scales):
    step = (math.log(64.0) - math.log(0.01)) / 255
    return ((scales.clamp(min=1e-5).log() - math.log(0.01)) / step).clamp(0, 255).to(torch.int16)


def _rt_rule(scales):
    step = (math.log(16.0) - math.log(0.11)) / 127
    return ((scales.clamp(0.11, 16.0).log() - math.log(0.11)) * (1.0 / step)).to(torch.int16)


def _uf_rule(scales):  # in halves, constants and all
    low, steps = torch.tensor(-2.2073).half(), torch.tensor(127 / (2.7726 + 2.2073)).half()
    return ((scales.half().clamp(0.11, 16.0).log() - low) * steps).floor().to(torch.int16)


@pytest.mark.parametrize(
    ("thresholds", "rule"),
    [
        (evc_scale_thresholds(), _evc_rule),
        (laplace_scale_thresholds(), _laplace_rule),
        (rt_scale_thresholds(), _rt_rule),
        (uf_scale_thresholds(), _uf_rule),
    ],
    ids=["evc", "laplace", "rt", "uf"],
)
def test_thresholds_are_the_rule_of_the_family(thresholds, rule):
    count = len(thresholds)
    assert thresholds.shape == (int(rule(torch.tensor([1e6]))),)
    assert bool((thresholds[1:] > thresholds[:-1]).all())
    low = torch.full((count,), 1, dtype=torch.int64)
    high = torch.full((count,), 0x7F800000, dtype=torch.int64)
    wanted = torch.arange(1, count + 1)
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        reached = rule(middle.int().view(torch.float32)) >= wanted
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    assert torch.equal(low.int(), thresholds.view(torch.int32))
    scales = torch.cat([_neighbours(thresholds), torch.tensor([-1.0, -0.0, 0.0, 1e-40, math.inf])])
    assert torch.equal(_look_up(scales, thresholds), rule(scales))


def test_thresholds_of_half_models_are_the_rule_in_halves():
    halves = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16)
    thresholds = rt_scale_thresholds(torch.float16)
    assert torch.equal(_look_up(halves.float(), thresholds), _rt_rule(halves))
    assert not torch.equal(_look_up(halves.float(), rt_scale_thresholds()), _rt_rule(halves))
    assert torch.equal(thresholds.half().float(), thresholds)


@pytest.mark.parametrize("bound", [0.11, 0.5])
def test_thresholds_are_the_rule_of_compressai(bound):
    import_compressai()
    from compressai.entropy_models import GaussianConditional
    from compressai.models.google import get_scale_table

    theirs = GaussianConditional(get_scale_table().tolist(), scale_bound=bound)
    thresholds = scale_table_thresholds(theirs.scale_table, bound)
    scales = torch.cat([_neighbours(theirs.scale_table, 40), torch.tensor([-1.0, 0.0, math.inf, math.nan])])
    assert torch.equal(_look_up(scales, thresholds).int(), theirs.build_indexes(scales))


@pytest.mark.parametrize("sign", [0, -(2**31)])
def test_nan_scales_get_the_last_table(sign):
    payloads = (torch.tensor([0x7F800001, 0x7FC00000, 0x7FFFFFFF], dtype=torch.int64) + sign).int()
    scales = payloads.view(torch.float32)
    assert bool(scales.isnan().all())
    assert _look_up(scales, evc_scale_thresholds()).tolist() == [255] * 3
    assert _look_up(scales, torch.tensor([-1.0, 2.0])).tolist() == [2] * 3


@pytest.mark.parametrize("backend", ["cpu", TRITON])
def test_symbols_run_over_channels_then_rows(backend):
    """By hand: C = 4 in two halves, 2 x 2 positions; value = 100 * channel + 10 * row + column."""
    y = (100 * torch.arange(4).view(4, 1, 1) + 10 * torch.arange(2).view(2, 1) + torch.arange(2)).float()
    y = y[None].contiguous(memory_format=torch.channels_last)
    with use_backend(backend):
        even, odd = (quantize_latent(y, part=part).flatten().tolist() for part in PASSES["dual"])
        quarter = quantize_latent(y, part="quarter1").flatten().tolist()
    assert even == [0, 201, 210, 11, 100, 301, 310, 111]
    assert odd == [200, 1, 10, 211, 300, 101, 110, 311]
    assert quarter == [300, 201, 110, 11]


@pytest.mark.parametrize("backend", ["cpu", "reference", TRITON])
@pytest.mark.parametrize("passes", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1)])
def test_passes_restore_every_element_once(backend, passes, size):
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(2, 8, *size, generator=generator).to(memory_format=torch.channels_last) * 9
    means = torch.randn(2, 8, *size, generator=generator).to(memory_format=torch.channels_last)
    step = torch.rand(2, 8, *size, generator=generator).to(memory_format=torch.channels_last) + 0.5
    gain = torch.rand(8, generator=generator)
    y_hat = None
    with use_backend(backend), torch.no_grad():
        for part in passes:
            symbols = quantize_latent(y, means, step, part)
            last = part == passes[-1]
            y_hat = restore_latent(symbols, means, y_hat, step if last else None, gain if last else None, part)
    assert torch.equal(y_hat, ((y / step - means).round() + means) * step * gain.view(1, 8, 1, 1))


@pytest.mark.parametrize("backend", ["cpu", TRITON])
def test_restores_into_the_prior_and_in_place(backend):
    """EVC's decoder: the first pass lands in a channel slice of the prior's input, the second on top of the first."""
    generator = torch.Generator().manual_seed(4)
    means = torch.randn(1, 8, 5, 7, generator=generator).to(memory_format=torch.channels_last)
    first, second = (torch.randint(-9, 9, (1, 4, 5, 7), generator=generator).int() for _ in range(2))
    prior = torch.full((1, 20, 5, 7), math.nan).to(memory_format=torch.channels_last)
    with torch.no_grad(), use_backend(backend):
        expected = restore_latent(second, means, restore_latent(first, means, part="even"), part="odd")
        run = {part: bind(RESTORE_LATENT, first, means, part=part).run for part in PASSES["dual"]}
        y_hat = prior[:, 4:12]
        run["even"](first, means, out=y_hat)
        run["odd"](second, means, base=y_hat, out=y_hat)
    assert torch.equal(prior[:, 4:12], expected)
    assert bool(prior[:, :4].isnan().all()) and bool(prior[:, 12:].isnan().all())


@pytest.mark.parametrize("backend", ["cpu", TRITON])
def test_ties_round_to_even(backend):
    y = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, 8388609.0]).view(1, 1, 1, 8)
    with use_backend(backend):
        assert quantize_latent(y, limit=2**24).flatten().tolist() == [0, 2, 2, 0, -2, -2, 0, 8388609]


def test_gradient_of_restoring():
    symbols = torch.randint(-3, 4, (1, 2, 3, 2), dtype=torch.int32)
    values = [torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    gain = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda means, base, step, gain: restore_latent(symbols, means, base, step, gain, "odd"), (*values, gain)
    )


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_refuses_what_does_not_fit(backend):
    x = torch.zeros(1, 6, 4, 4).to(memory_format=torch.channels_last)
    table = torch.tensor([1.0, 2.0])
    with use_backend(backend):
        with pytest.raises(UsageError, match="part='both'"):
            entropy_parameters(x, table, "both")
        with pytest.raises(UsageError, match="multiple of 4"):
            entropy_parameters(x, table, "quarter0")
        with pytest.raises(UsageError, match="ascending"):
            entropy_parameters(x, torch.tensor([2.0, 1.0]), "all")
        with pytest.raises(UsageError, match="limit=16777217"):
            quantize_latent(x, limit=2**24 + 1)


def test_refuses_sizes_that_differ():
    x = torch.zeros(1, 6, 4, 4).to(memory_format=torch.channels_last)
    symbols = torch.zeros(1, 3, 4, 4, dtype=torch.int32)
    with use_backend("cpu"):
        with pytest.raises(UsageError, match="means"):
            quantize_latent(x, x[:, :, :3], part="even")
        with pytest.raises(UsageError, match="base"):
            restore_latent(symbols, x, x[:, :4], part="even")
        with pytest.raises(UsageError, match="gain"):
            restore_latent(symbols, x, gain=torch.ones(3), part="even")
        with pytest.raises(NoBackendError, match="int32"):
            restore_latent(symbols.long(), x, part="even")
        with pytest.raises(NoBackendError, match="channels innermost"):
            entropy_parameters(torch.zeros(1, 6, 4, 4), torch.ones(1))
    with pytest.raises(UsageError, match="out"):
        bind(ENTROPY_PARAMETERS, x, torch.ones(1)).run(x, out=torch.empty(1, 6, 4, 5, dtype=torch.int16))


def test_triton_refusals_say_why():
    def reasons(spec, *args, **kwargs):
        impl = next(impl for impl in spec.impls if impl.backend == "triton")
        return "; ".join(impl.rejects(**bind_arguments(spec, args, kwargs)))

    x, symbols = torch.zeros(1, 6, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.int32)
    assert "means.shape=[1, 6, 3, 4]" in reasons(QUANTIZE_LATENT, x, x[:, :, :3], part="even")
    assert "limit=-1" in reasons(QUANTIZE_LATENT, x, limit=-1)
    assert "symbols: torch.int64" in reasons(RESTORE_LATENT, symbols.long(), x, part="even")
    assert "base.shape=[1, 4, 4, 4]" in reasons(RESTORE_LATENT, symbols, x, x[:, :4], part="even")
    assert "gain.shape=[3]" in reasons(RESTORE_LATENT, symbols, x, gain=torch.ones(3), part="even")
