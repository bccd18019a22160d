"""Several files in one call, and parts of tiled files."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from functools import cache

import torch
from mutations import mutate
from promises import Broken, Target
from resealing import damaged_header, damaged_payload
from samples import MAX_PIXELS, codec
from torch import Tensor

from sparsecodec.entropy.bitstream import Header
from sparsecodec.errors import SparseCodecError, UsageError

STREAMS = ("native", "portable", "autoregressive")
CARELESS, RESEALED = 0, 1  # how a file was damaged: only the latter may decode to something else
Outcome = Tensor | type[SparseCodecError]


@cache
def alike(stream: str) -> tuple[bytes, ...]:
    """Files of one size and quality, which are decoded together; the pictures differ."""
    rng = torch.Generator().manual_seed(3)
    return tuple(codec(stream).encode_batch(torch.rand(4, 3, 33, 65, generator=rng)))


@cache
def tiled(stream: str) -> tuple[bytes, ...]:
    """Files of six tiles without overlap, and with some."""
    rng, encode = torch.Generator().manual_seed(4), codec(stream).encode
    sizes = ((100, 130, 0), (100, 130, 16), (110, 96, 32))
    return tuple(encode(torch.rand(1, 3, h, w, generator=rng), tile=64, overlap=overlap) for h, w, overlap in sizes)


@cache
def original(stream: str, data: bytes) -> Tensor:
    return codec(stream).decode(data)


def outcome(decode: Callable[[], Tensor], refusals: tuple[type[Exception], ...]) -> Outcome:
    """The picture, or which refusal there was instead."""
    try:
        return decode()
    except refusals as error:
        return type(error)


def is_picture(x: Tensor, height: int, width: int) -> bool:
    return x.shape == (1, 3, height, width) and bool(((x >= 0) & (x <= 1)).all())


def damaged(good: bytes, pool: tuple[bytes, ...], rng: random.Random) -> tuple[int, bytes]:
    """(how, a damaged file)."""
    kind = rng.randrange(4)
    if kind == 0:
        return CARELESS, mutate(good, pool, rng)
    if kind == 1:
        return RESEALED, damaged_header(good, pool, rng)
    return RESEALED, damaged_payload(good, pool, rng)


class Batches(Target):
    """``decode_batch(on_error="status")`` of good and damaged files: each becomes what it is alone, whatever is beside.

    An input: the codec, how many are decoded at once, then how each file was damaged, its size, and the file.
    """

    def __init__(self) -> None:
        self.pool = [self._packed(i, 16, [(CARELESS, file) for file in alike(name)]) for i, name in enumerate(STREAMS)]

    @staticmethod
    def _packed(stream: int, batch: int, items: list[tuple[int, bytes]]) -> bytes:
        return bytes([stream, batch]) + b"".join(struct.pack("<BI", how, len(data)) + data for how, data in items)

    def make(self, rng: random.Random) -> bytes:
        stream = rng.randrange(len(STREAMS))
        good = alike(STREAMS[stream])
        items = [(CARELESS, rng.choice(good)) for _ in range(rng.randrange(1, 6))]
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            items.insert(rng.randrange(len(items) + 1), damaged(rng.choice(good), good, rng))
        return self._packed(stream, rng.choice((1, 2, 3, 16)), items)

    def run(self, data: bytes) -> bool:
        stream, batch, at, hows, blobs = STREAMS[data[0]], data[1], 2, [], []
        while at < len(data):
            how, size = struct.unpack_from("<BI", data, at)
            hows.append(how)
            blobs.append(data[at + 5 : at + 5 + size])
            at += 5 + size
        results = codec(stream).decode_batch(blobs, max_pixels=MAX_PIXELS, on_error="status", batch=batch)
        if len(results) != len(blobs):
            raise Broken(f"{len(results)} results of {len(blobs)} files")
        for i, (how, blob, result) in enumerate(zip(hows, blobs, results, strict=True)):
            if (result.picture is None) == (result.error is None):
                raise Broken(f"file {i} has a picture and an error, or neither")
            if result.error is not None and not isinstance(result.error, self.refusals):
                raise Broken(f"file {i} became {result.error!r}") from result.error
            if blob in alike(stream):
                if result.error is not None or not torch.equal(result.picture, original(stream, blob)):
                    raise Broken(f"file {i} is good and became something else beside others ({result.error})")
                continue
            if how == CARELESS and result.error is None:
                raise Broken(f"file {i} was changed and opened")
            self._check_alone(stream, blob, i, result.error or result.picture)
        return all(result.error is None for result in results)

    def _check_alone(self, stream: str, blob: bytes, i: int, there: Tensor | SparseCodecError) -> None:
        alone = outcome(lambda: codec(stream).decode(blob, max_pixels=MAX_PIXELS), self.refusals)
        if isinstance(alone, Tensor) and isinstance(there, Tensor):
            header = Header.read(blob)
            if is_picture(there, header.height, header.width) and torch.equal(alone, there):
                return
        elif type(there) is alone:
            return
        raise Broken(f"file {i} is something else alone")


class Regions(Target):
    """``decode(region=)`` of damaged files in tiles: that part of the whole picture, or an error.

    An input: the codec, how the file was damaged, four numbers, the file.
    """

    refusals = (*Target.refusals, UsageError)
    HEAD = struct.Struct("<BB4q")
    NUMBERS = (0, -1, 1, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, -(1 << 63))

    def __init__(self) -> None:
        regions = ((0, 0, 1, 1), (20, 40, 50, 50), (0, 0, 100, 96), (63, 63, 2, 2))
        chosen = ((s, file, region) for s in range(2) for file in tiled(STREAMS[s]) for region in regions)
        self.pool = [self.HEAD.pack(s, CARELESS, *region) + file for s, file, region in chosen]

    def make(self, rng: random.Random) -> bytes:
        stream = rng.randrange(2)
        files = tiled(STREAMS[stream])
        good = rng.choice(files)
        how, data = (CARELESS, good) if rng.random() < 0.2 else damaged(good, files, rng)
        header = Header.read(good)
        region = []
        for side in (header.height, header.width):
            start = rng.choice((rng.randrange(side), rng.randrange(0, side, 16)))
            region.append((start, rng.choice((rng.randrange(1, side - start + 1), 1, side - start))))
        numbers = [region[0][0], region[1][0], region[0][1], region[1][1]]
        if rng.random() < 0.3:
            numbers[rng.randrange(4)] = rng.choice(self.NUMBERS)
        return self.HEAD.pack(stream, how, *numbers) + data

    def run(self, data: bytes) -> bool:
        number, how, *region = self.HEAD.unpack_from(data)
        stream, data = STREAMS[number], data[self.HEAD.size :]
        decode = codec(stream).decode
        top, left, height, width = region
        try:
            part = decode(data, max_pixels=MAX_PIXELS, region=region)
        except UsageError as error:
            header = Header.read(data)
            if self._inside(header, region):
                raise Broken("a region of the picture is called none") from error
            raise
        if not self._inside(Header.read(data), region):
            raise Broken("a picture of what is outside")
        if not is_picture(part, height, width):
            raise Broken(f"{tuple(part.shape)} of a region of {height} x {width}")

        def same(whole: Tensor) -> bool:
            return torch.equal(part, whole[:, :, top : top + height, left : left + width])

        if how == CARELESS and not any(same(original(stream, file)) for file in tiled(stream)):
            raise Broken("it shows what was never encoded")
        whole = outcome(lambda: decode(data, max_pixels=MAX_PIXELS), self.refusals)
        if isinstance(whole, Tensor) and not same(whole):
            raise Broken("another picture than that part of the whole")
        return True

    @staticmethod
    def _inside(header: Header, region: list[int]) -> bool:
        top, left, height, width = region
        starts = top >= 0 and left >= 0 and height >= 1 and width >= 1
        return starts and top + height <= header.height and left + width <= header.width
