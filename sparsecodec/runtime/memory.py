"""How much memory coding will take, told before any of it is allocated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sparsecodec.entropy import Tiling, Window, check_limit
from sparsecodec.errors import ResourceLimitError
from sparsecodec.runtime.tiles import SIDES, tiling_of, windows

if TYPE_CHECKING:
    from sparsecodec.runtime.codec import CompiledCodec

PIXEL_BYTES = 12  # three float32
# What adapters hold per pixel of a part, beside the transforms: the part padded, in the transforms' layout and as the
# result, and some dozen tensors of the latent's size, which have 3/16 to 5/4 of a number for each pixel.
OWN_BYTES = 3 * PIXEL_BYTES + 12


def working_bytes(codec: CompiledCodec, paths: Iterable[str], parts: Iterable[Window]) -> int:
    """An estimate of the most that a codec allocates while it codes those parts one after another.

    Per transform the buffers of its plan, which stay for the next part of that size: all of them count, for every size
    among `parts`; buffers grow with the pixels, so one small plan tells them all. `bench/tiles.py` compares it with
    measured peaks. The model itself and whole pictures are not in it.

    Args:
        paths: of the transforms that run.
        parts: the tiles, or the picture as one.
    """
    paths = tuple(paths)
    sizes = {tuple(side + -side % codec.STRIDE for side in (part.height, part.width)) for part in parts}
    areas = [height * width for height, width in sizes]
    planned = sum(codec.bytes_per_pixel(path) for path in paths) * sum(areas)
    return round(planned + OWN_BYTES * max(areas))


def fitting_tiling(
    codec: CompiledCodec, height: int, width: int, side: int | None, overlap: int | None, limit: int | None
) -> Tiling | None:
    """The tiles of a picture: as asked for, or the largest whose coding stays within `limit` bytes.

    Raises:
        ResourceLimitError: the tiles that were asked for, or even the smallest ones, need more.
        UsageError: `limit` is no positive, finite number.
    """
    if limit is None:
        return tiling_of(height, width, side, overlap)
    check_limit(limit, "max_memory")
    choice = (None, *SIDES) if side is None and overlap is None else SIDES if side is None else (side,)
    for candidate in choice:
        tiling = tiling_of(height, width, candidate, overlap)
        needed = working_bytes(codec, codec.ENCODING or codec.ANALYSIS + codec.ENTROPY, windows(tiling, height, width))
        if needed <= limit:
            return tiling
    cut = "" if candidate is None else f" in tiles of {candidate}"
    raise _too_much(f"encoding {width} x {height} pixels{cut}", needed, limit)


def check_decoding(codec: CompiledCodec, region: Window, parts: Iterable[Window], limit: int | None) -> None:
    """Refuses to decode what needs more than `limit` bytes, the picture included.

    Raises:
        ResourceLimitError: it does.
    """
    if limit is not None:
        check_limit(limit, "max_memory")
        needed = decoding_bytes(codec, region, parts)
        if needed > limit:
            raise _too_much(f"decoding {region.width} x {region.height} pixels", needed, limit)


def decoding_bytes(codec: CompiledCodec, region: Window, parts: Iterable[Window]) -> int:
    """`working_bytes` of decoding, and those of the picture."""
    return working_bytes(codec, codec.ENTROPY + codec.SYNTHESIS, parts) + PIXEL_BYTES * region.pixels


def _too_much(what: str, needed: int, limit: int) -> ResourceLimitError:
    return ResourceLimitError(f"{what} needs about {needed / 2**20:.1f} MiB (limit: {limit / 2**20:.1f} MiB)")
