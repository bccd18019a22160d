"""docs/portable.md, sections 3 to 5: from a portable file to its symbols."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from spc_oracle import Damaged, topologies
from spc_oracle.container import File, parse
from spc_oracle.integer import Network, Tensors, narrow
from spc_oracle.lanes import Decoder
from spc_oracle.tables import Row, rows

Calls = list[list[int]]
LOW, HIGH = -(1 << 30), (1 << 30) - 1


def windows(file: File) -> Iterator[tuple[int, int]]:
    """Height and width of each tile's window, row by row."""

    def spans(size: int, count: int) -> list[int]:
        if file.side is None:
            return [size]
        starts = [i * (file.side - file.overlap) for i in range(count)]
        return [min(start + file.side, size) - start for start in starts]

    for height in spans(file.height, file.tiles[0]):
        for width in spans(file.width, file.tiles[1]):
            yield height, width


@dataclass
class Model:
    """What a decoder has of a portable model.

    Attributes:
        family: evc, bmshj2018-factorized, bmshj2018-hyperprior or mbt2018-mean, the latter two also with -vbr behind.
        tensors: as the safetensors file holds them.
        kept: ``compact.kept`` of the JSON, if there is one: the channels of layers that were narrowed alone.
        y_rows: the rows of the latent's tables; unused if there is no hyper-latent.
    """

    family: str
    tensors: Tensors
    kept: Mapping[str, Mapping]
    y_rows: list[Row]

    @property
    def z_rows(self) -> list[Row]:
        return rows(*(self.tensors[f"portable.z_{name}"].tolist() for name in ("cdf", "lengths", "offsets")))


def decode(data: bytes, model: Model) -> list[Calls]:
    """The symbols of each tile of a file, call by call."""
    file = parse(data)
    if file.numerics != 2 or file.per_tile != 1:
        raise Damaged(f"numerics {file.numerics}, {file.per_tile} payloads")
    thresholds = model.tensors["portable.thresholds"]
    if thresholds.ndim == 2:
        if file.quality >= len(thresholds):
            raise Damaged(f"rate {file.quality} of {len(thresholds)}")
        model = replace(model, tensors={**model.tensors, "portable.thresholds": thresholds[file.quality]})
    tile = {"evc": _evc, "bmshj2018-factorized": _factorized}.get(model.family, _compressai)
    stride = 16 if tile is _factorized else 64
    sizes = windows(file)
    return [tile(p, -(-h // stride), -(-w // stride), model) for p, (h, w) in zip(file.payloads, sizes, strict=True)]


def _call(decoder: Decoder, indexes: np.ndarray, table: list[Row]) -> np.ndarray:
    symbols = decoder.call([table[i] for i in indexes.reshape(-1)])
    return np.array(symbols, np.int64).reshape(indexes.shape)


def _dequantised(symbols: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return np.clip((np.clip(symbols, -(1 << 14), (1 << 14) - 1) << 16) + mean, LOW, HIGH)


def _by_channel(decoder: Decoder, model: Model, h: int, w: int) -> np.ndarray:
    """The symbols of the factorised tables, ``[C, h, w]``."""
    table = model.z_rows
    return _call(decoder, np.broadcast_to(np.arange(len(table))[:, None, None], (len(table), h, w)), table)


def _row_numbers(scale: np.ndarray, tensors: Tensors) -> np.ndarray:
    """Numbers of thresholds below."""
    return np.searchsorted(tensors["portable.thresholds"].astype(np.int64), scale, side="left")


def _factorized(payload: bytes, h: int, w: int, model: Model) -> Calls:
    decoder = Decoder(payload, len(model.tensors["portable.z_lengths"]) * h * w)
    y = _by_channel(decoder, model, h, w)
    decoder.finish()
    return [y.reshape(-1).tolist()]


def _compressai(payload: bytes, h: int, w: int, model: Model) -> Calls:
    tensors = model.tensors
    channels = len(tensors["portable.z_lengths"])
    means = model.family.startswith("mbt2018-mean")
    network = Network(
        topologies.mean_scale_hyperprior() if means else topologies.scale_hyperprior(), tensors, model.kept
    )
    latent = len(tensors["h_s.4.weight"]) // (2 if means else 1)
    decoder = Decoder(payload, channels * h * w + latent * 16 * h * w)
    z = _by_channel(decoder, model, h, w)
    z_hat = _dequantised(z, tensors["portable.z_medians"].astype(np.int64)[:, None, None])
    scale = network(narrow(z_hat, network.input_exponent))[:latent]
    y = _call(decoder, _row_numbers(scale, tensors), model.y_rows)
    decoder.finish()
    return [z.reshape(-1).tolist(), y.reshape(-1).tolist()]


def _evc(payload: bytes, h: int, w: int, model: Model) -> Calls:
    tensors = model.tensors
    channels = len(tensors["portable.z_lengths"])
    first, second = (Network(of(tensors), tensors, model.kept) for of in (topologies.evc_first, topologies.evc_second))
    decoder = Decoder(payload, channels * h * w + channels * 16 * h * w)
    z = _by_channel(decoder, model, h, w)
    z_hat = _dequantised(z, tensors["portable.z_medians"].astype(np.int64)[:, None, None])
    step, scale, mean = np.split(first(narrow(z_hat, first.input_exponent)), 3)
    step = np.maximum(step, 1 << 15)

    even = np.add.outer(np.arange(4 * h), np.arange(4 * w)) % 2 == 0
    half = channels // 2
    # [C, H, W]: whether the position is coded in call 1
    coded = np.concatenate([np.broadcast_to(even, (half, 4 * h, 4 * w)), np.broadcast_to(~even, (half, 4 * h, 4 * w))])

    def of_call(values: np.ndarray, one: np.ndarray) -> np.ndarray:
        """The half of the channels that is coded at each position."""
        return np.where(one[:half], values[:half], values[half:])

    symbols = _call(decoder, of_call(_row_numbers(scale, tensors), coded), model.y_rows)
    both = np.concatenate([symbols, symbols])
    values = np.where(coded, _dequantised(both, mean), 0)
    t = second.input_exponent
    result = second(np.concatenate([narrow(v, t) for v in (values, mean, scale, step)]))
    scale0, _, scale1, _ = np.split(result, 4)
    scale = np.concatenate([scale0, scale1])
    rest = _call(decoder, of_call(_row_numbers(scale, tensors), ~coded), model.y_rows)
    decoder.finish()
    return [z.reshape(-1).tolist(), symbols.reshape(-1).tolist(), rest.reshape(-1).tolist()]
