"""DCVC-RT's own streams with an untrained tiny codec: round trips, what the units say, and damage."""

import copy
import io

import pytest
import torch

from sparsecodec.entropy import NalReader
from sparsecodec.errors import BitstreamError, ResourceLimitError, SparseCodecError, UsageError
from sparsecodec.models import create
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.unit_stream import read_units, write_units

FRAMES = 11


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    codec = create("dcvc-rt-tiny").eval()
    codec.intra.update()
    codec.inter.update()
    return codec


@pytest.fixture(scope="module")
def clip(photo):
    return [photo[:, :, t : t + 41, 2 * t : 2 * t + 70] for t in range(FRAMES)]


@pytest.fixture(scope="module")
def stream(codec, clip):
    return b"".join(write_units(codec, clip, 20, inter_qp=24, intra_period=8, reset_interval=4))


def test_units(stream):
    units = list(NalReader("rt", io.BytesIO(stream)))
    assert [unit.intra for unit in units] == [True] + [False] * 7 + [True] + [False] * 2
    assert [unit.qp for unit in units] == [20, 32, 24, 28, 24, 28, 24, 28, 20, 32, 24]
    assert [unit.reset for unit in units] == [index % 4 == 1 for index in range(FRAMES)]
    assert {(unit.height, unit.width, unit.streams) for unit in units} == {(41, 70, 1)}


def test_round_trip(codec, clip, stream):
    """What comes out is what the encoder predicts from; written again it is the same stream."""
    pictures = list(read_units(codec, io.BytesIO(stream)))
    assert [tuple(x.shape) for x in pictures] == [(1, 3, 41, 70)] * FRAMES
    assert torch.equal(pictures[0], codec.intra.compress(padded(clip[0]), 20)["x_hat"][:, :, :41, :70])
    assert b"".join(write_units(codec, clip, 20, inter_qp=24, intra_period=8, reset_interval=4)) == stream


def padded(x):
    return torch.nn.functional.pad(x, (0, 10, 0, 7), mode="replicate")


def test_the_compiled_codec_in_original_arithmetic_opens_it(codec, stream):
    compiled = compile_codec(codec, original=True)
    reference = list(read_units(codec, io.BytesIO(stream)))
    for mine, theirs in zip(read_units(compiled, io.BytesIO(stream)), reference, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def test_two_streams_for_large_pictures(codec):
    x = torch.zeros(1, 3, 8, 115201)
    data = next(iter(write_units(codec, [x], 20)))
    assert next(iter(NalReader("rt", io.BytesIO(data)))).streams == 2


def test_frames_come_one_by_one(codec, clip, stream):
    source = io.BytesIO(stream)
    next(iter(read_units(codec, source)))
    assert source.tell() < len(stream) // 4


def test_damage_is_reported_with_the_frame(codec, stream):
    units = list(NalReader("rt", io.BytesIO(stream)))
    place = stream.index(units[3].payload)
    wrong = stream[:place] + bytes(4) + stream[place + 4 :]
    pictures = read_units(codec, io.BytesIO(wrong))
    for _ in range(3):
        next(pictures)
    with pytest.raises(BitstreamError, match=r"frame 3: a stream starts with the state 0"):
        next(pictures)


def test_mutations_never_crash(codec, stream):
    rng = torch.Generator().manual_seed(0)
    stream, found = stream[: len(stream) // 3], 0
    for _ in range(60):
        wrong = bytearray(stream)
        place = int(torch.randint(len(wrong), (), generator=rng))
        wrong[place] ^= int(torch.randint(1, 256, (), generator=rng))
        try:
            for _ in read_units(codec, io.BytesIO(bytes(wrong)), 1 << 20):
                pass
        except SparseCodecError:
            found += 1
    assert found > 40


def test_what_is_no_clip_is_refused(codec, clip, stream):
    with pytest.raises(BitstreamError, match="frame 0: a P frame without a frame of its size before it"):
        list(read_units(codec, io.BytesIO(bytes.fromhex("00292e0020000400008000"))))
    with pytest.raises(ResourceLimitError, match="max_pixels=2869"):
        list(read_units(codec, io.BytesIO(stream), 41 * 70 - 1))
    with pytest.raises(UsageError, match="frame 1: 69 x 41 after 70 x 41 pixels"):
        list(write_units(codec, [clip[0], clip[1][..., :69]], 20))


def test_networks_that_run_over_end_the_clip_with_its_frame(codec, clip):
    loud = copy.deepcopy(codec)
    good = b"".join(write_units(loud, clip[:2], 20))
    with torch.no_grad():
        loud.inter.q_decoder.fill_(float("inf"))
    with pytest.raises(UsageError, match="frame 2: .* needs finite ones|frame 2: .*.needs finite ones."):
        list(write_units(loud, clip[:3], 20))
    with pytest.raises(BitstreamError, match="frame 1"):
        list(read_units(loud, io.BytesIO(good)))
