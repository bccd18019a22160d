"""Large pictures in tiles: which ones, coding them one by one, and putting them together without seams."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsecodec.entropy import Header, Tiling, Window, check_limit
from sparsecodec.errors import BitstreamError, ResourceLimitError, UsageError

# Pixels that neighbours share. Of evc-tiny-sparse on Kodak in tiles of 512, against one tile, 16 cost no picture PSNR,
# and 4.6 % more bytes; within 8 pixels of where tiles end there are 0.25 dB more: two decodings are averaged there.
# Without overlap there are 0.25 dB less, 0.52 in the worst picture; 32 cost 6.4 % (bench/results/tiles.json).
OVERLAP = 16
STRIDE = 64  # of the codecs that pad most
FREE_PIXELS = 1 << 20  # below that, padding costs nothing that would have to be limited
PADDED, PADDED_IN_ALL = 2, 8  # times the limit of pixels: what padding may make of one tile, and of all
SIDES = (8192, 4096, 2048, 1024, 512, 256)  # what a limit of memory chooses from

# Tiles of one size, padded, the quality, and height and width before padding -> their payloads, and the quality field.
Code = Callable[[Tensor, float | None, tuple[int, int]], tuple[list[list[bytes]], int]]
Restore = Callable[[list[bytes], int, int], Tensor]  # payloads, height, width -> [1, 3, height, width]


def tiling_of(height: int, width: int, side: int | None, overlap: int | None) -> Tiling | None:
    """The tiles of a picture, None for a single one.

    Args:
        side: of a tile, a multiple of 64; None: the picture is one tile.
        overlap: a multiple of 16, at most half of `side`; None: `OVERLAP`.

    Raises:
        UsageError: see `Tiling`, or an overlap without tiles.
    """
    if side is None:
        if overlap is not None:
            raise UsageError(f"overlap={overlap} without tile= (needs the side of the tiles)")
        return None
    tiling = Tiling(side, OVERLAP if overlap is None else overlap)
    return None if tiling.grid(height, width) == (1, 1) else tiling


def windows(tiling: Tiling | None, height: int, width: int) -> list[Window]:
    """What each tile codes, row by row."""
    if tiling is None:
        return [Window(0, 0, height, width)]
    rows, columns = tiling.grid(height, width)
    return [tiling.window(row, column, height, width) for row in range(rows) for column in range(columns)]


def encode_tiles(
    x: Tensor, tiling: Tiling | None, code: Callable[[Tensor], tuple[list[bytes], int]]
) -> tuple[list[bytes], int]:
    """``[1, 3, H, W]`` -> the payloads of all tiles, and the quality field; one tile is in work at a time."""
    payloads: list[bytes] = []
    for window in windows(tiling, *x.shape[2:]):
        of_tile, field = code(x[:, :, window.top : window.bottom, window.left : window.right])
        payloads += of_tile
    return payloads, field


def region_of(header: Header, region: Sequence[int] | None) -> Window:
    """The part of a picture that (top, left, height, width) names, all of it for None.

    Raises:
        UsageError: four numbers that are no part of the picture.
    """
    whole = Window(0, 0, header.height, header.width)
    if region is None:
        return whole
    try:
        top, left, height, width = map(operator.index, region)
    except (TypeError, ValueError) as error:
        raise UsageError(f"region={region!r} (needs four whole numbers: top, left, height, width)") from error
    part = Window(top, left, height, width)
    if part.top < 0 or part.left < 0 or part.height < 1 or part.width < 1:
        raise UsageError(f"region={tuple(region)} (needs top and left of at least 0, height and width of at least 1)")
    if part.bottom > whole.height or part.right > whole.width:
        raise UsageError(f"region={tuple(region)} reaches beyond the {whole.width} x {whole.height} picture")
    return part


def touched(header: Header, region: Window) -> dict[tuple[int, int], Window]:
    """(row, column) -> window, of the tiles that a region needs, row by row."""
    if header.tiling is None:
        return {(0, 0): Window(0, 0, header.height, header.width)}
    size = header.height, header.width
    return {tile: header.tiling.window(*tile, *size) for tile in header.tiling.touching(region, *size)}


def padded_pixels(height: int, width: int) -> int:
    """Of the picture that is coded in place of one of that size, whatever the codec."""
    return (height + -height % STRIDE) * (width + -width % STRIDE)


def together(header: Header, max_pixels: int) -> int:
    """How many untiled pictures of a file's size may be decoded at once: as many as fit into what one of them may take.

    0 for one that `check_pixels` refuses.
    """
    if header.height * header.width > max_pixels:
        return 0
    return PADDED * max(max_pixels, FREE_PIXELS) // padded_pixels(header.height, header.width)


def check_pixels(header: Header, region: Window, max_pixels: int) -> None:
    """Refuses what would need more than `max_pixels` pixels at once, as a picture or inside one tile.

    What is a few pixels narrow is coded in far more of them. These are bounded, too: twice as many in one tile, eight
    times as many in all, which only pictures made for it exceed.

    Raises:
        ResourceLimitError: it does.
    """
    check_limit(max_pixels, "max_pixels")
    parts = list(touched(header, region).values())
    needed = max([region, *parts], key=lambda window: window.pixels)
    if needed.pixels > max_pixels:
        what = "picture" if needed == Window(0, 0, header.height, header.width) else "part"
        raise ResourceLimitError(f"{what} of {needed.width} x {needed.height} pixels (limit: {max_pixels} pixels)")
    padded = [padded_pixels(part.height, part.width) for part in parts]
    for pixels, factor in ((max(padded), PADDED), (sum(padded), PADDED_IN_ALL)):
        if pixels > factor * max(max_pixels, FREE_PIXELS):
            raise ResourceLimitError(
                f"{region.width} x {region.height} pixels of a {header.width} x {header.height} picture are coded in "
                f"{pixels} (limit: {factor} times {max_pixels})"
            )


def decode_tiles(header: Header, data: bytes, region: Window, restore: Restore) -> Tensor:
    """A part of a picture from the tiles that touch it; all their checksums are verified before the first is decoded.

    Returns:
        ``[1, 3, H, W]`` float32 in [0, 1], of the region's size, new memory.

    Raises:
        BitstreamError: a tile is damaged; the message names its row and column.
    """
    tiles = touched(header, region)
    payloads = {tile: header.payloads(data, *tile) for tile in tiles}
    if header.tiling is None:
        picture = restore(payloads[0, 0], header.height, header.width)
        return _part(picture, tiles[0, 0], region).contiguous()
    out = None
    for (row, column), window in tiles.items():
        try:
            picture = restore(payloads.pop((row, column)), window.height, window.width)
        except BitstreamError as error:
            raise BitstreamError(f"the tile in row {row}, column {column} is damaged: {error}") from error
        if out is None:
            out = picture.new_zeros(1, 3, region.height, region.width)
        shared = _intersection(window, region)
        down = _weights(header.tiling, row, header.grid[0], shared.top, shared.bottom)
        across = _weights(header.tiling, column, header.grid[1], shared.left, shared.right)
        part = _part(picture, window, shared).mul_((down[:, None] * across).to(picture.device))
        _part(out, region, shared).add_(part)
    return out.clamp_(0, 1)


def _intersection(a: Window, b: Window) -> Window:
    top, left = max(a.top, b.top), max(a.left, b.left)
    return Window(top, left, min(a.bottom, b.bottom) - top, min(a.right, b.right) - left)


def _part(picture: Tensor, window: Window, part: Window) -> Tensor:
    """`part` of a tensor whose pixels are those of `window`."""
    top, left = part.top - window.top, part.left - window.left
    return picture[:, :, top : top + part.height, left : left + part.width]


def _weights(tiling: Tiling, index: int, count: int, start: int, end: int) -> Tensor:
    """Share of the tile `index`, one of `count` along an axis, in the pixels [start, end) of that axis; float32."""
    positions = torch.arange(start, end)
    weights = torch.ones(end - start, dtype=torch.float32)
    if index > 0:
        weights *= _rising(positions - index * tiling.step, tiling.overlap)
    if index < count - 1:
        weights *= 1 - _rising(positions - (index + 1) * tiling.step, tiling.overlap)
    return weights


def _rising(inside: Tensor, overlap: int) -> Tensor:
    """Share of the later of two tiles in its pixels `inside`, counted from where it begins."""
    if overlap == 0:
        return (inside >= 0).float()
    return ((2 * inside + 1).float() / (2 * overlap)).clamp(0, 1)
