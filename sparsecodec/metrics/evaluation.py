"""Rate-distortion points of a codec on real bytes, in the JSON shape that CompressAI's tools read."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol

from torch import Tensor

from sparsecodec.data import read_image, to_uint8
from sparsecodec.data.images import read_rgb
from sparsecodec.entropy.bitstream import MAGIC, Container
from sparsecodec.errors import SparseCodecError, UsageError
from sparsecodec.metrics.quality import ms_ssim, psnr, why_no_ms_ssim


class Codec(Protocol):
    """Picture to the bytes of a file and back."""

    def encode(self, x: Tensor, quality: float | None = None) -> bytes: ...

    def decode(self, data: bytes) -> Tensor: ...


def evaluate(
    codec: Codec,
    pictures: Sequence[str | Path],
    qualities: Sequence[float | None] = (None,),
    name: str = "",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    prefix: int | None = None,
) -> dict[str, Any]:
    """Encodes and decodes every picture at every quality. Nothing is skipped: a file that cannot be read ends it.

    Args:
        codec: a `CompiledCodec`, or one of `ANCHORS`.
        pictures: files; those that MS-SSIM cannot measure (`why_no_ms_ssim`) do not count towards it.
        qualities: what goes to ``codec.encode``.
        name: into the result.
        progress: wraps the list of (quality, picture) pairs, for example ``tqdm``.
        prefix: to ``codec.encode`` of a codec with several encoders; None leaves the choice to it.

    Returns:
        ``{"name", "description", "results", "per_picture"}``. ``results`` holds lists over the qualities, means over
        the pictures: ``psnr-rgb`` (dB, infinite if one came back unchanged), ``ms-ssim-rgb`` (None if it was not
        measured), ``bpp`` (payload), ``bpp_file`` (with the container), ``encoding_time`` and ``decoding_time``
        (seconds, without the first call for a size); then ``encode_ms`` and ``decode_ms``, the medians of these times
        in milliseconds, and ``sha256_reconstruction``. Times are those from and to pictures in main memory.

    Raises:
        UsageError: no pictures, or one cannot be read; that is found before anything is coded.
        SparseCodecError: a decoded picture has another size or is not finite.
    """
    if not pictures or not qualities:
        raise UsageError("evaluate needs at least one picture and one quality")
    for path in pictures:
        read_rgb(path)
    per_picture: list[list[dict[str, Any]]] = [[] for _ in qualities]
    encode = codec.encode if prefix is None else functools.partial(codec.encode, prefix=prefix)
    digests = [hashlib.sha256() for _ in qualities]
    seen: set[tuple[int, ...]] = set()
    for index, path in progress([(index, path) for index in range(len(qualities)) for path in pictures]):
        x = read_image(path)
        if x.shape not in seen:
            codec.decode(encode(x, quality=qualities[index]))
            seen.add(x.shape)
        row, x_hat = _measure(encode, codec.decode, x, qualities[index], Path(path).name)
        per_picture[index].append({"picture": Path(path).name, **row})
        digests[index].update(to_uint8(x_hat).tobytes())

    columns = ("psnr-rgb", "ms-ssim-rgb", "bpp", "bpp_file", "encoding_time", "decoding_time")
    results: dict[str, list[Any]] = {column: [_mean(rows, column) for rows in per_picture] for column in columns}
    for column, times in (("encode_ms", "encoding_time"), ("decode_ms", "decoding_time")):
        results[column] = [1000 * median(row[times] for row in rows) for rows in per_picture]
    results["sha256_reconstruction"] = [digest.hexdigest() for digest in digests]
    return {
        "name": name,
        "description": f"{len(pictures)} pictures, real bytes",
        "qualities": list(qualities),
        "results": results,
        "per_picture": per_picture,
    }


def _measure(
    encode: Callable[..., bytes], decode: Callable[[bytes], Tensor], x: Tensor, quality: float | None, name: str
) -> tuple[dict[str, Any], Tensor]:
    start = time.perf_counter()
    blob = encode(x, quality=quality)
    encoded = time.perf_counter()
    x_hat = decode(blob).cpu()  # a GPU is done when the picture is here
    decoded = time.perf_counter()
    if x_hat.shape != x.shape or not bool(x_hat.isfinite().all()):
        what = "not finite" if x_hat.shape == x.shape else f"{tuple(x_hat.shape)}, not {tuple(x.shape)}"
        raise SparseCodecError(f"{name} at quality {quality}: the decoded picture is {what}")
    pixels = x.shape[2] * x.shape[3]
    payload = sum(map(len, Container.from_bytes(blob).payloads)) if blob.startswith(MAGIC) else len(blob)
    row = {
        "psnr-rgb": psnr(x_hat, x),
        "ms-ssim-rgb": ms_ssim(x_hat, x) if why_no_ms_ssim(x) is None else None,
        "bpp": 8 * payload / pixels,
        "bpp_file": 8 * len(blob) / pixels,
        "encoding_time": encoded - start,
        "decoding_time": decoded - encoded,
    }
    return row, x_hat


def _mean(rows: list[dict[str, Any]], column: str) -> float | None:
    values = [row[column] for row in rows if row[column] is not None]
    return fmean(values) if values else None
