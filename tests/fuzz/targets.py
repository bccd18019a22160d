"""What is fuzzed in Python. A target makes an input and runs it; it answers whether the input was accepted."""

from __future__ import annotations

import random

import torch
from checkpoint_targets import Checkpoints
from picture_targets import Batches, Regions
from promises import Broken, Target
from resealing import damaged_header, damaged_payload, invented
from samples import MAX_PIXELS, codec, files
from spc_oracle import Damaged, lanes, rans, tables
from spc_oracle.container import parse
from unit_targets import DropIns, FrameFiles, Payloads32, UnitClips, Units
from video_targets import Clips, ResealedClips

from sparsecodec.entropy import (
    Container,
    Decoder,
    Encoder,
    LaneDecoder,
    LaneEncoder,
    Tiling,
    decode,
    evc_gaussian_tables,
)
from sparsecodec.entropy.bitstream import Header
from sparsecodec.errors import BitstreamError


class Files(Target):
    """Files damaged without care, to both decoders: not one may open, unless nothing was changed."""

    def __init__(self) -> None:
        self.pool = [*files("native"), *files("portable")]
        self.known = set(self.pool)

    def run(self, data: bytes) -> bool:
        if data in self.known:
            return True
        stream = "portable" if data[12:14] == b"\x02\x00" else "native"
        codec(stream).decode(data, max_pixels=MAX_PIXELS)
        raise Broken("a changed file opened")


class Headers(Target):
    """Headers that are damaged with care: refused, or they say what the oracle reads and can be written again."""

    def __init__(self) -> None:
        tiled = Container(bytes(8), 2, 200, 300, 7, tuple(bytes(3 * i) for i in range(24)), True, Tiling(128, 64))
        self.pool = [*files("native"), tiled.to_bytes(), Container(bytes(8), 1, 9, 9, 9, (b"", b"a")).to_bytes()]

    def make(self, rng: random.Random) -> bytes:
        return invented(rng) if rng.random() < 0.5 else damaged_header(rng.choice(self.pool), self.pool, rng)

    def run(self, data: bytes) -> bool:
        try:
            oracle = parse(data)
        except Damaged:
            oracle = None
        try:
            Header.read(data)
            ours = Container.from_bytes(data, max_pixels=1 << 62)
        except BitstreamError:
            if oracle is not None:
                raise Broken("the oracle reads it") from None
            raise
        if oracle is None:
            raise Broken("the oracle does not read it")
        same = (oracle.height, oracle.width, oracle.quality, oracle.numerics, oracle.exact, tuple(oracle.payloads))
        if same != (ours.height, ours.width, ours.quality, ours.numerics, ours.exact, ours.payloads):
            raise Broken("the oracle reads something else")
        if oracle.version == 2 and ours.to_bytes() != data:
            raise Broken("another file says the same")
        return True


class Decoding(Target):
    """Files whose payloads are damaged with care, decoded to the end: a picture in [0, 1] of its size, or refused.

    An attacker can always make a valid file; damage by accident is what `Files` is about.
    """

    def __init__(self, stream: str) -> None:
        self.codec, self.pool = codec(stream), files(stream)

    def make(self, rng: random.Random) -> bytes:
        return damaged_payload(rng.choice(self.pool), self.pool, rng)

    def run(self, data: bytes) -> bool:
        x = self.codec.decode(data, max_pixels=MAX_PIXELS)
        header = Header.read(data)
        if x.shape != (1, 3, header.height, header.width) or not bool(((x >= 0) & (x <= 1)).all()):
            raise Broken(f"picture {tuple(x.shape)} of a file of {header.height} x {header.width}")
        return True


class Differential(Target):
    """Streams of a few symbols, native or in lanes, against the oracle: the same symbols, or both refuse."""

    def __init__(self) -> None:
        self.tables = evc_gaussian_tables()
        self.rows = tables.rows(*(x.tolist() for x in (self.tables.cdf, self.tables.lengths, self.tables.offsets)))
        self.pool = []
        rng = torch.Generator().manual_seed(2)
        for count in (0, 1, 30, 90):
            indexes = self._indexes(count)
            symbols = (torch.randn(count, generator=rng) * (1 + indexes / 8)).round().int()
            for kind in range(3):
                encoder = LaneEncoder(count) if kind == 2 else Encoder(kind + 1)
                encoder.push(symbols, indexes, self.tables)
                self.pool.append(bytes([kind, count]) + encoder.finish())

    @staticmethod
    def _indexes(count: int) -> torch.Tensor:
        return (torch.arange(count) * 37 % 256).int()

    def run(self, data: bytes) -> bool:
        kind, count = (data[0] % 3, data[1] % 100) if len(data) > 1 else (0, 0)
        data, indexes = data[2:], self._indexes(count)
        try:
            oracle = lanes.Decoder(data, count) if kind == 2 else rans.Decoder(rans.split(data) if kind else [data])
            if kind == 1 and len(oracle.streams) != 2:
                raise Damaged("streams")
            expected = oracle.call([self.rows[i] for i in indexes.tolist()])
            oracle.finish()
        except Damaged:
            expected = None
        try:
            if kind == 0:
                symbols = decode(data, indexes, self.tables).tolist()
            else:
                decoder = LaneDecoder(data, count) if kind == 2 else Decoder(data, 2)
                symbols = decoder.decode(indexes, self.tables).tolist()
                decoder.finish()
        except BitstreamError:
            if expected is not None:
                raise Broken("the oracle decodes it") from None
            raise
        if symbols != expected:
            raise Broken("the oracle decodes something else")
        return True


TARGETS = {
    "container": Files,
    "header": Headers,
    "decode-native": lambda: Decoding("native"),
    "decode-portable": lambda: Decoding("portable"),
    "decode-autoregressive": lambda: Decoding("autoregressive"),
    "decode-batch": Batches,
    "decode-region": Regions,
    "differential": Differential,
    "checkpoint": Checkpoints,
    "video": lambda: Clips("toy"),
    "decode-video": lambda: ResealedClips("toy"),
    "video-rt": lambda: Clips("dcvc-rt-tiny-sparse"),
    "video-rt-portable": lambda: Clips("dcvc-rt-tiny-portable"),
    "decode-video-rt": lambda: ResealedClips("dcvc-rt-tiny-sparse"),
    "decode-video-rt-portable": lambda: ResealedClips("dcvc-rt-tiny-portable"),
    "video-hem-portable": lambda: Clips("dcvc-hem-portable"),
    "decode-video-hem-portable": lambda: ResealedClips("dcvc-hem-portable"),
    "video-dcvc-portable": lambda: Clips("dcvc-portable"),
    "video-fvc-portable": lambda: Clips("fvc-portable"),
    "decode-video-dcvc-portable": lambda: ResealedClips("dcvc-portable"),
    "decode-video-fvc-portable": lambda: ResealedClips("fvc-portable"),
    "decode-video-hem": lambda: ResealedClips("dcvc-hem-tiny"),
    "decode-video-dcvc": lambda: ResealedClips("dcvc-tiny"),
    "decode-video-fvc": lambda: ResealedClips("fvc-tiny"),
    "units": Units,
    "payload-32": Payloads32,
    "decode-units": UnitClips,
    "frame-files": FrameFiles,
    "drop-in": DropIns,
}
