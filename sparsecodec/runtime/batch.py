"""Several files at once, with one status for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsecodec.errors import SparseCodecError, UsageError


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


def decode_each(
    decode: Callable[[bytes], Tensor], blobs: Sequence[bytes], on_error: str
) -> list[Tensor] | list[Decoded]:
    """See `CompiledCodec.decode_batch`."""
    if on_error not in ("raise", "status"):
        raise UsageError(f"on_error={on_error!r} (needs 'raise' or 'status')")
    if isinstance(blobs, bytes | bytearray | memoryview):
        raise UsageError(f"blobs is one {type(blobs).__name__} (needs a sequence of them)")
    for index, blob in enumerate(blobs):
        if not isinstance(blob, bytes | bytearray | memoryview):
            raise UsageError(f"item {index} is a {type(blob).__name__} (needs bytes)")
    results: list[Tensor] | list[Decoded] = []
    for index, blob in enumerate(blobs):
        try:
            picture = decode(blob)
            results.append(picture if on_error == "raise" else Decoded(picture=picture))
        except SparseCodecError as error:
            if on_error == "raise":
                raise type(error)(f"item {index}: {error}") from error
            results.append(Decoded(error=error))
    return results
