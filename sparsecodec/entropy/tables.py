"""Distributions as the entropy coder wants them: integer cumulative frequencies, a row per scale or channel."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from sparsecodec.entropy.native import native
from sparsecodec.errors import UsageError

_TAIL = 1e-4  # of learnt distributions: mass beyond the plain symbols, on either side
_EVC_MAX_RANGE, _RT_MAX_RANGE = 50, 8


class EntropyTables:
    """Checked rows of cumulative frequencies, ready for `encode` and `decode`. Immutable; share one among threads.

    Row r codes the symbols ``offsets[r] .. offsets[r] + lengths[r] - 3``; its last interval is the escape. With
    ``zigzag`` (DCVC-UF) the symbols of a row are 0, 1, -1, 2, -2, .. instead, and an escape continues that count.

    Args:
        cdf: ``[R, L]`` int32. Row r is 0 < .. < 65536 in its first ``lengths[r]`` places, anything behind them.
        lengths: ``[R]`` int32. Values per row, 2 to L.
        offsets: ``[R]`` int32. Symbol of the first interval; all 0 with `zigzag`.
        zigzag: order of the symbols.

    Raises:
        UsageError: wrong dtype or shape, or a row that is no distribution; the message names row, place and value.
    """

    def __init__(
        self,
        cdf: Tensor | np.ndarray,
        lengths: Tensor | np.ndarray,
        offsets: Tensor | np.ndarray,
        *,
        zigzag: bool = False,
    ) -> None:
        self.cdf = _frozen(cdf, "cdf")
        self.lengths = _frozen(lengths, "lengths")
        self.offsets = _frozen(offsets, "offsets")
        self.zigzag = zigzag
        self.native = native().RansTables(self.cdf, self.lengths, self.offsets, zigzag)

    @property
    def rows(self) -> int:
        """Number of distributions; indexes are 0 .. rows - 1."""
        return len(self.lengths)

    @property
    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over the rows' values, end to end, as little-endian int32."""
        values = np.concatenate([row[:length] for row, length in zip(self.cdf, self.lengths, strict=True)])
        return hashlib.sha256(values.astype("<i4").tobytes()).hexdigest()[:16]

    def __reduce__(self) -> tuple:
        # The native half cannot be copied or pickled; it is made of these again.
        return partial(EntropyTables, zigzag=self.zigzag), (self.cdf, self.lengths, self.offsets)

    def __repr__(self) -> str:
        return f"EntropyTables(rows={self.rows}, columns={self.cdf.shape[1]}, digest={self.digest})"


def _frozen(values: Tensor | np.ndarray, name: str) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    if not isinstance(array, np.ndarray) or array.dtype != np.int32:
        raise UsageError(f"{name}: {getattr(array, 'dtype', type(array).__name__)} (needs int32)")
    array = array.copy()
    array.flags.writeable = False
    return array


def pmf_to_quantized_cdf(pmf: Tensor) -> Tensor:
    """Integer cumulative frequencies of one distribution, as CompressAI and the DCVC family compute them.

    Args:
        pmf: ``[n]`` float32, the escape's probability last. Need not sum to 1.

    Returns:
        ``[n + 1]`` int32: 0 < .. < 65536.

    Raises:
        UsageError: not one-dimensional float32, empty, more than 65536 symbols, a probability that is negative, above 2
            or not finite, or all of them zero.
    """
    if pmf.dtype != torch.float32 or pmf.ndim != 1:
        raise UsageError(f"pmf: shape {tuple(pmf.shape)} {pmf.dtype} (needs [n] float32)")
    cdf = torch.empty(len(pmf) + 1, dtype=torch.int32)
    native().pmf_to_quantized_cdf(pmf.detach().cpu().contiguous().numpy(), cdf.numpy())
    return cdf


def tables_from_pmf(pmf: Tensor, tail: Tensor, lengths: Tensor, offsets: Tensor) -> EntropyTables:
    """Tables from probabilities.

    Args:
        pmf: ``[R, L]`` float32; row r counts in its first ``lengths[r]`` places.
        tail: ``[R]`` float32. Probability of an escape.
        lengths: ``[R]`` int. Number of plain symbols of each row.
        offsets: ``[R]`` int. First plain symbol of each row.
    """
    counts = lengths.tolist()
    cdf = torch.zeros(len(counts), max(counts) + 2, dtype=torch.int32)
    for row, count in enumerate(counts):
        cdf[row, : count + 2] = pmf_to_quantized_cdf(torch.cat([pmf[row, :count], tail[row : row + 1]]))
    return EntropyTables(cdf, lengths.int() + 2, offsets.int())


def compressai_scales(low: float = 0.11, high: float = 256.0, levels: int = 64) -> list[float]:
    """CompressAI's scale table: `levels` values from `low` to `high`, equally spaced in the logarithm."""
    return torch.exp(torch.linspace(math.log(low), math.log(high), levels, dtype=torch.float32)).tolist()


def gaussian_tables(scales: Sequence[float] | None = None, tail_mass: float = 1e-9) -> EntropyTables:
    """A zero-mean normal distribution per scale, as CompressAI's ``GaussianConditional`` tabulates them.

    The values come from float32 arithmetic: for a stream made elsewhere prefer the tables stored with the model,
    ``EntropyTables(gc.quantized_cdf, gc.cdf_length, gc.offset)``.

    Args:
        scales: standard deviations, positive and ascending. None: `compressai_scales`.
        tail_mass: probability of an escape, before rounding.
    """
    values = compressai_scales() if scales is None else list(scales)
    if not values or values != sorted(values) or not 0 < values[0] <= values[-1] < math.inf:
        raise UsageError(f"scales={values} (needs positive, ascending, finite numbers)")
    if not 0 < tail_mass < 1:
        raise UsageError(f"tail_mass={tail_mass} (needs a number between 0 and 1)")
    scale = torch.tensor(values, dtype=torch.float32)[:, None]
    reach = torch.ceil(scale * -NormalDist().inv_cdf(tail_mass / 2)).int()
    distance = (torch.arange(2 * int(reach.max()) + 1) - reach).abs().float()
    # erfc keeps its precision in the tails, where 1 - erf would be zero.
    upper = 0.5 * torch.erfc(-(2**-0.5) * ((0.5 - distance) / scale))
    lower = 0.5 * torch.erfc(-(2**-0.5) * ((-0.5 - distance) / scale))
    return tables_from_pmf(upper - lower, 2 * lower[:, 0], 2 * reach[:, 0] + 1, -reach[:, 0])


def evc_factorized_tables(cumulative: Callable[[Tensor], Tensor], channels: int) -> EntropyTables:
    """A learnt distribution per channel, as EVC, DCVC, DCVC-HEM, DCVC-DC and DCVC-FM tabulate them; row = channel.

    Args:
        cumulative: positions ``[1, C, K, 1]`` float32 -> probability of a value below, same shape, increasing along K.
        channels: C.
    """
    with torch.no_grad():
        low, high = _ends(cumulative, channels, _EVC_MAX_RANGE)
        lower, upper = _steps(cumulative, low, int((low + high).max()) + 1)
        # The upper tail is taken behind the longest row, not behind each row's own end: so do the published coders.
        tail = lower[:, 0] + (1 - upper[:, -1])
        return tables_from_pmf(upper - lower, tail, low + high + 1, -low)


def rt_factorized_tables(cumulative: Callable[[Tensor], Tensor], rows: int) -> EntropyTables:
    """A learnt distribution per rate and channel, as DCVC-RT tabulates them; row = qp * channels + channel.

    Args:
        cumulative: positions ``[1, R, K, 1]`` float32 -> probability of a value below, same shape, increasing along K.
        rows: R, rates times channels.
    """
    with torch.no_grad():
        low, high = _ends(cumulative, rows, _RT_MAX_RANGE)
        lower, upper = _steps(cumulative, low, int((low + high).max()) + 1)
        # The upper tail begins at the last symbol's middle, not half a step beyond it: so do the published coders.
        end = cumulative(high.float()[None, :, None, None])[0, :, 0, 0]
        return tables_from_pmf(upper - lower, lower[:, 0] + (1 - end), low + high + 1, -low)


def uf_factorized_tables(cumulative: Callable[[Tensor], Tensor], rows: int) -> EntropyTables:
    """As `rt_factorized_tables`, as DCVC-UF tabulates them: ends that are alike on both sides, zigzag order."""
    with torch.no_grad():
        steps = torch.arange(2.0, _RT_MAX_RANGE + 1, dtype=torch.float32).view(1, 1, -1, 1).expand(1, rows, -1, 1)
        inside = (cumulative(-steps) < 0.001) & (cumulative(steps) > 0.999)
        reach = _first_true(inside[0, :, :, 0]) + 2
        lower, upper = _steps(cumulative, reach, 2 * _RT_MAX_RANGE + 1)
        end = cumulative(reach.float()[None, :, None, None])[0, :, 0, 0]
        places = torch.arange(2 * _RT_MAX_RANGE + 1)
        symbols = torch.where(places % 2 == 1, (places + 1) // 2, -(places // 2))
        # Behind a row's own end the sum is taken modulo its width: those places do not count.
        order = (symbols + reach[:, None]) % (2 * reach[:, None] + 1)
        pmf = (upper - lower).gather(1, order)
        ascending = tables_from_pmf(pmf, lower[:, 0] + (1 - end), 2 * reach + 1, torch.zeros_like(reach))
        return EntropyTables(ascending.cdf, ascending.lengths, ascending.offsets, zigzag=True)


def _ends(cumulative: Callable[[Tensor], Tensor], rows: int, limit: int) -> tuple[Tensor, Tensor]:
    """Per row, from 2 to `limit`: how far the plain symbols reach below and above zero."""
    steps = torch.arange(2.0, limit + 1, dtype=torch.float32).view(1, 1, -1, 1).expand(1, rows, -1, 1)
    below = cumulative(-steps)[0, :, :, 0] < _TAIL
    above = cumulative(steps)[0, :, :, 0] > 1 - _TAIL
    return _first_true(below) + 2, _first_true(above) + 2


def _steps(cumulative: Callable[[Tensor], Tensor], low: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """``[R, longest]`` twice: probability below and above the unit intervals around -low, -low + 1, .."""
    positions = (torch.arange(longest) - low[:, None]).float()[None, :, :, None]
    return cumulative(positions - 0.5)[0, :, :, 0], cumulative(positions + 0.5)[0, :, :, 0]


def _first_true(flags: Tensor) -> Tensor:
    """Per row of ``[C, K]`` bool: place of the first True, K - 1 if there is none."""
    places = flags.int().argmax(1)
    return torch.where(flags.any(1), places, flags.shape[1] - 1)
