"""What is fuzzed of the DCVC family's own streams: units, files of a frame, payloads of the 32-bit coder, the stand-ins
for its compiled coders, and whole clips."""

from __future__ import annotations

import io
import random

import numpy as np
import torch
from promises import Broken, Target

from sparsecodec.entropy import (
    Decoder32,
    Encoder32,
    NalFrame,
    NalReader,
    NalWriter,
    dcvc_gaussian16_tables,
    dcvc_gaussian16_zigzag_tables,
    dropin,
)
from sparsecodec.entropy.frame_files import KINDS, FrameFile, _layout
from sparsecodec.entropy.nal import FAMILIES
from sparsecodec.models import create
from sparsecodec.runtime import read_units, write_units

MAX_PIXELS = 1 << 22


class Units(Target):
    """The first byte chooses the family. What is read can be written, and is then read again."""

    def __init__(self) -> None:
        rng = random.Random(0)
        self.pool = []
        for number, family in enumerate(FAMILIES):
            others = {"feature_index": 2} if family == "fm" else {"streams": 2, "reset": True}
            frames = [
                NalFrame(index == 0, 1080, 1920, 30, rng.randbytes(index * 40), **(others if index % 3 else {}))
                for index in range(6)
            ]
            if family == "fm":
                frames.append(NalFrame(False, 64, 64, 3, b"abc", feature_index=1, group=((3, 1), (4, 2), (3, 1))))
            writer = NalWriter(family)
            self.pool.append(bytes([number]) + b"".join(writer.write(frame) for frame in frames))

    def run(self, data: bytes) -> bool:
        family = FAMILIES[data[0] % len(FAMILIES)] if data else FAMILIES[0]
        frames = list(NalReader(family, io.BytesIO(data[1:]), MAX_PIXELS))
        if sum(len(frame.payload) for frame in frames) >= max(len(data), 1):
            raise Broken("more bytes of payload than there are bytes")
        writer = NalWriter(family)
        again = b"".join(writer.write(frame) for frame in frames)
        if list(NalReader(family, io.BytesIO(again), MAX_PIXELS)) != frames:
            raise Broken("frames change when they are written again")
        return True


class Payloads32(Target):
    """The first byte says how many streams there are, whether a prefix, and in which order the rows are."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.indexes = rng.integers(-20, 128, 150).astype(np.int16)
        scales = 0.11 * np.exp(np.maximum(self.indexes, 0) * np.log(16 / 0.11) / 127)
        self.symbols = np.round(rng.normal(size=150) * scales).astype(np.int32)
        self.symbols[::50] = 500, -9000, 1 << 20
        self.pool = [bytes([flags]) + self.write(flags, self.symbols) for flags in range(32)]

    @staticmethod
    def settings(flags: int):
        tables = dcvc_gaussian16_zigzag_tables() if flags & 16 else dcvc_gaussian16_tables()
        return tables, flags % 8 + 1, bool(flags & 8)

    def write(self, flags: int, symbols: np.ndarray) -> bytes:
        tables, streams, prefixed = self.settings(flags)
        encoder = Encoder32(streams, prefixed=prefixed)
        encoder.push(symbols, self.indexes, tables)
        return encoder.finish()

    def run(self, data: bytes) -> bool:
        flags = data[0] if data else 0
        tables, streams, prefixed = self.settings(flags)
        decoder = Decoder32(data[1:], streams, prefixed=prefixed)
        symbols = decoder.decode(self.indexes, tables)
        decoder.finish()
        if symbols[self.indexes < 0].any():
            raise Broken("a symbol that is in no stream")
        # Digits of an escape, and sizes in a prefix, may take more bytes than an encoder gives them.
        if len(self.write(flags, symbols)) > len(data) - 1:
            raise Broken("fewer bytes than the symbols need")
        return True


class UnitClips(Target):
    """Clips of an untrained tiny DCVC-RT."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.codec = create("dcvc-rt-tiny").eval()
        self.codec.intra.update(0.12)
        self.codec.inter.update(0.12)
        frames = torch.rand(4, 1, 3, 20, 24)
        self.pool = [b"".join(write_units(self.codec, frames, qp, reset_interval=2)) for qp in (10, 50)]

    def run(self, data: bytes) -> bool:
        for frame in read_units(self.codec, io.BytesIO(data), 1 << 12):
            if not (frame.isfinite().all() and frame.min() >= 0 and frame.max() <= 1):
                raise Broken("a picture that is none")
        return True


class FrameFiles(Target):
    """The first byte chooses the kind. What is read makes this very file."""

    def __init__(self) -> None:
        rng = random.Random(0)
        numbers = {"height": 64, "width": 48, "step": 120, "mv_step": 80, "rate": 130, "frame_index": 255}
        self.pool = []
        for number, kind in enumerate(KINDS):
            fields, _, count = _layout(kind)
            strings = tuple(rng.randbytes(20 * index) for index in range(count))
            file = FrameFile(kind, {name: numbers[name] for name in fields}, strings)
            self.pool.append(bytes([number]) + file.to_bytes())

    def run(self, data: bytes) -> bool:
        kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
        if FrameFile.from_bytes(kind, data[1:]).to_bytes() != data[1:]:
            raise Broken("another file says the same")
        return True


class DropIns(Target):
    """Streams for the stand-ins of the compiled coders, called as the published classes call them.

    The first byte chooses the family and the number of streams.
    """

    families = ("hem", "dc", "fm", "rt", "uf")

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.tables = dcvc_gaussian16_tables()
        self.source = tuple(np.asarray(t) for t in (self.tables.cdf, self.tables.lengths, self.tables.offsets))
        self.zigzag = dcvc_gaussian16_zigzag_tables()
        self.indexes = rng.integers(0, 120, 150).astype(np.int16)
        self.symbols = np.clip(np.round(rng.normal(size=150) * 3), -100, 100).astype(np.int32)
        self.pool = [bytes([flags]) + self.write(flags) for flags in range(2 * len(self.families))]

    def coder(self, flags: int, name: str):
        """An encoder or a decoder, with its tables, and how it takes them in a call."""
        family, streams = self.families[flags % len(self.families)], flags // len(self.families) % 2 + 1
        modules = dropin._MODULES[family]
        offered = next(contents[name] for contents in modules.values() if name in contents)
        if family == "hem":
            return offered(), self.source
        if family in ("dc", "fm"):
            coder = offered(True, streams) if "Encoder" in name else offered(streams)
            return coder, (coder.add_cdf(*self.source),)
        coder = offered()
        if family == "uf":
            coder.set_entropy_coder_parallel(streams)
            for group in range(2):
                coder.set_cdf(np.asarray(self.zigzag.cdf), np.asarray(self.zigzag.lengths), group)
            return coder, ()
        getattr(coder, "set_use_two_encoders" if "Encoder" in name else "set_use_two_decoders")(streams == 2)
        return coder, (coder.add_cdf(*self.source),)

    def write(self, flags: int) -> bytes:
        encoder, source = self.coder(flags, "BufferedRansEncoder" if flags % len(self.families) == 0 else "RansEncoder")
        if hasattr(encoder, "encode_y"):
            encoder.encode_y(self.symbols << 8 | self.indexes, *source)
        else:
            encoder.encode_with_indexes(self.symbols, self.indexes, *source)
        flushed = encoder.flush()
        return flushed if flushed is not None else encoder.get_encoded_stream().tobytes()

    def run(self, data: bytes) -> bool:
        flags = data[0] if data else 0
        decoder, source = self.coder(flags, "RansDecoder")
        decoder.set_stream(data[1:] if flags % len(self.families) == 0 else np.frombuffer(data[1:], np.uint8))
        if hasattr(decoder, "decode_y"):
            decoder.decode_y(self.indexes, *source)
            symbols = decoder.get_decoded_tensor()
        else:
            symbols = np.asarray(decoder.decode_stream(self.indexes, *source))
        if data in self.pool and not np.array_equal(symbols, self.symbols):
            raise Broken("other symbols than were coded")
        return True
