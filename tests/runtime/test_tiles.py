"""Pictures in tiles: no size is special, no seam shows, a region equals the crop, and damage is named."""

from __future__ import annotations

import dataclasses
import math
import struct

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsecodec import BitstreamError, ModelMismatchError, ResourceLimitError, UsageError, load
from sparsecodec.entropy import Container, Header, Tiling, Window, crc32c
from sparsecodec.runtime import CompiledCodec, compile_codec
from sparsecodec.runtime.tiles import windows

from .conftest import pair_of


@pytest.fixture(scope="module")
def codec() -> CompiledCodec:
    return pair_of("evc-tiny", "compact", torch.float32).compiled


@pytest.fixture
def decoded_sizes(codec: CompiledCodec, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(height, width) of every tile that `codec` decodes."""
    sizes, decode = [], codec._decode

    def noting(payloads, quality, height, width):
        sizes.append((height, width))
        return decode(payloads, quality, height, width)

    monkeypatch.setattr(codec, "_decode", noting)
    return sizes


def blended(codec: CompiledCodec, blob: bytes) -> np.ndarray:
    """The picture of a tiled file as docs/bitstream.md tells it, pixel by pixel and in float64."""
    header = Header.read(blob)
    side, overlap, columns = header.tiling.side, header.tiling.overlap, header.grid[1]
    out = np.zeros((3, header.height, header.width))
    shares = np.zeros((header.height, header.width))

    def share(position: int, index: int, last: bool) -> float:
        begin, step = index * (side - overlap), side - overlap
        rising = (2 * (position - begin) + 1) / (2 * overlap) if overlap else 1.0
        falling = (2 * (position - begin - step) + 1) / (2 * overlap) if overlap else 0.0
        weight = 1.0 if index == 0 else min(max(rising, 0), 1)
        return weight if last else weight * (1 - min(max(falling, 0), 1))

    for number, window in enumerate(windows(header.tiling, header.height, header.width)):
        row, column = divmod(number, columns)
        payloads = header.payloads(blob, row, column)
        alone = Container(
            header.model_hash, header.numerics, window.height, window.width, header.quality, tuple(payloads)
        )
        picture = codec.decode(alone.to_bytes())[0].double().numpy()
        for y in range(window.top, window.bottom):
            for x in range(window.left, window.right):
                weight = share(y, row, row == header.grid[0] - 1) * share(x, column, column == columns - 1)
                out[:, y, x] += weight * picture[:, y - window.top, x - window.left]
                shares[y, x] += weight
    assert np.abs(shares - 1).max() < 1e-12
    return out


@pytest.mark.parametrize(
    ("height", "width", "side", "overlap"),
    [(1, 65, 64, 16), (130, 1, 64, 32), (65, 64, 64, 0), (128, 129, 128, 48), (97, 110, 64, None), (64, 200, 64, 16)],
)
def test_tiles_are_put_together_as_the_specification_says(codec, photo, height, width, side, overlap):
    x = photo[:, :, :height, :width]
    blob = codec.encode(x, tile=side, overlap=overlap)
    header = Header.read(blob)
    assert header.tiling == Tiling(side, 16 if overlap is None else overlap)
    picture = codec.decode(blob)
    assert picture.shape == x.shape and picture.min() >= 0 and picture.max() <= 1
    assert np.abs(picture[0].double().numpy() - blended(codec, blob)).max() < 1e-6


@pytest.mark.parametrize("overlap", [32, 48])
def test_white_stays_white(codec, photo, monkeypatch, overlap):
    """Shares of 1/96 are rounded, so that four of them can make more than all."""
    blob = codec.encode(photo, tile=128, overlap=overlap)
    monkeypatch.setattr(codec, "_decode", lambda payloads, quality, height, width: torch.ones(1, 3, height, width))
    picture = codec.decode(blob)
    assert picture.max() == 1 and picture.min() > 1 - 1e-6


@pytest.mark.parametrize(("height", "width"), [(1, 1), (64, 64), (17, 63), (128, 100)])
def test_what_fits_into_one_tile_is_not_tiled(codec, photo, height, width):
    x = photo[:, :, :height, :width]
    assert codec.encode(x, tile=128) == codec.encode(x)
    assert torch.equal(codec.decode(codec.encode(x, tile=128)), codec.decode(codec.encode(x)))


@pytest.mark.parametrize("overlap", [0, 16, 32])
def test_a_region_equals_that_part_of_the_picture(codec, photo, decoded_sizes, overlap):
    blob = codec.encode(photo[:, :, :150, :215], tile=64, overlap=overlap)
    whole = codec.decode(blob)
    assert len(decoded_sizes) == math.prod(Tiling(64, overlap).grid(150, 215))
    regions = [(0, 0, 150, 215), (0, 0, 1, 1), (149, 214, 1, 1), (64, 64, 64, 64), (63, 63, 2, 2), (20, 100, 90, 7)]
    for top, left, height, width in [*regions, (63 - overlap, 128 - 2 * overlap, 1, 1), (0, 60, 150, 1)]:
        decoded_sizes.clear()
        part = codec.decode(blob, region=(top, left, height, width))
        assert torch.equal(part, whole[:, :, top : top + height, left : left + width])
        tiles = Tiling(64, overlap).touching(Window(top, left, height, width), 150, 215)
        assert len(decoded_sizes) == len(tiles)


def test_a_region_of_a_picture_without_tiles(codec, photo):
    blob = codec.encode(photo[:, :, :70, :90])
    assert torch.equal(codec.decode(blob, region=(3, 5, 60, 80)), codec.decode(blob)[:, :, 3:63, 5:85])


@pytest.mark.parametrize(
    "region",
    [(0, 0, 0, 1), (-1, 0, 5, 5), (0, 0, 71, 5), (60, 80, 11, 10), (0, 0, 5), (0, 90, 1, 1), (0, 0, 1.5, 2), 3],
)
def test_regions_outside_the_picture_are_refused(codec, photo, region):
    with pytest.raises(UsageError, match="region="):
        codec.decode(codec.encode(photo[:, :, :70, :90]), region=region)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"tile": 100}, "tile side 100"), ({"tile": 64, "overlap": 48}, "overlap 48"), ({"overlap": 16}, "without tile")],
)
def test_tiles_that_the_format_cannot_hold_are_refused(codec, photo, arguments, message):
    with pytest.raises(UsageError, match=message):
        codec.encode(photo, **arguments)


def test_codecs_with_several_payloads_have_tiles_too(mean_scale, photo):
    codec = mean_scale.compiled
    blob = codec.encode(photo[:, :, :65, :140], tile=64)
    header = Header.read(blob)
    assert header.grid == (2, 3) and header.payloads_per_tile == 2
    whole = codec.decode(blob)
    assert np.abs(whole[0].double().numpy() - blended(codec, blob)).max() < 1e-6
    assert torch.equal(codec.decode(blob, region=(10, 20, 50, 100)), whole[:, :, 10:60, 20:120])


def test_seams_cost_nothing(photo):
    """Of trained weights, where a pixel near a tile's edge is worth as much as any other."""
    codec = compile_codec(load("evc-tiny-sparse"), dtype=torch.float32)
    height, width = photo.shape[2:]

    def near(tiling: Tiling) -> Tensor:
        """Where a tile ends inside the picture."""
        where = torch.zeros(height, width, dtype=torch.bool)
        for window in windows(tiling, height, width):
            for edge in {window.top, window.bottom} - {0, height}:
                where[edge - 4 : edge + 4] = True
            for edge in {window.left, window.right} - {0, width}:
                where[:, edge - 4 : edge + 4] = True
        return where

    def change_db(picture: Tensor, where: Tensor) -> float:
        tiled, one = ((some - photo).square()[..., where].mean() for some in (picture, untiled))
        return float(10 * torch.log10(one / tiled))

    untiled, tiled = codec.decode(codec.encode(photo)), codec.decode(codec.encode(photo, tile=64))
    assert change_db(tiled, torch.ones(height, width, dtype=torch.bool)) > -0.05
    assert change_db(tiled, near(Tiling(64, 16))) > -0.05
    hard = codec.decode(codec.encode(photo, tile=64, overlap=0))
    assert change_db(hard, near(Tiling(64, 0))) < -0.05  # so that the measure can fail


def test_a_damaged_tile_is_named_and_the_others_can_be_had(codec, photo):
    blob = codec.encode(photo[:, :, :150, :215], tile=64, overlap=16)
    whole, header = codec.decode(blob), Header.read(blob)
    position = header.header_bytes + sum(header.sizes[:6]) + header.sizes[6] // 2
    assert header.grid == (3, 5)
    damaged = blob[:position] + bytes([blob[position] ^ 0x10]) + blob[position + 1 :]
    message = "row 1, column 1"
    with pytest.raises(BitstreamError, match=message):
        codec.decode(damaged)
    with pytest.raises(BitstreamError, match=message):
        codec.decode(damaged, region=(48, 48, 1, 1))
    assert torch.equal(codec.decode(damaged, region=(0, 0, 48, 215)), whole[:, :, :48])
    assert torch.equal(codec.decode(damaged, region=(0, 0, 150, 48)), whole[:, :, :, :48])


def test_a_tile_whose_stream_is_wrong_is_named_too(codec, photo):
    there = Container.from_bytes(codec.encode(photo[:, :, :64, :200], tile=64, overlap=0))
    payloads = list(there.payloads)
    payloads[2] = payloads[2][:-4] + bytes(4)
    with pytest.raises(BitstreamError, match="row 0, column 2"):
        codec.decode(dataclasses.replace(there, payloads=tuple(payloads)).to_bytes())


def test_another_number_of_payloads_than_the_codecs_is_refused(codec, photo):
    there = Container.from_bytes(codec.encode(photo[:, :, :64, :128], tile=64, overlap=0))
    doubled = dataclasses.replace(there, payloads=there.payloads * 2)
    with pytest.raises(BitstreamError, match="2 payloads"):
        codec.decode(doubled.to_bytes())


def test_files_of_version_1_decode(codec, photo):
    x = photo[:, :, :50, :70]
    there = Container.from_bytes(codec.encode(x))
    header = b"SPC\x01" + there.model_hash + struct.pack("<HH", there.numerics, there.quality) + bytes([50, 70, 1])
    (payload,) = there.payloads
    size = len(payload)
    header += bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])
    header += struct.pack("<I", crc32c(payload))
    old = header + struct.pack("<I", crc32c(header)) + payload
    assert Header.read(old).version == 1
    assert torch.equal(codec.decode(old), codec.decode(codec.encode(x)))


def test_an_exact_picture_is_not_promised_by_a_float_codec(codec, photo):
    there = Container.from_bytes(codec.encode(photo[:, :, :64, :64]))
    assert not there.exact
    with pytest.raises(ModelMismatchError, match="exact"):
        codec.decode(dataclasses.replace(there, exact=True).to_bytes())


def test_pixels_are_limited_by_what_is_decoded(codec, photo, decoded_sizes):
    blob = codec.encode(photo[:, :, :150, :215], tile=64, overlap=16)
    with pytest.raises(ResourceLimitError, match="picture of 215 x 150"):
        codec.decode(blob, max_pixels=150 * 215 - 1)
    with pytest.raises(ResourceLimitError, match="part of 64 x 64"):
        codec.decode(blob, max_pixels=64 * 64 - 1, region=(70, 70, 10, 10))
    assert not decoded_sizes
    assert codec.decode(blob, max_pixels=64 * 64, region=(70, 70, 10, 10)).shape == (1, 3, 10, 10)
    untiled = codec.encode(photo[:, :, :150, :215])
    with pytest.raises(ResourceLimitError, match="picture of 215 x 150"):
        codec.decode(untiled, max_pixels=150 * 215 - 1, region=(70, 70, 10, 10))


@pytest.mark.parametrize("tiling", [None, Tiling(64, 32)])
def test_pictures_that_are_nearly_all_padding_are_refused(codec, decoded_sizes, tiling):
    """A million times one pixel would be coded in 64 or 128 times as many."""
    tiles = math.prod(tiling.grid(1 << 20, 1)) if tiling else 1
    fields = (codec.model_hash, codec.numerics.tag, 1 << 20, 1, 100)
    blob = Container(*fields, (b"",) * tiles, tiling=tiling).to_bytes()
    with pytest.raises(ResourceLimitError, match="1 x 1048576 picture are coded in"):
        codec.decode(blob, max_pixels=1 << 20)
    fits, too_long = (Container(*fields[:2], n, 1, 100, (b"",)).to_bytes() for n in (32768, 32769))
    with pytest.raises(ResourceLimitError, match="1 x 32769 picture are coded in 2101248 .limit: 2 times"):
        codec.decode(too_long, max_pixels=1 << 20)
    with pytest.raises(BitstreamError):  # within the limits, but empty
        codec.decode(fits, max_pixels=1 << 20)
    assert decoded_sizes in ([], [(32768, 1)])


def huge(codec: CompiledCodec, tiling: Tiling | None) -> bytes:
    """A file of a few kilobytes that describes 2048 x 65535 pixels."""
    rows, columns = tiling.grid(2048, 65535) if tiling else (1, 1)
    payloads = (b"",) * (rows * columns)
    return Container(codec.model_hash, codec.numerics.tag, 2048, 65535, 100, payloads, tiling=tiling).to_bytes()


def test_memory_is_limited_before_any_is_taken(codec, decoded_sizes):
    for tiling in (None, Tiling(512, 16)):
        with pytest.raises(ResourceLimitError, match=r"decoding 65535 x 2048 pixels needs about [\d.]+ MiB"):
            codec.decode(huge(codec, tiling), max_memory=12 * 2048 * 65535)
    with pytest.raises(ResourceLimitError, match="decoding 10 x 10 pixels"):
        codec.decode(huge(codec, Tiling(512, 16)), max_memory=2**20, region=(0, 0, 10, 10))
    assert not decoded_sizes


def test_a_memory_limit_chooses_the_tiles(codec, photo, monkeypatch):
    x = photo.repeat(1, 1, 3, 4)[:, :, :520, :1000]
    monkeypatch.setattr(codec, "_encode", lambda padded, quality, size: ([[b"%d" % padded.shape[3]]], 100))

    def widest(**arguments) -> int:
        return max(int(payload) for payload in Container.from_bytes(codec.encode(x, **arguments)).payloads)

    assert widest() == 1024 and widest(max_memory=2**30) == 1024
    assert widest(max_memory=60 * 2**20) == 512
    assert widest(max_memory=35 * 2**20) == 256
    with pytest.raises(ResourceLimitError, match="in tiles of 256 needs about"):
        codec.encode(x, max_memory=2**20)
    with pytest.raises(ResourceLimitError, match="in tiles of 512 needs about"):
        codec.encode(x, max_memory=35 * 2**20, tile=512)
