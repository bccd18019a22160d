"""A context model on integers: a latent coded wave by wave, all positions of a wave at once (docs/portable.md)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables
from sparsecodec.nn.integer_prior import SYMBOL_LIMIT, as_float, fixed_point, narrowed
from sparsecodec.nn.routine import Coding, Routine
from sparsecodec.quant.layers import QuantConv2d
from sparsecodec.runtime.integer_network import IntegerNetwork
from sparsecodec.runtime.report import Row

PIXELS = 256  # of a position of a latent
SIZES = 8  # of latents, whose waves are kept

# (the wave, its means ``[P, C]`` fixed-point, its table rows ``[P, C]`` int16) -> symbols ``[P, C]`` int32
Code = Callable[["Wave", Tensor, Tensor], Routine]


class Wave(NamedTuple):
    """Positions none of which sees another of them.

    Attributes:
        positions: ``[P]`` int64, row * width + column, rows ascending.
        inside: ``[P]`` int64, the same in a latent with `reach` rows above and `reach` columns on both sides.
        taps: ``[P * T]`` int64, what each position sees there, row by row.
    """

    positions: Tensor
    inside: Tensor
    taps: Tensor


@functools.lru_cache(maxsize=SIZES)
def waves(height: int, width: int, reach: int, device: torch.device) -> tuple[Wave, ...]:
    """The waves of a latent in order: (row, column) belongs to wave ``column + (reach + 1) row``."""
    size, wide = 2 * reach + 1, width + 2 * reach
    seen = torch.arange(size * size // 2)  # taps before the centre
    offsets = (seen // size - reach) * wide + seen % size - reach
    found = []
    for number in range(width + (reach + 1) * (height - 1)):
        rows = torch.arange(height)
        columns = number - (reach + 1) * rows
        there = (columns >= 0) & (columns < width)
        rows, columns = rows[there], columns[there]
        inside = (rows + reach) * wide + columns + reach
        parts = rows * width + columns, inside, (inside[:, None] + offsets).flatten()
        found.append(Wave(*(part.to(device) for part in parts)))
    return tuple(found)


class _Columns(nn.Module):
    """Entropy parameters of positions side by side, from what each sees and its prior."""

    def __init__(self, context: nn.Conv2d, parameters: nn.Module, names: tuple[str, str]) -> None:
        super().__init__()
        self._names = names
        self.add_module(names[0], _over_taps(context))
        self.add_module(names[1], parameters)

    def forward(self, columns: Tensor, prior: Tensor) -> Tensor:
        context, parameters = (self.get_submodule(name) for name in self._names)
        return parameters(torch.cat([prior, context(columns)], 1))


def _over_taps(layer: nn.Conv2d) -> nn.Conv2d:
    """A frozen masked convolution as a 1x1 whose channels are the taps before its centre, end to end."""
    taps = layer.kernel_size[0] ** 2 // 2
    weight = layer.weight.flatten(2)[:, :, :taps].transpose(1, 2).flatten(1)[:, :, None, None]
    plain = copy.deepcopy(layer)
    plain.__class__ = QuantConv2d
    del plain.mask
    plain.weight = weight.contiguous()
    plain.in_channels, plain.kernel_size, plain.padding = weight.shape[1], (1, 1), (0, 0)
    return plain


class ColumnNetwork(IntegerNetwork):
    """Context model and entropy parameters of a wave.

    Args:
        model: what has them.
        prefix: of its paths in the codec.
        names: of the masked convolution and the parameters in `model`.
        strict: as for `IntegerNetwork`.
    """

    def __init__(self, model: nn.Module, prefix: str, names: tuple[str, str], strict: bool) -> None:
        context, parameters = (model.get_submodule(name) for name in names)
        super().__init__({prefix: _Columns(context, parameters, names)}, strict=strict)

    def report_rows(self, pixels: int) -> list[Row]:
        """As `IntegerNetwork.report_rows`, of any number of waves: of the pixels of the positions of one."""
        return super().report_rows(pixels if self.shapes is None else PIXELS * self.shapes[0][3])


class WaveCoder:
    """Codes latents whose tables depend on a prior and on what was coded before; integers from symbols to symbols.

    Args:
        network: of (columns ``[1, T C, 1, P]``, prior ``[1, C_p, 1, P]``), both int16, -> means and scales
            ``[1, 2C, 1, P]`` fixed-point.
        channels: C.
        reach: of the context.
        tables: rows of the scale index.
        thresholds: ``[R - 1]`` int32, on the network's device.
    """

    def __init__(
        self, network: IntegerNetwork, channels: int, reach: int, tables: EntropyTables, thresholds: Tensor
    ) -> None:
        self.channels = channels
        self._network = network
        self._reach = reach
        self._tables = tables
        self._thresholds = thresholds

    @property
    def prior_exponent(self) -> int:
        """Of the prior."""
        return self._network.exponents[1]

    def encoding(self, y: Tensor, prior: Tensor) -> Routine:
        """Codes a latent.

        Args:
            y: ``[1, C, H, W]`` float32.
            prior: ``[1, C_p, H, W]`` int16.

        Returns:
            The latent as decoded, ``[1, C, H, W]`` fixed-point.
        """
        values = _rows(y)

        def code(wave: Wave, means: Tensor, rows: Tensor) -> Routine:
            limit = SYMBOL_LIMIT - 1
            residual = (values.index_select(0, wave.positions) - as_float(means)).round()
            symbols = residual.clamp(-limit, limit).nan_to_num(0.0).to(torch.int32)
            yield Coding(self._tables, rows, symbols)
            return symbols

        return self._walk(prior, code)

    def decoding(self, prior: Tensor) -> Routine:
        """The inverse of `encoding`."""

        def code(wave: Wave, means: Tensor, rows: Tensor) -> Routine:
            return (yield Coding(self._tables, rows))

        return self._walk(prior, code)

    def _walk(self, prior: Tensor, code: Code) -> Routine:
        (height, width), reach, device = prior.shape[2:], self._reach, prior.device
        order = waves(height, width, reach, device)
        taps = (2 * reach + 1) ** 2 // 2
        widest = max(len(wave.positions) for wave in order)  # one plan: further columns hold what is not read
        given = _rows(prior)
        seen = torch.zeros(((height + reach) * (width + 2 * reach), self.channels), dtype=torch.int16, device=device)
        latent = torch.empty((height * width, self.channels), dtype=torch.int32, device=device)
        columns = torch.zeros((widest * taps, self.channels), dtype=torch.int16, device=device)
        priors = torch.zeros((widest, given.shape[1]), dtype=torch.int16, device=device)
        inputs = tuple(rows.view(1, 1, widest, -1).permute(0, 3, 1, 2) for rows in (columns, priors))
        for wave in order:
            count = len(wave.positions)
            torch.index_select(seen, 0, wave.taps, out=columns[: count * taps])
            torch.index_select(given, 0, wave.positions, out=priors[:count])
            means, scales = _rows(self._network(*inputs))[:count].chunk(2, 1)
            rows = torch.bucketize(scales.contiguous(), self._thresholds, out_int32=True).to(torch.int16)
            symbols = yield from code(wave, means, rows)
            values = fixed_point(symbols, means)
            latent.index_copy_(0, wave.positions, values)
            seen.index_copy_(0, wave.inside, narrowed(values, self._network.exponents[0]))
        return latent.view(1, height, width, -1).permute(0, 3, 1, 2)


def _rows(image: Tensor) -> Tensor:
    """``[1, C, H, W]`` -> ``[H W, C]``."""
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])
