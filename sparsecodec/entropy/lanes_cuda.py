"""The decoder of portable streams on a GPU: the symbols stay where the next network wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from sparsecodec import _cuda
from sparsecodec.entropy.native import native
from sparsecodec.entropy.tables import EntropyTables
from sparsecodec.errors import BitstreamError, NoBackendError, UsageError
from sparsecodec.ops import why_unavailable

LOWER_BOUND = 1 << 16  # of a lane's state, and what it begins and ends with
WARP = 32
LEAST_WORDS = 4096  # of a payload's memory, whose size is a power of two: few sizes, few captured graphs
_copies: WeakKeyDictionary[EntropyTables, dict[torch.device, tuple[Tensor, ...]]] = WeakKeyDictionary()


def decodes_on(device: torch.device) -> bool:
    """Whether a picture's payload is decoded on `device`, where its networks run, and not on the host."""
    return device.type == "cuda" and why_unavailable("cuda") is None


def _arrays(tables: EntropyTables, device: torch.device) -> tuple[Tensor, ...]:
    """Rows, buckets and cumulative frequencies on `device`, copied there once."""
    copies = _copies.setdefault(tables, {})
    if device not in copies:
        arrays = native().rans_table_arrays(tables.native)
        copies[device] = tuple(torch.frombuffer(bytearray(array), dtype=torch.uint8).to(device) for array in arrays)
    return copies[device]


class LaneWords(NamedTuple):
    """Payloads as the kernel reads them: the tensors of csrc/cuda/decode_lanes.cu, groups counted through all pictures.

    Attributes:
        words: ``[W]`` int16, W a power of two of at least 4096: those of all groups, then zeros.
        ends, cursors: ``[groups]`` int64.
        states: ``[groups, 32]`` int32.
    """

    words: Tensor
    ends: Tensor
    cursors: Tensor
    states: Tensor

    def to(self, device: torch.device) -> LaneWords:
        """On a GPU by way of pinned memory: the host does not wait for the copies."""
        given = (tensor.pin_memory() if device.type == "cuda" else tensor for tensor in self)
        return LaneWords(*(tensor.to(device, non_blocking=True) for tensor in given))


def lane_words(payloads: Sequence[Any], total: int) -> LaneWords:
    """Reads what stands before the first symbols.

    Args:
        payloads: bytes-like, at least one; what `LaneEncoder.finish` returned, a picture each.
        total: as given to each encoder.

    Returns:
        Tensors on the host.

    Raises:
        BitstreamError: a payload cannot be one of so many symbols.
        UsageError: a total out of range.
    """
    lanes, groups = native().lane_layout(total)
    parts, sizes = zip(*(_words_and_sizes(payload, total, groups) for payload in payloads), strict=True)
    words, of_groups = np.concatenate(parts), np.concatenate(sizes)
    ends = np.cumsum(of_groups)
    first = ends - of_groups
    states = np.full((len(ends), WARP), LOWER_BOUND, np.int64)
    pairs = words[first[:, None] + np.arange(2 * lanes)].reshape(len(ends), lanes, 2).astype(np.int64)
    states[:, :lanes] = pairs[:, :, 0] | pairs[:, :, 1] << 16
    held = np.zeros(max(LEAST_WORDS, 1 << (len(words) - 1).bit_length()), np.uint16)
    held[: len(words)] = words
    arrays = held.view(np.int16), ends, first + 2 * lanes, states.astype(np.uint32).view(np.int32)
    return LaneWords(*map(torch.from_numpy, arrays))


def _words_and_sizes(payload: Any, total: int, groups: int) -> tuple[np.ndarray, list[int]]:
    """A payload's words, uint16, and how many of them each group has."""
    native().LaneDecoder(payload, total)  # its checks of everything before the first word
    view, at, sizes = memoryview(payload).cast("B"), 0, []
    for _ in range(groups - 1):
        size = shift = 0
        while True:
            byte = view[at]
            size |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        sizes.append(size)
    words = np.frombuffer(view[at:], "<u2").astype(np.uint16)
    return words, [*sizes, len(words) - sum(sizes)]


class CudaLaneDecoder:
    """`LaneDecoder` for the indexes of one or more pictures on a GPU: a warp decodes a group of one of them.

    Nothing waits for the device until `finish`.

    Args:
        payloads: from `lane_words`, on a CUDA device; their cursors and states are written to.
        total: as given to each encoder.

    Attributes:
        faults: ``[groups of all pictures, 3]`` int64 on the device, as csrc/cuda/decode_lanes.cu describes them.

    Raises:
        NoBackendError: the CUDA kernels cannot be used.
    """

    def __init__(self, payloads: LaneWords, total: int) -> None:
        missing = why_unavailable("cuda")
        if missing is not None:
            raise NoBackendError(f"lanes on {payloads.words.device}: {missing}")
        self._payloads = payloads
        self._left = total
        self._lanes, self._groups = native().lane_layout(total)
        self._pictures = len(payloads.ends) // self._groups
        self.faults = torch.zeros((len(payloads.ends), 3), dtype=torch.int64, device=payloads.words.device)

    def decode(self, indexes: Tensor, tables: EntropyTables, out: Tensor | None = None) -> Tensor:
        """The symbols of the next coding call. Damage shows in `finish`; from there on the group's symbols are 0.

        Args:
            indexes: ``[N, ...]`` int16 on the decoder's device, of one picture any shape. Table row of each symbol, as
                given to the encoder.
            tables: the distributions used to encode.
            out: shape of `indexes`, int32, contiguous; filled and returned. None: a new tensor.

        Returns:
            Symbols, int32, shape of `indexes`.

        Raises:
            UsageError: wrong dtype, device or shape, more symbols than the total.
        """
        device, count = self.faults.device, indexes.numel() // self._pictures
        if self._pictures > 1 and (indexes.dim() == 0 or len(indexes) != self._pictures):
            raise UsageError(f"indexes: shape {list(indexes.shape)} (needs [{self._pictures}, ...], one per picture)")
        if indexes.dtype != torch.int16 or indexes.device != device:
            raise UsageError(f"indexes: {indexes.dtype} on {indexes.device} (needs torch.int16 on {device})")
        if count > self._left or count >= 2**31:
            raise UsageError(f"{count} indexes, {self._left} symbols are left (and a call takes less than 2^31)")
        if out is None:
            out = torch.empty(indexes.shape, dtype=torch.int32, device=device)
        elif (out.shape, out.dtype, out.device) != (indexes.shape, torch.int32, device) or not out.is_contiguous():
            needed = f"{list(indexes.shape)} torch.int32 on {device}, contiguous"
            raise UsageError(
                f"out: {list(out.shape)} {out.dtype} on {out.device}, stride {out.stride()} (needs {needed})"
            )
        self._left -= count
        _cuda.decode_lanes(
            *self._payloads,
            self.faults,
            self._pictures,
            self._lanes,
            _arrays(tables, device),
            tables.rows,
            indexes.contiguous(),
            out,
        )
        return out

    def finish(self) -> None:
        """Requires that the payload ends here; waits for the device.

        Raises:
            BitstreamError: damaged data; words are left, or a lane's state shows that bytes or tables are wrong. The
                message names the group.
            UsageError: an index without a row, or fewer symbols than the total were decoded.
        """
        require_end(self._payloads, self.faults, self._groups, self._left)


def require_end(payloads: LaneWords, faults: Tensor, groups: int, undecoded: int = 0) -> None:
    """What `CudaLaneDecoder.finish` requires, of the tensors that decoding left.

    Args:
        payloads, faults: the tensors, in any place.
        groups: of each payload.
        undecoded: symbols of each total that were left out.
    """
    left = payloads.ends - payloads.cursors
    parts = faults.flatten(), left, payloads.states.flatten() == LOWER_BOUND
    found = torch.cat([part.to(torch.int64) for part in parts]).cpu()  # the one time that the host waits
    faults, left, at_start = found.split([part.numel() for part in parts])
    for group, (kind, position, value) in enumerate(faults.view(-1, 3).tolist()):
        if kind == 0:
            continue
        named = f"group {group % groups} of {groups}"
        if kind == 1:
            raise UsageError(f"indexes[{position}] = {value} has no row in its tables")
        if kind == 2:
            raise BitstreamError(f"{named} ends before symbol {position}")
        what = f"an escape of {value} digits (of 8)" if kind == 3 else f"escaped value {value} exceeds 32 bits"
        raise BitstreamError(f"{named}, symbol {position}: {what}")
    if undecoded:
        raise UsageError(f"{undecoded} symbols of the total were not decoded")
    for group, (words, states) in enumerate(zip(left.tolist(), at_start.view(-1, WARP).tolist(), strict=True)):
        named = f"group {group % groups} of {groups}"
        if words:
            raise BitstreamError(f"{named}: {2 * words} bytes are left after its last symbol")
        if not all(states):
            lane = states.index(0)
            raise BitstreamError(f"{named}: lane {lane} does not end in the state in which its encoder began")
