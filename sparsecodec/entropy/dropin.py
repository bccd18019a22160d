"""Stand-ins for the compiled coder modules of the DCVC family, so that its published Python classes run on our coder.

`install` puts them where one family's classes import them from. Nothing is replaced unless it is called. Arguments are
the modules' own: lists or arrays, tables with every call or registered once. The streams are the same bytes.
"""

from __future__ import annotations

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from sparsecodec.entropy.coder import Decoder, Encoder, decode, encode
from sparsecodec.entropy.rans32 import Decoder32, Encoder32
from sparsecodec.entropy.tables import EntropyTables, pmf_to_quantized_cdf
from sparsecodec.errors import UsageError

_REMEMBERED = 8  # tables per object; the classes have two or four


def _flat(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, np.int32).reshape(-1)


def _quantized_cdf(pmf: Sequence[float], precision: int = 16) -> list[int]:
    if precision != 16:
        raise UsageError(f"precision={precision} (needs 16)")
    return pmf_to_quantized_cdf(torch.tensor(pmf, dtype=torch.float32)).tolist()


class _Rows:
    """Tables from what the classes pass: registered before (`add`), or with each call and then known by identity."""

    def __init__(self) -> None:
        self._groups: list[EntropyTables] = []
        self._seen: OrderedDict[int, tuple[Any, EntropyTables]] = OrderedDict()

    def add(self, cdf: Any, lengths: Any, offsets: Any) -> int:
        self._groups.append(_tables(cdf, lengths, offsets))
        return len(self._groups) - 1

    def of(self, source: tuple[Any, ...]) -> EntropyTables:
        """source: (group,) or (cdf, lengths, offsets)."""
        if len(source) == 1:
            return self._groups[source[0]]
        cdf = source[0]
        if id(cdf) not in self._seen:  # what is remembered is kept alive: nothing else can have its id
            self._seen[id(cdf)] = cdf, _tables(*source)
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return self._seen[id(cdf)][1]


def _tables(cdf: Any, lengths: Any, offsets: Any, *, zigzag: bool = False) -> EntropyTables:
    if isinstance(cdf, list):  # rows of any length
        width = max(len(row) for row in cdf)
        cdf = [row + [0] * (width - len(row)) for row in cdf]
    return EntropyTables(np.ascontiguousarray(cdf, np.int32), _flat(lengths), _flat(offsets), zigzag=zigzag)


class _PlainEncoder:
    """``RansEncoder`` of DCVC: a stream per call."""

    def __init__(self) -> None:
        self._rows = _Rows()

    def encode_with_indexes(self, symbols: Any, indexes: Any, *source: Any) -> bytes:
        return encode(_flat(symbols), _flat(indexes), self._rows.of(source))


class _BufferedEncoder:
    """``BufferedRansEncoder`` of DCVC and DCVC-HEM: a stream of several calls."""

    def __init__(self) -> None:
        self._rows = _Rows()
        self.reset()

    def reset(self) -> None:
        self._encoder = Encoder()

    def encode_with_indexes(self, symbols: Any, indexes: Any, *source: Any) -> None:
        self._encoder.push(_flat(symbols), _flat(indexes), self._rows.of(source))

    def flush(self) -> bytes:
        return self._encoder.finish()


class _BufferedDecoder:
    """``RansDecoder`` of DCVC and DCVC-HEM."""

    def __init__(self) -> None:
        self._rows = _Rows()

    def set_stream(self, stream: bytes) -> None:
        self._decoder = Decoder(stream)

    def decode_stream(self, indexes: Any, *source: Any) -> list[int]:
        return self._decoder.decode(_flat(indexes), self._rows.of(source)).tolist()

    def decode_with_indexes(self, stream: bytes, indexes: Any, *source: Any) -> list[int]:
        return decode(stream, _flat(indexes), self._rows.of(source)).tolist()


class _PartEncoder:
    """``RansEncoder`` of EVC and DCVC-DC: prefixed streams."""

    coder = Encoder

    def __init__(self, threaded: bool, parts: int) -> None:
        self._rows, self._parts = _Rows(), parts
        self.add_cdf = self._rows.add
        self.reset()

    def reset(self) -> None:
        self._encoder = self.coder(self._parts, prefixed=True)

    def encode_with_indexes(self, symbols: Any, indexes: Any, *source: Any) -> None:
        self._encoder.push(_flat(symbols), _flat(indexes), self._rows.of(source))

    def flush(self) -> None:
        self._stream = self._encoder.finish()

    def get_encoded_stream(self) -> np.ndarray:
        return np.frombuffer(self._stream, np.uint8)


class _PartDecoder:
    """``RansDecoder`` of EVC and DCVC-DC."""

    coder = Decoder

    def __init__(self, parts: int) -> None:
        self._rows, self._parts = _Rows(), parts
        self.add_cdf = self._rows.add

    def set_stream(self, stream: np.ndarray) -> None:
        self._decoder = self.coder(stream.tobytes(), self._parts, prefixed=True)

    def decode_stream(self, indexes: Any, *source: Any) -> np.ndarray:
        return self._decoder.decode(_flat(indexes), self._rows.of(source)).astype(np.int16)


class _PartEncoder32(_PartEncoder):
    """``RansEncoder`` of DCVC-FM, which registers its tables."""

    coder = Encoder32


class _PartDecoder32(_PartDecoder):
    """``RansDecoder`` of DCVC-FM."""

    coder = Decoder32


def _words(words: Any) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and indexes of int16 words: symbol << 8 | index."""
    values = _flat(words)
    return values >> 8, values & 0xFF


class _PairEncoder:
    """What the encoders of DCVC-RT and DCVC-UF have in common: calls that are kept until `flush`."""

    _streams = 1

    def __init__(self) -> None:
        self._calls: list[tuple[np.ndarray, np.ndarray, EntropyTables]] = []

    def reset(self) -> None:
        self._calls.clear()

    def flush(self) -> None:
        encoder = Encoder32(self._streams)
        for call in self._in_decoding_order():
            encoder.push(*call)
        self._stream = encoder.finish()

    def get_encoded_stream(self) -> np.ndarray:
        return np.frombuffer(self._stream, np.uint8)

    def _in_decoding_order(self) -> list[tuple[np.ndarray, np.ndarray, EntropyTables]]:
        return self._calls


class _PairDecoder:
    _streams = 1

    def set_stream(self, stream: np.ndarray) -> None:
        self._decoder = Decoder32(stream.tobytes(), self._streams)

    def _read(self, indexes: np.ndarray, tables: EntropyTables) -> np.ndarray:
        self._decoded = self._decoder.decode(_flat(indexes), tables).astype(np.int8)
        return self._decoded

    def get_decoded_tensor(self) -> np.ndarray:
        return self._decoded


def _channel_rows(count: int, first_row: int, per_channel: int, streams: int) -> np.ndarray:
    """Rows of DCVC-RT's z: each of two streams begins with a channel of its own, also where that splits a channel."""
    half = count // 2 if streams == 2 else 0
    places = [np.arange(half) // per_channel, half // per_channel + np.arange(count - half) // per_channel]
    return first_row + np.concatenate(places)


class _RtEncoder(_PairEncoder):
    """``RansEncoder`` of DCVC-RT."""

    def __init__(self) -> None:
        super().__init__()
        self._rows = _Rows()
        self.add_cdf = self._rows.add

    def set_use_two_encoders(self, use: bool) -> None:
        self._streams = 2 if use else 1

    def get_use_two_encoders(self) -> bool:
        return self._streams == 2

    def encode_y(self, words: Any, group: int) -> None:
        self._calls.append((*_words(words), self._rows.of((group,))))

    def encode_z(self, symbols: Any, group: int, first_row: int, per_channel: int) -> None:
        values = _flat(symbols)
        rows = _channel_rows(len(values), first_row, per_channel, self._streams)
        self._calls.append((values, _flat(rows), self._rows.of((group,))))


class _RtDecoder(_PairDecoder):
    """``RansDecoder`` of DCVC-RT."""

    def __init__(self) -> None:
        self._rows = _Rows()
        self.add_cdf = self._rows.add

    def set_use_two_decoders(self, use: bool) -> None:
        self._streams = 2 if use else 1

    def get_use_two_decoders(self) -> bool:
        return self._streams == 2

    def decode_y(self, indexes: Any, group: int) -> None:
        self._read(indexes, self._rows.of((group,)))

    def decode_and_get_y(self, indexes: Any, group: int) -> np.ndarray:
        return self._read(indexes, self._rows.of((group,)))

    def decode_z(self, count: int, group: int, first_row: int, per_channel: int) -> None:
        self._read(_channel_rows(count, first_row, per_channel, self._streams), self._rows.of((group,)))


class _ZigzagTables:
    """``set_cdf`` and ``set_entropy_coder_parallel`` of DCVC-UF: 0 is z, 1 is y."""

    def set_cdf(self, cdf: Any, lengths: Any, group: int) -> None:
        tables = _tables(cdf, lengths, np.zeros(len(lengths)), zigzag=True)
        if group == 0:
            self._z = tables
        else:
            self._y = tables

    def set_entropy_coder_parallel(self, streams: int) -> None:
        self._streams = streams


class _UfEncoder(_ZigzagTables, _PairEncoder):
    """``RansEncoder`` of DCVC-UF: calls come in the order in which they are written, the last one to be read first."""

    def encode_y(self, words: Any) -> None:
        self._calls.append((*_words(words), self._y))

    def encode_z(self, symbols: Any, first_row: int, channels: int) -> None:
        values = _flat(symbols)
        self._calls.append((values, _flat(first_row + np.arange(len(values)) % channels), self._z))

    def _in_decoding_order(self) -> list[tuple[np.ndarray, np.ndarray, EntropyTables]]:
        return self._calls[::-1]


class _UfDecoder(_ZigzagTables, _PairDecoder):
    """``RansDecoder`` of DCVC-UF."""

    def decode_y(self, indexes: Any) -> None:
        self._read(indexes, self._y)

    def decode_z(self, count: int, first_row: int, channels: int) -> None:
        self._read(first_row + np.arange(count) % channels, self._z)


_PLAIN = {"RansEncoder": _PlainEncoder, "BufferedRansEncoder": _BufferedEncoder, "RansDecoder": _BufferedDecoder}
_PARTS = {"RansEncoder": _PartEncoder, "RansDecoder": _PartDecoder}
_PARTS_32 = {"RansEncoder": _PartEncoder32, "RansDecoder": _PartDecoder32}
_CDF = {"pmf_to_quantized_cdf": _quantized_cdf}

# family -> modules by name, with what they offer; {} is the package of the family's classes
_MODULES: dict[str, dict[str, dict[str, Any]]] = {
    "dcvc": {"{}.entropy_models.MLCodec_rans": _PLAIN, "{}.entropy_models.MLCodec_CXX": _CDF},
    "hem": {"{}.entropy_models.MLCodec_rans": _PLAIN, "{}.entropy_models.MLCodec_CXX": _CDF},
    "evc": {"{}.models.MLCodec_rans": _PARTS, "{}.models.MLCodec_CXX": _CDF},
    "dc": {"{}.models.MLCodec_rans": _PARTS, "{}.models.MLCodec_CXX": _CDF},
    "fm": {"{}.models.MLCodec_rans": _PARTS_32, "{}.models.MLCodec_CXX": _CDF},
    "rt": {"MLCodec_extensions_cpp": {"RansEncoder": _RtEncoder, "RansDecoder": _RtDecoder, **_CDF}},
    "uf": {"MLCodec_extensions_cpp": {"RansEncoder": _UfEncoder, "RansDecoder": _UfDecoder, **_CDF}},
}
FAMILIES = tuple(_MODULES)


def install(family: str, package: str = "src") -> list[str]:
    """Makes the compiled coder modules of one family importable: ours, in their place.

    Args:
        family: one of `FAMILIES`. The families share names: one of them per process.
        package: import name of the package with the family's classes.

    Returns:
        The names in ``sys.modules``.

    Raises:
        UsageError: no such family, or a module of that name is already there.
    """
    modules = {name.format(package): contents for name, contents in _contents(family).items()}
    taken = sorted(set(modules) & set(sys.modules))
    if taken:
        raise UsageError(f"{', '.join(taken)} is already imported; install before the family's classes are used")
    sys.modules.update({name: _module(name, contents) for name, contents in modules.items()})
    return list(modules)


@contextlib.contextmanager
def standing_in(family: str, beside: str) -> Iterator[None]:
    """Within the block the compiled coder modules of one family are ours, whether there are others or none.

    Args:
        family: one of `FAMILIES`.
        beside: import name of the package that holds the module which imports them.

    Raises:
        UsageError: no such family.
    """
    modules = {
        f"{beside}.{name.rpartition('.')[2]}".lstrip("."): contents for name, contents in _contents(family).items()
    }
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update({name: _module(name, contents) for name, contents in modules.items()})
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _contents(family: str) -> dict[str, dict[str, Any]]:
    if family not in _MODULES:
        raise UsageError(f"family={family!r} (needs one of {', '.join(FAMILIES)})")
    return _MODULES[family]


def _module(name: str, contents: dict[str, Any]) -> ModuleType:
    module = ModuleType(name, doc="Stand-in of sparsecodec.entropy.dropin.")
    module.__dict__.update(contents)
    return module
