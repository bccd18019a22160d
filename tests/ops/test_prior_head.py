"""What is particular to prior_head."""

from __future__ import annotations

import math

import pytest
import torch

from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.ops import (
    bind,
    depth_conv_block,
    entropy_parameters,
    evc_scale_thresholds,
    pointwise,
    prior_head,
    quantize_latent,
    restore_latent,
    use_backend,
)
from sparsecodec.ops._registry import bind_arguments
from sparsecodec.ops._spatial_prior import PARTS, groups_of, take_active
from sparsecodec.ops.prior_head import ORDERS, PRIOR_HEAD, prior_head_reference, split_parameters


def _arguments(n=1, k=70, c=24, h=9, w=13, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, k, h, w, generator=generator).to(memory_format=torch.channels_last)
    residual = torch.randn(n, 2 * c, h, w, generator=generator).to(memory_format=torch.channels_last)
    weight = torch.randn(2 * c, k, generator=generator) / k**0.5
    return {"x": x, "weight": weight, "bias": torch.randn(2 * c, generator=generator), "residual": residual}


@pytest.mark.parametrize("activation", ["none", "leaky_relu", "sigmoid_gate"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("part", PARTS)
def test_bits_are_those_of_the_ops_it_replaces(part, order, activation):
    """A stream written with one of them is read with the other; float32 products have one order on the CPU."""
    arguments, thresholds = _arguments(), evc_scale_thresholds()
    with torch.no_grad(), use_backend("cpu"):
        scales, means = split_parameters(pointwise(**arguments, activation=activation), part, order)
        expected = entropy_parameters(scales, thresholds, part)
        indexes, coded_means = prior_head(
            **arguments, thresholds=thresholds, part=part, order=order, activation=activation
        )
        some_skipped, _ = prior_head(
            **arguments, thresholds=thresholds, part=part, order=order, activation=activation, skip=0.3
        )
    assert torch.equal(indexes, expected)
    assert torch.equal(coded_means, take_active(means, part))
    assert coded_means.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(some_skipped, expected.masked_fill(take_active(scales, part) <= 0.3, -1))
    assert bool((some_skipped == -1).any()) and bool((some_skipped >= 0).any())


def test_bits_are_those_of_a_whole_block():
    """EVC's spatial prior ends in a block: its first half, its hidden layer and the head give the same stream."""
    generator = torch.Generator().manual_seed(2)
    c, hidden = 24, 80
    shapes = {"w1": (c, c), "b1": (c,), "dw": (c, 1, 3, 3), "db": (c,), "w2": (c, c), "b2": (c,)}
    shapes |= {"w3": (hidden, c), "b3": (hidden,), "w4": (c, hidden), "b4": (c,)}
    block = {name: torch.randn(shape, generator=generator) / 5 for name, shape in shapes.items()}
    nothing = {"w3": torch.empty(0, c), "b3": None, "w4": torch.empty(0, 0), "b4": None}
    nothing["out4_index"] = torch.empty(0, dtype=torch.int32)
    x = torch.randn(1, c, 9, 13, generator=generator).to(memory_format=torch.channels_last)
    thresholds, slopes, options = evc_scale_thresholds(), [0.01, 1.0, 1.0, 0.1, 0.1], {"part": "odd"}
    with torch.no_grad(), use_backend("cpu"):
        scales, means = split_parameters(depth_conv_block(x, **block, slopes=slopes), "odd", "by_group")
        u = depth_conv_block(x, **(block | nothing), slopes=slopes)
        inner = pointwise(u, block["w3"], block["b3"], activation="leaky_relu", slope=0.1)
        options |= {"order": "by_group", "activation": "leaky_relu", "slope": 0.1}
        indexes, coded_means = prior_head(inner, block["w4"], thresholds, block["b4"], u, **options)
        assert torch.equal(indexes, entropy_parameters(scales, thresholds, "odd"))
    assert torch.equal(coded_means, take_active(means, "odd"))


@pytest.mark.parametrize("part", ["even", "quarter2"])
def test_means_serve_every_group(part):
    """`quantize_latent` and `restore_latent` read the coded means as if all groups had them."""
    generator = torch.Generator().manual_seed(1)
    y = (torch.randn(1, 24, 9, 13, generator=generator) * 5).to(memory_format=torch.channels_last)
    arguments = _arguments()
    with torch.no_grad(), use_backend("cpu"):
        _, all_means = split_parameters(pointwise(**arguments), part, "scales_means")
        _, means = prior_head(**arguments, thresholds=evc_scale_thresholds(), part=part)
        everywhere = means.unsqueeze(1).expand(-1, groups_of(part), -1, -1, -1)
        symbols = quantize_latent(y, everywhere, part=part)
        assert torch.equal(symbols, quantize_latent(y, all_means, part=part))
        y_hat = restore_latent(symbols, everywhere, part=part)
        assert torch.equal(y_hat, restore_latent(symbols, all_means, part=part))


def test_coded_rows_by_hand():
    """C = 4 in two halves; x is 1 and row r of the weights is r, so the result names the rows that were used."""
    x = torch.ones(1, 1, 2, 2)
    weight, thresholds = torch.arange(8.0).view(8, 1), torch.arange(8) + 0.5
    rows = {"by_group": ([0, 1, 4, 5], [2, 3, 6, 7]), "scales_means": ([0, 1, 2, 3], [4, 5, 6, 7])}
    rows["means_scales"] = rows["scales_means"][::-1]
    for order, (scales, means) in rows.items():
        with use_backend("cpu"):
            found = prior_head(x, weight, thresholds, part="odd", order=order)
        for values, result in zip((scales, means), found, strict=True):
            first = [values[2], values[0], values[0], values[2]]  # odd: the other half on even squares
            assert result.flatten(2).tolist() == [[first, [value + 1 for value in first]]], order


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nan_scales_are_coded(backend):
    arguments = _arguments(c=2, k=3, h=1, w=2)
    arguments["x"][0, 0, 0, 1] = math.nan
    with torch.no_grad(), use_backend(backend):
        indexes, means = prior_head(**arguments, thresholds=evc_scale_thresholds(), skip=1e9)
    assert indexes.flatten(2).tolist() == [[[-1, 255], [-1, 255]]]
    assert means.isnan().flatten(2).tolist() == [[[False, True], [False, True]]]


def test_gradient_of_the_means():
    x = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    thresholds = evc_scale_thresholds()
    assert torch.autograd.gradcheck(lambda x, w: prior_head_reference(x, w, thresholds, part="odd")[1], (x, weight))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_refuses_what_does_not_fit(backend):
    arguments = {**_arguments(c=6), "thresholds": evc_scale_thresholds()}
    with torch.no_grad(), use_backend(backend):
        with pytest.raises(UsageError, match="order='reverse'"):
            prior_head(**arguments, order="reverse")
        with pytest.raises(UsageError, match="part='both'"):
            prior_head(**arguments, part="both")
        with pytest.raises(UsageError, match="activation='tanh'"):
            prior_head(**arguments, activation="tanh")
        with pytest.raises((UsageError, NoBackendError), match="12 rows .needs a multiple of 8"):
            prior_head(**arguments, part="quarter0")


@pytest.mark.parametrize("impl", PRIOR_HEAD.impls, ids=lambda impl: impl.backend)
def test_refusals_say_why(impl):
    arguments = {**_arguments(), "thresholds": evc_scale_thresholds()}
    wrong = {
        "weight.shape": {"weight": arguments["weight"][:, 1:]},
        "bias.shape": {"bias": arguments["bias"][1:]},
        "residual.shape": {"residual": arguments["residual"][:, :, 1:]},
        "channels innermost": {"x": arguments["x"].contiguous()},
        "float32": {"x": arguments["x"].half(), "residual": None},
    }
    for said, change in wrong.items():
        reasons = impl.rejects(**bind_arguments(PRIOR_HEAD, (), {**arguments, **change}))
        assert any(said in reason for reason in reasons), (said, reasons)


def test_triton_knows_its_orders_and_activations():
    impl = next(impl for impl in PRIOR_HEAD.impls if impl.backend == "triton")
    arguments = {**_arguments(), "thresholds": evc_scale_thresholds(), "order": "reverse", "activation": "tanh"}
    reasons = "; ".join(impl.rejects(**bind_arguments(PRIOR_HEAD, (), arguments)))
    assert "order='reverse'" in reasons and "activation='tanh'" in reasons


def test_writes_into_what_is_given():
    arguments = {**_arguments(), "thresholds": evc_scale_thresholds(), "part": "odd"}
    with torch.no_grad():
        expected = prior_head(**arguments)
        bound = bind(PRIOR_HEAD, **arguments)
        out = tuple(torch.empty_like(value) for value in expected)
        bound.run(arguments["x"], arguments["residual"], out=out)
        assert all(torch.equal(*pair) for pair in zip(out, expected, strict=True))
        with pytest.raises(UsageError, match=r"out\[0\]"):
            bound.run(arguments["x"], arguments["residual"], out=(out[0][:, 1:], out[1]))
        with pytest.raises(UsageError, match=r"out\[1\]"):
            bound.run(arguments["x"], arguments["residual"], out=(out[0], out[1][:, 1:]))
