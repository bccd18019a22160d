"""Which arithmetic a codec runs in, and the names under which streams record it."""

from __future__ import annotations

import importlib.metadata
import zlib
from collections.abc import Collection
from dataclasses import dataclass

import torch

from sparsecodec.ops._registry import resolve


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


@dataclass(frozen=True)
class Numerics:
    """One way to compute the entropy networks.

    Attributes:
        name: for people.
        tag: 0 to 65535, for streams.
    """

    name: str
    tag: int


PINNED = Numerics("fma32 (our float32 kernels: the same bits on every CPU, batch and thread count)", 1)
PORTABLE = Numerics("integers only between bytes and symbols: the same symbols on every device and backend", 2)
PORTABLE_VIDEO = Numerics("integers only between bytes and pictures: no frame differs on any device or backend", 3)


def eager_numerics(device: torch.device) -> Numerics:
    """torch's own layers: the bits depend on the version, the processor and the thread count."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return _unnumbered(f"torch {torch.__version__}, {where}")


def _unnumbered(name: str) -> Numerics:
    return Numerics(name, 0x8000 | zlib.crc32(name.encode()) & 0x7FFF)


def kernel_numerics(backends: frozenset[str], device: torch.device) -> Numerics:
    """What float32 networks compute with when `backends` run their steps.

    The CPU kernels give the same bits everywhere. Triton's add in the same order, but the compiler and the device have
    a say in it, so they are named.
    """
    if backends == {"cpu"}:
        return PINNED
    if backends == {"triton"}:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
        return _unnumbered(f"triton {importlib.metadata.version('triton')} fma32, {where}")
    return eager_numerics(device)


def video_numerics(
    backends: frozenset[str], dtypes: Collection[str], device: torch.device, threads: int | None = None
) -> Numerics:
    """What the loop of a video codec computes with: kernels of `backends` in `dtypes`, and torch's sums and copies.

    Everything in it feeds the next frame. Between processors float32 products agree (they are pinned) and bfloat16 ones
    do not.

    Args:
        threads: how many there are, where torch also reduces or multiplies matrices; None: its share does not depend on
            their number.
    """
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = torch.backends.cpu.get_cpu_capability()
        if "bfloat16" in dtypes and "cpu" in backends:
            where += f", {resolve('sparsecodec._C:cpu_isa')()}"
    if threads is not None:
        where += f", {threads} threads"
    kinds = "+".join(sorted(dtypes)) + " on " + "+".join(sorted(backends))
    return _unnumbered(f"video loop in {kinds}, torch {torch.__version__}, {where}")


def described(tag: int) -> str:
    """What is known of the arithmetic behind a stream's tag, for people."""
    for numerics in (PINNED, PORTABLE, PORTABLE_VIDEO):
        if numerics.tag == tag:
            return numerics.name
    return "of one machine and its library versions" if tag & 0x8000 else "unknown to this release"
