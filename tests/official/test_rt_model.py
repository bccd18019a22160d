"""DCVC-RT: our models against the published classes, on the same weights, in float32 on one machine."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsecodec.models import DCVCRTImage, DCVCRTVideo, VideoCodec
from sparsecodec.models.dcvc_rt import SHIFT_OF_FRAME
from sparsecodec.models.foreign import from_foreign, is_foreign

FAMILY = "rt"
SKIP = 0.12
QP = 30
FRAMES = 8


@pytest.fixture(scope="module")
def theirs(official):
    """Their two models, untrained, with latents that are worth coding and qualities that differ."""
    torch.manual_seed(0)
    intra = official("models.image_model").DMCI().eval().requires_grad_(False)
    inter = official("models.video_model").DMC().eval().requires_grad_(False)
    for module in (
        intra.enc.enc_2[-1],
        inter.encoder.down,
        intra.hyper_enc[0].ffn[2],
        inter.hyper_encoder.conv[0].ffn[2],
    ):
        module.weight *= 4
    for bias, first, n in (
        (intra.y_prior_fusion[-1].bias, 2, 256),
        (intra.y_spatial_prior[-1].bias, 0, 256),
        (inter.y_prior_fusion.conv[-1].bias, 128, 128),
        (inter.y_spatial_prior.conv[-1].bias, 0, 128),
    ):
        bias[first : first + n] += torch.linspace(-0.2, 1.5, n)
    for model in (intra, inter):
        for name, value in model.named_parameters():
            if name.startswith("q_"):
                value *= 1 + 0.2 * torch.rand_like(value)
    return intra, inter


@pytest.fixture
def coding(theirs):
    """A function: with a threshold and a number of streams, (their intra, their inter, ours of both)."""

    def prepare(skip: float | None, streams: int):
        for model in theirs:
            model.update(skip)
            model.set_use_two_entropy_coders(streams == 2)
        theirs[1].clear_dpb()
        ours = tuple(from_foreign(model) for model in theirs)
        for model in ours:
            model.set_use_two_entropy_coders(streams == 2)
        return *theirs, *ours

    return prepare


def clip(photo: torch.Tensor, height: int, width: int) -> list[torch.Tensor]:
    pad = (0, -width % 16, 0, -height % 16)
    return [
        F.pad(photo[:, :, 2 * t : 2 * t + height, 3 * t : 3 * t + width], pad, mode="replicate") for t in range(FRAMES)
    ]


def test_their_objects_are_recognised_by_their_keys(theirs):
    intra, inter = theirs
    assert is_foreign(intra) and is_foreign(VideoCodec(intra, inter))
    ours = from_foreign(VideoCodec(intra, inter))
    assert type(ours.intra) is DCVCRTImage and type(ours.inter) is DCVCRTVideo
    assert not is_foreign(ours) and from_foreign(ours.intra) is ours.intra
    for mine, model in ((ours.intra, intra), (ours.inter, inter)):
        assert mine.widths == type(mine)().widths
        assert {k: v.shape for k, v in mine.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
    ("size", "streams", "skip"), [((40, 50), 1, None), ((64, 64), 2, SKIP)], ids=["odd", "two-skip"]
)
def test_streams_open_both_ways_over_eight_frames(coding, photo, size, streams, skip):
    """Same bytes, same pictures, same features; each side decodes what the other wrote, with a reset on the way."""
    intra, inter, my_intra, my_inter = coding(skip, streams)
    sps = {"height": size[0], "width": size[1], "ec_part": streams - 1, "use_ada_i": 0}
    frames = clip(photo, *size)
    with torch.no_grad():
        written, mine = intra.compress(frames[0], QP), my_intra.compress(frames[0], QP)
        assert mine["bit_stream"] == written["bit_stream"]
        assert torch.equal(mine["x_hat"], written["x_hat"])
        for decoder in (intra, my_intra):
            x_hat = decoder.decompress(written["bit_stream"], sps, QP)["x_hat"]
            assert torch.equal(x_hat, written["x_hat"])

        payloads, features, last_qp = [], [], None
        for encoder in (inter, my_inter):
            encoder.clear_dpb()
            encoder.add_ref_frame(None, x_hat)
            for index, x in enumerate(frames[1:], 1):
                qp = encoder.shift_qp(QP, SHIFT_OF_FRAME[index % 8])
                if index == 4:
                    encoder.prepare_feature_adaptor_i(last_qp)
                payloads.append(encoder.compress(x, qp)["bit_stream"])
                features.append(encoder.dpb[0].feature)
                last_qp = qp
        count = FRAMES - 1
        assert payloads[:count] == payloads[count:]
        assert all(torch.equal(a, b) for a, b in zip(features[:count], features[count:], strict=True))

        pictures = []
        for decoder in (inter, my_inter):
            decoder.clear_dpb()
            decoder.add_ref_frame(None, x_hat)
            for index, payload in enumerate(payloads[:count], 1):
                if index == 4:
                    decoder.reset_ref_feature()
                qp = decoder.shift_qp(QP, SHIFT_OF_FRAME[index % 8])
                pictures.append(decoder.decompress(payload, sps, qp)["x_hat"])
                assert torch.equal(decoder.dpb[0].feature, features[index - 1])
        assert all(torch.equal(a, b) for a, b in zip(pictures[:count], pictures[count:], strict=True))


def test_settings_and_tables_come_with_the_object(coding):
    intra, _, my_intra, my_inter = coding(SKIP, 1)
    assert my_intra.force_zero_thres == my_inter.force_zero_thres == SKIP
    cdf, lengths, offsets = intra.gaussian_encoder.get_cdf_info()
    assert (my_intra.y_tables.cdf == cdf).all() and (my_intra.y_tables.offsets == offsets).all()
    assert my_intra.z_tables.rows == 64 * 128
