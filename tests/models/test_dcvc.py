"""DCVC (2021): the published architecture and keys, and real bytes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec import BitstreamError, UsageError
from sparsecodec.models import DCVC, create
from sparsecodec.models.description import describe, from_description
from sparsecodec.nn.dcvc_layers import MaskedConv2d, PlainGDN

from ..lively import lively_dcvc

STRINGS = ("mv_y_string", "mv_z_string", "y_string", "z_string")


@pytest.fixture(scope="module")
def model() -> DCVC:
    torch.manual_seed(0)
    model = lively_dcvc(DCVC("tiny").eval().requires_grad_(False))
    model.auto_regressive.weight *= 3
    return model


@pytest.fixture(scope="module")
def clip(photo: Tensor) -> list[Tensor]:
    """A photo that moves by two pixels a frame."""
    return [photo[:, :, 3 * t : 3 * t + 64, 2 * t : 2 * t + 128].contiguous() for t in range(4)]


def test_keys_and_parameters_are_those_of_the_published_checkpoints():
    with torch.device("meta"):
        model = create("dcvc")
    state = model.state_dict()
    assert len(state) == 228
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 4) == 7.9444
    assert state["auto_regressive.mask"].numel() + state["auto_regressive_mv.mask"].numel() == 1280000
    for key, shape in {
        "opticFlow.moduleBasic.3.conv2.weight": (64, 32, 7, 7),
        "mvDecoder_part1.6.weight": (128, 2, 3, 3),
        "mvDecoder_part2.0.weight": (64, 5, 3, 3),
        "contextualEncoder.2.conv.2.weight": (64, 64, 3, 3),
        "contextualDecoder_part1.8.0.weight": (256, 64, 3, 3),
        "contextualDecoder_part2.1.conv2.weight": (64, 64, 3, 3),
        "mvpriorDecoder.4.weight": (96, 256, 3, 3),
        "entropy_parameters_mv.0.weight": (426, 512, 1, 1),
        "temporalPriorEncoder.1.gamma": (64, 64),
        "bitEstimator_z_mv.f4.h": (1, 64, 1, 1),
    }.items():
        assert tuple(state[key].shape) == shape, key


def test_is_described():
    model = create("dcvc-tiny").inter
    assert from_description(describe(model)).state_dict().keys() == model.state_dict().keys()
    with pytest.raises(UsageError, match="huge.*tiny"):
        DCVC("huge")


def test_loading_unwraps_masks_and_is_strict(model: DCVC):
    raw = {key: value.clone() for key, value in model.state_dict().items()}
    raw["auto_regressive.weight"][:, :, 2, 2:] = 7  # what a checkpoint holds that was never run
    loaded = DCVC("tiny")
    loaded.load_dict({"state_dict": {f"module.{key}": value for key, value in raw.items()}})
    assert torch.equal(loaded.auto_regressive.weight, model.auto_regressive.weight)
    del raw["mvEncoder.1.beta"]
    with pytest.raises(UsageError, match="mvEncoder.1.beta"):
        DCVC("tiny").load_state_dict(raw)


def test_masked_convolution_sees_what_precedes_only():
    layer = MaskedConv2d(2, 3, 5)
    x = torch.randn(1, 2, 7, 9).requires_grad_()
    layer(x)[0, :, 3, 4].sum().backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    expected = torch.zeros(7, 9, dtype=torch.bool)
    expected[1:3, 2:7] = True
    expected[3, 2:4] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_is_the_op(inverse: bool):
    from sparsecodec.ops import gdn

    layer = PlainGDN(6, inverse).double()
    with torch.no_grad():
        layer.gamma += torch.randn(6, 6) * 0.1  # some below the bound
        x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
        torch.testing.assert_close(
            layer(x), gdn(x, layer.beta_reparam(layer.beta), layer.gamma_reparam(layer.gamma), inverse)
        )


def test_forward_estimates_what_the_coder_needs(model: DCVC, clip: list[Tensor]):
    state = model.start(clip[0])
    out = model(clip[1], state)
    strings = model.compress(clip[0], clip[1])
    assert out["x_hat"].shape == clip[1].shape and torch.equal(out["state"].frame, out["x_hat"])
    for name in ("bpp_mv_y", "bpp_mv_z", "bpp_y", "bpp_z", "bpp"):
        # 96 bits per stream for the coder's state and padding to words; contexts differ in how they are rounded.
        assert abs(float(out[name]) - strings[name]) < 0.15 * strings[name] + 4 * 96 / (64 * 128), name


def test_two_tensors_are_the_published_call(model: DCVC, clip: list[Tensor]):
    """Frame before, frame; rates are numbers over all frames, and the picture is not clamped."""
    bright, x = (torch.cat(clip[t : t + 2]) * 1.4 - 0.2 for t in (0, 1))
    reference = bright.clamp(0, 1)
    out, expected = model(reference, x), model(x, model.start(reference))
    rates = {"bpp_mv_y", "bpp_mv_z", "bpp_y", "bpp_z", "bpp"}
    assert set(out) == rates | {"recon_image", "context"}
    for name in rates:
        assert out[name].shape == () and float(out[name]) == pytest.approx(float(expected[name].mean()))
    assert torch.equal(out["recon_image"].clamp(0, 1), expected["x_hat"])
    assert not torch.equal(out["recon_image"], expected["x_hat"])
    assert out["context"].shape == (2, model.widths.feature, 64, 128)
    assert not torch.equal(out["recon_image"], model(x, reference)["recon_image"])


def test_every_weight_is_trained(model: DCVC, clip: list[Tensor]):
    model = copy.deepcopy(model).requires_grad_(True).train()
    out = model(clip[1], model.start(clip[0]))
    (out["bpp"].mean() + F.mse_loss(out["x_hat"], clip[1])).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not without
    assert torch.equal(
        model.auto_regressive.weight.grad, model.auto_regressive.weight.grad * model.auto_regressive.mask
    )


def test_round_trip_over_frames(model: DCVC, clip: list[Tensor]):
    encoder = decoder = clip[0]
    for frame in clip[1:]:
        coded = model.compress(encoder, frame)
        decoded = model.decompress(decoder, *(coded[name] for name in STRINGS), 64, 128)
        encoder, decoder = coded["recon_image"], decoded
        assert torch.equal(encoder, decoder)
        assert len(coded["y_string"]) > 200 and len(coded["mv_y_string"]) > 200
    assert coded["bpp"] == sum(len(coded[name]) for name in STRINGS) * 8 / (64 * 128)


def test_round_trip_of_the_least_frame(model: DCVC, clip: list[Tensor]):
    x, reference = clip[1][..., :64], clip[0][..., :64]
    coded = model.compress(reference, x)
    decoded = model.decompress(reference, *(coded[name] for name in STRINGS), 64, 64)
    assert torch.equal(coded["recon_image"], decoded)


def test_files_are_the_published_ones(model: DCVC, clip: list[Tensor], tmp_path):
    coded = model.compress(clip[0], clip[1])
    out = model.encode_decode(clip[0], clip[1], tmp_path / "frame")
    sizes = [64, 128, *(len(coded[name]) for name in STRINGS)]
    expected = b"".join(size.to_bytes(4, "big") for size in sizes) + b"".join(coded[name] for name in STRINGS)
    assert (tmp_path / "frame").read_bytes() == expected
    assert torch.equal(out["recon_image"], coded["recon_image"]) and out["bpp_mv_y"] == coded["bpp_mv_y"]


def test_decoding_needs_the_frame_before(model: DCVC, clip: list[Tensor]):
    coded = model.compress(clip[0], clip[1])
    try:
        decoded = model.decompress(clip[2], *(coded[name] for name in STRINGS), 64, 128)
    except BitstreamError:
        return
    assert not torch.equal(decoded, coded["recon_image"])


def test_damage_is_noticed(model: DCVC, clip: list[Tensor]):
    coded = model.compress(clip[0], clip[1])
    for name in STRINGS:
        strings = {key: coded[key] for key in STRINGS}
        for damaged in (strings[name][:-4], strings[name] + bytes(4), strings[name][4:], b""):
            with pytest.raises(BitstreamError):
                model.decompress(clip[0], **strings | {name: damaged}, height=64, width=128)


def test_refuses_what_does_not_fit(model: DCVC, clip: list[Tensor]):
    x = clip[0]
    with pytest.raises(UsageError, match="60 x 128.*multiples of 64"):
        model(x[:, :, :60], model.start(x[:, :, :60]))
    with pytest.raises(UsageError, match="1, 3, 64, 64.*need.*1, 3, 64, 128"):
        model(x, model.start(x[..., :64]))
    with pytest.raises(UsageError, match="ref_frame: .*1, 3, 64, 64.*need.*1, 3, 64, 128"):
        model(x[..., :64], x)
    with pytest.raises(UsageError, match="60 x 128.*multiples of 64"):
        model(x, x[:, :, :60])
    for state in (model.start(x), x):
        with pytest.raises(UsageError, match="one rate"):
            model(x, state, 3)
    with pytest.raises(UsageError, match="batch of 2"):
        model.compress(x.repeat(2, 1, 1, 1), x.repeat(2, 1, 1, 1))
    with pytest.raises(UsageError, match="need.*1, 3, 64, 64"):
        model.decompress(x, b"", b"", b"", b"", 64, 64)
