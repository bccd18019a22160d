"""Objects with the structure of DCVC-UF's: their contract on a CPU (tests/official has the published classes)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecodec import BitstreamError, UsageError
from sparsecodec.entropy import Decoder32
from sparsecodec.nn import uf_coder
from sparsecodec.runtime import compile_codec

from .uf_stand_in import Image, Video

KINDS = ("ld", "hts", "htl")
QP, SKIP = 20, 0.15
SPS = {"height": 37, "width": 50, "sps_id": 0}
PADDING = (11, 14)


@pytest.fixture
def clip(photo: Tensor) -> list[Tensor]:
    return [photo[:, :, 2 * t : 2 * t + 37, 3 * t : 3 * t + 50].contiguous() - 0.5 for t in range(9)]


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Image() if kind == "image" else Video(kind)


def ready(model: nn.Module, **options: Any) -> nn.Module:
    codec = compile_codec(model, **options)
    codec.update(SKIP)
    return codec


@pytest.mark.parametrize("original", [True, False], ids=["original", "compiled"])
def test_image_round_trip(clip, original):
    model = made("image")
    keys = {key: value.clone() for key, value in model.state_dict().items()}
    writer, reader = ready(model, original=original), ready(model, original=original)
    coded = writer.compress(clip[0], QP, *PADDING)
    assert set(coded) == {"bit_stream", "x_hat", "ec_parallel"} and isinstance(coded["bit_stream"], bytes)
    x_hat = reader.decompress(coded["bit_stream"], SPS, QP, coded["ec_parallel"])["x_hat"]
    assert torch.equal(x_hat, coded["x_hat"]) and x_hat.shape == (1, 3, 48, 64)
    assert x_hat.abs().max() <= 0.5 and x_hat.is_contiguous()
    again = reader.decompress(coded["bit_stream"], SPS, QP, 1)["x_hat"]
    assert again.data_ptr() != x_hat.data_ptr()
    assert isinstance(writer, Image) and list(writer.state_dict()) == list(keys)
    assert all(torch.equal(keys[key], value) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_compiled_pictures_are_those_of_the_networks(clip):
    model = made("image")
    pictures = [ready(model, original=original).compress(clip[0], QP, *PADDING)["x_hat"] for original in (True, False)]
    torch.testing.assert_close(pictures[1], pictures[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options", [{"original": True}, {}, {"dtype": torch.bfloat16}], ids=["original", "compiled", "bfloat16"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_eight_predicted_frames(clip, kind, options):
    """Both ends have the same reference after each frame, and another frame's bytes do not fit."""
    model = made(kind)
    writer, reader = ready(model, **options), ready(model, **options)
    first = torch.zeros(1, 3, 48, 64)
    writer.clear_dpb()
    reader.clear_dpb()
    writer.add_ref_feature_from_frame(first)
    reader.add_ref_feature_from_frame(first, apply_feature_adaptor=False)
    payloads = []
    for number in range(8):
        reset = number == 4
        x = torch.cat(clip[number : number + writer.frames], 1)
        x = x if x.shape[1] == 3 * writer.frames else x.repeat(1, writer.frames, 1, 1)
        coded = writer.compress(x, QP, reset, *PADDING)
        assert set(coded) == {"bit_stream", "ec_parallel"}
        decoded = reader.decompress(coded["bit_stream"], SPS, QP, coded["ec_parallel"], reset)["x_hat"]
        frames = decoded if kind != "ld" else [decoded]
        assert len(frames) == writer.frames and all(frame.shape == (1, 3, 48, 64) for frame in frames)
        assert torch.equal(writer.ref_feature, reader.ref_feature) and reader.ref_feature.isfinite().all()
        if reset:  # the last picture, before it is made one, and nothing else
            last = nn.functional.pixel_shuffle(reader.ref_feature, 8).clamp(-0.5, 0.5)
            torch.testing.assert_close(last, frames[-1], atol=1e-5, rtol=0)
            assert reader.memory is None
        payloads.append(coded["bit_stream"])
    assert len(set(payloads)) == 8


@pytest.mark.parametrize("kind", ["image", *KINDS])
def test_the_report_names_what_runs(clip, kind):
    codec = ready(made(kind))
    if kind == "image":
        codec.compress(clip[0], QP, *PADDING)
    else:
        codec.add_ref_feature_from_frame(torch.zeros(1, 3, 48, 64))
        codec.compress(torch.cat(clip[: codec.frames], 1), QP, True, *PADDING)
    report = codec.report
    assert (
        sum(row.macs for row in report.rows if row.backend == "cpu") > 0.99 * sum(row.macs for row in report.rows) > 0
    )
    assert report.notes[-1].startswith("100.0% of the multiply-accumulates")
    names = {row.transform for row in report.rows}
    if kind == "image":
        assert {"enc", "hyper_enc", "y_prior_fusion", "y_spatial_prior_adaptor_3", "dec"} - {"dec"} <= names
    else:
        assert {"feature_adaptor_i", "encoder", "temporal_prior_encoder", "y_prior_fusion", "decoder"} <= names
        (left,) = [row for row in report.rows if row.transform == "recon_head"]
        assert left.backend == "torch" and left.reason == "called with for_reset="
    assert any("original: every layer" in note for note in ready(made(kind), original=True).report.notes)


def test_one_call_holds_both_passes_of_ld(clip):
    """What the decoder reads first is z, then every latent that is not skipped, channels innermost."""
    codec = ready(made("ld"), original=True)
    codec.add_ref_feature_from_frame(torch.zeros(1, 3, 48, 64))
    calls = []
    coder = codec._coder
    codec.__dict__["_coder"] = lambda *given, **options: _Listening(coder(*given, **options), calls)
    payload = codec.compress(clip[0], QP, False, *PADDING)["bit_stream"]
    assert [tuple(call.indexes.shape) for call in calls] == [(1, 1, 1, 8), (1, 3, 4, 16)]
    assert calls[0].indexes.flatten().tolist() == list(range(QP * 8, QP * 8 + 8))
    y = calls[1]
    skipped = y.indexes == -1
    assert 0 < skipped.sum() < skipped.numel() and not y.symbols[skipped].any() and y.symbols.any()
    decoder = Decoder32(payload, 1)
    for call in calls:
        assert torch.equal(decoder.decode(call.indexes, call.tables), call.symbols)
    decoder.finish()


class _Listening:
    def __init__(self, coder: uf_coder.UFCoder, calls: list) -> None:
        self._coder, self._calls = coder, calls

    def encoding(self, *given: object):
        routine, answer = self._coder.encoding(*given), None
        while True:
            try:
                call = routine.send(answer)
            except StopIteration as stop:
                return stop.value
            self._calls.append(call)
            answer = yield call


def test_several_streams(clip, monkeypatch):
    monkeypatch.setattr(uf_coder, "SYMBOLS_PER_STREAM", 30)
    codec = ready(made("image"))
    coded = codec.compress(clip[0], QP, *PADDING)
    assert coded["ec_parallel"] > 2
    x_hat = codec.decompress(coded["bit_stream"], SPS, QP, coded["ec_parallel"])["x_hat"]
    assert torch.equal(x_hat, coded["x_hat"])
    with pytest.raises(BitstreamError):
        codec.decompress(coded["bit_stream"], SPS, QP, coded["ec_parallel"] + 1)


def test_the_threshold_is_part_of_the_stream(clip):
    model = made("image")
    sizes = []
    for skip in (0.0, SKIP, 1.0):
        codec = compile_codec(model, original=True)
        codec.update(skip)
        sizes.append(len(codec.compress(clip[0], QP, *PADDING)["bit_stream"]))
    assert sizes[0] >= sizes[1] > sizes[2]
    model.gaussian_encoder = copy.copy(model.enc)  # as an object that was set up before it was compiled
    model.gaussian_encoder.skip_thres = 1.0
    tables = ready(model)._tables
    for name, table in zip(("gaussian_encoder", "bit_estimator_z"), tables, strict=True):
        getattr(model, name)._quantized_cdf, getattr(model, name)._cdf_length = table.cdf, table.lengths
    adopted = compile_codec(model, original=True)
    assert len(adopted.compress(clip[0], QP, *PADDING)["bit_stream"]) == sizes[2]


def test_wrong_calls_say_what_is_wrong(clip):
    image, video = ready(made("image"), original=True), ready(made("ld"), original=True)
    x = clip[0]
    good = image.compress(x, QP, *PADDING)["bit_stream"]
    for call, message in (
        (lambda: compile_codec(made("image")).compress(x, QP, *PADDING), r"no coding tables yet: call update"),
        (lambda: image.compress(x, 64, *PADDING), r"qp=64 \(needs 0 .. 63, a whole number\)"),
        (lambda: image.compress(x, True, *PADDING), r"qp=True \(needs 0 .. 63, a whole number\)"),
        (lambda: video.compress(x, 20.0, False, *PADDING), r"qp=20.0 \(needs 0 .. 63"),
        (lambda: image.compress(x * float("nan"), QP, *PADDING), r"picture holds values in \[nan, nan\]"),
        (lambda: video.add_ref_feature_from_frame(torch.full((1, 3, 32, 32), float("inf"))), "needs finite ones"),
        (lambda: image.compress(x, QP, 0, 0), r"37 x 50 becomes 37 x 50 \(needs multiples of 16\)"),
        (
            lambda: image.compress(x.repeat(1, 2, 1, 1), QP, *PADDING),
            r"picture \[1, 6, 37, 50\] \(needs \[1, 3, H, W\]",
        ),
        (lambda: image.compress(x.to("meta"), QP, *PADDING), r"on meta \(needs .* on cpu"),
        (lambda: image.decompress(good, SPS, QP, 9), r"ec_part=9 \(needs 1 .. 8 streams\)"),
        (lambda: image.decompress(good, SPS, QP, True), r"ec_part=True \(needs 1"),
        (lambda: image.decompress(good, {"height": 0, "width": 5}, QP, 1), "picture of 0 x 5"),
        (lambda: image.decompress(good, {"height": 37}, QP, 1), "needs height and width"),
        (lambda: image.update(-0.1), r"skip_thres=-0.1"),
        (lambda: video.compress(x, QP, False, *PADDING), "no reference: call add_ref_feature_from_frame first"),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    video.add_ref_feature_from_frame(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UsageError, match=r"frame of 48 x 64 after a reference of 32 x 32"):
        video.compress(x, QP, False, *PADDING)


def test_a_damaged_payload_leaves_the_reference(clip):
    codec = ready(made("ld"))
    codec.add_ref_feature_from_frame(torch.zeros(1, 3, 48, 64), apply_feature_adaptor=False)
    before = codec.ref_feature
    for payload in (b"", b"\0" * 3, bytes(range(7))):
        with pytest.raises(BitstreamError):
            codec.decompress(payload, SPS, QP, 1, False)
    assert codec.ref_feature is before


def test_objects_with_a_part_missing_are_refused():
    model = made("hts")
    del model.recon_head, model.q_feature
    with pytest.raises(UsageError, match=r"Video is like a UFVideoObject, but .* has no recon_head, q_feature"):
        compile_codec(model)
    with pytest.raises(UsageError, match=r"is on the meta device \(needs values\)"):
        compile_codec(made("image").to("meta"))
    with pytest.raises(UsageError, match="needs float32"):
        compile_codec(made("image"), dtype=torch.bfloat16, original=True)


def test_weights_loaded_later_are_refused(clip):
    codec = ready(made("image"))
    codec.load_state_dict(codec.state_dict())
    codec.compress(clip[0], QP, *PADDING)
    with pytest.raises(UsageError, match="compiled with other weights"):
        codec.load_state_dict(codec.state_dict())
