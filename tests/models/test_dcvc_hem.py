"""DCVC-HEM: the published architecture and keys, and real bytes with a state between frames."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec import BitstreamError, UsageError
from sparsecodec.entropy import EntropyTables, dcvc_laplace16_tables
from sparsecodec.models import DCVCHEMImage, DCVCHEMVideo, VideoCodec
from sparsecodec.models.description import describe, from_description
from sparsecodec.models.foreign import from_foreign, is_foreign
from sparsecodec.models.steps import steps_of
from sparsecodec.nn import laplace_likelihood
from sparsecodec.nn.hem_inter import HEMState

STEPS = (1.1, 0.7)  # of motion and latent


def _state_of(dpb: dict[str, Tensor | None]) -> HEMState:
    return HEMState(dpb["ref_frame"], dpb["ref_feature"], dpb["ref_y"], dpb["ref_mv_y"])


def _dpb(frame: Tensor) -> dict[str, Tensor | None]:
    return {"ref_frame": frame, "ref_feature": None, "ref_y": None, "ref_mv_y": None}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- architecture and weights -------------------------------------------------------------------------------


def test_descriptions_build_the_same_architecture(hem: VideoCodec):
    again = from_description(json.loads(json.dumps(describe(hem))))
    shapes = {key: value.shape for key, value in again.state_dict().items()}
    assert shapes == {key: value.shape for key, value in hem.state_dict().items()}
    for model in (again.intra, again.inter):
        with pytest.raises(UsageError, match="does not fit.*latent"):
            model.load_state_dict({})


def test_checkpoints_load_wrapped_and_tell_their_steps(hem: VideoCodec, tmp_path):
    wrapped = {"state_dict": {"net": {f"module.{k}": v for k, v in hem.inter.state_dict().items()}}}
    torch.save(wrapped, tmp_path / "inter.pth")
    y, mv = DCVCHEMVideo.get_q_scales_from_ckpt(str(tmp_path / "inter.pth"))
    assert torch.equal(y, hem.inter.y_q_scale.flatten()) and torch.equal(mv, hem.inter.mv_y_q_scale.flatten())
    DCVCHEMVideo.from_config(hem.inter.config).load_state_dict(wrapped)
    torch.save(hem.intra.state_dict(), tmp_path / "intra.pth")
    assert torch.equal(DCVCHEMImage.get_q_scales_from_ckpt(str(tmp_path / "intra.pth")), hem.intra.q_scale.flatten())
    with pytest.raises(UsageError, match="no tensor 'y_q_scale'"):
        DCVCHEMVideo.get_q_scales_from_ckpt(str(tmp_path / "intra.pth"))


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a checkpoint ran code",))


@pytest.mark.parametrize("content", [Evil(), {"q_scale": Evil()}, [1, 2], b"no checkpoint", None])
def test_checkpoints_with_anything_but_tensors_are_refused(content, tmp_path):
    path = tmp_path / "model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UsageError, match=r"model\.pth"):
        DCVCHEMImage.get_q_scales_from_ckpt(str(path))


# --- rates ------------------------------------------------------------------------------------------------------


def test_rates_are_anchors_or_steps(hem: VideoCodec, clip: list[Tensor]):
    anchors = hem.intra.q_scale
    assert torch.equal(steps_of(anchors, 2, 1), anchors[2:3])
    assert torch.equal(steps_of(anchors, torch.tensor([3, 0]), 2), anchors[[3, 0]])
    assert steps_of(anchors, torch.tensor([0.5, 2.0]), 2).flatten().tolist() == [0.5, 2.0]
    for rate in (4, -1, True, 0.5):
        with pytest.raises(UsageError, match="rate="):
            steps_of(anchors, rate, 2)
    state = hem.inter.start(clip[0])
    with pytest.raises(UsageError, match="pairs"):
        hem.inter(clip[1], state, torch.tensor([1.0]))
    pair = torch.stack([hem.inter.mv_y_q_scale.flatten()[1], hem.inter.y_q_scale.flatten()[1]])
    by_index, by_steps = hem.inter(clip[1], state, 1), hem.inter(clip[1], state, pair)
    assert torch.equal(by_index["bpp"], by_steps["bpp"])


def test_more_rates_are_spaced_between_the_outer_anchors(hem: VideoCodec):
    inter = copy.deepcopy(hem.inter)
    inter.y_q_scale.copy_(torch.tensor([1.6, 1.1, 0.9, 0.4]).view(4, 1, 1, 1))
    steps = inter.q_scales(64)
    assert len(steps) == 64 and steps[0] == (1.8, 1.6) and steps[-1] == (0.5, 0.4)
    assert all(a >= b for pair in zip(steps, steps[1:], strict=False) for a, b in zip(*pair, strict=True))


# --- training ---------------------------------------------------------------------------------------------------


def test_every_weight_learns_from_three_frames(hem: VideoCodec, clip: list[Tensor]):
    codec = copy.deepcopy(hem).train().requires_grad_(True)
    out = codec.intra(clip[0], torch.tensor([1]))
    loss = out["bpp"].sum() + out["x_hat"].square().mean()
    state = codec.inter.start(out["x_hat"])
    for x in clip[1:3]:
        out = codec.inter(x, state, 1)
        state = out["state"]
        loss = loss + out["bpp"].sum() + 100 * (out["x_hat"] - x).square().mean()
    loss.backward()
    unused = {name for name, value in codec.named_parameters() if value.grad is None or not value.grad.any()}
    # Squeezed to one channel, a ReLU may be off; the flow's finest level always counts.
    assert {name for name in unused if ".fc." not in name} == set()


def test_training_rates_are_near_those_of_the_coder(hem: VideoCodec, clip: list[Tensor]):
    model = copy.deepcopy(hem)
    state = model.inter.start(clip[0])
    with torch.no_grad():
        real = model.inter(clip[1], state, 2)["bpp"]
        noisy = model.train().inter(clip[1], state, 2)["bpp"]
    assert not torch.equal(real, noisy)
    assert float(noisy) == pytest.approx(float(real), rel=0.1)


def test_laplace_mass_sums_to_one_and_matches_the_law():
    scales = torch.tensor([0.01, 0.3, 1.0, 5.0])[:, None]
    symbols = torch.arange(-200.0, 201.0)[None]
    mass = laplace_likelihood(symbols.expand(4, -1), scales.expand(4, 401)) - 1e-5
    assert torch.allclose(mass.sum(1), torch.ones(4), atol=1e-3)
    law = torch.distributions.Laplace(torch.zeros(1), scales.double())
    expected = law.cdf(symbols.double() + 0.5) - law.cdf(symbols.double() - 0.5)
    torch.testing.assert_close(mass.double(), expected, atol=1e-6, rtol=1e-3)


# --- real bytes -------------------------------------------------------------------------------------------------


def test_a_clip_of_odd_size_is_decoded_with_equal_states(hem: VideoCodec, clip: list[Tensor]):
    height, width = 51, 101  # the caller pads to 64 x 128
    padded = [F.pad(x[:, :, :height, :width], (0, 128 - width, 0, 64 - height)) for x in clip]
    coded = hem.intra.compress(padded[0], 0.8)
    x_hat = hem.intra.decompress(coded["bit_stream"], height, width, 0.8)["x_hat"]
    assert x_hat.shape == padded[0].shape and torch.equal(x_hat, coded["x_hat"])
    sent = received = _dpb(x_hat)
    payloads = set()
    for x in padded[1:]:
        out = hem.inter.compress(x, sent, *STEPS)
        estimate = hem.inter(x, _state_of(sent), torch.tensor([STEPS]))
        sent = out["dbp"]
        received = hem.inter.decompress(received, out["bit_stream"], height, width, *STEPS)["dpb"]
        assert _equal(sent, received)
        torch.testing.assert_close(received["ref_frame"], estimate["x_hat"], atol=1e-4, rtol=1e-4)
        payloads.add(out["bit_stream"])
        assert 8 * len(out["bit_stream"]) == pytest.approx(float(estimate["bit"]), rel=0.05)
    assert len(payloads) == len(clip) - 1


def test_the_reference_is_clamped_before_reuse(hem: VideoCodec, clip: list[Tensor]):
    """Upstream's compress hands out what its decoder clamps: whoever predicts from it drifts."""
    nets = hem.inter
    out = nets.compress(clip[1], _dpb(clip[0]), *STEPS)["dbp"]
    raw = nets.recon_generation_net.recon_conv(out["ref_feature"])
    assert raw.min() < -0.01 or raw.max() > 1.01  # there is something to clamp
    assert out["ref_frame"].min() >= 0 and out["ref_frame"].max() <= 1
    torch.testing.assert_close(out["ref_frame"], raw.clamp(0, 1), atol=1e-5, rtol=0)
    assert nets.start(raw).frame.max() <= 1


@pytest.mark.parametrize("field", ["ref_frame", "ref_feature", "ref_y", "ref_mv_y"])
def test_every_part_of_the_state_counts(hem: VideoCodec, clip: list[Tensor], field: str):
    first = hem.inter.compress(clip[1], _dpb(clip[0]), *STEPS)["dbp"]
    out = hem.inter.compress(clip[2], first, *STEPS)
    other = {**first, field: first[field].flip(3)}
    try:
        wrong = hem.inter.decompress(other, out["bit_stream"], 64, 128, *STEPS)["dpb"]
    except BitstreamError:
        return
    if field == "ref_frame":  # with a feature, only the encoder looks at the frame
        assert _equal(wrong, out["dbp"])
        assert hem.inter.compress(clip[2], other, *STEPS)["bit_stream"] != out["bit_stream"]
    else:
        assert not _equal(wrong, out["dbp"])


def test_states_are_values_in_a_fixed_order(hem: VideoCodec, clip: list[Tensor]):
    state = hem.inter.start(clip[0])
    assert [tuple(t.shape) for t in state.tensors()] == [(1, 3, 64, 128)]
    after = hem.inter(clip[1], state, 0)["state"]
    assert [t.shape[1] for t in after.tensors()] == [3, 24, 48, 24]
    assert replace(after, frame=clip[0]).tensors()[0] is clip[0]
    with pytest.raises(AttributeError):
        after.frame = clip[0]


def test_damaged_payloads_never_pass_unnoticed_by_accident(hem: VideoCodec, clip: list[Tensor]):
    dpb = _dpb(clip[0])
    out = hem.inter.compress(clip[1], dpb, *STEPS)
    payload = out["bit_stream"]
    unnoticed = 0
    damaged = [payload[:-4], payload + bytes(4), b"", payload[:8]]
    for place in range(0, len(payload), len(payload) // 12):
        damaged.append(payload[:place] + bytes([payload[place] ^ 0x41]) + payload[place + 1 :])
    for data in damaged:
        try:
            decoded = hem.inter.decompress(dpb, data, 64, 128, *STEPS)["dpb"]
        except BitstreamError:
            continue
        unnoticed += _equal(decoded, out["dbp"])
    assert unnoticed == 0


def test_wrong_arguments_are_named(hem: VideoCodec, clip: list[Tensor]):
    intra, inter = hem.intra, hem.inter
    with pytest.raises(UsageError, match="multiples of 64"):
        intra.compress(clip[0][:, :, :50], 0.8)
    with pytest.raises(UsageError, match=r"0 x 4.*at least 1 x 1"):
        intra.decompress(bytes(8), 0, 4, 0.8)
    with pytest.raises(UsageError, match="ref_mv_y"):
        inter.compress(clip[1], {"ref_frame": clip[0], "ref_feature": None, "ref_y": None}, *STEPS)
    with pytest.raises(UsageError, match="ref_frame is None"):
        inter.compress(clip[1], _dpb(None), *STEPS)
    with pytest.raises(UsageError, match=r"\(64, 64\).*ref_frame|ref_frame.*64, 64"):
        inter.compress(clip[1], _dpb(clip[0][..., :64]), *STEPS)
    with pytest.raises(UsageError, match="65 x 128"):
        inter.decompress(_dpb(clip[0]), bytes(8), 65, 128, *STEPS)
    for steps in ((0.0, 1.0), (1.0, float("nan"))):
        with pytest.raises(UsageError, match="q_scale="):
            inter.compress(clip[1], _dpb(clip[0]), *steps)


# --- what the family's scripts call -------------------------------------------------------------------------------


def test_files_of_single_frames_decode_to_what_was_coded(hem: VideoCodec, clip: list[Tensor], tmp_path):
    path = str(tmp_path / "frame.bin")
    padded = [F.pad(x[:, :, :51, :101], (0, 27, 0, 13)) for x in clip[:3]]
    out = hem.intra.encode_decode(padded[0], 0.804, path, pic_width=101, pic_height=51)
    data = Path(path).read_bytes()
    assert data[:10] == bytes([0, 0, 0, 51, 0, 0, 0, 101, 0, 80]) and out["bit"] == 8 * len(data)
    assert torch.equal(out["x_hat"], hem.intra.compress(padded[0], 0.8)["x_hat"])
    dpb = expected = _dpb(out["x_hat"])
    for x in padded[1:]:
        out = hem.inter.encode_decode(x, dpb, path, 101, 51, *STEPS)
        coded = hem.inter.compress(x, expected, *STEPS)
        dpb, expected = out["dpb"], coded["dbp"]
        payload = coded["bit_stream"]
        assert Path(path).read_bytes() == bytes([0, 110, 0, 70]) + len(payload).to_bytes(4, "big") + payload
        assert _equal(dpb, expected) and out["bit"] == 8 * (8 + len(payload)) and out["decoding_time"] > 0
    with pytest.raises(UsageError, match="pic_width"):
        hem.inter.encode_decode(x, dpb, path, None, None, *STEPS)


def test_without_a_file_frames_are_estimated(hem: VideoCodec, clip: list[Tensor]):
    out = hem.intra.encode_decode(clip[0], 0.8)
    assert out["bit"] == float(hem.intra(clip[0], torch.tensor([0.8]))["bit"])
    out = hem.inter.encode_decode(clip[1], _dpb(out["x_hat"]), mv_y_q_scale=STEPS[0], y_q_scale=STEPS[1])
    assert out["decoding_time"] == 0 and set(out["dpb"]) == set(_dpb(clip[0]))
    assert out["bit"] == pytest.approx(sum(out[f"bit_{part}"] for part in ("mv_y", "mv_z", "y", "z")), rel=1e-5)
    with pytest.raises(UsageError, match="mv_y_q_scale=None"):
        hem.inter.encode_decode(clip[1], out["dpb"], y_q_scale=1.0)


class Stranger(nn.Module):
    """An object of another class with the parts of a model of ours."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, child in model.named_children():
            setattr(self, name, copy.deepcopy(child))
        for name, parameter in model.named_parameters(recurse=False):
            setattr(self, name, parameter)


def test_strangers_become_ours_with_their_widths(hem: VideoCodec, clip: list[Tensor]):
    intra, inter = (Stranger(model) for model in (hem.intra, hem.inter))
    block = inter.recon_generation_net.unet_2.context_refine[1]
    head, tail = block.conv1, block.conv2
    stay = torch.tensor([i for i in range(32) if i % 3])
    dense = copy.deepcopy(hem.inter)  # the same function with all channels in place
    dense.recon_generation_net.unet_2.context_refine[1].conv2.weight[:, ::3] = 0
    head.weight, head.bias = (nn.Parameter(value[stay], False) for value in (head.weight, head.bias))
    tail.weight = nn.Parameter(tail.weight[:, stay], False)
    assert is_foreign(intra) and is_foreign(inter) and not is_foreign(hem)
    ours = from_foreign(VideoCodec(intra, inter))
    assert isinstance(ours.intra, DCVCHEMImage) and isinstance(ours.inter, DCVCHEMVideo)
    assert ours.inter.widths == hem.inter.widths and ours.intra.widths == hem.intra.widths
    assert torch.equal(ours.intra(clip[0], 1)["x_hat"], hem.intra(clip[0], 1)["x_hat"])
    state = hem.inter.start(clip[0])
    got, expected = ours.inter(clip[1], state, 1), dense(clip[1], state, 1)
    torch.testing.assert_close(got["x_hat"], expected["x_hat"], atol=1e-5, rtol=0)
    del inter.mv_decoder
    with pytest.raises(UsageError, match="mv_decoder"):
        from_foreign(inter)


class Computed:
    """Tables as the published software keeps them."""

    def __init__(self, tables: EntropyTables) -> None:
        self.cdf_helper = self
        self.get_cdf_info = lambda: (tables.cdf, tables.lengths, tables.offsets)


def test_computed_tables_are_adopted_until_an_update(hem: VideoCodec):
    own = hem.inter.tables()
    stranger = Stranger(hem.inter)
    stranger.gaussian_encoder = Computed(dcvc_laplace16_tables())
    assert [t.digest for t in from_foreign(stranger).tables()] == [t.digest for t in own]  # not all are computed
    for name, tables in zip(("bit_estimator_z_mv", "bit_estimator_z"), own[1:], strict=True):
        stranger.get_submodule(name).cdf_helper = Computed(tables)
    ours = from_foreign(stranger)
    assert [t.digest for t in ours.tables()] == [dcvc_laplace16_tables().digest, own[1].digest, own[2].digest]
    ours.update(force=True)
    assert [t.digest for t in ours.tables()] == [t.digest for t in own]
