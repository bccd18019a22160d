"""The decoder of portable streams on a GPU: the symbols stay where the next network wants them."""

from __future__ import annotations

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
    """A payload as the kernel reads it: the tensors of csrc/cuda/decode_lanes.cu.

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
        return LaneWords(*(tensor.to(device) for tensor in self))


def lane_words(payload: Any, total: int) -> LaneWords:
    """Reads what stands before the first symbol.

    Args:
        payload: bytes-like; what `LaneEncoder.finish` returned.
        total: as given to the encoder.

    Returns:
        Tensors on the host.

    Raises:
        BitstreamError: the payload cannot be one of so many symbols.
        UsageError: a total out of range.
    """
    native().LaneDecoder(payload, total)  # its checks of everything before the first word
    lanes, groups = native().lane_layout(total)
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
    sizes.append(len(words) - sum(sizes))
    ends = np.cumsum(sizes)
    first = ends - sizes
    states = np.full((groups, WARP), LOWER_BOUND, np.int64)
    pairs = words[first[:, None] + np.arange(2 * lanes)].reshape(groups, lanes, 2).astype(np.int64)
    states[:, :lanes] = pairs[:, :, 0] | pairs[:, :, 1] << 16
    held = np.zeros(max(LEAST_WORDS, 1 << (len(words) - 1).bit_length()), np.uint16)
    held[: len(words)] = words
    arrays = held.view(np.int16), ends, first + 2 * lanes, states.astype(np.uint32).view(np.int32)
    return LaneWords(*map(torch.from_numpy, arrays))


class CudaLaneDecoder:
    """`LaneDecoder` for indexes on a GPU: a warp decodes a group, nothing waits for the device until `finish`.

    Args:
        payload: from `lane_words`, on a CUDA device; its cursors and states are written to.
        total: as given to the encoder.

    Attributes:
        faults: ``[groups, 3]`` int64 on the device, as csrc/cuda/decode_lanes.cu describes them.

    Raises:
        NoBackendError: the CUDA kernels cannot be used.
    """

    def __init__(self, payload: LaneWords, total: int) -> None:
        missing = why_unavailable("cuda")
        if missing is not None:
            raise NoBackendError(f"lanes on {payload.words.device}: {missing}")
        self._payload = payload
        self._left = total
        self._lanes, groups = native().lane_layout(total)
        self.faults = torch.zeros((groups, 3), dtype=torch.int64, device=payload.words.device)

    def decode(self, indexes: Tensor, tables: EntropyTables, out: Tensor | None = None) -> Tensor:
        """The symbols of the next coding call. Damage shows in `finish`; from there on the group's symbols are 0.

        Args:
            indexes: any shape, int16, on the decoder's device. Table row of each symbol, as given to the encoder.
            tables: the distributions used to encode.
            out: shape of `indexes`, int32, contiguous; filled and returned. None: a new tensor.

        Returns:
            Symbols, int32, shape of `indexes`.

        Raises:
            UsageError: wrong dtype, device or shape, more symbols than the total.
        """
        device, count = self.faults.device, indexes.numel()
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
            *self._payload, self.faults, self._lanes, _arrays(tables, device), tables.rows, indexes.contiguous(), out
        )
        return out

    def finish(self) -> None:
        """Requires that the payload ends here; waits for the device.

        Raises:
            BitstreamError: damaged data; words are left, or a lane's state shows that bytes or tables are wrong. The
                message names the group.
            UsageError: an index without a row, or fewer symbols than the total were decoded.
        """
        require_end(self._payload, self.faults, self._left)


def require_end(payload: LaneWords, faults: Tensor, undecoded: int = 0) -> None:
    """What `CudaLaneDecoder.finish` requires, of the tensors that decoding left and the symbols that it left out."""
    groups = len(faults)
    for group, (kind, position, value) in enumerate(faults.tolist()):
        if kind == 0:
            continue
        named = f"group {group} of {groups}"
        if kind == 1:
            raise UsageError(f"indexes[{position}] = {value} has no row in its tables")
        if kind == 2:
            raise BitstreamError(f"{named} ends before symbol {position}")
        what = f"an escape of {value} digits (of 8)" if kind == 3 else f"escaped value {value} exceeds 32 bits"
        raise BitstreamError(f"{named}, symbol {position}: {what}")
    if undecoded:
        raise UsageError(f"{undecoded} symbols of the total were not decoded")
    left = (payload.ends - payload.cursors).tolist()
    at_start = (payload.states == LOWER_BOUND).tolist()
    for group in range(groups):
        named = f"group {group} of {groups}"
        if left[group]:
            raise BitstreamError(f"{named}: {2 * left[group]} bytes are left after its last symbol")
        if not all(at_start[group]):
            lane = at_start[group].index(False)
            raise BitstreamError(f"{named}: lane {lane} does not end in the state in which its encoder began")
