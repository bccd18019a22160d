"""What is fuzzed of clips. Every frame that a damaged file gives must be one that its encoder had."""

from __future__ import annotations

import io
import random
from functools import cache

import torch
from lively import lively_fvc
from mutations import mutate
from promises import Broken, Target
from toy_video import ToyVideo, moving

from sparsecodec._clip_format import ClipFormat
from sparsecodec.entropy import VideoHeader, VideoReader, crc32c
from sparsecodec.entropy.video_bitstream import pack_index, pack_record
from sparsecodec.models import DCVC, EVC, FVC, create
from sparsecodec.models.dcvc import Widths
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage, HEMImageWidths
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo, HEMVideoWidths
from sparsecodec.models.fvc import Widths as FVCWidths
from sparsecodec.models.video import VideoCodec
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.video import CompiledVideo
from sparsecodec.zoo import load, names

FVC_WIDTHS = FVCWidths(12, 8, 8, 2, 1, modulated=True, references=2)
MAX_PIXELS = 1 << 16
PERIOD = 3
# name -> frames of a clip, and its clips: seed, size, qp. Two share a header, so that a frame of one could stand in the
# other. Real codecs have one size, for which they are then planned once.
TOY = 6, ((0, (33, 50), 20), (1, (33, 50), 50), (2, (1, 1), 63))
REAL = 4, ((0, (64, 64), 20), (1, (64, 64), 50))


@cache
def video_codec(name: str) -> CompiledVideo:
    """The toy, a codec that the zoo holds, or an untrained one; the same in every run on one machine."""
    if name == "toy":
        return ToyVideo()
    if name in names():
        return compile_codec(load(name), stream="portable" if name.endswith("-portable") else "native")
    torch.manual_seed(0)
    if name == "dcvc-hem-portable":
        intra = DCVCHEMImage(HEMImageWidths(16, 8, (8, 8, 16), 16))
        inter = DCVCHEMVideo(HEMVideoWidths(8, 8, 16, 8, (8, 8, 16), (8, 8, 8, 8)))
        calibration = [torch.cat(list(moving(3, 64, 64)))]
        return compile_codec(VideoCodec(intra, inter).eval(), stream="portable", calibration=calibration)
    if name in ("dcvc-portable", "fvc-portable"):
        dcvc = name == "dcvc-portable"
        inter = DCVC(Widths(12, 10, 14, 8, (8, 8, 8, 8))) if dcvc else lively_fvc(FVC(FVC_WIDTHS).requires_grad_(False))
        calibration = [torch.cat(list(moving(3, 64, 64)))]
        return compile_codec(VideoCodec(EVC("nano", "nano"), inter).eval(), stream="portable", calibration=calibration)
    return compile_codec(create(name).eval())


def frame_count(name: str) -> int:
    return (TOY if name == "toy" else REAL)[0]


@cache
def clips(name: str) -> dict[bytes, list[torch.Tensor]]:
    """File -> its frames."""
    found = {}
    for seed, size, qp in (TOY if name == "toy" else REAL)[1]:
        encoder = video_codec(name).encoder(ClipFormat(*size), qp=qp, intra_period=PERIOD)
        pieces = [encoder.push(frame) for frame in moving(frame_count(name), *size, seed=seed)]
        data = b"".join([*pieces, encoder.finish()])
        found[data] = list(video_codec(name).decoder(data))
    return found


class Clips(Target):
    """Files damaged without care: frames are right and in their place, and none is read to its end if it was changed.

    A tenth is entered at a frame in its middle, where the rest may well be whole.
    """

    def __init__(self, name: str) -> None:
        self.codec, self.known, self.frames = video_codec(name), clips(name), frame_count(name)
        self.pool = list(self.known)

    def run(self, data: bytes) -> bool:
        chance = crc32c(data)
        start = chance // 10 % self.frames if chance % 10 == 0 else 0
        decoder = self.codec.decoder(data, start, max_pixels=MAX_PIXELS)
        number = start
        for number, frame in enumerate(decoder, start):
            if not any(number < len(frames) and torch.equal(frame, frames[number]) for frames in self.known.values()):
                raise Broken(f"frame {number} is none that was encoded")
        if data not in self.known and not start:
            raise Broken("a changed file was read to its end")
        if number != self.frames - 1:
            raise Broken(f"it ends after frame {number}")
        return True


class ResealedClips(Clips):
    """Files whose records are changed with all checksums right, but for the fingerprints of the states.

    Whoever does that can also put whole groups of frames elsewhere; no frame may show what was never encoded.
    """

    def make(self, rng: random.Random) -> bytes:
        return resealed(rng.choice(self.pool), self.pool, rng)

    def run(self, data: bytes) -> bool:
        for number, frame in enumerate(self.codec.decoder(data, max_pixels=MAX_PIXELS)):
            if not any(torch.equal(frame, known) for frames in self.known.values() for known in frames):
                raise Broken(f"frame {number} is none that was encoded")
        return True


def _records(data: bytes) -> tuple[VideoHeader, list[list]]:
    reader, records = VideoReader(io.BytesIO(data)), []
    while (frame := reader.read()) is not None:
        records.append([b"I" if frame.intra else b"P", frame.number, frame.qp, frame.fingerprint, frame.payload])
    return reader.header, records


def resealed(data: bytes, pool: list[bytes], rng: random.Random) -> bytes:
    """One to three changes of records: payload, kind, number, qp; dropped, added, swapped, taken from another file."""
    header, records = _records(data)
    others = [record for other in pool for record in _records(other)[1]]
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(records)) if records else 0
        kind = rng.randrange(9)
        if not records or kind == 0:
            records.insert(at, list(rng.choice(others)))
        elif kind <= 3:
            records[at][4] = mutate(records[at][4], [other[4] for other in others], rng)
        elif kind == 4:
            records[at][0] = rng.choice((b"I", b"P", b"E", b"X"))
        elif kind == 5:
            records[at][rng.choice((1, 2))] = rng.choice((0, 1, 5, 20, 63, 64, 255))
        elif kind == 6:
            del records[at]
        elif kind == 7:
            other = rng.randrange(len(records))
            records[at], records[other] = records[other], records[at]
        else:
            records[at] = list(rng.choice(others))
    if rng.random() < 0.5:
        for number, record in enumerate(records):
            record[1] = number
    return _packed(header, records, rng)


def _packed(header: VideoHeader, records: list[list], rng: random.Random) -> bytes:
    data = header.to_bytes()
    begin = link = int.from_bytes(data[-4:], "little")
    chain, intra = 0, []
    for kind, number, qp, fingerprint, payload in records:
        if kind == b"I":
            intra.append((number, len(data)))
        record, link = pack_record(kind, number, qp, fingerprint, payload, link if kind == b"P" else begin)
        chain = crc32c(link.to_bytes(4, "little"), chain)
        data += record
    try:
        index = pack_index(intra)
    except ValueError:
        index = b""
    end, _ = pack_record(b"E", len(records), 0, chain, index, begin)
    return data + end + len(end).to_bytes(4, "little") + b"/SPV"
