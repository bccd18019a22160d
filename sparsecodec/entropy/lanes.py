"""The coder of portable streams: symbols take turns on lanes, for vector instructions, threads and GPUs.

docs/bitstream.md, section 3b, specifies the payload. How many lanes there are follows from the number of symbols alone.
"""

from __future__ import annotations

from typing import Any

from sparsecodec.entropy.coder import Array, _dense, _destination, observed
from sparsecodec.entropy.native import native
from sparsecodec.entropy.tables import EntropyTables
from sparsecodec.errors import ResourceLimitError

MAX_SYMBOLS = 1 << 40  # of a payload


def payload_symbols(total: int) -> int:
    """`total`, the symbols of a picture whose size a file tells, once it is known that a payload can hold as many.

    Raises:
        ResourceLimitError: it cannot.
    """
    if total > MAX_SYMBOLS:
        raise ResourceLimitError(f"a picture of {total} symbols (limit: {MAX_SYMBOLS} in a payload)")
    return total


class LaneEncoder:
    """Several coding calls, possibly with different tables, in one payload.

    Args:
        total: symbols of all calls together, 0 to 2^40.

    Raises:
        UsageError: a total out of range.
    """

    def __init__(self, total: int) -> None:
        self._native = native().LaneEncoder(total)

    def push(self, symbols: Array, indexes: Array, tables: EntropyTables) -> None:
        """Adds a coding call. Calls are decoded in the order in which they were pushed.

        Args:
            symbols: any shape, int32, read in row-major order.
            indexes: as many elements, uint8|int16|int32. Table row of each symbol.
            tables: the distributions. A symbol outside its row's range is escaped and costs about 30 bits.

        Raises:
            UsageError: wrong dtype or sizes, an index without a row, a symbol 2^31 or more away from its row, more
                symbols than the total. Nothing was added.
        """
        self._native.push(_dense(symbols, "symbols"), _dense(indexes, "indexes"), tables.native)

    def finish(self) -> bytes:
        """The payload; the encoder is then empty.

        Raises:
            UsageError: fewer symbols than the total were pushed.
        """
        return self._native.finish()


class LaneDecoder:
    """Reads a payload in as many coding calls as it was written. Symbols do not depend on instruction set or threads.

    Args:
        payload: bytes-like; what `LaneEncoder.finish` returned. Kept until the decoder dies, not copied.
        total: as given to the encoder. It must come from the picture's size and the model: memory follows from it.

    Raises:
        BitstreamError: the payload cannot be one of so many symbols.
        UsageError: a total out of range.
    """

    def __init__(self, payload: Any, total: int) -> None:
        self._native = native().LaneDecoder(payload, total)

    def decode(self, indexes: Array, tables: EntropyTables, out: Array | None = None) -> Array:
        """The symbols of the next coding call. Groups of lanes are decoded on torch's threads.

        Args:
            indexes: any shape, uint8|int16|int32. Table row of each symbol, as given to the encoder.
            tables: the distributions used to encode.
            out: shape of `indexes`, int32, contiguous; filled and returned. None: a new one, like `indexes`.

        Returns:
            Symbols, int32, shape of `indexes`.

        Raises:
            BitstreamError: damaged data; the message names the group. `out` then holds no meaning, and the decoder is
                unusable.
            UsageError: wrong dtype or sizes, an index without a row, more symbols than the total.
        """
        result, memory = _destination(out, indexes)
        self._native.decode(_dense(indexes, "indexes"), tables.native, memory)
        observed(memory)
        return result

    def finish(self) -> None:
        """Requires that the payload ends here.

        Raises:
            BitstreamError: words are left, or a lane's state shows that the bytes or the tables are wrong.
            UsageError: fewer symbols than the total were decoded.
        """
        self._native.finish()
