"""Quantised codecs: rebuilding, coding, and what stays float."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from sparsecodec import GraphError, UsageError, compile_codec
from sparsecodec._compat import import_compressai
from sparsecodec.models import create
from sparsecodec.quant import (
    Precision,
    QuantConv2d,
    apply_quantization,
    find_layers,
    freeze,
    observe,
    prove_no_overflow,
    quantization_config,
    quantize_layers,
    quantized_layers,
    set_scales,
    stored_bytes,
)
from sparsecodec.runtime.lowering import lower
from sparsecodec.sparsity import ChannelMasks, apply_compact_config, compact, compact_config, count, trace_model
from sparsecodec.sparsity.scatter import ScatterConv2d

TRANSFORMS = ("enc", "dec")
ENTROPY = ("hyper_dec", "y_prior_fusion", "y_spatial_prior")


def quantised(model, run, transforms=TRANSFORMS, precision=None) -> nn.Module:
    names, _ = find_layers(model, transforms)
    dyadic = Precision(8, 16, dyadic=True)
    bits = {name: precision or (dyadic if name.startswith(ENTROPY) else Precision()) for name in names}
    small = quantize_layers(model, bits)
    set_scales(small, observe(model, names, run))
    return small.eval()


def coded(model, x) -> None:
    with torch.no_grad():
        model(x, 1.0)


@pytest.fixture(scope="module")
def small(sparse_codec, crops):
    """The shipped compact codec with every convolution on integers, frozen."""
    return freeze(quantised(sparse_codec, lambda model: coded(model, crops), ("enc", "hyper_enc", *ENTROPY, "dec")))


def test_all_layers_of_a_compact_codec_are_found(sparse_codec):
    names, left = find_layers(sparse_codec, ["dec"])
    convolutions = [name for name, module in sparse_codec.dec.named_modules() if isinstance(module, nn.Conv2d)]
    assert names == [f"dec.{name}" for name in convolutions] and not left
    assert any(name.endswith("conv2.0.conv") for name in names), "the layers that scatter are among them"


def test_state_dict_round_trip_is_exact_and_small(small, sparse_codec, crops):
    config = json.loads(json.dumps(small.quantization))
    rebuilt = apply_quantization(apply_compact_config(create("evc-tiny"), sparse_codec.compact_config), config)
    rebuilt.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(crops, 1.0)["x_hat"], small(crops, 1.0)["x_hat"])
        assert torch.equal(rebuilt(crops, 1.0)["bpp"], small(crops, 1.0)["bpp"])
    weights = sum(layer.weight.numel() for layer in quantized_layers(small).values())
    assert {layer.weight.dtype for layer in quantized_layers(small).values()} == {torch.int8}
    assert stored_bytes(sparse_codec) - stored_bytes(small) > 2.8 * weights


def test_four_bits_take_half_a_byte(codec, crops):
    whole = freeze(quantised(codec, lambda model: coded(model, crops), ["dec"], Precision(8, 8)))
    half = freeze(quantised(codec, lambda model: coded(model, crops), ["dec"], Precision(4, 8)))
    weights = sum(layer.weight.numel() for layer in quantized_layers(half).values())
    assert stored_bytes(whole) - stored_bytes(half) == pytest.approx(weights / 2, abs=100)
    rebuilt = apply_quantization(codec, half.quantization)
    rebuilt.load_state_dict(half.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(crops, 1.0)["x_hat"], half(crops, 1.0)["x_hat"])


def test_the_given_model_is_not_modified(codec, crops):
    before = copy.deepcopy(codec.state_dict())
    small = quantised(codec, lambda model: coded(model, crops))
    trainable = copy.deepcopy(small.state_dict())
    freeze(small)
    assert all(torch.equal(value, before[key]) for key, value in codec.state_dict().items())
    assert small.state_dict().keys() == trainable.keys()
    assert not any(isinstance(module, QuantConv2d) for module in codec.modules())


def test_no_accumulator_can_overflow(small):
    bounds = prove_no_overflow(small)
    assert bounds.keys() == quantized_layers(small).keys()
    assert 2**24 < max(bounds.values()) < 2**31
    with pytest.raises(GraphError, match="24 bits hold 8388607"):
        prove_no_overflow(small, bits=24)


def test_overflowing_weights_are_refused_on_loading(small, sparse_codec):
    state = dict(small.state_dict())
    key = "dec.0.block.0.conv1.0.bias"
    state[key] = torch.full_like(state[key], 2**31 - 1)
    with pytest.raises(UsageError, match="can overflow"):
        copy.deepcopy(small).load_state_dict(state)
    state = dict(small.state_dict()) | {"dec.7.0.input_scale": torch.tensor(float("nan"))}
    with pytest.raises(UsageError, match="dec.7.0.*positive and finite"):
        copy.deepcopy(small).load_state_dict(state)
    for low in (1, -256):
        state = dict(small.state_dict()) | {"dec.7.0.input_low": torch.tensor(low, dtype=torch.int32)}
        with pytest.raises(UsageError, match=f"dec.7.0.input_low is {low}"):
            copy.deepcopy(small).load_state_dict(state)
    state = dict(small.state_dict()) | {"dec.7.0.weight": small.dec[7][0].weight.float()}
    with pytest.raises(UsageError, match="dec.7.0.weight is torch.float32"):
        copy.deepcopy(small).load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_codec_computes_the_same_bits(small, crops, dtype):
    """Also where the transforms would run in bfloat16: between integer layers that would move integers."""
    codec = compile_codec(small, dtype=dtype)
    x = crops[:1]
    ours, theirs = codec.compress(x, 1.0), small.compress(x, 1.0)
    assert ours["bit_stream"] == theirs["bit_stream"]
    assert torch.equal(ours["x_hat"], theirs["x_hat"])
    assert torch.equal(codec.decode(codec.encode(x, 50)), codec.decode(codec.encode(x, 50)))


def test_report_names_integer_layers_and_no_kernel_took_them(small):
    rows = {
        path: row for row in compile_codec(small, sample=torch.zeros(1, 3, 16, 16)).report.rows for path in row.paths
    }
    for name in quantized_layers(small):
        row = rows[name.removesuffix(".conv") if name not in rows else name]
        assert row.backend == "torch" and "inputs: integers" in row.reason and row.macs > 0


def test_convolutions_of_other_classes_are_not_taken_for_plain_ones_where_they_scatter():
    """Their forward may be another, as a masked convolution's: only their own forward knows."""

    class Halved(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) / 2

    scatter = ScatterConv2d(Halved(4, 2, 1), torch.tensor([0, 3]), 4)
    (step,) = lower(nn.Sequential(scatter), "dec").steps[1:]
    assert step.function is scatter and step.reason == "ScatterConv2d has no rule"


def test_trainable_layers_compile_as_well(codec, crops):
    trainable = quantised(codec, lambda model: coded(model, crops), ["dec"])
    compiled = compile_codec(trainable, dtype=torch.float32).compress(crops[:1], 1.0)
    x_hat = trainable.decompress(compiled["bit_stream"], 64, 64, 1.0)["x_hat"]
    assert torch.equal(compiled["x_hat"], x_hat)


def test_quantised_entropy_networks_code_alike_on_one_and_two_threads(small, photo):
    payloads = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            payloads.append(small.compress(photo[:, :, :64, :128], 0.7)["bit_stream"])
        finally:
            torch.set_num_threads(1)
    assert payloads[0] == payloads[1]


def test_macs_are_counted_as_before(small, sparse_codec):
    shapes = {"dec": (1, 96, 4, 4), "y_prior_fusion": (1, 96, 4, 4)}
    names = {layer.name: layer.macs for layer in count(sparse_codec, shapes).layers}
    assert {layer.name: layer.macs for layer in count(small, shapes).layers} == names


def test_masked_and_compacted_models_quantise_alike(codec, crops):
    """Dropping channels that are zero changes no integer: the scales do not see them."""
    graph = trace_model(codec, ["dec"])
    masks = ChannelMasks.random(graph, sparsity=0.4, seed=0, round_to=8)
    compacted = compact(codec, masks, graph)
    small = freeze(quantised(compacted, lambda model: coded(model, crops)))
    assert torch.isfinite(small(crops, 1.0)["x_hat"]).all()
    rebuilt = apply_quantization(
        apply_compact_config(create("evc-tiny"), compact_config(masks, graph)), small.quantization
    )
    rebuilt.load_state_dict(small.state_dict())
    with torch.no_grad():
        error = (small(crops, 1.0)["x_hat"] - compacted(crops, 1.0)["x_hat"]).abs().mean()
    assert 0 < error < 0.02


@pytest.mark.parametrize("name", ["MeanScaleHyperprior", "JointAutoregressiveHierarchicalPriors", "Cheng2020Anchor"])
def test_compressai_models_keep_what_has_no_rule_and_say_so(name, photo):
    torch.manual_seed(0)
    model = getattr(import_compressai().models, name)(*((16,) if "Cheng" in name else (16, 24))).eval()
    model.update()
    paths = [path for path, _ in model.named_children() if path not in ("entropy_bottleneck", "gaussian_conditional")]
    names, left = find_layers(model, paths)
    assert "GDN has no integer rule" in left.values()
    assert ("MaskedConv2d has no integer rule" in left.values()) == ("context_prediction" in paths)
    x = photo[:, :, :64, :64]
    small = quantize_layers(model, dict.fromkeys(names, Precision()))
    with torch.no_grad():
        set_scales(small, observe(model, [n for n in names], lambda m: m(x)))
        small = freeze(small)
        out, reference = small(x)["x_hat"], model(x)["x_hat"]
    assert 0 < (out - reference).abs().mean() < 0.1 * reference.abs().mean() + 0.02
    strings = small.compress(x)
    codec = compile_codec(small, dtype=torch.float32)
    assert torch.equal(codec.decompress(**strings)["x_hat"], codec.decompress(**codec.compress(x))["x_hat"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "format None"),
        ({"format": 2, "layers": {}}, "format 2"),
        ({"format": 1, "layers": {}}, "its layers"),
        ({"format": 1, "layers": {"dec.7.0": 8}}, "no table of bits"),
        ({"format": 1, "layers": {"dec.7.0": {"weight_bits": 3}}}, "weight_bits=3"),
        ({"format": 1, "layers": {"dec.7.0": {"activation_bits": 8.0}}}, "activation_bits=8.0"),
        ({"format": 1, "layers": {"dec.7.0": {"dyadic": "no"}}}, "dyadic='no'"),
        ({"format": 1, "layers": {"dec.7.0": {"colour": 3}}}, "colour"),
        ({"format": 1, "layers": {"dec.99": {}}}, "no module 'dec.99'"),
        ({"format": 1, "layers": {"dec.7.1": {}}}, "dec.7.1 cannot be quantised: PixelShuffle"),
    ],
    ids=str,
)
def test_wrong_configuration_is_an_error_of_ours(codec, config, message):
    with pytest.raises((UsageError, GraphError), match=message):
        apply_quantization(codec, config)


def test_targets_without_layers_are_named(codec):
    with pytest.raises(GraphError, match="bit_estimator_z: nothing to quantise"):
        find_layers(codec, ["bit_estimator_z"])
    with pytest.raises(GraphError, match="no module 'g_s'"):
        find_layers(codec, ["g_s"])
    with pytest.raises(UsageError, match="no quantised layer"):
        quantization_config(codec)
