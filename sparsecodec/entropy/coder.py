"""Symbols to bytes and back: rANS with a table row per symbol. Tensors and arrays are used where they lie."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecodec.entropy.native import native
from sparsecodec.entropy.tables import EntropyTables
from sparsecodec.errors import BitstreamError, UsageError

Array = Tensor | np.ndarray
MAX_STREAMS = 16  # what the prefix byte can say


_observer: ContextVar[Callable[[np.ndarray], None] | None] = ContextVar("sparsecodec_observer", default=None)


@contextlib.contextmanager
def observing(observer: Callable[[np.ndarray], None]) -> Iterator[None]:
    """Within the block `observer` gets the symbols of every decoding call of this thread, int32, to be read only."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def observed(symbols: np.ndarray) -> None:
    """Shows decoded symbols to whoever is `observing`; every decoder calls it."""
    observer = _observer.get()
    if observer is not None:
        observer(symbols)


def _dense(values: Array, name: str) -> np.ndarray:
    if isinstance(values, Tensor):
        if not values.is_cpu:
            raise UsageError(f"{name}: device {values.device} (needs cpu)")
        return values.contiguous().numpy()
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values)
    raise UsageError(f"{name}: {type(values).__name__} (needs a torch tensor or a numpy array)")


def payload_view(data: Any) -> memoryview:
    """The bytes of a payload, where they lie.

    Raises:
        UsageError: `data` is not bytes-like.
    """
    try:
        view = memoryview(data)
    except TypeError as error:
        raise UsageError(f"payload: {type(data)} (needs bytes): {error}") from error
    if view.itemsize != 1 or not view.contiguous:
        raise UsageError(f"payload: element type {view.format!r} (needs contiguous bytes)")
    return view.cast("B")


def _destination(out: Array | None, indexes: Array) -> tuple[Array, np.ndarray]:
    """Where to put the symbols: (what the caller gets, the same memory as an array)."""
    if out is None:
        if isinstance(indexes, Tensor):
            out = torch.empty(indexes.shape, dtype=torch.int32, device="cpu")
            return out, out.numpy()
        out = np.empty(indexes.shape, np.int32)
        return out, out
    if tuple(out.shape) != tuple(indexes.shape):
        raise UsageError(f"out: shape {tuple(out.shape)} for indexes of shape {tuple(indexes.shape)}")
    dense = _dense(out, "out")
    if isinstance(out, Tensor) and not out.is_contiguous() or isinstance(out, np.ndarray) and dense is not out:
        raise UsageError("out: not contiguous; symbols would be written to a copy")
    return out, dense


def encode(symbols: Array, indexes: Array, tables: EntropyTables) -> bytes:
    """Codes symbols into one stream, as CompressAI's ``encode_with_indexes`` does, byte for byte.

    Args:
        symbols: any shape, int32, read in row-major order.
        indexes: as many elements, uint8|int16|int32. Table row of each symbol.
        tables: the distributions. A symbol outside its row's range is escaped and costs about 30 bits.

    Returns:
        8 bytes or more, a multiple of 4.

    Raises:
        UsageError: wrong dtype or sizes, an index without a row, a symbol 2^31 or more away from its row.
    """
    return native().rans_encode(_dense(symbols, "symbols"), _dense(indexes, "indexes"), tables.native)


def decode(
    data: bytes, indexes: Array, tables: EntropyTables, out: Array | None = None, *, strict: bool = True
) -> Array:
    """Decodes one stream; the number of symbols is that of the indexes and nothing else.

    Args:
        data: bytes-like; what `encode` or CompressAI wrote.
        indexes: any shape, uint8|int16|int32. Table row of each symbol, as given to `encode`.
        tables: the distributions used to encode.
        out: shape of `indexes`, int32, contiguous; filled and returned. None: a new tensor or array, like `indexes`.
        strict: also require that the stream ends exactly after the last symbol, in the state in which its encoder
            began. Nearly all damage fails this check; a change of nothing but the digits of an escape does not.

    Returns:
        Symbols, int32, shape of `indexes`.

    Raises:
        BitstreamError: truncated, extended or damaged data. `out` then holds no meaning.
        UsageError: wrong dtype or sizes, an index without a row.
    """
    result, memory = _destination(out, indexes)
    native().rans_decode(data, _dense(indexes, "indexes"), tables.native, memory, strict)
    observed(memory)
    return result


class Encoder:
    """Several coding calls, possibly with different tables, in one payload.

    Args:
        streams: each call's symbols are split evenly over this many streams, the last one taking the rest.
        prefixed: write the stream sizes in front (EVC, DCVC-DC). Without (CompressAI, DCVC, DCVC-HEM) there can be only
            one stream.

    Raises:
        UsageError: several streams without a prefix, or more than 16.
    """

    def __init__(self, streams: int = 1, *, prefixed: bool | None = None) -> None:
        self.prefixed = streams > 1 if prefixed is None else prefixed
        _check_layout(streams, self.prefixed)
        self._native = native().RansEncoder(streams)

    def push(self, symbols: Array, indexes: Array, tables: EntropyTables) -> None:
        """Adds a coding call (arguments as for `encode`). Calls are decoded in the order in which they were pushed."""
        self._native.push(_dense(symbols, "symbols"), _dense(indexes, "indexes"), tables.native)

    def finish(self) -> bytes:
        """The payload of all calls so far; the encoder is then empty."""
        return self._joined(self._native.finish())

    def _joined(self, streams: list[bytes]) -> bytes:
        return join_streams(streams) if self.prefixed else streams[0]


class Decoder:
    """Reads a payload in as many coding calls as it was written.

    Args:
        data: bytes-like; what `Encoder.finish` returned. Kept until the decoder dies, not copied.
        streams: as given to the encoder; a payload with another number is refused.
        prefixed: as given to the encoder.

    Raises:
        BitstreamError: the payload cannot have been written with these settings.
        UsageError: impossible settings.
    """

    def __init__(self, data: bytes, streams: int = 1, *, prefixed: bool | None = None) -> None:
        prefixed = streams > 1 if prefixed is None else prefixed
        _check_layout(streams, prefixed)
        self._native = native().RansDecoder(split_streams(data, streams) if prefixed else [data])

    def decode(self, indexes: Array, tables: EntropyTables, out: Array | None = None) -> Array:
        """The symbols of the next coding call; arguments and result as for `decode`. Unusable after an error."""
        result, memory = _destination(out, indexes)
        self._native.decode(_dense(indexes, "indexes"), tables.native, memory)
        observed(memory)
        return result

    def finish(self) -> None:
        """Requires that the payload ends here.

        Raises:
            BitstreamError: bytes are left, or the coder's state shows that the bytes or the tables are wrong.
        """
        self._native.finish()


def _check_layout(streams: int, prefixed: bool) -> None:
    if not 1 <= streams <= MAX_STREAMS or (streams > 1 and not prefixed):
        raise UsageError(
            f"streams={streams}, prefixed={prefixed} (needs 1 to {MAX_STREAMS}; without a prefix there is only one)"
        )


def join_streams(streams: Sequence[bytes]) -> bytes:
    """One payload from streams: byte 0 = (n - 1) << 4 | (1 if sizes have 2 bytes, 0 if 4), n - 1 sizes, the streams."""
    _check_layout(len(streams), True)
    sizes = [len(stream) for stream in streams[:-1]]
    width = 2 if max(sizes, default=0) <= 0xFFFF else 4
    head = bytes([(len(streams) - 1) << 4 | (width == 2)])
    return head + b"".join(size.to_bytes(width, "little") for size in sizes) + b"".join(streams)


def split_streams(payload: Any, expected: int | None = None) -> list[memoryview]:
    """The streams of a payload that `join_streams` made, as views of its memory.

    Args:
        payload: bytes-like.
        expected: how many there must be; None: any number.

    Raises:
        BitstreamError: the prefix is none, promises more bytes than there are, or has another number of streams.
    """
    view = payload_view(payload)
    if len(view) == 0 or view[0] & 0x0E:
        raise BitstreamError(f"payload of {len(view)} bytes has no stream prefix: {bytes(view[:1]).hex() or 'empty'}")
    count, width = (view[0] >> 4) + 1, 2 if view[0] & 1 else 4
    if expected not in (None, count):
        raise BitstreamError(f"a payload of {count} streams (expected {expected})")
    start = 1 + width * (count - 1)
    if start > len(view):
        raise BitstreamError(f"payload of {len(view)} bytes ends inside the sizes of its {count} streams")
    streams = []
    for k in range(count - 1):
        size = int.from_bytes(view[1 + width * k : 1 + width * (k + 1)], "little")
        if size > len(view) - start:
            raise BitstreamError(f"stream {k} of {count} claims {size} bytes, {len(view) - start} are left")
        streams.append(view[start : start + size])
        start += size
    streams.append(view[start:])
    return streams
