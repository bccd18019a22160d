"""Portable DCVC (2021), beside what all portable video codecs share (test_portable_video.py)."""

from __future__ import annotations

import copy

import pytest
import torch

from sparsecodec import zoo
from sparsecodec.errors import UsageError
from sparsecodec.models import DCVC, EVC
from sparsecodec.models.dcvc import DCVCState, Widths
from sparsecodec.models.video import VideoCodec
from sparsecodec.nn.dcvc_coder import FRAME, MOTION
from sparsecodec.nn.dcvc_layers import PlainGDN
from sparsecodec.quant import portable, quantized_layers
from sparsecodec.quant.gdn import QuantGDN
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.adapters import portable_dcvc
from sparsecodec.sparsity import ChannelMasks, compact, trace_model
from sparsecodec.training import family_of

from ..lively import lively_dcvc
from .portable_clips import Kind, clip, coded, decoded

WIDTHS = Widths(12, 10, 14, 8, (8, 8, 8, 8))


def untrained() -> VideoCodec:
    torch.manual_seed(3)
    intra, inter = EVC("nano", "nano"), lively_dcvc(DCVC(WIDTHS))
    with torch.no_grad():  # so that latents fill several symbols and tables, motion goes far, and pictures are grey
        intra.enc[-1].weight *= 40
        intra.y_prior_fusion[-1].block[1].conv[2].bias[64:128] += 0.8
        intra.dec[-1][0].bias += 0.4
        inter.mvEncoder[-1].weight *= 20
        inter.contextualEncoder[-1].weight *= 14
        inter.contextualDecoder_part2[-1].weight *= 0.1
        inter.contextualDecoder_part2[-1].bias += 0.4
        for parameters in (inter.entropy_parameters, inter.entropy_parameters_mv):
            parameters[-1].bias[len(parameters[-1].bias) // 2 :] += 1
        for layer in inter.modules():
            if isinstance(layer, PlainGDN):
                layer.gamma.uniform_(0, 0.1)
    return VideoCodec(intra, inter).eval()


# Per pixel, of 5x5 masked convolutions and the 1x1s behind them.
CONTEXT_MACS = (12 * 2 * (14**2 + 12**2) + (56 * 46 + 46 * 37 + 37 * 28) + (48 * 40 + 40 * 32 + 32 * 24)) / 256
DCVC_2021 = Kind(
    untrained,
    size=(64, 128),
    frames=8,
    alone=(0, 5),
    ops=frozenset({"integer_conv2d", "integer_gdn"}),
    paths=frozenset(
        {"inter.auto_regressive", "inter.contextualDecoder_part1.6", "inter.opticFlow.moduleBasic.3.conv5"}
    ),
    behind_symbols=lambda inter: inter.contextualDecoder_part2[-1],
    least_bytes=400,
    layers=100,
    uncounted=(CONTEXT_MACS, CONTEXT_MACS),
)


def test_motion_goes_far(monkeypatch):
    flows, warp = [], portable_dcvc.integer_warp
    monkeypatch.setattr(portable_dcvc, "integer_warp", lambda x, flow: flows.append(flow) or warp(x, flow))
    decoded(DCVC_2021.compiled(), DCVC_2021.stream[:2], DCVC_2021.size)
    assert float(flows[0].abs().max()) > 2**16  # a pixel


def test_context_models_count_the_taps_that_they_see():
    report = DCVC_2021.compiled().report
    macs = {path: row.macs for row in report.rows if row.transform in report.decoder for path in row.paths}
    assert macs["inter.auto_regressive"] == 12 * 2 * WIDTHS.latent**2 / 256
    assert macs["inter.auto_regressive_mv"] == 12 * 2 * WIDTHS.motion**2 / 256
    assert macs["inter.contextualDecoder_part1.6"] == WIDTHS.feature**2 / 4
    assert macs.keys() >= {name for name in quantized_layers(DCVC_2021.model) if name.startswith("inter.")}
    inter = DCVC_2021.compiled()._inter
    assert inter.latents == WIDTHS.motion + WIDTHS.latent
    for prior, suffix in ((inter.motion, MOTION), (inter.latent, FRAME)):
        paths = {path for row in prior.parameters.report_rows(256) for path in row.paths}
        assert paths >= {f"inter.auto_regressive{suffix}", f"inter.entropy_parameters{suffix}.4"}


def test_a_pruned_codec_is_portable():
    model = DCVC_2021.float_model
    graph = trace_model(model, list(family_of(model).transforms(model, "all")), "coupled")
    thin = compact(model, ChannelMasks.random(graph, 0.4, 0), graph)
    assert thin.inter.entropy_parameters[0].out_channels < model.inter.entropy_parameters[0].out_channels
    codec = DCVC_2021.compiled(portable(thin, [clip(3, 0, *DCVC_2021.size)]))
    frames = coded(codec, DCVC_2021.clip(3), (0,))
    for frame, (_, state) in zip(frames, decoded(codec, frames, DCVC_2021.size), strict=True):
        assert torch.equal(frame.state.frame, state.frame) and len(frame.payload) > 300


def test_states_of_another_kind_are_refused():
    state = DCVC_2021.stream[0].state
    for wrong in (DCVCState(state.frame.float()), DCVCState(state.frame[:, :1])):
        with pytest.raises(UsageError, match="frame of the state is"):
            DCVC_2021.compiled().inter_decode(DCVC_2021.stream[1].payload, wrong, *DCVC_2021.size, 63, 1)


@pytest.mark.parametrize("original", [False, True])
def test_integers_have_no_native_streams(original):
    """Neither compiled nor as they are: positions in another order would see other latents."""
    with pytest.raises(UsageError, match="portable streams only .use stream='portable'"):
        compile_codec(DCVC_2021.model, original=original)
    with pytest.raises(UsageError, match="portable streams only .use stream='portable'"):
        DCVC_2021.model.inter.compress(*DCVC_2021.clip(2)[:, None])


def test_a_norm_that_differs_is_found():
    codec, other = DCVC_2021.compiled(), copy.deepcopy(DCVC_2021.model)
    other.inter.contextualDecoder_part1[6].beta //= 2
    assert DCVC_2021.compiled(other).model_hash != codec.model_hash
    broken = DCVC_2021.compiled(other)
    (_, right), (_, wrong) = (decoded(one, DCVC_2021.stream[:2], DCVC_2021.size)[1] for one in (codec, broken))
    assert not torch.equal(right.frame, wrong.frame)


def test_norms_have_room():
    norms = [layer for layer in quantized_layers(DCVC_2021.model).values() if isinstance(layer, QuantGDN)]
    assert len(norms) == 9 and all(layer.frozen and not layer._faults() for layer in norms)


@pytest.mark.parametrize("name", ["beta", "gamma", "gamma_scale", "input_scale"])
def test_norms_that_cannot_be_are_refused(name, tmp_path):
    other = copy.deepcopy(DCVC_2021.model)
    layer = other.inter.mvDecoder_part1[1]
    wrong = {"beta": 2**52, "gamma": -1, "gamma_scale": 2.0**-21, "input_scale": 0.3}
    getattr(layer, name).view(-1)[-1] = wrong[name]
    with pytest.raises(UsageError, match=rf"mvDecoder_part1.1.(gamma, beta: not in|{name}: not all powers)"):
        zoo.save(other, tmp_path / name)
