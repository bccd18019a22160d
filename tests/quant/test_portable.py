"""Portable codecs: what is frozen and stored, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsecodec import zoo
from sparsecodec._compat import import_compressai
from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.ops import evc_scale_thresholds
from sparsecodec.quant import (
    W8A8,
    W8A16,
    W16A16,
    IntegerTables,
    Precision,
    freeze,
    is_portable,
    observe,
    portable,
    prove_no_overflow,
    quantize_layers,
    quantized_layers,
    set_scales,
)
from sparsecodec.quant.layers import quantized
from sparsecodec.quant.tables import NEVER, in_fixed_point
from sparsecodec.training.families import calibration_loss

NETWORKS = {"hyper_dec", "y_prior_fusion", "y_spatial_prior"}


@pytest.fixture(scope="module")
def made(sparse_codec, crops) -> nn.Module:
    return portable(sparse_codec, crops)


@pytest.fixture(scope="module")
def made_of_rates() -> nn.Module:
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    return portable(_variable_rate("ScaleHyperpriorVbr"), picture)


def _mean_scale() -> nn.Module:
    torch.manual_seed(0)
    model = import_compressai().models.MeanScaleHyperprior(16, 24).eval()
    with torch.no_grad():
        model.entropy_bottleneck.quantiles[:, 0, 1] += torch.linspace(-1, 1, 16)
    model.update()
    return model


def _variable_rate(name: str, **arguments: bool) -> nn.Module:
    torch.manual_seed(0)
    return getattr(import_compressai().models, name)(16, 24, **arguments).eval()


def test_every_entropy_layer_is_frozen_and_nothing_else(made, sparse_codec):
    layers = quantized_layers(made)
    assert {name.split(".")[0] for name in layers} == NETWORKS
    assert all(layer.frozen and layer.precision == W8A16 for layer in layers.values())
    convs = [n for n, m in sparse_codec.named_modules() if isinstance(m, nn.Conv2d) and n.split(".")[0] in NETWORKS]
    assert set(layers) == set(convs)
    assert is_portable(made) and not is_portable(sparse_codec)
    assert not quantized_layers(sparse_codec), "the model that was given changed"


def test_tables_are_those_of_the_float_codec(made, sparse_codec):
    _, z_tables = sparse_codec.tables()
    assert made.portable.tables().digest == z_tables.digest
    assert made.portable.tables().rows == made.latent_channels
    assert made.portable.z_medians.eq(0).all() and made.portable.thresholds.shape == (255,)


def test_costs_next_to_nothing(made, sparse_codec, other_crops, rd_loss):
    assert rd_loss(made, other_crops) < 1.004 * rd_loss(sparse_codec, other_crops)


@pytest.mark.parametrize("change", ["other scales", "not frozen"])
def test_layers_that_are_on_other_integers_are_refused(sparse_codec, crops, change):
    """Neither calibrated again nor taken as they are."""
    name = "y_prior_fusion.0.block.0.conv1.0"
    small = quantize_layers(sparse_codec, {name: Precision(8, 16, dyadic=change == "not frozen")})
    set_scales(small, observe(sparse_codec, [name], lambda codec: codec(crops, codec.q_scale[0])))
    if change == "other scales":
        small = freeze(small)
    with pytest.raises(UsageError, match=f"{name} is quantised, but not to frozen dyadic integers"):
        portable(small, crops)


def test_saves_and_loads(made, tmp_path):
    zoo.save(made, tmp_path / "made")
    loaded = zoo.load(tmp_path / "made")
    assert is_portable(loaded)
    assert model_hash(loaded) == model_hash(made)
    for name, value in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_codec_without_networks_saves_and_loads(tmp_path):
    torch.manual_seed(0)
    model = import_compressai().models.FactorizedPrior(8, 12).eval()
    made = portable(model)
    zoo.save(made, tmp_path / "made")
    loaded = zoo.load(tmp_path / "made")
    assert is_portable(loaded) and model_hash(loaded) == model_hash(made)
    assert loaded.portable.tables().rows == 12


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.portable.z_cdf[0, 1].add_(1),
        lambda model: model.portable.thresholds[7].sub_(1),
        lambda model: next(iter(quantized_layers(model).values())).weight[0, 0].add_(1),
        lambda model: next(iter(quantized_layers(model).values())).input_scale.mul_(2),
    ],
    ids=["table", "threshold", "weight", "scale"],
)
def test_every_integer_is_in_the_hash(made, change):
    other = copy.deepcopy(made)
    change(other)
    assert model_hash(other) != model_hash(made)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("z_cdf", torch.zeros(96, 5, dtype=torch.int32), r"lengths\[0\]"),
        ("z_medians", torch.zeros(3, dtype=torch.int32), "3 values for 96 rows"),
        ("thresholds", torch.tensor([2, 1], dtype=torch.int32), "not ascending"),
        ("thresholds", torch.zeros(255), "float32"),
    ],
)
def test_refuses_stored_tables_that_are_none(made, name, value, reason):
    state = {**made.state_dict(), f"portable.{name}": value}
    with pytest.raises((UsageError, RuntimeError), match=reason):
        copy.deepcopy(made).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda stored: stored[3], r"\(63,\) torch.int32"),
        (lambda stored: stored[:7], "7 rows for 8 rates"),
        (lambda stored: stored[[0, 1, 2, 3, 3, 4, 5, 6, 7]], "9 rows for 8 rates"),
        (lambda stored: torch.cat([stored[:5], stored[5:6].flip(1), stored[6:]]), "not ascending"),
    ],
    ids=["one row", "too few", "too many", "descending"],
)
def test_refuses_stored_thresholds_that_are_not_of_each_rate(made_of_rates, change, reason):
    state = made_of_rates.state_dict()
    state["portable.thresholds"] = change(state["portable.thresholds"])
    with pytest.raises(RuntimeError, match=reason):
        copy.deepcopy(made_of_rates).load_state_dict(state)


def test_thresholds_of_a_rate_saturate(made_of_rates):
    """A gain so small that no fixed-point scale is above: the first table, as in floats."""
    model = _variable_rate("ScaleHyperpriorVbr")
    with torch.no_grad():
        model.Gain[0] = 1e-6
    made = portable(model, torch.rand(1, 3, 64, 64))
    assert made.portable.thresholds[0].tolist() == [2**31 - 1] * 63
    assert torch.equal(made.portable.thresholds[1:], made_of_rates.portable.thresholds[1:])


def test_calibrates_codecs_without_offsets():
    """CompressAI's own forward at a rate fails for them: it has no `quantizer`."""
    model = _variable_rate("MeanScaleHyperpriorVbr")
    model.no_quantoffset = True
    assert is_portable(portable(model, torch.rand(1, 3, 64, 64)))


def test_one_calibration_serves_all_rates(made_of_rates):
    """The networks read nothing that a gain moves."""
    model = _variable_rate("ScaleHyperpriorVbr")
    with torch.no_grad():
        model.Gain *= 0.37
    made = portable(model, torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)))
    for name, layer in quantized_layers(made_of_rates).items():
        for key, value in layer.state_dict().items():
            assert torch.equal(value, quantized_layers(made)[name].state_dict()[key]), f"{name}.{key}"


@pytest.mark.parametrize("precision", [W8A8, W8A16, W16A16], ids=["W8A8", "W8A16", "W16A16"])
def test_no_accumulator_overflows_for_any_input(precision):
    model = _mean_scale()
    with torch.no_grad():
        model.h_s[4].weight.copy_(torch.ones_like(model.h_s[4].weight))  # the largest sum that a layer can have
    made = portable(model, torch.rand(1, 3, 64, 64), precision)
    for name, layer in quantized_layers(made).items():
        bias = 0 if layer.bias is None else layer.bias.long().abs()
        sums = layer.weight.long().abs().movedim(layer.OUT_DIM, 0).flatten(1).sum(1)
        assert layer.weight.dtype == (torch.int16 if precision is W16A16 else torch.int8)
        largest = 255 if precision is W8A8 else 2**15
        assert int((bias + largest * sums).max()) < 2**31, name
    assert max(prove_no_overflow(made).values()) < 2**31


@pytest.mark.parametrize("precision", [W8A16, W16A16], ids=["W8A16", "W16A16"])
def test_a_wide_layer_leaves_room_for_int16_inputs(precision):
    conv = nn.Conv2d(600, 2, 1)
    nn.init.ones_(conv.weight)
    layer = quantized(conv, precision)
    layer.set_input_range(-1, 1)
    layer.freeze()
    assert int((layer.bias.long().abs() + 2**15 * layer.weight.long().sum((1, 2, 3))).max()) < 2**31


def test_bytes_are_read_where_they_cost_little(crops, sparse_codec):
    """By a third of the layers at least, never by depthwise ones; the stored ends of their ranges say so."""
    x = crops[0][None, :, :64, :64]
    cheap = portable(sparse_codec, x, threshold=1e-3)
    layers = quantized_layers(cheap)
    bits = {name: layer.activation_bits for name, layer in layers.items()}
    assert set(bits.values()) == {8, 16} and sum(b == 8 for b in bits.values()) > len(bits) / 3
    assert all(bits[name] == 16 for name, layer in layers.items() if layer.groups > 1)
    assert all((-255 <= int(layer.input_low) <= 0) == (bits[name] == 8) for name, layer in layers.items())
    assert calibration_loss(cheap, x) < 1.02 * calibration_loss(sparse_codec, x)


@pytest.mark.parametrize(
    "options",
    [{"threshold": float("nan")}, {"threshold": 1e-3, "precision": W8A8}, {"threshold": 1e-3, "precision": W16A16}],
    ids=str,
)
def test_refuses_a_threshold_that_says_nothing(sparse_codec, crops, options):
    with pytest.raises(UsageError, match="threshold="):
        portable(sparse_codec, crops[:1], **options)


def test_sixteen_bit_weights_are_finer(crops, sparse_codec, made):
    """Where an accumulator has room for them."""
    fine = quantized_layers(portable(sparse_codec, crops[:2], W16A16))
    coarse = quantized_layers(made)
    finer = [bool((fine[name].weight_scale < coarse[name].weight_scale / 2).any()) for name in fine]
    assert all(finer)


def test_a_portable_codec_needs_no_pictures_again(made, tmp_path):
    again = portable(made)
    assert model_hash(again) == model_hash(made)


def test_dyadic_layers_stay_and_get_tables():
    model = zoo.load("evc-tiny-sparse-int8")
    assert is_portable(model)
    del model.portable
    made = portable(model)
    assert is_portable(made) and not is_portable(model)
    for name, layer in quantized_layers(model).items():
        assert torch.equal(layer.weight, quantized_layers(made)[name].weight)


def test_compressai_gets_its_medians_and_thresholds():
    model = _mean_scale()
    made = portable(model, torch.rand(1, 3, 64, 64))
    medians = model.entropy_bottleneck.quantiles[:, 0, 1]
    assert (made.portable.z_medians / 65536 - medians).abs().max() < 2**-16
    assert made.portable.thresholds.shape == (63,)
    assert made.portable.z_lengths.tolist() == model.entropy_bottleneck._cdf_length.tolist()


def test_thresholds_decide_as_the_float_ones_do():
    """A fixed-point scale is above the integer if and only if it is above the float."""
    floats = evc_scale_thresholds()
    integers = in_fixed_point(floats)
    assert bool((integers.diff() > 0).all())
    scales = torch.cat([integers - 1, integers, integers + 1])
    below_integer = (integers[None].long() < scales[:, None].long()).sum(1)
    below_float = (floats.double()[None] * 65536 < scales.double()[:, None]).sum(1)
    assert torch.equal(below_integer, below_float)
    assert in_fixed_point(torch.tensor([float("-inf")])).tolist() == [NEVER]


def test_an_empty_table_module_is_no_table():
    with pytest.raises(UsageError):
        IntegerTables().tables()


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (None, "calibration images"),
        ([], "no image"),
        (torch.rand(3, 3, 64), r"shape \(1, 3, 3, 64\)|64 x 64"),
        (torch.rand(1, 4, 64, 64), "shape"),
        (torch.rand(1, 3, 63, 64), "63 x 64"),
        (torch.full((1, 3, 64, 64), 2.0), r"\[2, 2\]"),
        (torch.full((1, 3, 64, 64), float("nan")), "no NaN"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8"),
        ([torch.rand(1, 3, 64, 64), "photo.png"], "image 1: str"),
    ],
)
def test_refuses_images(codec, images, reason):
    with pytest.raises(UsageError, match=reason):
        portable(codec, images)


def test_refuses_weights_that_are_not_finite(codec, crops):
    broken = copy.deepcopy(codec)
    with torch.no_grad():
        broken.hyper_dec[0].block[2].bias[3] = float("nan")
    with pytest.raises(UsageError, match=r"hyper_dec.0.block.2.bias is not finite"):
        portable(broken, crops)


def test_refuses_autoregressive_codecs(crops):
    model = import_compressai().models.JointAutoregressiveHierarchicalPriors(16, 24)
    with pytest.raises(UsageError, match="stream='native'"):
        portable(model, crops)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ScaleHyperpriorVbr", {"vr_entbttlnck": True}),
        ("MeanScaleHyperpriorVbr", {"vr_entbttlnck": True}),
        ("JointAutoregressiveHierarchicalPriorsVbr", {}),
    ],
)
def test_refuses_variable_rate_codecs_before_it_calibrates(name, arguments):
    reason = "step of its hyper-latent" if arguments else "position by position"
    with pytest.raises(UsageError, match=rf"^{name} .*{reason}.* no portable stream \(use stream='native'\)"):
        portable(_variable_rate(name, **arguments))  # without the images that calibration would need


def test_refuses_a_gain_of_zero_and_exact_pictures_before_it_calibrates():
    model = _variable_rate("MeanScaleHyperpriorVbr")
    with pytest.raises(UsageError, match="no form with exact pictures"):
        portable(model, exact=True)
    with torch.no_grad():
        model.Gain[3] = 0
    with pytest.raises(UsageError, match=r"^MeanScaleHyperpriorVbr: Gain=.* 0\.0, .*not 0"):
        portable(model)


def test_refuses_foreign_models(crops):
    with pytest.raises(UsageError, match="no portable stream"):
        portable(nn.Linear(2, 2), crops)


@pytest.mark.parametrize("name", ["dcvc-hem-tiny", "dcvc-rt-tiny"])
def test_refuses_image_codecs_of_clips_whose_networks_are_named_as_in_evc(name, crops):
    with pytest.raises(UsageError, match="no portable stream"):
        portable(create(name).intra, crops)


def test_refuses_plain_precisions(codec, crops):
    with pytest.raises(UsageError, match="dyadic"):
        portable(codec, crops, Precision(8, 8))
    with pytest.raises(UsageError, match="needs a Precision"):
        portable(codec, crops, "W8A8")
    with pytest.raises(UsageError, match="weight_bits=16"):
        Precision(16, 16)
