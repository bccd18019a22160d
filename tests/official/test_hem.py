"""DCVC-HEM against its published classes: the same weights, the same pictures and states, each other's streams."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.models import VideoCodec, create
from sparsecodec.models.foreign import from_foreign
from sparsecodec.runtime import compile_codec

FAMILY = "hem"
STEP, STEPS = 0.8, (1.1, 0.7)
FRAMES = 9  # a picture and eight predicted frames
KEYS = ("ref_frame", "ref_feature", "ref_y", "ref_mv_y")


class NoSimilarity(nn.Module):
    """In the place of MS-SSIM, which needs larger pictures."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(len(x))


@pytest.fixture(scope="module")
def ours(enlivened_hem: Callable[[VideoCodec], VideoCodec]) -> VideoCodec:
    torch.manual_seed(0)
    codec = VideoCodec(create("dcvc-hem-image"), create("dcvc-hem-video"))
    return enlivened_hem(codec.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def theirs(official, ours: VideoCodec) -> VideoCodec:
    codec = VideoCodec(official("models.image_model").IntraNoAR(), official("models.video_model").DMC())
    for model, other in ((codec.intra, ours.intra), (codec.inter, ours.inter)):
        model.load_state_dict(other.state_dict())
        model.ssim = NoSimilarity()
        model.update(force=True)
    return codec.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip(photo: Tensor) -> list[Tensor]:
    return [photo[:, :, t : t + 64, 2 * t : 2 * t + 128].contiguous() for t in range(FRAMES)]


def _first(frame: Tensor) -> dict[str, Tensor | None]:
    return {"ref_frame": frame, "ref_feature": None, "ref_y": None, "ref_mv_y": None}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of what differs."""
    return [key for key in KEYS if not torch.equal(a[key], b[key])]


def test_single_frames_are_computed_alike(ours: VideoCodec, theirs: VideoCodec, clip: list[Tensor]):
    out = ours.intra(clip[0], torch.tensor([STEP]))
    expected = theirs.intra(clip[0], STEP)
    assert torch.equal(out["x_hat"], expected["x_hat"].clamp(0, 1))
    for rate in ("bpp", "bpp_y", "bpp_z"):
        torch.testing.assert_close(out[rate], expected[rate], rtol=1e-5, atol=1e-5)
    assert expected["bpp_y"] > 1 and expected["bpp_z"] > 0.05


def test_predicted_frames_are_computed_alike(ours: VideoCodec, theirs: VideoCodec, clip: list[Tensor]):
    state, dpb = ours.inter.start(clip[0]), _first(clip[0])
    for x in clip[1:4]:
        out = ours.inter(x, state, torch.tensor([STEPS]))
        expected = theirs.inter(x, dpb, *STEPS)
        state = out["state"]
        dpb = {**expected["dpb"], "ref_frame": expected["dpb"]["ref_frame"].clamp(0, 1)}  # as their script does
        assert _equal(dict(zip(KEYS, state.fields, strict=True)), dpb) == []
        for rate in ("bpp", "bpp_y", "bpp_z", "bpp_mv_y", "bpp_mv_z"):
            torch.testing.assert_close(out[rate], expected[rate], rtol=1e-5, atol=1e-5)
        error = (out["warped"] - x).square().sum() / x[0, 0].numel()
        torch.testing.assert_close(error, expected["me_mse"][0], rtol=1e-5, atol=1e-6)


def test_streams_are_the_same_and_open_on_both_sides(ours: VideoCodec, theirs: VideoCodec, clip: list[Tensor]):
    coded, foreign = ours.intra.compress(clip[0], STEP), theirs.intra.compress(clip[0], STEP)
    assert coded["bit_stream"] == foreign["bit_stream"]
    x_hat = ours.intra.decompress(foreign["bit_stream"], 64, 128, STEP)["x_hat"]
    assert torch.equal(x_hat, theirs.intra.decompress(coded["bit_stream"], 64, 128, STEP)["x_hat"])
    assert torch.equal(x_hat, coded["x_hat"])

    sent = foreign_sent = read = foreign_read = _first(x_hat)
    for x in clip[1:]:
        coded, foreign = ours.inter.compress(x, sent, *STEPS), theirs.inter.compress(x, foreign_sent, *STEPS)
        sent, foreign_sent = coded["dbp"], foreign["dbp"]
        foreign_sent["ref_frame"] = foreign_sent["ref_frame"].clamp(0, 1)
        read = ours.inter.decompress(read, foreign["bit_stream"], 64, 128, *STEPS)["dpb"]
        foreign_read = theirs.inter.decompress(foreign_read, coded["bit_stream"], 64, 128, *STEPS)["dpb"]
        assert coded["bit_stream"] == foreign["bit_stream"]
        assert _equal(sent, foreign_sent) == _equal(read, foreign_sent) == _equal(foreign_read, sent) == []


def test_their_objects_become_ours(theirs: VideoCodec, clip: list[Tensor]):
    mine = from_foreign(theirs)
    foreign = theirs.inter.compress(clip[1], _first(clip[0]), *STEPS)
    coded = mine.inter.compress(clip[1], _first(clip[0]), *STEPS)
    assert coded["bit_stream"] == foreign["bit_stream"]
    assert mine.intra.compress(clip[0], STEP)["bit_stream"] == theirs.intra.compress(clip[0], STEP)["bit_stream"]
    helper = theirs.inter.gaussian_encoder.cdf_helper
    assert (mine.inter.tables()[0].cdf == helper.get_cdf_info()[0]).all()


def test_their_objects_compile_and_original_opens_their_streams(theirs: VideoCodec, clip: list[Tensor]):
    codec = compile_codec(theirs.inter, original=True)
    dpb = _first(clip[0])
    foreign = theirs.inter.compress(clip[1], dpb, *STEPS)
    read = codec.decompress(dpb, foreign["bit_stream"], 64, 128, *STEPS)["dpb"]
    foreign["dbp"]["ref_frame"] = foreign["dbp"]["ref_frame"].clamp(0, 1)
    assert _equal(read, foreign["dbp"]) == []


def test_files_are_the_same(ours: VideoCodec, theirs: VideoCodec, clip: list[Tensor], tmp_path):
    padded = [F.pad(x[:, :, :51, :101], (0, 27, 0, 13)) for x in clip[:3]]
    files = [tmp_path / "ours.bin", tmp_path / "theirs.bin"]
    pairs = list(zip((ours, theirs), files, strict=True))
    outs = [model.intra.encode_decode(padded[0], 0.806, str(file), 101, 51) for model, file in pairs]
    assert files[0].read_bytes() == files[1].read_bytes() and outs[0]["bit"] == outs[1]["bit"]
    dpbs = [_first(out["x_hat"]) for out in outs]
    for x in padded[1:]:
        outs = [
            model.inter.encode_decode(x, dpb, str(file), 101, 51, 1.104, 0.7)
            for (model, file), dpb in zip(pairs, dpbs, strict=True)
        ]
        dpbs = [out["dpb"] for out in outs]
        assert files[0].read_bytes() == files[1].read_bytes() and outs[0]["bit"] == outs[1]["bit"]
        assert _equal(*dpbs) == []
