"""CompressAI's strings, byte for byte, in both directions."""

import importlib.util

import pytest
import torch

from sparsecodec._compat import import_compressai
from sparsecodec.entropy import Decoder, Encoder, EntropyTables, compressai_scales, decode, encode, gaussian_tables
from sparsecodec.errors import BitstreamError

if importlib.util.find_spec("compressai") is None:
    pytest.skip("CompressAI is not installed (extra 'compressai')", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def compressai():
    return import_compressai()


@pytest.fixture(scope="module")
def gaussian_conditional():
    from compressai.entropy_models import GaussianConditional

    model = GaussianConditional(None)
    model.update_scale_table(compressai_scales())
    return model


def tables_of(model) -> EntropyTables:
    return EntropyTables(model.quantized_cdf, model.cdf_length, model.offset)


def test_scale_table_is_theirs():
    from compressai.models.google import get_scale_table

    assert compressai_scales() == get_scale_table().tolist()


@pytest.mark.parametrize("tail_mass", [1e-9, 1e-4])
def test_gaussian_tables_are_theirs(tail_mass):
    from compressai.entropy_models import GaussianConditional

    model = GaussianConditional(None, tail_mass=tail_mass)
    model.update_scale_table(compressai_scales())
    ours, theirs = gaussian_tables(tail_mass=tail_mass), tables_of(model)
    assert ours.digest == theirs.digest
    assert (ours.lengths == theirs.lengths).all() and (ours.offsets == theirs.offsets).all()


# far=0: no escapes; 300: symbols up to 300 row widths away, with escapes of up to 5 digits
@pytest.mark.parametrize("far", [0, 300])
def test_gaussian_strings(gaussian_conditional, far):
    generator = torch.Generator().manual_seed(far)
    scales = torch.exp(torch.linspace(-2.2, 5.6, 96))[None, :, None, None].expand(2, 96, 6, 5)
    y = torch.randn(2, 96, 6, 5, generator=generator) * scales * (1 + far * (torch.rand(2, 96, 6, 5) < 0.02))
    means = torch.randn(2, 96, 6, 5, generator=generator)
    indexes = gaussian_conditional.build_indexes(scales)
    strings = gaussian_conditional.compress(y, indexes, means)
    symbols, tables = (y - means).round().int(), tables_of(gaussian_conditional)
    for i, string in enumerate(strings):
        assert encode(symbols[i], indexes[i], tables) == string
        assert torch.equal(decode(string, indexes[i], tables), symbols[i])


def test_factorised_strings():
    from compressai.entropy_models import EntropyBottleneck

    torch.manual_seed(0)
    model = EntropyBottleneck(40)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.update()
    z = torch.randn(1, 40, 4, 7) * 30
    (string,) = model.compress(z)
    symbols = (z - model._get_medians().detach().view(1, -1, 1, 1)).round().int()
    channels = torch.arange(40, dtype=torch.uint8).view(1, -1, 1, 1).expand_as(z)
    assert encode(symbols, channels, tables_of(model)) == string
    assert torch.equal(decode(string, channels, tables_of(model)), symbols)


def test_autoregressive_model_on_our_coder(monkeypatch):
    """mbt2018 with its coder classes replaced by ours: the same strings, the same picture."""
    from compressai.models import JointAutoregressiveHierarchicalPriors, google

    calls = []

    def tables_from_lists(cdf, lengths, offsets):
        return EntropyTables(*(torch.tensor(values, dtype=torch.int32) for values in (cdf, lengths, offsets)))

    class OurEncoder:
        def __init__(self):
            self.encoder = Encoder()

        def encode_with_indexes(self, symbols, indexes, *table_lists):
            calls.append("encode")
            arguments = torch.tensor(symbols, dtype=torch.int32), torch.tensor(indexes, dtype=torch.int16)
            self.encoder.push(*arguments, tables_from_lists(*table_lists))

        def flush(self):
            return self.encoder.finish()

    class OurDecoder:
        def set_stream(self, string):
            self.decoder, self.left = Decoder(string), 16

        def decode_stream(self, indexes, *table_lists):
            calls.append("decode")
            symbols = self.decoder.decode(torch.tensor(indexes, dtype=torch.int16), tables_from_lists(*table_lists))
            self.left -= 1
            if self.left == 0:
                self.decoder.finish()
            return symbols.tolist()

    torch.manual_seed(0)
    model = JointAutoregressiveHierarchicalPriors(N=8, M=12).eval()
    model.g_a[-1].weight.data *= 30  # symbols that are not all zero
    model.update()
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        theirs = model.compress(picture)
        shown = model.decompress(theirs["strings"], theirs["shape"])["x_hat"]
        monkeypatch.setattr(google, "BufferedRansEncoder", OurEncoder)
        monkeypatch.setattr(google, "RansDecoder", OurDecoder)
        ours = model.compress(picture)
        assert ours["strings"] == theirs["strings"] and len(ours["strings"][0][0]) > 100
        assert torch.equal(model.decompress(ours["strings"], ours["shape"])["x_hat"], shown)
    assert calls == ["encode"] + ["decode"] * 16


def test_damage_that_compressai_decodes_silently(gaussian_conditional):
    indexes = torch.full((1, 500, 1, 1), 20, dtype=torch.int32)
    (string,) = gaussian_conditional.compress(torch.arange(500.0).view(1, -1, 1, 1) % 3 - 1, indexes)
    damaged = string[:40] + bytes([string[40] ^ 1]) + string[41:]
    assert gaussian_conditional.decompress([damaged], indexes).shape == indexes.shape
    with pytest.raises(BitstreamError):
        decode(damaged, indexes, tables_of(gaussian_conditional))
