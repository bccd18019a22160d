"""What is particular to the Triton kernels."""

from __future__ import annotations

import importlib

import pytest
import torch

from sparsecodec.errors import NoBackendError
from sparsecodec.ops import bind, conv2d_act, gdn, pointwise, specs, use_backend, why_unavailable
from sparsecodec.ops._registry import resolve

pytestmark = [
    pytest.mark.skipif(why_unavailable("triton") is not None, reason=str(why_unavailable("triton"))),
    pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # NumPy on infinite features
]


def _scatter(height: int = 3):
    torch.manual_seed(0)
    x, residual = (torch.randn(1, c, height, 5).to(memory_format=torch.channels_last) for c in (8, 100))
    kept = torch.randperm(100)[:30].int()
    return {"x": x, "weight": torch.randn(30, 8), "out_index": kept, "residual": residual}


def test_untouched_channels_are_the_residual_even_beside_infinite_features():
    arguments = _scatter()
    arguments["x"][0, 0, 0, 0] = float("inf")
    with use_backend("triton"):
        y = pointwise(**arguments)
    others = torch.ones(100, dtype=torch.bool)
    others[arguments["out_index"].long()] = False
    assert torch.equal(y[:, others], arguments["residual"][:, others])
    assert not y[:, ~others].isfinite().all()


@pytest.mark.parametrize("channels", [3, 16])
def test_infinite_features_beyond_the_window_do_not_matter(channels):
    """Zeros that pad the weights meet no features: with 3 channels a row of taps more would be read, with 16 none."""
    x = torch.ones(1, channels, 6, 6).to(memory_format=torch.channels_last)
    x[:, :, 3:] = float("inf")
    with use_backend("triton"):
        y = conv2d_act(x, torch.ones(4, channels, 3, 3))
    assert y[:, :, 0].isfinite().all() and not y[:, :, 1:].isfinite().any()


@pytest.mark.parametrize("scaled", [False, True])
def test_residual_may_be_the_output(scaled):
    """With a scale the channels that no sum is added to change too."""
    arguments = _scatter() | ({"scale": torch.rand(100)} if scaled else {})
    expected = pointwise(**arguments)
    with use_backend("triton"):
        bound = bind(specs()["pointwise"], **arguments)
    residual = arguments["residual"]
    assert bound.run(arguments["x"], residual, arguments.get("scale"), out=residual) is residual
    torch.testing.assert_close(residual, expected)


def test_residual_of_a_convolution_may_be_the_output():
    arguments = _scatter() | {"weight": torch.randn(30, 8, 3, 3), "padding": 1}
    expected = conv2d_act(**arguments)
    with use_backend("triton"):
        bound = bind(specs()["conv2d_act"], **arguments)
    residual = arguments["residual"]
    assert bound.run(arguments["x"], residual, out=residual) is residual
    torch.testing.assert_close(residual, expected)


def test_squares_may_exceed_the_range_of_half():
    torch.manual_seed(0)
    x = (torch.randn(1, 24, 5, 7) * 1000).half().to(memory_format=torch.channels_last)
    beta, gamma = torch.rand(24) + 0.1, torch.rand(24, 24) / 24
    with use_backend("triton"):
        y = gdn(x, beta, gamma)
    torch.testing.assert_close(y.float(), gdn(x.float(), beta, gamma), atol=0, rtol=2 * torch.finfo(torch.half).eps)


def test_a_sum_starts_at_its_bias_and_runs_over_taps_then_channels():
    """Nine ones are lost beside a large bias, one by one, as on the CPU; the sum of nine is not."""
    x = torch.ones(1, 16, 3, 3).to(memory_format=torch.channels_last)
    weight = torch.zeros(1, 16, 3, 3)
    weight[0, 0] = 1.0
    arguments = {"x": x, "weight": weight, "bias": torch.tensor([2.0**25])}
    with use_backend("triton"):
        y = conv2d_act(**arguments)
    assert y.item() == conv2d_act(**arguments).item() == 2.0**25


def test_refusals_say_why(monkeypatch):
    with use_backend("triton"), pytest.raises(NoBackendError, match="the interpreter takes 65536 elements"):
        pointwise(**_scatter(height=300))
    with use_backend("triton"), pytest.raises(NoBackendError, match="out_index with shuffle=2.*needs a residual"):
        pointwise(**_scatter(), shuffle=2)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(NoBackendError), use_backend("triton"):
        pointwise(**_scatter())


def test_the_compiler_is_told_what_lies_on_eights():
    """Else it may load vectors where the addresses do not allow it, or single elements where they do."""
    source = resolve("sparsecodec._triton._tile:source")
    x = torch.zeros(2, 24, 3, 5).to(memory_format=torch.channels_last)
    told = {"C_IN": 3, "stride_xn": 45, "stride_xh": 15, "stride_xw": 3, "VEC_IN": 8}
    assert source(x, 24) == told
    assert source(x[:, 8:], 16) == told | {"C_IN": 2}
    for slow, channels in ((x[:, 4:20], 16), (x, 20), (torch.zeros(1, 20, 3, 5)[:, :16], 16)):
        expected = (channels, slow.stride(0), slow.stride(2), slow.stride(3), 1)
        assert tuple(source(slow, channels).values()) == expected


def test_the_interpreter_never_replaces_a_native_kernel():
    assert bind(specs()["pointwise"], **_scatter()).backend == "cpu"


def _timed(op: str):
    """Arguments of `op` for which tiles would be timed; a residual is also the output."""
    torch.manual_seed(0)
    x, residual = (torch.randn(1, c, 5, 7).to(memory_format=torch.channels_last) for c in (24, 40))
    if op == "gdn":
        return {"x": x, "beta": torch.ones(24), "gamma": torch.rand(24, 24)}, None
    if op == "conv_transpose2d_act":
        return {"x": x, "weight": torch.randn(24, 40, 3, 3), "stride": 2}, None
    weight = torch.randn(40, 24) if op == "pointwise" else torch.randn(40, 24, 3, 3)
    return {"x": x, "weight": weight, "residual": residual} | ({} if op == "pointwise" else {"padding": 1}), residual


@pytest.mark.parametrize("op", ["pointwise", "conv2d_act", "conv_transpose2d_act", "gdn"])
def test_any_tile_gives_the_result_and_timing_leaves_the_output_alone(op, monkeypatch):
    arguments, residual = _timed(op)
    spec = specs()[op]
    expected = spec.reference(**arguments)
    module = importlib.import_module(f"sparsecodec._triton.{op}")
    offered = []
    for at in range(3):

        def choose(name, key, tiles, device, trial, at=at):
            if at == 0:
                run = trial()
                for tile in tiles:
                    run(tile)
                offered.extend(tiles)
            return tiles[at]

        monkeypatch.setattr(module, "choose", choose)
        with use_backend("triton"):
            run = bind(spec, **arguments).run
        out = None if residual is None else residual.clone(memory_format=torch.preserve_format)
        result = run(arguments["x"], out=out) if residual is None else run(arguments["x"], out, out=out)
        torch.testing.assert_close(result, expected)
    assert len(offered) >= 3
