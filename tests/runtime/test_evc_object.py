"""Objects of EVC's published software, by stand-ins with their structure: they become ours, whole or pruned."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsecodec import UsageError
from sparsecodec.entropy import EntropyTables
from sparsecodec.models import EVC, ScalableEVC, VideoCodec, create
from sparsecodec.models.conversion import from_checkpoint
from sparsecodec.models.foreign import from_foreign, is_foreign
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.adapters import EVCCodec, ScalableEVCCodec

from .conftest import CLASSES, build

Q_SCALE = 0.9


class Distributions(nn.Module):
    """Of the hyper-latent: parameters, coding tables once they are computed, and none of our methods."""

    def __init__(self, estimator: nn.Module) -> None:
        super().__init__()
        for name, child in estimator.named_children():
            setattr(self, name, child)
        self.tables: EntropyTables | None = None

    def get_cdf_info(self) -> tuple[np.ndarray | None, ...]:
        return (None,) * 3 if self.tables is None else (self.tables.cdf, self.tables.lengths, self.tables.offsets)


class Gaussians:
    """Of the latent: no module."""

    tables: EntropyTables | None = None
    get_cdf_info = Distributions.get_cdf_info


class Stranger(nn.Module):
    """An object of another class with the parts of an EVC. A scalable one has an `enc` that is None."""

    def __init__(self, model: EVC) -> None:
        super().__init__()
        for name, child in copy.deepcopy(model).named_children():
            setattr(self, name, child)
        if isinstance(model, ScalableEVC):
            self.enc = None
            self.rate, self.forward_enc_id = None, None
        self.q_basic, self.q_scale = copy.deepcopy(model.q_basic), copy.deepcopy(model.q_scale)
        self.bit_estimator_z = Distributions(self.bit_estimator_z)
        self.gaussian_encoder = Gaussians()


@pytest.fixture
def scalable() -> ScalableEVC:
    torch.manual_seed(3)
    model = ScalableEVC("tiny-s", "tiny", 3).eval().requires_grad_(False)
    for k, encoder in enumerate(model.encs):
        encoder[6].weight *= (6, 18, -15)[k]
    model.hyper_enc[3].weight *= 5
    return model


@pytest.fixture(scope="module")
def x(photo: Tensor) -> Tensor:
    return photo[:, :, :64, :128].contiguous()


def test_an_object_becomes_a_compiled_evc(x: Tensor, tmp_path):
    model, path = build("evc-tiny", "dense"), tmp_path / "picture.bin"
    codec = compile_codec(Stranger(model), dtype=torch.float32)
    ours = compile_codec(model, dtype=torch.float32)
    assert isinstance(codec, EVCCodec) and codec.model_hash == ours.model_hash
    codec.update(force=True)
    coded = codec.compress(x, Q_SCALE)
    assert coded["bit_stream"] == ours.compress(x, Q_SCALE)["bit_stream"]
    payload = model.compress(x, Q_SCALE)["bit_stream"]  # the model's own layers read and write the family's strings
    for stream in (payload, coded["bit_stream"]):
        expected = model.decompress(stream, 64, 128, Q_SCALE)["x_hat"]
        torch.testing.assert_close(codec.decompress(stream, 64, 128, Q_SCALE)["x_hat"], expected, atol=1e-4, rtol=0)
    out = codec.encode_decode(x, Q_SCALE, str(path), pic_width=100, pic_height=64)
    assert path.read_bytes()[14:] == coded["bit_stream"] and out["bit"] == 8 * path.stat().st_size


@pytest.mark.parametrize("name", ["evc-ss", "evc-ls", "evc-tiny", "evc-tiny-swin", "scale-evc-tiny", "scale-evc-sl"])
def test_presets_are_read_off_the_shapes(name: str, tmp_path):
    with torch.device("meta"):
        model = create(name).eval()
    if name.endswith("swin"):  # has values that are in no state dict
        model = create(name).eval()
        x = torch.rand(1, 3, 64, 64)
        torch.save(model.state_dict(), tmp_path / "model.pth")
        assert torch.equal(from_checkpoint(tmp_path / "model.pth")(x, 1.0)["x_hat"], model(x, 1.0)["x_hat"])
    stranger = Stranger(model)
    assert is_foreign(stranger) and not is_foreign(model) and from_foreign(model) is model
    assert from_foreign(stranger).config == model.config


def test_pruned_weights_keep_their_own_widths(x: Tensor):
    thin = copy.deepcopy(build("evc-tiny", "dense"))
    for block in (thin.enc[3], thin.dec[2]):
        first, second = block.block[1].conv[0], block.block[1].conv[2]
        first.weight, first.bias = (nn.Parameter(value[::3].clone(), False) for value in (first.weight, first.bias))
        second.weight = nn.Parameter(second.weight[:, ::3].clone(), False)
    ours = from_foreign(Stranger(thin))
    assert type(ours) is EVC and ours.presets == thin.presets
    assert ours.enc[3].block[1].conv[0].out_channels == 64 and ours.dec[2].block[1].conv[2].in_channels == 86
    assert torch.equal(ours(x, Q_SCALE)["x_hat"], thin(x, Q_SCALE)["x_hat"])
    stranger = Stranger(thin)
    stranger.dec[7][0] = nn.Conv2d(7, 12, 1)
    with pytest.raises(UsageError, match="do not fit together"):
        from_foreign(stranger)
    stranger = Stranger(thin)
    del stranger.hyper_dec
    with pytest.raises(UsageError, match="hyper_dec"):
        compile_codec(stranger)


def test_ours_and_models_of_other_software_stay_what_they_are():
    for variant in ("dense", "compact"):
        model = build("evc-tiny", variant)
        assert not is_foreign(model) and from_foreign(model) is model
    for name in CLASSES:
        assert not is_foreign(build(name, "dense"))


def test_computed_tables_are_those_of_the_strings_alone(x: Tensor):
    """A file is read with the tables of the weights, wherever those are; a string with those of the object."""
    model = build("evc-tiny", "dense")
    stranger, own = Stranger(model), model.tables()
    other, rows = own[1].cdf.copy(), range(own[1].rows)
    other[rows, -own[1].offsets] += 1  # as where an exponential is rounded another way: the likeliest symbol
    adopted = EntropyTables(other, own[1].lengths, own[1].offsets)
    stranger.gaussian_encoder.tables = own[0]
    assert [t.digest for t in from_foreign(stranger).tables()] == [t.digest for t in own]  # not all are computed
    stranger.bit_estimator_z.tables = adopted
    ours = from_foreign(stranger)
    assert [t.digest for t in ours.tables()] == [own[0].digest, adopted.digest] != [t.digest for t in own]
    codec, plain = (compile_codec(m, dtype=torch.float32) for m in (stranger, model))
    payload = codec.compress(x, Q_SCALE)["bit_stream"]
    assert payload != plain.compress(x, Q_SCALE)["bit_stream"] and codec.encode(x) == plain.encode(x)
    x_hat = ours.decompress(payload, 64, 128, Q_SCALE)["x_hat"]
    torch.testing.assert_close(codec.decompress(payload, 64, 128, Q_SCALE)["x_hat"], x_hat, atol=1e-4, rtol=0)
    ours.update(force=True)
    assert [t.digest for t in ours.tables()] == [t.digest for t in own]


def test_a_scalable_object_becomes_ours_with_its_rate(scalable: ScalableEVC, x: Tensor):
    stranger = Stranger(scalable)
    codec, ours = (compile_codec(model, dtype=torch.float32) for model in (stranger, scalable))
    assert isinstance(codec, ScalableEVCCodec) and codec.ENCODERS == ours.ENCODERS
    codec.update(force=True)
    for prefix in (0, 1, 2, None):
        coded, expected = (c.compress(x, Q_SCALE, prefix) for c in (codec, ours))
        assert coded["bit_stream"] == expected["bit_stream"] and coded["prefix"] == expected["prefix"]
    stranger.rate = 3
    assert from_foreign(stranger).rate == 3
    stranger.forward_enc_id = 1
    with pytest.raises(UsageError, match=r"forward_enc_id=1.*prefix=1"):
        compile_codec(stranger)


@pytest.mark.parametrize("of", [lambda model: model, lambda model: compile_codec(model, dtype=torch.float32)])
def test_the_rate_decides_between_prefixes(of: Callable, scalable: ScalableEVC, x: Tensor, monkeypatch):
    monkeypatch.setattr("sparsecodec.models.scalable.LAMBDAS", (1e-9, 1e-9, 1e-9, 1e9))  # bits alone, or error alone
    codec = of(scalable)
    coded = [codec.compress(x, Q_SCALE, prefix) for prefix in range(3)]
    bits = min(coded, key=lambda one: len(one["bit_stream"]))
    error = min(coded, key=lambda one: float((one["x_hat"] - x).square().mean()))
    assert bits["prefix"] != error["prefix"]
    for rate, expected in ((0, bits), (3, error)):
        codec.set_rate(rate)
        assert codec.compress(x, Q_SCALE)["prefix"] == expected["prefix"]
    codec.set_rate(None)
    assert scalable.rate is None
    for rate in (4, -1, 1.0, True):
        with pytest.raises(UsageError, match=f"rate={rate}"):
            codec.set_rate(rate)


def test_a_stranger_codes_the_first_frame_of_another(x: Tensor):
    inter = create("dcvc-tiny").inter.eval()
    codec = compile_codec(VideoCodec(Stranger(build("evc-tiny", "dense")), inter), dtype=torch.float32)
    payload, state = codec.intra_encode(x, 32)
    assert torch.equal(codec.intra_decode(payload, 64, 128, 32)[1].frame, state.frame)
