"""DCVC-RT drops its feature every 32 frames: the file says so, and both ends arrive at the same State."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
import torch

from sparsecodec import compile_codec
from sparsecodec._clip_format import ClipFormat
from sparsecodec.cli.clip_checks import describe_clip
from sparsecodec.entropy import DROP, VideoReader, VideoWriter
from sparsecodec.errors import BitstreamError, UsageError
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.models.video import VideoCodec
from sparsecodec.quant import portable
from sparsecodec.runtime import video

from ..toy_video import ToyState, ToyVideo

FRAMES = 36
FORM = ClipFormat(32, 48)


def clip(frames: int) -> torch.Tensor:
    columns, rows = torch.arange(48.0), torch.arange(32.0)[:, None]
    return torch.stack(
        [0.5 + 0.4 * torch.sin(0.2 * columns + 0.3 * rows + 0.1 * t).expand(3, -1, -1) for t in range(frames)]
    )


@pytest.fixture(scope="module", params=["native", "portable"])
def codec(request):
    torch.manual_seed(3)
    intra = DCVCRTImage(RTImageWidths(16, 8, 24, 1, 1, fusion_blocks=1, spatial_blocks=1))
    inter = DCVCRTVideo(RTVideoWidths(16, 8, 24, 16, shared_blocks=1, context_blocks=1, recon_blocks=1))
    with torch.no_grad():  # so that a picture tells at which quality it was made
        inter.q_recon *= torch.linspace(0.3, 3, len(inter.q_recon))[:, None, None, None]
    model = VideoCodec(intra, inter).eval()
    if request.param == "portable":
        large = torch.nn.functional.interpolate(clip(3), (64, 96))
        model = portable(model, [large])
    return compile_codec(model, stream=request.param, dtype=torch.float32)


@pytest.fixture(scope="module")
def data(codec) -> bytes:
    encoder = codec.encoder(FORM, qp=20, intra_period=0)
    pieces = [encoder.push(frame[None]) for frame in clip(FRAMES)]
    assert encoder.frames == FRAMES
    return b"".join([*pieces, encoder.finish()])


def coded(data: bytes) -> list:
    reader, frames = VideoReader(io.BytesIO(data)), []
    while (frame := reader.read()) is not None:
        frames.append(frame)
    return frames


def written(header, frames) -> bytes:
    writer = VideoWriter(header)
    return b"".join([*(writer.frame(f.intra, f.qp, f.fingerprint, f.payload) for f in frames), writer.end()])


def test_the_33rd_frame_behind_an_intra_frame_starts_from_the_picture(codec, data):
    assert [frame.number for frame in coded(data) if frame.qp & DROP] == [33]
    assert {frame.qp & ~DROP for frame in coded(data)} == {20}
    assert len(list(codec.decoder(data))) == FRAMES  # with the fingerprint of every frame


def test_the_memory_is_made_anew_at_the_quality_of_the_frame_before(codec):
    encoder = codec.encoder(FORM, qp=20, intra_period=0)
    qualities = [(7 * number) % 64 for number in range(FRAMES)]
    pieces = [encoder.push(frame[None], qp=qp) for frame, qp in zip(clip(FRAMES), qualities, strict=True)]
    data = b"".join([*pieces, encoder.finish()])
    assert [frame.qp & ~DROP for frame in coded(data)] == qualities
    assert len(list(codec.decoder(data))) == FRAMES  # with the fingerprint of every frame


def test_info_tells_qualities_and_drops_apart(data, tmp_path):
    (tmp_path / "clip.spv").write_bytes(data)
    values, problem = describe_clip(str(tmp_path / "clip.spv"))
    assert (values["qp"], values["memory_drops"], values["frames"], problem) == ([20, 20], 1, FRAMES, None)


def test_without_the_mark_decoding_leaves_another_state(codec, data):
    frames = coded(data)
    object.__setattr__(frames[33], "qp", 20)
    decoder, count = codec.decoder(written(VideoReader(io.BytesIO(data)).header, frames)), 0
    with pytest.raises(Exception, match="frame 33: "):
        for _ in decoder:
            count += 1
    assert count == 33


def test_a_mark_where_no_memory_is_is_refused(codec, data):
    header, frames = VideoReader(io.BytesIO(data)).header, coded(data)[:2]
    object.__setattr__(frames[0], "qp", 20 | DROP)
    with pytest.raises(BitstreamError, match="frame 0 is to drop a memory that it has not"):
        list(codec.decoder(written(header, frames)))


def test_codecs_without_a_memory_have_no_marks():
    encoder = ToyVideo().encoder(FORM, intra_period=0)
    data = b"".join([*(encoder.push(frame[None]) for frame in clip(FRAMES)), encoder.finish()])
    frames = coded(data)
    assert not any(frame.qp & DROP for frame in frames)
    with pytest.raises(UsageError, match="the clip has ended"):
        encoder.push(clip(1))
    object.__setattr__(frames[3], "qp", frames[3].qp | DROP)
    with pytest.raises(BitstreamError, match="frame 3 is to drop a memory that it has not"):
        list(ToyVideo().decoder(written(VideoReader(io.BytesIO(data)).header, frames)))


class Growing(ToyVideo):
    """Whose memory has these magnitudes, one after another."""

    def __init__(self, magnitudes: Iterable[float]) -> None:
        super().__init__()
        self._magnitudes = iter(magnitudes)

    def magnitude(self, state):
        return next(self._magnitudes)


class Broken(ToyVideo):
    """Whose P frames `since` an I frame, or I frames, leave NaN."""

    def __init__(self, since: int) -> None:
        super().__init__()
        self._since = since

    def _encode(self, x, reference, qp, index):
        payload, state = super()._encode(x, reference, qp, index)
        return payload, ToyState(state.frame / (index != self._since), state.age)


def test_what_is_no_number_is_never_coded_from():
    encoder = Broken(3).encoder(FORM, intra_period=0)
    data = b"".join([*(encoder.push(frame[None]) for frame in clip(7)), encoder.finish()])
    assert [frame.number for frame in coded(data) if frame.intra] == [0, 3, 6]
    assert len(list(ToyVideo().decoder(data))) == 7
    with pytest.raises(UsageError, match="frame 0: the codec makes no finite picture"):
        Broken(0).encoder(FORM).push(clip(1))


def test_a_memory_of_four_times_its_first_magnitude_has_run_away():
    """Frames 1, 2, 3 behind frame 0; frame 3 is coded alone, and frame 4 says anew what is usual."""
    encoder = Growing([10, 39.9, 40.1, 100, 399, float("nan")]).encoder(FORM, intra_period=0)
    data = b"".join([*(encoder.push(frame[None]) for frame in clip(7)), encoder.finish()])
    assert [frame.number for frame in coded(data) if frame.intra] == [0, 3, 6]
    assert len(list(ToyVideo().decoder(data))) == 7


def test_a_memory_that_runs_away_gives_way_to_an_intra_frame(monkeypatch):
    torch.manual_seed(3)
    inter = DCVCRTVideo(RTVideoWidths(16, 8, 24, 16, shared_blocks=1, context_blocks=1, recon_blocks=1))
    with torch.no_grad():
        inter.feature_adaptor_p.weight *= 40
        inter.decoder.conv2.weight *= 40
    model = VideoCodec(DCVCRTImage(RTImageWidths(16, 8, 24, 1, 1, fusion_blocks=1, spatial_blocks=1)), inter).eval()
    codec = compile_codec(model, dtype=torch.float32)

    def alone() -> list[int]:
        encoder = codec.encoder(FORM, qp=20, intra_period=0)
        data = b"".join([*(encoder.push(frame[None]) for frame in clip(8)), encoder.finish()])
        assert all(x.isfinite().all() for x in codec.decoder(data))
        return [frame.number for frame in coded(data) if frame.intra]

    assert len(alone()) > 1
    monkeypatch.setattr(video.VideoEncoder, "_ran_away", lambda *_: False)
    encoder = codec.encoder(FORM, qp=20, intra_period=0)
    with pytest.raises((UsageError, AssertionError)):  # what stands where nobody looks: infinite features
        for frame in clip(8):
            encoder.push(frame[None])
            assert encoder._state.tensors()[0].isfinite().all()
