"""FVC: what the paper fixes, and real bytes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec import BitstreamError, UsageError
from sparsecodec.models import FVC, create
from sparsecodec.models.description import describe, from_description
from sparsecodec.models.fvc import FVCState, Widths
from sparsecodec.nn.fvc_layers import DeformableAlignment, PatchAttention

from ..lively import lively_fvc

WITH_FUSION = Widths(16, 16, 16, 4, 1, modulated=True, references=2)


@pytest.fixture(scope="module", params=["tiny", "fusion"])
def model(request) -> FVC:
    torch.manual_seed(0)
    return lively_fvc(FVC("tiny" if request.param == "tiny" else WITH_FUSION)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip(photo: Tensor) -> list[Tensor]:
    return [photo[:, :, 3 * t : 3 * t + 64, 2 * t : 2 * t + 128].contiguous() for t in range(5)]


def test_sizes_of_the_paper():
    with torch.device("meta"):
        model = create("fvc")
    assert model.extraction[0].weight.shape == (64, 3, 5, 5) and model.extraction[0].stride == (2, 2)
    assert model.compensation.alignment.offsets.out_channels == 144  # 8 groups of 9 taps of 2
    assert len(model.fusion.alignment) == 3 and model.fusion.fuse.in_channels == 4 * 64
    assert model.reconstruction[-1].weight.shape == (64, 3, 5, 5)
    modulated = DeformableAlignment(64, 8, True)
    assert modulated.offsets.out_channels == 144 + 72


def test_is_described(model: FVC):
    assert from_description(describe(model)).state_dict().keys() == model.state_dict().keys()
    with pytest.raises(UsageError, match="huge.*tiny"):
        FVC("huge")
    with pytest.raises(UsageError, match="10 features in 4 groups"):
        FVC(Widths(10, groups=4))


def test_alignment_moves_features():
    """Offsets of one pixel down and two to the right, weights of the identity: the map, shifted."""
    layer = DeformableAlignment(4, 2, modulated=False)
    with torch.no_grad():
        layer.offsets.bias.copy_(torch.tensor([1.0, 2.0]).repeat(18))
        layer.conv.weight.zero_()
        layer.conv.weight[range(4), range(4), 1, 1] = 1
        x = torch.randn(1, 4, 6, 7)
        moved = layer(torch.randn(1, 4, 6, 7), x)
    torch.testing.assert_close(moved[:, :, :5, :5], x[:, :, 1:, 2:])
    assert float(moved[:, :, 5].abs().max()) == 0


def test_attention_is_the_weighted_sum_of_a_patch():
    """Against the sentence: a 1x1 over each pair, a softmax over the patch, a weighted sum."""
    torch.manual_seed(1)
    layer, query, source = PatchAttention(3), torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    padded = F.pad(source, (1, 1, 1, 1), mode="replicate")
    around = [padded[:, :, i : i + 4, j : j + 5] for i in range(3) for j in range(3)]
    whole = layer.score.weight, layer.score.bias
    scores = torch.stack([F.conv2d(torch.cat([query, values], 1), *whole) for values in around]).softmax(0)
    torch.testing.assert_close(layer(query, source), sum(s * v for s, v in zip(scores, around, strict=True)))


def test_every_weight_is_trained(clip: list[Tensor]):
    torch.manual_seed(0)
    model = lively_fvc(FVC(WITH_FUSION)).train()
    out = model(clip[1], model.start(clip[0]))
    out = model(clip[2], out["state"])
    (out["bpp"].mean() + F.mse_loss(out["x_hat"], clip[2])).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]


def test_forward_estimates_what_the_coder_needs(model: FVC, clip: list[Tensor]):
    state = model.start(clip[0])
    out, coded = model(clip[1], state), model.compress(clip[1], state)
    bits = len(coded["bit_stream"]) * 8
    assert abs(float(out["bpp"]) * 64 * 128 - bits) < 0.03 * bits + 96
    torch.testing.assert_close(out["x_hat"], coded["x_hat"])


def test_round_trip_over_frames(model: FVC, clip: list[Tensor]):
    encoder = decoder = model.start(clip[0])
    for count, frame in enumerate(clip[1:], 2):
        coded = model.compress(frame, encoder)
        decoded = model.decompress(coded["bit_stream"], decoder)
        latest, *before = coded["state"].features
        assert torch.equal(latest, model.start(coded["x_hat"]).features[0])
        assert all(map(torch.equal, before, encoder.features))
        encoder, decoder = coded["state"], decoded["state"]
        assert torch.equal(coded["x_hat"], decoded["x_hat"])
        assert len(encoder.tensors()) == min(count, max(model.widths.references, 1))
        assert all(map(torch.equal, encoder.tensors(), decoder.tensors()))
        assert len(coded["bit_stream"]) > 100


def test_all_of_the_state_matters(clip: list[Tensor]):
    torch.manual_seed(0)
    model = lively_fvc(FVC(WITH_FUSION)).eval().requires_grad_(False)
    state = model.compress(clip[1], model.start(clip[0]))["state"]
    coded = model.compress(clip[2], state)
    latest, before = state.features
    for wrong in ((latest, latest), (before, before)):
        try:
            decoded = model.decompress(coded["bit_stream"], FVCState(wrong))
        except BitstreamError:
            continue
        assert not torch.equal(decoded["x_hat"], coded["x_hat"])


def test_damage_is_noticed(model: FVC, clip: list[Tensor]):
    state = model.start(clip[0])
    stream = model.compress(clip[1], state)["bit_stream"]
    for damaged in (stream[:-4], stream + bytes(4), stream[4:], b""):
        with pytest.raises(BitstreamError):
            model.decompress(damaged, state)


def test_refuses_what_does_not_fit(model: FVC, clip: list[Tensor]):
    x = clip[0]
    with pytest.raises(UsageError, match="60 x 128.*multiples of 64"):
        model(x[:, :, :60], model.start(x))
    with pytest.raises(UsageError, match="32, 64.*need.*32, 32"):
        model(x[..., :64], model.start(x))
    with pytest.raises(UsageError, match="one rate"):
        model(x, model.start(x), 3)
    with pytest.raises(UsageError, match="batch of 2"):
        model.compress(x.repeat(2, 1, 1, 1), model.start(x.repeat(2, 1, 1, 1)))
