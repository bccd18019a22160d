"""Distributions as the entropy coder wants them: integer cumulative frequencies, a row per scale or channel."""

from __future__ import annotations

import base64
import hashlib
import math
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from sparsecodec.entropy.gaussian64 import PACKED_FREQUENCIES
from sparsecodec.entropy.native import native
from sparsecodec.errors import SparseCodecError, UsageError

EVC_SCALE_RANGE = (0.11, 64.0)
EVC_LEVELS = 256
EVC_GAUSSIAN_DIGEST = "0f8f8a0a98a176b7"  # first half of SHA-256 over the rows, end to end, int32 little-endian
_EVC_MAX_RANGE = 50  # symbols farther than this from zero escape
_EVC_TAIL = 1e-4


class EntropyTables:
    """Checked rows of cumulative frequencies, ready for `encode` and `decode`. Immutable; share one among threads.

    Row r codes the symbols ``offsets[r] .. offsets[r] + lengths[r] - 3``; its last interval is the escape.

    Args:
        cdf: ``[R, L]`` int32. Row r is 0 < .. < 65536 in its first ``lengths[r]`` places, anything behind them.
        lengths: ``[R]`` int32. Values per row, 2 to L.
        offsets: ``[R]`` int32. Symbol of the first interval.

    Raises:
        UsageError: wrong dtype or shape, or a row that is no distribution; the message names row, place and value.
    """

    def __init__(self, cdf: Tensor | np.ndarray, lengths: Tensor | np.ndarray, offsets: Tensor | np.ndarray) -> None:
        self.cdf = _frozen(cdf, "cdf")
        self.lengths = _frozen(lengths, "lengths")
        self.offsets = _frozen(offsets, "offsets")
        self.native = native().RansTables(self.cdf, self.lengths, self.offsets)

    @property
    def rows(self) -> int:
        """Number of distributions; indexes are 0 .. rows - 1."""
        return len(self.lengths)

    @property
    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over the rows' values, end to end, as little-endian int32."""
        values = np.concatenate([row[:length] for row, length in zip(self.cdf, self.lengths, strict=True)])
        return hashlib.sha256(values.astype("<i4").tobytes()).hexdigest()[:16]

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
    return torch.exp(torch.linspace(math.log(low), math.log(high), levels)).tolist()


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


@cache
def evc_gaussian_tables() -> EntropyTables:
    """The 256 normal distributions of EVC, DCVC-HEM, DCVC-DC and DCVC-FM intra: scales 0.11 .. 64, at most +-50.

    The rows are stored as integers, so that they do not depend on a machine's erf.
    """
    planes = np.frombuffer(zlib.decompress(base64.b85decode(PACKED_FREQUENCIES)), np.uint8).reshape(2, -1, EVC_LEVELS)
    steps = planes[0].astype(np.uint16) | planes[1].astype(np.uint16) << 8
    frequencies = np.cumsum(steps, axis=1, dtype=np.uint16).T.astype(np.int32)  # [levels, symbols]
    cdf = np.zeros((EVC_LEVELS, 2 * _EVC_MAX_RANGE + 3), np.int32)
    lengths = (frequencies > 0).sum(1, dtype=np.int32) + 2
    for row, length in enumerate(lengths):
        plain = frequencies[row][frequencies[row] > 0]
        cdf[row, 1 : length - 1] = plain.cumsum()
        cdf[row, length - 1] = 1 << 16
    tables = EntropyTables(cdf, lengths, -(lengths - 3) // 2)
    if tables.digest != EVC_GAUSSIAN_DIGEST:
        raise SparseCodecError(f"the stored Gaussian rows have digest {tables.digest}, not {EVC_GAUSSIAN_DIGEST}")
    return tables


def evc_factorized_tables(cumulative: Callable[[Tensor], Tensor], channels: int) -> EntropyTables:
    """A learnt distribution per channel, as EVC, DCVC, DCVC-HEM, DCVC-DC and DCVC-FM tabulate them; row = channel.

    Args:
        cumulative: positions ``[1, C, K, 1]`` float32 -> probability of a value below, same shape, increasing along K.
        channels: C.
    """
    with torch.no_grad():
        steps = torch.arange(2.0, _EVC_MAX_RANGE + 1).view(1, 1, -1, 1).expand(1, channels, -1, 1)
        below = cumulative(-steps)[0, :, :, 0] < _EVC_TAIL
        above = cumulative(steps)[0, :, :, 0] > 1 - _EVC_TAIL
        low, high = _first_true(below) + 2, _first_true(above) + 2
        longest = int((low + high).max()) + 1
        positions = (torch.arange(longest) - low[:, None]).float()[None, :, :, None]
        lower, upper = cumulative(positions - 0.5)[0, :, :, 0], cumulative(positions + 0.5)[0, :, :, 0]
        # The upper tail is taken behind the longest row, not behind each row's own end: so do the published coders.
        tail = lower[:, 0] + (1 - upper[:, -1])
        return tables_from_pmf(upper - lower, tail, low + high + 1, -low)


def _first_true(flags: Tensor) -> Tensor:
    """Per row of ``[C, K]`` bool: place of the first True, K - 1 if there is none."""
    places = flags.int().argmax(1)
    return torch.where(flags.any(1), places, flags.shape[1] - 1)
