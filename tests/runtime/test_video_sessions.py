"""Sessions over clips: what goes in comes out, both ends agree frame by frame, and what does not fit is refused."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch

from sparsecodec._clip_format import ClipFormat
from sparsecodec.entropy import VideoReader
from sparsecodec.errors import BitstreamError, ModelMismatchError, ResourceLimitError, UsageError
from sparsecodec.runtime.video import fingerprint

from ..toy_video import ToyVideo, moving

FRAMES = moving(12)
FORM = ClipFormat(33, 50)


class Pipe(io.RawIOBase):
    """Bytes that can only be read onwards, a few at a time."""

    def __init__(self, data: bytes) -> None:
        self.data, self.taken = data, 0

    def read(self, size=-1):
        piece = self.data[self.taken : self.taken + min(size, 7)]
        self.taken += len(piece)
        return piece

    def seekable(self):
        return False


def encoded(codec, frames=FRAMES, form=FORM, **options) -> list[bytes]:
    """What each push gave, and the end."""
    encoder = codec.encoder(form, **options)
    return [*map(encoder.push, frames), encoder.finish()]


@pytest.mark.parametrize("size", [(33, 50), (16, 16), (1, 1), (17, 128)], ids=str)
def test_decoding_gives_the_frames_that_the_encoder_had(size):
    frames, codec = moving(5, *size), ToyVideo()
    data = b"".join(encoded(codec, frames, ClipFormat(*size), qp=60))
    assert codec.calls == ["I", "P", "P", "P", "P"]
    decoded = list(ToyVideo().decoder(data))
    assert [tuple(x.shape) for x in decoded] == [(1, 3, *size)] * 5
    for x, x_hat in zip(frames, decoded, strict=True):
        pooled = torch.nn.functional.avg_pool2d
        if size == (16, 16):
            assert (pooled(x, 8) - pooled(x_hat, 8)).abs().max() <= 0.5001 / 64
        assert 0 <= x_hat.min() and x_hat.max() <= 1
        x_hat.add_(1)  # the caller's to keep: the next frames do not notice


def test_a_second_loop_goes_on_where_the_first_one_stopped():
    data = b"".join(encoded(ToyVideo()))
    whole, decoder = list(ToyVideo().decoder(data)), ToyVideo().decoder(data)
    first = next(iter(decoder))
    rest = list(decoder)
    assert all(map(torch.equal, [first, *rest], whole)) and len(rest) == len(whole) - 1
    assert list(decoder) == []


def test_the_intra_period_and_a_forced_frame_begin_anew():
    codec = ToyVideo()
    encoded(codec, intra_period=5)
    assert "".join(codec.calls) == "IPPPPIPPPPIP"
    codec = ToyVideo()
    encoder = codec.encoder(FORM, intra_period=4)
    for number, frame in enumerate(FRAMES):
        encoder.push(frame, intra=number == 2)
    assert "".join(codec.calls) == "IPIPPPIPPPIP"


def test_a_pipe_gives_the_same_frames_as_a_file():
    data = b"".join(encoded(ToyVideo(), intra_period=4))
    from_file, from_pipe = list(ToyVideo().decoder(data)), list(ToyVideo().decoder(Pipe(data)))
    assert len(from_file) == 12 and all(map(torch.equal, from_file, from_pipe))


@pytest.mark.parametrize("start", [0, 1, 3, 4, 5, 11])
def test_a_start_decodes_from_the_i_frame_before_it(start):
    data = b"".join(encoded(ToyVideo(), intra_period=4))
    expected = list(ToyVideo().decoder(data))[start:]
    codec = ToyVideo()
    found = list(codec.decoder(data, start=start))
    assert len(found) == 12 - start and all(map(torch.equal, expected, found))
    assert codec.calls[0] == "i" and len(codec.calls) == 12 - start // 4 * 4
    whole = list(ToyVideo().decoder(Pipe(data), start=start))
    assert all(map(torch.equal, expected, whole))


@pytest.mark.parametrize("source", [bytes, Pipe])
def test_a_start_behind_the_end_is_refused(source):
    data = b"".join(encoded(ToyVideo()))
    with pytest.raises(UsageError, match="frame 12 of a clip that has frames 0 to 11"):
        list(ToyVideo().decoder(source(data), start=12))


def test_two_clips_in_turns_do_not_disturb_each_other():
    codec, others = ToyVideo(), moving(12, seed=1)
    a, b = codec.encoder(FORM), codec.encoder(FORM)
    pairs = [(a.push(x), b.push(y)) for x, y in zip(FRAMES, others, strict=True)]
    assert b"".join(x for x, _ in pairs) + a.finish() == b"".join(encoded(ToyVideo()))
    assert b"".join(y for _, y in pairs) + b.finish() == b"".join(encoded(ToyVideo(), others))


def test_qp_of_a_frame_reaches_the_decoder():
    encoder = ToyVideo().encoder(FORM, qp=10)
    data = b"".join(encoder.push(x, qp=None if t % 2 else 50) for t, x in enumerate(FRAMES)) + encoder.finish()
    reader = VideoReader(io.BytesIO(data))
    assert [reader.read().qp for _ in range(4)] == [50, 10, 50, 10]
    assert len(list(ToyVideo().decoder(data))) == 12


def decoded_until(data: bytes, codec=None, start=0) -> tuple[int, Exception | None]:
    """Frames that come before the error, all of them right, and the error."""
    expected, count = list(ToyVideo().decoder(b"".join(encoded(ToyVideo(), intra_period=4)))), 0
    try:
        for count, x in enumerate((codec or ToyVideo()).decoder(data, start=start), 1):
            assert torch.equal(x, expected[start + count - 1])
    except (BitstreamError, ModelMismatchError) as error:
        return count, error
    return count, None


def test_a_fingerprint_is_of_every_bit_and_of_no_layout():
    x = torch.rand(1, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    tensors = x, x.bfloat16(), (100 * x).short(), x[0, 0, 0, 0]
    known = fingerprint(SimpleNamespace(tensors=lambda: tensors))
    strided = x.contiguous(memory_format=torch.channels_last), *tensors[1:]
    assert fingerprint(SimpleNamespace(tensors=lambda: strided)) == known
    for changed in range(4):
        others = [tensor.clone() for tensor in tensors]
        flat = others[changed].view(-1).view(torch.uint8)
        flat[-1] ^= 1
        assert fingerprint(SimpleNamespace(tensors=lambda others=others: others)) != known
    assert fingerprint(SimpleNamespace(tensors=lambda: tensors[:3])) != known
    assert fingerprint(SimpleNamespace(tensors=lambda: tensors[::-1])) != known


def test_padding_repeats_the_last_row_and_column():
    frame = FRAMES[0][:, :, :17, :30]
    padded = ToyVideo().padded(frame)
    assert padded.shape == (1, 3, 32, 32) and torch.equal(padded[:, :, :17, :30], frame)
    assert torch.equal(padded[:, :, 16:, :30], frame[:, :, 16:].expand(-1, -1, 16, -1))
    assert torch.equal(padded[..., 29:], padded[..., 29:30].expand(-1, -1, -1, 3))
    assert ToyVideo().padded_size(17, 30) == (32, 32) == ToyVideo().padded_size(32, 32)


def test_drift_is_found_at_the_first_frame_that_differs():
    data = b"".join(encoded(ToyVideo(), intra_period=4))
    count, error = decoded_until(data, ToyVideo(drift=1e-6))
    assert count == 1 and isinstance(error, ModelMismatchError)
    assert "frame 1: decoding leaves the state" in str(error) and "computes otherwise" in str(error)


def test_a_cut_at_every_byte_gives_the_frames_before_it():
    pieces = encoded(ToyVideo(), intra_period=4)
    data, ends = b"".join(pieces), []
    for piece in pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    for cut in range(60, len(data), 11):
        whole = sum(end <= cut for end in ends)
        count, error = decoded_until(data[:cut])
        assert count == min(whole, 12) and isinstance(error, BitstreamError)
        assert "cut off, or still being written" in str(error), error


def test_damaged_dropped_repeated_and_swapped_frames_are_named():
    pieces = encoded(ToyVideo(), intra_period=4)

    def error_of(changed: list[bytes]) -> tuple[int, str]:
        count, error = decoded_until(b"".join(changed))
        assert isinstance(error, BitstreamError)
        return count, str(error)

    for number in range(1, 12):
        damaged = bytearray(pieces[number])
        damaged[-1] ^= 1
        count, message = error_of([*pieces[:number], bytes(damaged), *pieces[number + 1 :]])
        assert count == number and f"frame {number} is damaged" in message
        count, message = error_of([*pieces[:number], *pieces[number + 1 :]])
        assert count == number and ("missing" in message or "1 of" in message), message
        count, message = error_of([*pieces[:number], pieces[number], *pieces[number:]])
        assert count == number + 1 and "repeated" in message
    count, message = error_of([*pieces[:5], pieces[6], pieces[5], *pieces[7:]])
    assert count == 5 and message.startswith("frame 5: frame 6 stands in its place")


def test_frames_of_another_clip_are_found():
    here, there = (encoded(ToyVideo(), moving(12, seed=seed), intra_period=4) for seed in (0, 3))
    count, error = decoded_until(b"".join([*here[:6], there[6], *here[7:]]))
    assert count == 6 and "frame 6 is damaged or of another stream" in str(error)
    spliced = b"".join([*here[:4], *there[4:8], *here[8:]])  # a whole period
    for start, whole in ((0, 4), (4, 0)):
        count, error = decoded_until(spliced, start=start)
        assert count == whole and "frame 4 is damaged or of another stream" in str(error)
    count, error = decoded_until(spliced, start=8)
    assert (count, error) == (4, None)


@pytest.mark.parametrize("cut", ["footer", "end", "frame"])
def test_a_start_works_without_an_index(cut):
    pieces = encoded(ToyVideo(), intra_period=4)
    data = b"".join(pieces)[:-1] if cut == "footer" else b"".join(pieces[:-1])
    data = data[:-1] if cut == "frame" else data
    count, error = decoded_until(data, start=6)
    assert count == (5 if cut == "frame" else 6) and isinstance(error, BitstreamError)
    with pytest.raises((BitstreamError, UsageError)) as info:
        ToyVideo().decoder(data, start=12)
    assert "12" in str(info.value)


def test_a_start_behind_damage_is_reached_through_the_index():
    pieces = [bytearray(piece) for piece in encoded(ToyVideo(), intra_period=4)]
    pieces[2][-1] ^= 1
    count, error = decoded_until(b"".join(pieces), start=4)
    assert count == 8 and error is None


def test_other_models_numerics_and_sizes_are_refused():
    data = b"".join(encoded(ToyVideo()))
    with pytest.raises(ModelMismatchError, match="made by model"):
        ToyVideo(b"another!").decoder(data)
    other = ToyVideo()
    other.numerics = type(other.numerics)("else", 8)
    with pytest.raises(ModelMismatchError, match="numerics 0x0007"):
        other.decoder(data)
    with pytest.raises(ResourceLimitError):
        ToyVideo().decoder(data, max_pixels=33 * 50 - 1)
    ToyVideo().decoder(data, max_pixels=33 * 50)


@pytest.mark.parametrize(
    "frame",
    [
        torch.zeros(1, 3, 33, 51),
        torch.zeros(3, 33, 50),
        torch.full((1, 3, 33, 50), 1.1),
        torch.zeros(1, 3, 33, 50).int(),
    ],
    ids=["size", "shape", "range", "dtype"],
)
def test_a_wrong_frame_is_refused_and_the_session_goes_on(frame):
    encoder = ToyVideo().encoder(FORM)
    data = encoder.push(FRAMES[0])
    with pytest.raises(UsageError):
        encoder.push(frame)
    with pytest.raises(UsageError):
        encoder.push(FRAMES[1], qp=64)
    data += encoder.push(FRAMES[1]) + encoder.finish()
    assert len(list(ToyVideo().decoder(data))) == 2


def test_wrong_options_are_refused():
    for qp in (64, True, 20.0):
        with pytest.raises(UsageError, match=f"qp={qp} "):
            ToyVideo().encoder(FORM, qp=qp)
    with pytest.raises(UsageError, match="intra_period=-1"):
        ToyVideo().encoder(FORM, intra_period=-1)
    with pytest.raises(UsageError, match="without frames"):
        ToyVideo().encoder(FORM).finish()


def test_memory_that_runs_out_is_told_and_the_session_goes_on(monkeypatch):
    def starved(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    codec, expected = ToyVideo(), b"".join(encoded(ToyVideo(), FRAMES[:3]))
    encoder = codec.encoder(FORM)
    data = encoder.push(FRAMES[0])
    with monkeypatch.context() as patch:
        patch.setattr(codec, "inter_encode", starved)
        with pytest.raises(ResourceLimitError, match="no memory for encoding 50 x 33 pixels on cpu"):
            encoder.push(FRAMES[1])
    assert data + encoder.push(FRAMES[1]) + encoder.push(FRAMES[2]) + encoder.finish() == expected
    monkeypatch.setattr(codec, "inter_decode", starved)
    with pytest.raises(ResourceLimitError, match="no memory for decoding"):
        list(codec.decoder(expected))
