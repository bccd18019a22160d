"""Models of other packages: recognised by keys and shapes, whole or pruned, with their settings."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from sparsecodec import UsageError
from sparsecodec.entropy import EntropyTables
from sparsecodec.models import create
from sparsecodec.models.foreign import from_foreign, is_foreign
from sparsecodec.models.video import VideoCodec
from sparsecodec.runtime import compile_codec

QP = 33


class Stranger(nn.Module):
    """An object of another class with the parts of a model of ours."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, child in model.named_children():
            setattr(self, name, child)
        for name, parameter in model.named_parameters(recurse=False):
            setattr(self, name, parameter)


@pytest.fixture
def codec() -> nn.Module:
    torch.manual_seed(0)
    return create("dcvc-rt-tiny").eval().requires_grad_(False)


@pytest.fixture
def x(photo: Tensor) -> Tensor:
    return photo[:, :, :48, :64].contiguous()


def keep(values: nn.Parameter, dim: int, rows: Iterable[int]) -> nn.Parameter:
    return nn.Parameter(values.index_select(dim, torch.tensor(list(rows))), False)


def pruned(block: nn.Module, units: list[int], inner: list[int]) -> None:
    """Removes what `units` of the feed-forward part and `inner` depthwise channels compute, from a DCVC-RT block."""
    first, last = block.ffn[0], block.ffn[2]
    hidden = last.weight.shape[1]
    stay = [j for j in range(hidden) if j not in units]
    both = [*stay, *(j + hidden for j in stay)]
    first.weight, first.bias = keep(first.weight, 0, both), keep(first.bias, 0, both)
    last.weight = keep(last.weight, 1, stay)
    stay = [j for j in range(block.dc[0].weight.shape[0]) if j not in inner]
    for conv in (block.dc[0], block.dc[2]):
        conv.weight, conv.bias = keep(conv.weight, 0, stay), keep(conv.bias, 0, stay)
    block.dc[3].weight = keep(block.dc[3].weight, 1, stay)


def silenced(block: nn.Module, units: list[int], inner: list[int]) -> None:
    """The same function with all channels in place."""
    block.ffn[2].weight[:, units] = 0
    block.dc[3].weight[:, inner] = 0


def test_a_stranger_of_known_keys_becomes_ours(codec: nn.Module, x: Tensor):
    for model in (codec.intra, codec.inter):
        stranger = Stranger(model)
        assert is_foreign(stranger) and not is_foreign(model)
        mine = from_foreign(stranger)
        assert type(mine) is type(model) and mine.widths == model.widths
        assert mine.q_encoder is not model.q_encoder if model is codec.inter else True
    mine = from_foreign(Stranger(codec.inter))
    state = mine.start(x.flip(3))
    expected, got = codec.inter(x, state, QP), mine(x, state, QP)
    assert torch.equal(got["x_hat"], expected["x_hat"]) and torch.equal(got["bpp"], expected["bpp"])


def test_pruned_weights_load_in_their_own_widths(codec: nn.Module, x: Tensor):
    units, inner = list(range(3, 90, 2)), [0, 5, 17, 95]
    dense, thin = codec, create("dcvc-rt-tiny").eval().requires_grad_(False)
    thin.load_state_dict(dense.state_dict())
    for change, model in ((silenced, dense), (pruned, thin)):
        change(model.intra.dec.dec_1[1], units, inner)
        change(model.intra.enc.enc_1, units, inner)
        change(model.inter.decoder.conv1[0], units, inner)
        change(model.inter.feature_extractor.conv1[0], units, inner)
    intra, inter = (from_foreign(Stranger(model)) for model in (thin.intra, thin.inter))
    assert intra.dec.dec_1[1].dc[2].groups == 92 and intra.dec.dec_1[1].ffn[2].in_channels == 192 - len(units)
    expected = dense.intra(x, QP)
    torch.testing.assert_close(intra(x, QP)["x_hat"], expected["x_hat"], atol=2e-5, rtol=0)
    state = inter.start(expected["x_hat"])
    expected = dense.inter(x.flip(3), state, QP)
    torch.testing.assert_close(inter(x.flip(3), state, QP)["x_hat"], expected["x_hat"], atol=2e-5, rtol=0)
    intra.update()
    coded = intra.compress(x, QP)
    sps = {"height": 48, "width": 64, "ec_part": 0}
    assert torch.equal(intra.decompress(coded["bit_stream"], sps, QP)["x_hat"], coded["x_hat"])


def test_an_adaptor_stays_where_pruning_made_both_sides_alike(codec: nn.Module, x: Tensor):
    """The first block of the picture network has one: 96 to 80 channels in, and 80 to 80 when the feature is pruned."""
    net = codec.inter.recon_generation_net
    adaptor = nn.Conv2d(96, 96, 1).requires_grad_(False)
    net.conv[0].adaptor = adaptor  # of equal widths: a block would not be built with it
    mine = from_foreign(Stranger(codec.inter))
    state = mine.start(x)
    assert torch.equal(mine(x, state, QP)["x_hat"], codec.inter(x, state, QP)["x_hat"])
    assert torch.equal(mine.recon_generation_net.conv[0].adaptor.weight, adaptor.weight)


def test_thresholds_and_tables_are_taken_over(codec: nn.Module):
    stranger = Stranger(codec.intra)
    cdf = torch.tensor([[0, 100, 65536, 0], [0, 7, 9, 65536]], dtype=torch.int32)
    tables = EntropyTables(cdf, torch.tensor([3, 4], dtype=torch.int32), torch.tensor([0, -1], dtype=torch.int32))
    stranger.gaussian_encoder = nn.Module()
    for name, value in (("_quantized_cdf", tables.cdf), ("_cdf_length", tables.lengths), ("_offset", tables.offsets)):
        setattr(stranger.gaussian_encoder, name, value)
    stranger.gaussian_encoder.force_zero_thres = 0.2
    mine = from_foreign(stranger)
    assert mine.force_zero_thres == 0.2
    assert mine.y_tables.digest == tables.digest
    assert mine.z_tables is None


def test_what_is_unknown_or_does_not_fit_is_named(codec: nn.Module):
    with pytest.raises(UsageError, match="Linear with 2 keys.*dcvc-rt-image"):
        from_foreign(nn.Linear(2, 2))
    stranger = Stranger(codec.inter)
    stranger.decoder.conv2 = nn.Conv2d(64, 96, 1)
    with pytest.raises(UsageError, match="do not fit together"):
        from_foreign(stranger)
    stranger = Stranger(create("dcvc-rt-tiny").inter)
    stranger.more = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="more.weight"):
        from_foreign(stranger)
    stranger = Stranger(create("dcvc-rt-tiny").inter)
    first = stranger.encoder.conv2[0]
    first.adaptor = nn.Conv2d(192 + 96, 96, 1)  # what their first run on a GPU leaves behind
    with pytest.raises(UsageError, match="folded"):
        from_foreign(stranger)


def test_a_stranger_behind_a_codec_of_ours_is_converted_alone():
    torch.manual_seed(0)
    model = create("dcvc-tiny").eval()
    pair = VideoCodec(model.intra, Stranger(model.inter))
    assert is_foreign(pair)
    converted = from_foreign(pair)
    assert converted.intra is model.intra and type(converted.inter) is type(model.inter)
    for name, value in model.inter.state_dict().items():
        assert torch.equal(converted.inter.state_dict()[name], value)


def test_a_stranger_in_half_precision_keeps_its_tables_in_the_original_arithmetic(codec, x):
    """The published order is `update`, then `half`: tables of the rounded weights would be others."""
    model = codec.inter
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-3 * torch.rand_like(parameter))
    model.update(0.12)
    model.half()
    compiled = compile_codec(model, original=True)
    assert compiled.z_tables.cdf.tobytes() == model.z_tables.cdf.tobytes()
