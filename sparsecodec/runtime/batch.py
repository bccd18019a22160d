"""Several files at once, with one status for each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecodec.entropy import Header
from sparsecodec.errors import SparseCodecError, UsageError

BATCH = 16


@dataclass(frozen=True)
class Decoded:
    """What became of one item of ``decode_batch(..., on_error="status")``: a picture or an error, never both.

    Attributes:
        picture: ``[1, 3, H, W]`` float32 in [0, 1]; None if there is an error.
        error: a `BitstreamError` (damaged, truncated, foreign), `ModelMismatchError` or `ResourceLimitError`; its
            `exit_code` tells them apart in numbers. None if there is a picture.
    """

    picture: Tensor | None = None
    error: SparseCodecError | None = None


def check_batch(batch: int) -> None:
    """Raises a UsageError unless `batch` is a number of pictures."""
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise UsageError(f"batch={batch!r} (needs a whole number, at least 1)")


def check_encodable(x: Any, name: str) -> None:
    """Raises a UsageError unless `x` is one picture that can be encoded."""
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[:2] != (1, 3) or 0 in x.shape:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(f"{name} {shape} (needs a tensor [1, 3, H, W], not empty)")
    if x.is_meta or x.layout != torch.strided:
        raise UsageError(f"{name} {'without values' if x.is_meta else x.layout} (needs a dense tensor with values)")
    if not x.is_floating_point():
        raise UsageError(f"{name} of {x.dtype} (needs floating point in [0, 1]; divide by 255)")
    low, high = torch.stack(x.aminmax()).tolist()  # one copy: a GPU is waited for once
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise UsageError(f"{name} in [{low:g}, {high:g}] (needs [0, 1], no NaN)")


def runs(keys: Sequence[Hashable | None], most: Sequence[int]) -> Iterator[range]:
    """Neighbours with equal keys go together, at most as many as `most` says of the first of them; None is alone."""
    first = 0
    while first < len(keys):
        last = first + 1
        while last < min(len(keys), first + most[first]) and keys[last] == keys[first] is not None:
            last += 1
        yield range(first, last)
        first = last


def decode_each(
    decode: Callable[[Sequence[bytes]], list[Tensor]],
    blobs: Iterable[bytes],
    on_error: str,
    most: Callable[[Header], int],
) -> list[Tensor] | list[Decoded]:
    """See `CompiledCodec.decode_batch`.

    Args:
        decode: one file, or several of one size and quality that have no tiles, -> their pictures.
        most: how many of such a file may be decoded together; below 2: it is decoded alone.
    """
    if on_error not in ("raise", "status"):
        raise UsageError(f"on_error={on_error!r} (needs 'raise' or 'status')")
    if isinstance(blobs, bytes | bytearray | memoryview) or not isinstance(blobs, Iterable):
        raise UsageError(f"blobs is one {type(blobs).__name__} (needs a sequence of bytes)")
    blobs = list(blobs)
    for index, blob in enumerate(blobs):
        if not isinstance(blob, bytes | bytearray | memoryview):
            raise UsageError(f"item {index} is a {type(blob).__name__} (needs bytes)")
    headers = [_untiled(blob) for blob in blobs]
    kinds = [header and (header.height, header.width, header.quality) for header in headers]
    results: list[Decoded] = []
    for run in runs(kinds, [1 if header is None else most(header) for header in headers]):
        results += _tried(decode, [blobs[index] for index in run])
        if on_error == "raise":
            for index in run:
                if (error := results[index].error) is not None:
                    raise type(error)(f"item {index}: {error}") from error
    return [result.picture for result in results] if on_error == "raise" else results


def _tried(decode: Callable[[Sequence[bytes]], list[Tensor]], blobs: Sequence[bytes]) -> list[Decoded]:
    """What becomes of each: if they cannot be decoded together, of each alone."""
    try:
        return [Decoded(picture=picture) for picture in decode(blobs)]
    except SparseCodecError as found:
        error = type(found)(str(found))  # without its frames, which hold tensors
    if len(blobs) == 1:
        return [Decoded(error=error)]
    return [result for blob in blobs for result in _tried(decode, [blob])]


def _untiled(blob: bytes) -> Header | None:
    """The header of a file without tiles; None of anything else."""
    try:
        header = Header.read(blob)
    except SparseCodecError:
        return None
    return header if header.tiling is None else None
