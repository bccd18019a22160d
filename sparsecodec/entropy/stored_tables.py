"""The scale tables of the published codecs, stored as integers: they do not depend on a machine's erf, exp or expm1."""

from __future__ import annotations

import base64
import zlib
from functools import cache

import numpy as np

from sparsecodec.entropy import gaussian16, gaussian16_zigzag, gaussian64, laplace16, laplace64
from sparsecodec.entropy.tables import EntropyTables
from sparsecodec.errors import SparseCodecError

EVC_SCALE_RANGE, EVC_LEVELS = (0.11, 64.0), 256
LAPLACE64_SCALE_RANGE, LAPLACE64_LEVELS = (0.01, 64.0), 256
LAPLACE16_SCALE_RANGE, LAPLACE16_LEVELS = (0.01, 16.0), 64
RT_SCALE_RANGE, RT_LEVELS = (0.11, 16.0), 128


@cache
def evc_gaussian_tables() -> EntropyTables:
    """The 256 normal distributions of EVC and of the intra models of DCVC-HEM, DCVC-DC and DCVC-FM: scales 0.11 .. 64,
    symbols -50 .. 50 at most."""
    return _unpacked(gaussian64.PACKED_FREQUENCIES, EVC_LEVELS, "0f8f8a0a98a176b7")


@cache
def dcvc_laplace64_tables() -> EntropyTables:
    """The 256 Laplace distributions of the inter models of DCVC-HEM, DCVC-DC and DCVC-FM: scales 0.01 .. 64, symbols
    -50 .. 50 at most."""
    return _unpacked(laplace64.PACKED_FREQUENCIES, LAPLACE64_LEVELS, "34192d53b1f08c8f")


@cache
def dcvc_laplace16_tables() -> EntropyTables:
    """The 64 Laplace distributions of DCVC (2021): scales 0.01 .. 16, symbols -50 .. 50 at most."""
    return _unpacked(laplace16.PACKED_FREQUENCIES, LAPLACE16_LEVELS, "0dde49e68ddc9bd0")


@cache
def dcvc_gaussian16_tables() -> EntropyTables:
    """The 128 normal distributions of DCVC-RT: scales 0.11 .. 16, symbols -8 .. 8 at most."""
    return _unpacked(gaussian16.PACKED_FREQUENCIES, RT_LEVELS, "2b842ed0e943ccec")


@cache
def dcvc_gaussian16_zigzag_tables() -> EntropyTables:
    """The 128 normal distributions of DCVC-UF: scales as DCVC-RT's, shorter rows, in zigzag order."""
    return _unpacked(gaussian16_zigzag.PACKED_FREQUENCIES, RT_LEVELS, "8e18c19310f9b11c", zigzag=True)


def _unpacked(packed: str, levels: int, digest: str, *, zigzag: bool = False) -> EntropyTables:
    planes = np.frombuffer(zlib.decompress(base64.b85decode(packed)), np.uint8).reshape(2, -1, levels)
    steps = planes[0].astype(np.uint16) | planes[1].astype(np.uint16) << 8
    frequencies = np.cumsum(steps, axis=1, dtype=np.uint16).T.astype(np.int32)  # [levels, symbols]
    if zigzag:
        places = np.arange(frequencies.shape[1])
        middle = frequencies.shape[1] // 2
        frequencies = frequencies[:, middle + np.where(places % 2 == 1, (places + 1) // 2, -(places // 2))]
    cdf = np.zeros((levels, frequencies.shape[1] + 2), np.int32)
    lengths = (frequencies > 0).sum(1, dtype=np.int32) + 2
    for row, length in enumerate(lengths):
        plain = frequencies[row][frequencies[row] > 0]
        cdf[row, 1 : length - 1] = plain.cumsum()
        cdf[row, length - 1] = 1 << 16
    offsets = np.zeros_like(lengths) if zigzag else -(lengths - 3) // 2
    tables = EntropyTables(cdf, lengths, offsets, zigzag=zigzag)
    if tables.digest != digest:
        raise SparseCodecError(f"the stored rows have digest {tables.digest}, not {digest}")
    return tables
