"""How much memory coding will take, told before any of it is allocated, and what happens where it runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import torch

from sparsecodec.entropy import Tiling, Window, check_limit
from sparsecodec.errors import ResourceLimitError
from sparsecodec.runtime import planning
from sparsecodec.runtime.planning import in_units
from sparsecodec.runtime.tiles import SIDES, tiling_of, windows

if TYPE_CHECKING:
    from sparsecodec.runtime.codec import CompiledCodec
    from sparsecodec.runtime.executor import Executor
    from sparsecodec.runtime.transform import CompiledTransform

T = TypeVar("T")

# In errors of torch, which has no type of its own for the memory of the host: DefaultCPUAllocator, CUDA, C++.
SIGNS = ("allocate memory", "DefaultCPUAllocator", "out of memory", "bad_alloc")
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
        needed = encoding_bytes(codec, windows(tiling, height, width))
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


def encoding_bytes(codec: CompiledCodec, parts: Iterable[Window]) -> int:
    """`working_bytes` of encoding."""
    return working_bytes(codec, codec.ENCODING or codec.ANALYSIS + codec.ENTROPY, parts)


def decoding_bytes(codec: CompiledCodec, region: Window, parts: Iterable[Window]) -> int:
    """`working_bytes` of decoding, and those of the picture."""
    return working_bytes(codec, codec.ENTROPY + codec.SYNTHESIS, parts) + PIXEL_BYTES * region.pixels


def _too_much(what: str, needed: int, limit: int) -> ResourceLimitError:
    return ResourceLimitError(f"{what} needs about {needed / 2**20:.1f} MiB (limit: {limit / 2**20:.1f} MiB)")


def with_room(work: Callable[[], T], lock: Lock, kept: Sequence[CompiledTransform | Executor]) -> T:
    """What `work` gives. Where memory runs out, it runs again without what earlier calls left behind.

    Args:
        work: may be run twice; takes `lock` itself while it uses `kept`.
        lock: of the codec.
        kept: all that holds memory between calls, executors last.
    """
    idle = any(keeper.holds for keeper in kept)
    try:
        return work()
    except (ResourceLimitError, MemoryError, RuntimeError) as error:
        if not idle or not (isinstance(error, ResourceLimitError) or is_out_of_memory(error)):
            raise
    with lock:  # behind the handler: the error's frames hold tensors
        for keeper in kept:
            keeper.release()
    return work()


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch, or Python, could not allocate."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def encoding_told(
    codec: CompiledCodec, size: Sequence[int], tiling: Tiling | None = None, count: int = 1
) -> AbstractContextManager[None]:
    """See `memory_told`; of `count` pictures of that height and width."""
    return memory_told(
        "encoding", size, codec.device, lambda: count * encoding_bytes(codec, windows(tiling, *size)), count
    )


def decoding_told(
    codec: CompiledCodec, region: Window, parts: Sequence[Window] | None = None, count: int = 1
) -> AbstractContextManager[None]:
    """See `memory_told`; of `count` pictures' `region`, coded in `parts`."""
    parts, size = parts or [region], (region.height, region.width)
    return memory_told("decoding", size, codec.device, lambda: count * decoding_bytes(codec, region, parts), count)


@contextmanager
def memory_told(
    verb: str, size: Sequence[int], device: torch.device, needed: Callable[[], int] | None = None, count: int = 1
) -> Iterator[None]:
    """Turns torch's and Python's errors of memory into a ResourceLimitError with the figures.

    Args:
        verb: what is done inside.
        size: height and width.
        device: of the networks.
        needed: an estimate of the bytes, called where memory ran out; None: there is none.
        count: pictures of that size.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        height, width = size
        message = f"no memory for {verb} {f'{count} times ' if count > 1 else ''}{width} x {height} pixels on {device}"
        planned, free = needed and needed(), planning.available_bytes(device)
        message += f", which needs about {in_units(planned)}" if planned else ""
        message += "" if free is None else f", {in_units(free)} are free"
        if planned and free is not None and free < planned:
            message += f": about {count * height * width * free // planned} pixels would fit"
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise ResourceLimitError(f"{message} ({cause})") from error
