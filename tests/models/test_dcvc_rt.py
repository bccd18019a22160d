"""DCVC-RT: the published architecture and keys, and real bytes with an explicit state."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec import BitstreamError, UsageError
from sparsecodec.models import VideoCodec, create
from sparsecodec.models.dcvc_rt import SHIFT_OF_FRAME
from sparsecodec.models.description import describe, from_description
from sparsecodec.nn import rate_factorized_tables
from sparsecodec.nn.rt_state import RTState

from .rt_published import Functional

QP = 21
SKIP = 0.12  # what the published scripts use
SIZES = [(48, 80), (40, 33), (17, 16), (96, 64)]  # several hyper-latents; odd; a latent of 2 x 1; whole hyper-latents


@pytest.fixture(scope="module")
def codec() -> VideoCodec:
    """Untrained, with latents of several symbols, scales around the skip threshold, and qualities that differ."""
    torch.manual_seed(0)
    codec = create("dcvc-rt-tiny").eval().requires_grad_(False)
    intra, inter = codec.intra, codec.inter
    for module in (
        intra.enc.enc_2[-1],
        inter.encoder.down,
        intra.hyper_enc[0].ffn[2],
        inter.hyper_encoder.conv[0].ffn[2],
    ):
        module.weight *= 3
    for bias, first, n in (
        (intra.y_prior_fusion[-1].bias, 2, intra.widths.latent),
        (intra.y_spatial_prior[-1].bias, 0, intra.widths.latent),
        (inter.y_prior_fusion.conv[-1].bias, inter.widths.latent, inter.widths.latent),
        (inter.y_spatial_prior.conv[-1].bias, 0, inter.widths.latent),
    ):
        bias[first : first + n] += torch.linspace(0, 2, n)  # scales
    for bank in (inter.q_feature, inter.q_recon, inter.q_encoder, intra.q_scale_dec):
        bank *= 1 + 0.3 * torch.rand_like(bank)
    for model in (intra, inter):
        for name, value in model.bit_estimator_z.named_parameters():
            value += 0.5 * torch.randn_like(value) + (1.5 if name == "f4.h" else 0)
    return codec


@pytest.fixture
def ready(codec: VideoCodec) -> VideoCodec:
    """`codec` with tables, that codes everything into one stream."""
    for model in (codec.intra, codec.inter):
        model.update()
        model.set_use_two_entropy_coders(False)
    codec.inter.clear_dpb()
    return codec


def frames(photo: Tensor, height: int, width: int, count: int) -> list[Tensor]:
    """A pan over a photo, padded by repetition to multiples of 16."""
    pad = (0, -width % 16, 0, -height % 16)
    crops = [photo[:, :, 2 * t : 2 * t + height, 3 * t : 3 * t + width] for t in range(count)]
    return [F.pad(crop, pad, mode="replicate") for crop in crops]


# --- architecture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "keys", "millions"), [("image", 407, 45.6513), ("video", 341, 20.6915)])
def test_parameters_are_those_of_the_published_checkpoints(name: str, keys: int, millions: float):
    with torch.device("meta"):
        state = create(f"dcvc-rt-{name}").state_dict()
    assert len(state) == keys
    assert round(sum(value.numel() for value in state.values()) / 1e6, 4) == millions


def test_a_description_builds_the_same_architecture(codec: VideoCodec):
    again = from_description(describe(codec))
    shapes = {key: value.shape for key, value in codec.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes


def test_wrapped_checkpoints_load_and_wrong_ones_are_named(codec: VideoCodec):
    again = create("dcvc-rt-tiny").inter
    again.load_state_dict({"state_dict": {f"module.{k}": v for k, v in codec.inter.state_dict().items()}})
    assert torch.equal(again.q_encoder, codec.inter.q_encoder)
    with pytest.raises(UsageError, match="feature_adaptor_p"):
        again.load_state_dict(codec.intra.state_dict())


@pytest.mark.parametrize("skip", [None, SKIP])
@pytest.mark.parametrize("size", SIZES[:3])
def test_the_models_compute_what_is_published(ready: VideoCodec, photo: Tensor, size: tuple[int, int], skip):
    intra, inter = ready.intra, ready.inter
    for model in (intra, inter):
        model.update(skip)
    first, second, third = frames(photo, *size, 3)
    x_hat = Functional(intra.state_dict(), QP, skip).intra(first)
    assert torch.equal(intra.compress(first, QP)["x_hat"], x_hat)
    assert torch.equal(intra(first, QP)["x_hat"], x_hat)

    state = inter.start(x_hat)
    for qp, x in ((inter.shift_qp(QP, 1), second), (inter.shift_qp(QP, 0), third)):
        x_hat, feature = Functional(inter.state_dict(), qp, skip).inter(x, state)
        estimated = inter(x, state, qp)
        state = inter.compress_frame(x, state, qp)[1]
        assert torch.equal(state.feature, feature)
        assert torch.equal(estimated["state"].feature, feature)
        assert torch.equal(estimated["x_hat"], x_hat)


# --- coding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [None, SKIP])
@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_decoding_gives_what_the_encoder_saw(ready: VideoCodec, photo: Tensor, size, streams, skip):
    sps = {"height": size[0], "width": size[1], "ec_part": streams - 1}
    for model in (ready.intra, ready.inter):
        model.update(skip)
        model.set_use_two_entropy_coders(streams == 2)
    clip = frames(photo, *size, 3)
    coded = ready.intra.compress(clip[0], QP)
    x_hat = ready.intra.decompress(coded["bit_stream"], sps, QP)["x_hat"]
    assert torch.equal(x_hat, coded["x_hat"])

    sender = receiver = ready.inter.start(x_hat)
    for index, x in enumerate(clip[1:]):
        qp = ready.inter.shift_qp(QP, SHIFT_OF_FRAME[index + 1])
        payload, after = ready.inter.compress_frame(x, sender, qp)
        x_hat, receiver = ready.inter.decompress_frame(payload, receiver, sps, qp)
        assert torch.equal(after.feature, receiver.feature)
        assert torch.equal(x_hat, ready.inter(x, sender, qp)["x_hat"])
        sender = after


@pytest.mark.parametrize("skip", [None, SKIP])
def test_the_estimate_is_what_a_payload_takes(ready: VideoCodec, photo: Tensor, skip):
    for model in (ready.intra, ready.inter):
        model.update(skip)
    first, second = frames(photo, 96, 128, 2)
    coded = ready.intra.compress(first, QP)
    sizes = [(ready.intra(first, QP)["bit"], coded["bit_stream"])]
    state = ready.inter.start(coded["x_hat"])
    sizes.append((ready.inter(second, state, QP)["bit"], ready.inter.compress_frame(second, state, QP)[0]))
    for estimate, payload in sizes:
        # Untrained latents leave their tables now and then, and a row of the hyper-latent wastes 1.5 % (its tail).
        assert abs(8 * len(payload) - float(estimate)) < 0.04 * float(estimate) + 40


def test_a_threshold_shortens_the_stream(ready: VideoCodec, photo: Tensor):
    (x,) = frames(photo, 96, 128, 1)
    whole = ready.intra.compress(x, QP)["bit_stream"]
    ready.intra.update(0.5)
    assert len(ready.intra.compress(x, QP)["bit_stream"]) < 0.9 * len(whole)


def test_states_are_values(ready: VideoCodec, photo: Tensor):
    """Coding changes no state: from a copy kept aside, the same frame is the same bytes, and decoding goes on."""
    inter = ready.inter
    clip = frames(photo, 48, 64, 4)
    sps = {"height": 48, "width": 64, "ec_part": 0}
    state = inter.start(clip[0])
    _, state = inter.compress_frame(clip[1], state, QP)
    kept = copy.deepcopy(state)
    payload, after = inter.compress_frame(clip[2], state, QP)
    inter.compress_frame(clip[3], after, QP)
    assert torch.equal(kept.feature, state.feature)
    assert inter.compress_frame(clip[2], kept, QP)[0] == payload
    assert torch.equal(inter.decompress_frame(payload, kept, sps, QP)[1].tensors()[0], after.tensors()[0])
    for wrong in ({}, {"frame": clip[0], "feature": state.feature}):
        with pytest.raises(UsageError, match="a frame or a feature"):
            RTState(**wrong)


def test_the_scripts_calls_code_a_clip_with_resets(ready: VideoCodec, photo: Tensor):
    """Encoder and decoder as the published scripts drive them, 8 frames with a reset, against the explicit states."""
    sender, receiver = ready.inter, copy.deepcopy(ready.inter)
    clip = frames(photo, 40, 48, 8)
    sps = {"height": 40, "width": 48, "ec_part": 0}
    coded = ready.intra.compress(clip[0], QP)
    x_hat = ready.intra.decompress(coded["bit_stream"], sps, QP)["x_hat"]
    for model, frame in ((sender, coded["x_hat"]), (receiver, x_hat)):
        model.clear_dpb()
        model.set_curr_poc(0)
        model.add_ref_frame(None, frame)
    explicit, last_qp = sender.start(x_hat), None
    for index, x in enumerate(clip[1:], 1):
        qp = sender.shift_qp(QP, SHIFT_OF_FRAME[index % 8])
        if index == 5:
            sender.prepare_feature_adaptor_i(last_qp)
            receiver.reset_ref_feature()
            explicit = sender.reset(explicit, last_qp)
            assert torch.equal(sender.dpb[0].frame, receiver.dpb[0].frame)
        payload = sender.compress(x, qp)["bit_stream"]
        x_hat = receiver.decompress(payload, sps, qp)["x_hat"]
        expected, explicit = sender.decompress_frame(payload, explicit, sps, qp)
        assert torch.equal(x_hat, expected) and torch.equal(receiver.dpb[0].frame, expected)
        assert torch.equal(sender.dpb[0].feature, receiver.dpb[0].feature)
        assert sender.dpb[0].frame is None and sender.dpb[0].poc == receiver.dpb[0].poc == index
        last_qp = qp
    assert len(sender.dpb) == 1


def test_the_contract_answers_as_published(ready: VideoCodec):
    intra, inter = ready.intra, ready.inter
    assert intra.get_qp_num() == inter.get_qp_num() == 64
    assert intra.get_padding_size(1080, 1920, 16) == (0, 8)
    assert intra.get_padding_size(65, 1) == (63, 63)
    assert [inter.shift_qp(10, index) for index in (0, 1, 2)] == [10, 18, 14]
    assert len(inter.q_encoder) == len(inter.q_recon) == 72 and len(intra.q_scale_enc) == 64


def test_z_tables_have_a_row_per_quality_and_channel(codec: VideoCodec):
    estimator = codec.inter.bit_estimator_z
    tables = rate_factorized_tables(estimator)
    channels = codec.inter.widths.hyper
    assert tables.rows == 72 * channels
    qp, channel = 40, 7
    row = qp * channels + channel
    start = int(tables.offsets[row])
    plain = torch.arange(start, start + int(tables.lengths[row]) - 2).float()
    symbols = torch.zeros(len(plain), channels, 1, 1)
    symbols[:, channel, 0, 0] = plain
    # The published tail reaches half a symbol into the last one, so that a row adds up to more than 1.
    expected = estimator.likelihood(symbols, qp)[:, channel, 0, 0] - 1e-5
    frequencies = torch.from_numpy(tables.cdf[row, : len(plain) + 1].copy()).diff().float()
    assert (frequencies / frequencies.sum() - expected / expected.sum()).abs().max() < 2e-4


def test_zero_parameters_give_the_published_z_row():
    intra = create("dcvc-rt-tiny").intra
    for value in intra.bit_estimator_z.parameters():
        value.data.zero_()
    tables = rate_factorized_tables(intra.bit_estimator_z)
    golden = [0, 1759, 3825, 6216, 8937, 11973, 15289, 18826, 22505, 26234, 29913, 33450, 36766, 39802, 42523, 44914]
    assert tables.cdf[-1, :19].tolist() == [*golden, 46980, 48739, 65536]


# --- training -----------------------------------------------------------------------------------------------------


def test_gradients_reach_every_parameter(photo: Tensor):
    """Of the networks, and of the rows of the qualities that were used; through a state, too."""
    torch.manual_seed(1)
    codec = create("dcvc-rt-tiny").train()
    rates = torch.tensor([3, 60])
    x = torch.cat([photo[:, :, :48, :48], photo[:, :, 64:112, 32:80]])
    coded = codec.intra(x, rates)
    first = codec.inter(x, codec.inter.start(coded["x_hat"]), rates)
    second = codec.inter(x.flip(3), first["state"], rates + 8)
    losses = [out["bpp"].mean() + (out["x_hat"] - x).square().mean() for out in (coded, first, second)]
    sum(losses).backward()
    for name, value in codec.named_parameters():
        assert value.grad is not None and bool(value.grad.isfinite().all()), name
        if name.split(".")[1].startswith("q_") or "bit_estimator" in name:
            used = value.grad.flatten(1).abs().sum(1) > 0
            wanted = {3, 60} if name.startswith("intra") else {3, 60, 11, 68}
            assert set(used.nonzero().flatten().tolist()) <= wanted
            assert used.any(), name
        else:
            assert bool((value.grad != 0).any()), name


def test_a_batch_of_qualities_is_each_picture_at_its_own(ready: VideoCodec, photo: Tensor):
    x = torch.cat([photo[:, :, :32, :48], photo[:, :, 64:96, 32:80]])
    rates = torch.tensor([5, 50])
    together = ready.intra(x, rates)
    state = ready.inter.start(x.flip(2))
    next_frame = ready.inter(x, state, rates)
    for k, rate in enumerate(rates.tolist()):
        alone = ready.intra(x[k : k + 1], rate)
        torch.testing.assert_close(together["bpp"][k : k + 1], alone["bpp"])
        alone = ready.inter(x[k : k + 1], RTState(frame=state.frame[k : k + 1]), rate)
        torch.testing.assert_close(next_frame["bpp"][k : k + 1], alone["bpp"])


# --- errors -------------------------------------------------------------------------------------------------------


def test_impossible_requests_are_refused_with_what_would_be_right(ready: VideoCodec):
    intra, inter, x = ready.intra, ready.inter, torch.zeros(1, 3, 32, 32)
    with pytest.raises(UsageError, match=r"call update\(\)"):
        create("dcvc-rt-tiny").intra.compress(x, QP)
    for qp in (-1, 64, torch.tensor([0.5]), torch.tensor([1, 2, 3])):
        with pytest.raises(UsageError, match=r"needs 0 \.\. 63"):
            intra(x, qp)
    with pytest.raises(UsageError, match=r"needs 0 \.\. 71"):
        inter.compress_frame(x, inter.start(x), 72)
    with pytest.raises(UsageError, match="multiples of 16"):
        intra.compress(x[:, :, :30], QP)
    with pytest.raises(UsageError, match="a payload holds 1"):
        intra.compress(x.expand(2, -1, -1, -1), QP)
    with pytest.raises(UsageError, match="0 x 4"):
        intra.decompress(b"", {"height": 0, "width": 4, "ec_part": 0}, QP)
    with pytest.raises(UsageError, match="positive scale"):
        intra.update(0.0)
    inter.clear_dpb()
    with pytest.raises(UsageError, match="add_ref_frame"):
        inter.compress(x, QP)


def test_damaged_payloads_and_wrong_settings_are_found(ready: VideoCodec, photo: Tensor):
    (x,) = frames(photo, 48, 64, 1)
    sps = {"height": 48, "width": 64, "ec_part": 0}
    payload = ready.intra.compress(x, QP)["bit_stream"]
    state = ready.inter.start(x)
    predicted, _ = ready.inter.compress_frame(x, state, QP)
    flipped = bytes([payload[0], payload[1] ^ 4, *payload[2:]])
    for data, settings, qp in (
        (payload[:-3], sps, QP),
        (payload + b"\0", sps, QP),
        (flipped, sps, QP),
        (payload, {**sps, "width": 144}, QP),
        (payload, {**sps, "ec_part": 1}, QP),
        (payload, sps, 60),
    ):
        with pytest.raises(BitstreamError):
            ready.intra.decompress(data, settings, qp)
    with pytest.raises(BitstreamError):
        ready.inter.decompress_frame(predicted, RTState(frame=1 - x), sps, QP)
    ready.intra.update(0.5)
    with pytest.raises(BitstreamError):
        ready.intra.decompress(payload, sps, QP)
