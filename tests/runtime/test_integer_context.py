"""The context model on integers: its order, what its columns compute, and that both directions walk alike."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecodec.entropy import Decoder, Encoder, dcvc_laplace16_tables
from sparsecodec.nn.dcvc_layers import MaskedConv2d
from sparsecodec.nn.integer_prior import as_float
from sparsecodec.nn.routine import drive, pulling, pushing
from sparsecodec.ops import dcvc_scale_thresholds
from sparsecodec.quant import W16A16, freeze, quantize_layers
from sparsecodec.quant.calibration import observe, set_scales
from sparsecodec.quant.tables import in_fixed_point
from sparsecodec.runtime.integer_context import ColumnNetwork, WaveCoder, waves

from .test_integer_structures import integers_of

CPU = torch.device("cpu")
LATENT, PRIOR, CONTEXT = 6, 9, 10  # channels; those of the context are pruned: of 12


class Both(nn.Module):
    """A context model over all positions at once."""

    def __init__(self) -> None:
        super().__init__()
        self.context = MaskedConv2d(LATENT, CONTEXT, 5)
        wide = nn.Conv2d(PRIOR + CONTEXT, 16, 1), nn.LeakyReLU(0.01), nn.Conv2d(16, 2 * LATENT, 1)
        self.parameters_of = nn.Sequential(*wide)

    def forward(self, y_hat: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
        return self.parameters_of(torch.cat([prior, self.context(y_hat)], 1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Both().eval()
    with torch.no_grad():
        model.context.weight *= 0.5
        model.parameters_of[-1].bias[LATENT:] += 2
    names = ["context", "parameters_of.0", "parameters_of.2"]
    inputs = (20 * torch.randn(1, LATENT, 9, 14)).round(), torch.randn(1, PRIOR, 9, 14)
    small = quantize_layers(model, dict.fromkeys(names, W16A16))
    with torch.no_grad():
        set_scales(small, observe(model, names, lambda m: m(*inputs)))
    return freeze(small)


def _coder(model: nn.Module) -> WaveCoder:
    network = ColumnNetwork(model, "net", ("context", "parameters_of"), strict=True)
    return WaveCoder(network, LATENT, 2, dcvc_laplace16_tables(), in_fixed_point(dcvc_scale_thresholds()))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (3, 7), (7, 3), (5, 16)])
@pytest.mark.parametrize("reach", [1, 2])
def test_a_wave_sees_earlier_waves_only(height, width, reach):
    order, wide = waves(height, width, reach, CPU), width + 2 * reach
    done = set()
    for wave in order:
        assert 0 < len(wave.positions) <= min(height, -(-width // (reach + 1)))
        inside = wave.inside.tolist()
        assert [(at // wide - reach) * width + at % wide - reach for at in inside] == wave.positions.tolist()
        for at, taps in zip(inside, wave.taps.view(len(inside), -1).tolist(), strict=True):
            row, column = at // wide, at % wide
            square = [(row + y, column + x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)]
            assert [(tap // wide, tap % wide) for tap in taps] == square[: len(square) // 2]
            there = [tap for tap in taps if reach <= tap % wide < reach + width and tap // wide >= reach]
            assert done.issuperset(there)
        done.update(inside)
    assert len(done) == height * width


@torch.no_grad()
def test_columns_compute_what_the_masked_layers_compute(model):
    """All positions of a decoded latent at once in the model's layers give the means and rows of every wave."""
    coder, (height, width) = _coder(model), (5, 11)
    y, prior = 4 * torch.randn(1, LATENT, height, width), integers_of(torch.randn(1, PRIOR, height, width), -10)
    seen, walk = [], coder.encoding(y, prior)
    y_hat = drive(walk, lambda request, out: seen.append(request))
    exponent, own = coder.prior_exponent, coder._network.exponents[0]
    given = integers_of(as_float(y_hat), own).float() * 2.0**own
    means, _ = model(given, prior.float() * 2.0**exponent).chunk(2, 1)
    symbols = torch.cat([request.symbols for request in seen])
    assert own != exponent  # or the test would not notice which one is used
    order = torch.cat([wave.positions for wave in waves(height, width, 2, CPU)])
    expected = (as_float(y_hat) - means)[0].flatten(1).T[order]
    assert symbols.shape == (height * width, LATENT) and len(symbols.unique()) > 5
    assert float((symbols - expected).abs().max()) < 2e-3
    assert float((as_float(y_hat) - y).abs().max()) < 0.5 + 1e-4


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (2, 9), (9, 2)])
def test_both_directions_agree(model, height, width):
    coder = _coder(model)
    y, prior = 9 * torch.randn(1, LATENT, height, width), integers_of(torch.randn(1, PRIOR, height, width), -10)
    encoder = Encoder()
    expected = drive(coder.encoding(y, prior), pushing(encoder))
    decoder = Decoder(encoder.finish())
    found = drive(_coder(model).decoding(prior), pulling(decoder))
    decoder.finish()
    assert found.dtype == torch.int32 and torch.equal(found, expected)


@torch.no_grad()
def test_values_that_are_no_numbers_and_extremes_are_coded(model):
    coder, prior = _coder(model), torch.full((1, PRIOR, 3, 4), -(2**15), dtype=torch.int16)
    y = torch.tensor([float("nan"), float("inf"), -1e30, 7e4]).view(1, 1, 1, 4).expand(1, LATENT, 3, 4)
    encoder = Encoder()
    expected = drive(coder.encoding(y, prior), pushing(encoder))
    assert torch.equal(drive(coder.decoding(prior), pulling(Decoder(encoder.finish()))), expected)


@torch.no_grad()
def test_the_mask_stays(model):
    """A quantised layer hides what the float one hides, whatever its weight was set to."""
    layer = MaskedConv2d(3, 4, 5)
    layer.weight.fill_(1.0)
    outer = nn.Sequential(layer)
    small = quantize_layers(outer, {"0": W16A16})
    set_scales(small, observe(outer, ["0"], lambda m: m(torch.randn(1, 3, 8, 8))))
    frozen = freeze(small)
    assert not frozen[0].weight.flatten(2)[:, :, 12:].any()
    impulse = F.pad(torch.ones(1, 3, 1, 1), (4, 4, 4, 4))
    assert not (frozen(impulse) - frozen(0 * impulse))[0, :, :4].any()  # rows above see nothing
