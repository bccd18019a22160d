"""DCVC (2021): our model against the published class, on the same weights, in float32 on one machine."""

from __future__ import annotations

import pytest
import torch

from sparsecodec.models import DCVC
from sparsecodec.models.foreign import from_foreign, is_foreign
from sparsecodec.runtime import compile_codec

FAMILY = "dcvc"
STRINGS = ("mv_y_string", "mv_z_string", "y_string", "z_string")
SIZE = (64, 128)


@pytest.fixture(scope="module")
def theirs(official):
    """Their model, untrained, with latents that are worth coding."""
    torch.manual_seed(0)
    model = official("models.DCVC_net").DCVC_net().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.weight *= 1.5
    for parameters in (model.entropy_parameters, model.entropy_parameters_mv):
        parameters[-1].bias[len(parameters[-1].bias) // 2 :] += 1
    for context in (model.auto_regressive, model.auto_regressive_mv):
        context.weight *= context.mask  # which they do when it is called, but not when coding
    model.update(force=True)
    return model


@pytest.fixture(scope="module")
def clip(photo):
    return [photo[:, :, 3 * t : 3 * t + SIZE[0], 2 * t : 2 * t + SIZE[1]].contiguous() for t in range(4)]


def test_their_object_is_recognised_by_its_keys(theirs):
    ours = from_foreign(theirs)
    assert is_foreign(theirs) and type(ours) is DCVC and ours.widths == DCVC().widths
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_the_estimate_is_theirs(theirs, clip):
    ours = from_foreign(theirs)
    with torch.no_grad():
        expected, got = theirs(clip[0], clip[1]), ours(clip[1], ours.start(clip[0]))
        same_call = ours(clip[0], clip[1])
    assert torch.equal(got["x_hat"], expected["recon_image"].clamp(0, 1))
    for name in ("bpp_mv_y", "bpp_mv_z", "bpp_y", "bpp_z", "bpp"):
        torch.testing.assert_close(got[name], expected[name].view(1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(same_call[name], expected[name], rtol=1e-5, atol=1e-6)
    assert same_call.keys() == expected.keys()
    assert all(torch.equal(same_call[name], expected[name]) for name in ("recon_image", "context"))


def test_a_compiled_object_estimates_as_theirs(theirs, clip):
    compiled = compile_codec(theirs, dtype=torch.float32)
    with torch.no_grad():
        expected, got = theirs(clip[0], clip[1]), compiled(clip[0], clip[1])
    assert (got["recon_image"] - expected["recon_image"]).abs().mean() < 1e-3
    for name in ("bpp_mv_y", "bpp_mv_z", "bpp_y", "bpp_z", "bpp"):
        assert got[name].item() == pytest.approx(expected[name].item(), rel=1e-2), name


@pytest.mark.parametrize("kind", ["plain", "native"])
def test_streams_open_both_ways_over_frames(theirs, clip, kind):
    """Same bytes, same pictures; each side decodes what the other wrote. Native: position by position in one call."""
    ours = from_foreign(theirs)
    if kind == "native":
        ours = compile_codec(ours, original=True)
        if not all(coder.native for coder in ours.coder().coders.values()):
            pytest.skip("torch adds otherwise here than the native rows: the model's own layers would code")
    reference = clip[0]
    for frame in clip[1:]:
        with torch.no_grad():
            written = theirs.compress(reference, frame)
        mine = ours.compress(reference, frame)
        assert [mine[name] for name in STRINGS] == [written[name] for name in STRINGS]
        assert all(mine[f"bpp{part}"] == written[f"bpp{part}"] for part in ("", "_mv_y", "_mv_z", "_y", "_z"))
        decoded = ours.decompress(reference, *(written[name] for name in STRINGS), *SIZE)
        with torch.no_grad():
            expected = theirs.decompress(reference, *(mine[name] for name in STRINGS), *SIZE)
        assert torch.equal(decoded, expected) and torch.equal(mine["recon_image"], expected)
        assert len(written["y_string"]) > 300
        reference = expected


def test_a_pruned_object_is_recognised(official, theirs, clip):
    """Ten channels less between two layers: the widths are read off the weights."""
    pruned = official("models.DCVC_net").DCVC_net().eval().requires_grad_(False)
    pruned.load_dict(theirs.state_dict())
    pruned.update(force=True)
    first, second = pruned.entropy_parameters[0], pruned.entropy_parameters[2]
    first.weight = torch.nn.Parameter(first.weight[:310].clone(), False)
    first.bias = torch.nn.Parameter(first.bias[:310].clone(), False)
    second.weight = torch.nn.Parameter(second.weight[:, :310].clone(), False)
    ours = from_foreign(pruned)
    assert ours.entropy_parameters[0].out_channels == 310
    with torch.no_grad():
        written = pruned.compress(clip[0], clip[1])
    assert ours.compress(clip[0], clip[1])["y_string"] == written["y_string"]
