"""Portable FVC behind EVC, beside what all portable video codecs share (test_portable_video.py)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.models import EVC, FVC, VideoCodec
from sparsecodec.models.fvc import FVCState, Widths
from sparsecodec.nn.fvc_layers import PatchAttention
from sparsecodec.nn.integer_attention import attended
from sparsecodec.quant import portable
from sparsecodec.quant.model import quantized_layers
from sparsecodec.sparsity import ChannelMasks, compact, compact_config, trace_model
from sparsecodec.training import family_of

from ..lively import lively_fvc
from .portable_clips import Kind, clip, decoded

# In chunks of a vector and beside them; groups of more than one vector; taps that are weighed; frames that are fused.
PLAIN = Widths(18, 10, 12, 2, 1, references=0)
FUSION = Widths(8, 10, 8, 2, 1, modulated=True, references=3)
WITHOUT_FUSION = Widths(18, 10, 8, 2, 1, modulated=True, references=0)  # its features shrink


def untrained(widths: Widths) -> VideoCodec:
    torch.manual_seed(3)
    intra, inter = EVC("nano", "nano"), lively_fvc(FVC(widths).requires_grad_(False))
    with torch.no_grad():  # so that latents fill several symbols, and pictures are grey
        inter.motion_codec.analysis[-1].weight *= 40
        inter.residual_codec.analysis[-1].weight *= 25
        inter.reconstruction[-1].weight *= 0.2
        inter.reconstruction[-1].bias += 0.4
        for module in inter.modules():
            if isinstance(module, PatchAttention):
                module.score.weight *= 8
    return VideoCodec(intra, inter).eval().requires_grad_(False)


def kind_of(widths: Widths, make=untrained, layers: int = 60, kept: int | None = None) -> Kind:
    return Kind(
        partial(make, widths),
        size=(64, 128),
        frames=6,
        alone=(0, 3),
        ops=frozenset({"integer_conv2d"}),
        paths=frozenset(
            {"intra.hyper_dec.0.block.2", "inter.compensation.alignment.conv", "inter.motion_estimation.0"}
        ),
        behind_symbols=lambda inter: inter.compensation.alignment.conv,
        least_bytes=100,
        layers=layers,
        # Deformable convolutions, at half the size of a picture.
        uncounted=tuple(
            9 * channels**2 * (1 + widths.references) / 4 for channels in (kept or widths.feature, widths.feature)
        ),
    )


def pruned(widths: Widths) -> VideoCodec:
    """Channels go from every map, those of groups that share offsets among them."""
    model = untrained(widths)
    shapes = family_of(model).transforms(model, "all", 64)
    graph = trace_model(model, list(shapes), "coupled")
    masks = ChannelMasks.random(graph, 0.4, seed=2)
    small = compact(model, masks, graph)
    small.compact_config = compact_config(masks, graph)
    small.inter.compensation.alignment.offsets.weight *= 5  # fewer channels add up to less
    return small


FVCS = {
    "fvc": kind_of(PLAIN),
    "fvc-fusion": kind_of(FUSION),
    "fvc-pruned": kind_of(WITHOUT_FUSION, pruned, kept=10),
}
kinds = pytest.mark.parametrize("kind", FVCS.values(), ids=list(FVCS))


@kinds
def test_offsets_are_of_pixels(kind: Kind):
    """Samples would otherwise be those of a plain convolution."""
    codec, found = kind.compiled(), []
    network = codec._inter._compensation

    def note(step, values, out):
        result = run(step, values, out)
        if step.op == "integer_deform_columns":
            found.append(values[network._index[step.inputs["offset"]]].float() / 65536)
        return result

    run, network._run = network._run, note
    decoded(codec, kind.stream[:3], kind.size)
    assert found and all(float(offset.abs().amax()) > 1 and float(offset.std()) > 0.1 for offset in found)


@kinds
def test_states_hold_as_many_features_as_are_fused(kind: Kind):
    most = max(kind.model.inter.widths.references, 1)
    states = [state for _, state in kind.expected]
    assert [len(state.features) for state in states] == [min(n, most) for n in (1, 2, 3) * 2]
    assert all(len(state.features[0].unique()) > 50 for state in states)


@kinds
def test_report_says_what_samples(kind: Kind):
    codec = kind.compiled()
    decoded(codec, kind.stream[:2], kind.size)
    report = codec.report
    integers = [row for row in report.rows if row.transform in report.decoder]
    deformable = [row for row in integers if row.op == "integer_deform_columns"]
    assert len(deformable) == 1 + kind.model.inter.widths.references
    assert {row.backend for row in deformable} == {"cpu"}
    counted = {path for row in integers if row.macs for path in row.paths}
    layers = {path for path in quantized_layers(kind.model) if path.startswith("inter.") and "score" not in path}
    assert all({path, path.removesuffix(".conv")} & counted for path in layers)  # inside a layer of some channels


@kinds
def test_compensation_and_fusion_compute_what_their_frozen_layers_do(kind: Kind):
    """Beside the rounding of what stands between the layers."""
    parts, layers = kind.compiled()._inter, kind.model.inter
    generator = torch.Generator().manual_seed(0)
    alignment = layers.compensation.alignment
    of_motion, of_feature = parts._compensation.exponents
    assert of_feature == parts._exponent

    def some(channels: int, exponent: int, size: float) -> Tensor:
        values = torch.randn((1, channels, 12, 20), generator=generator) * size
        values = (values * 2.0**-exponent).clamp(-(2**15), 2**15 - 1).to(torch.int16)
        return values.contiguous(memory_format=torch.channels_last)

    state = kind.stream[1].state.features[0].float() * 2.0**of_feature
    motion = some(alignment.offsets.in_channels, of_motion, 0.3 * 2.0**15 * 2.0**of_motion / 8)
    channels = alignment.conv.weight.shape[1]
    features = [some(channels, of_feature, float(state.std())) for _ in range(4)]
    floats = [feature.double() * 2.0**of_feature for feature in features]
    wanted = layers.compensation((motion.double() * 2.0**of_motion).float(), floats[0].float())
    found = parts._compensation(motion, features[0]) / 65536
    assert float((found - wanted).abs().max()) < 0.05 * float(wanted.std())
    if layers.fusion is not None:
        references = tuple(features[1 : 1 + layers.widths.references])
        wanted = layers.fusion(floats[0].float(), tuple(x.float() for x in floats[1 : 1 + len(references)]))
        found = parts._fusion(features[0], references) / 65536 + floats[0]
        assert float((found - wanted).abs().max()) < 0.05 * float(wanted.std())


def test_states_of_another_kind_are_refused():
    kind = FVCS["fvc-fusion"]
    codec, (feature,) = kind.compiled(), kind.stream[0].state.features
    payload = kind.stream[1].payload
    reason = r"feature 0 of the state is \(1, 8, 32, 64\) torch.int16 \(needs \(1, 8, 64, 64\) torch.int16\)"
    with pytest.raises(UsageError, match=reason):
        codec.inter_decode(payload, FVCState((feature,)), 128, 128, 63, 1)
    with pytest.raises(UsageError, match="feature 1 of the state is .* torch.float32"):
        codec.inter_decode(payload, FVCState((feature, feature.float())), *kind.size, 63, 1)
    for count in (0, 4):
        with pytest.raises(UsageError, match=rf"a state of {count} frames \(needs 1 to 3\)"):
            codec.inter_decode(payload, FVCState((feature,) * count), *kind.size, 63, 1)


def test_attention_is_the_float_one_but_for_rounding():
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(-(2**15), 2**15, (1, 5, 6, 7), generator=generator).to(torch.int16)
    scores = torch.randint(-4 * 65536, 4 * 65536, (1, 1, 6, 7), generator=generator).to(torch.int32)
    near, around = (F.unfold(F.pad(values.double(), (1,) * 4, "replicate"), 3) for values in (scores, source))
    weights = (near / 65536).softmax(1)
    wanted = (around.view(1, 5, 9, 42) * weights[:, None]).sum(2).view(1, 5, 6, 7)
    # Nine weights of 15 bits, scores in steps of 2^-11, one rounding.
    assert float((attended(source, scores, 3) - wanted).abs().max()) <= 9 / 2 + 2**15 * 2.0**-11 + 0.5
    same = attended(source, torch.zeros_like(scores), 3)
    assert float((same - around.view(1, 5, 9, 42).mean(2).view(1, 5, 6, 7)).abs().max()) <= 5
    for far in (-(2**31), 2**31 - 1):  # one position takes all, or gives nothing
        scores[0, 0, 2, 3] = far
        found = attended(source, scores, 3)
        if far > 0:
            assert torch.equal(found[0, :, 1:4, 2:5], source[0, :, 2, 3, None, None].expand(5, 3, 3))


def test_weights_of_equal_scores_fill_the_range():
    """(2^15 + 4) / 9 rounds nine times the same way: 3641 each, one more than 2^15 in all; what is more saturates."""
    source = torch.full((1, 1, 3, 3), -(2**15), dtype=torch.int16)
    assert attended(source, torch.zeros(1, 1, 3, 3, dtype=torch.int32), 3).unique().tolist() == [-(2**15)]
    assert attended(-(source + 1), torch.zeros(1, 1, 3, 3, dtype=torch.int32), 3).unique().tolist() == [2**15 - 1]


def test_an_image_codec_that_is_on_integers_keeps_them():
    """Its own files and the clips' frames alone are then of one model."""
    kind = FVCS["fvc"]
    intra = portable(kind.float_model.intra, clip(2, 0, 64, 64), exact=True)
    both = portable(VideoCodec(intra, kind.float_model.inter), [clip(3, 0, 64, 64)])
    before, after = intra.state_dict(), both.intra.state_dict()
    assert set(after) - set(before) == {"portable.steps"}
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    codec, x = kind.compiled(both), clip(1, 1, 64, 64)
    payload, state = codec.intra_encode(x, 40)
    assert torch.equal(codec.intra_decode(payload, 64, 64, 40)[1].features[0], state.features[0])
