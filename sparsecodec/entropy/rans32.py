"""Payloads of DCVC-FM, DCVC-RT and DCVC-UF: rANS with a 32-bit state and bytes, one stream or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsecodec.entropy.coder import MAX_STREAMS, Decoder, Encoder, payload_view, split_streams
from sparsecodec.entropy.native import native
from sparsecodec.errors import BitstreamError, UsageError

_MAX_OVERLAP = 8
_OFFSET_BYTES = 4


class Encoder32(Encoder):
    """As `Encoder`, with the coder of DCVC-FM, DCVC-RT and DCVC-UF.

    A negative index says that its symbol is not in the stream: `push` drops it, `Decoder32.decode` gives 0. A call is
    split over the streams without such symbols.

    Args:
        streams: each call's symbols are split evenly over this many streams, the last one taking the rest. DCVC-RT has
            1 or 2, DCVC-UF 1 to 8.
        prefixed: write a prefix, also for one stream (DCVC-FM). Otherwise two streams are joined to a pair, and more to
            several pairs (`join_pairs`).

    Raises:
        UsageError: more than 16 streams.
    """

    def __init__(self, streams: int = 1, *, prefixed: bool = False) -> None:
        self.prefixed = prefixed
        self._native = native().Rans32Encoder(streams)

    def _joined(self, streams: list[bytes]) -> bytes:
        return super()._joined(streams) if self.prefixed else join_pairs(streams)


class Decoder32(Decoder):
    """Reads a payload of `Encoder32` in as many coding calls as it was written; arguments as given to that.

    Raises:
        BitstreamError: the payload cannot have been written with these settings.
        UsageError: impossible settings.
    """

    def __init__(self, data: bytes, streams: int = 1, *, prefixed: bool = False) -> None:
        if prefixed:
            self._groups = None
            parts = split_streams(data, streams)
        else:
            self._groups = split_pairs(data, streams)
            parts = [part for group in self._groups for part in group]
        self._native = native().Rans32Decoder(parts)

    def finish(self) -> None:
        if self._groups is None:
            super().finish()
            return
        sizes = iter(self._native.consumed())
        for number, group in enumerate(self._groups):
            read = [bytes(part[:size]) for part, size in zip(group, sizes, strict=False)]
            if _joined_pair(read) != bytes(group[0]):
                total = len(group[0])
                raise BitstreamError(
                    f"pair {number}: its streams read {[len(part) for part in read]} bytes, which do not join to the "
                    f"{total} bytes of the payload"
                )


def join_pairs(streams: Sequence[bytes]) -> bytes:
    """One payload from streams as DCVC-RT and DCVC-UF join them.

    Two by two: the first one, then the second one backwards, sharing the zeros (8 at most) or else one equal byte where
    they meet. A last stream without a partner stands alone. In front, where each of these groups but the last one ends,
    int32 little-endian, counted behind these numbers.
    """
    _check_count(len(streams))
    groups = [_joined_pair(streams[k : k + 2]) for k in range(0, len(streams), 2)]
    head, end = b"", 0
    for group in groups[:-1]:
        end += len(group)
        head += end.to_bytes(_OFFSET_BYTES, "little")
    return head + b"".join(groups)


def split_pairs(payload: Any, streams: int) -> list[list[memoryview]]:
    """The groups of a payload that `join_pairs` made of so many streams: in each one or two views, from where a stream
    is read forward. A view is as long as its group; where the streams of a pair end, only decoding tells.

    Raises:
        BitstreamError: the numbers in front are impossible.
        UsageError: streams is not 1 to 16.
    """
    _check_count(streams)
    view = payload_view(payload)
    count = (streams + 1) // 2
    start = _OFFSET_BYTES * (count - 1)
    if start > len(view):
        raise BitstreamError(f"payload of {len(view)} bytes ends inside the ends of its {count} groups")
    body, begin, groups = view[start:], 0, []
    for k in range(count):
        number = view[_OFFSET_BYTES * k : _OFFSET_BYTES * (k + 1)]
        end = int.from_bytes(number, "little") if k + 1 < count else len(body)
        if not begin <= end <= len(body):
            raise BitstreamError(f"group {k} of {count} ends at byte {end} (needs {begin} to {len(body)})")
        group = body[begin:end]
        alone = k + 1 == count and streams % 2 == 1
        groups.append([group] if alone else [group, memoryview(bytes(group[::-1]))])
        begin = end
    return groups


def _joined_pair(pair: Sequence[bytes]) -> bytes:
    if len(pair) == 1:
        return pair[0]
    first, second = pair
    most = min(_MAX_OVERLAP, len(first), len(second))
    shared = next((k for k in range(most) if first[-1 - k] or second[-1 - k]), most)
    if shared == 0 and most > 0 and first[-1] == second[-1]:
        shared = 1
    return first + second[: len(second) - shared][::-1]


def _check_count(streams: int) -> None:
    if not 1 <= streams <= MAX_STREAMS:
        raise UsageError(f"streams={streams} (needs 1 to {MAX_STREAMS})")
