"""Which arithmetic a codec runs in, and the names under which streams record it."""

from __future__ import annotations

import importlib.metadata
import os
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch

from sparsecodec.errors import ModelMismatchError, NoBackendError
from sparsecodec.ops._registry import forced_backend, resolve, why_unavailable

GPU_TAG = 0x4000  # of kernels on a GPU; 0x8000: of a CPU's whose bits differ between CPUs, and of torch's own layers
BFLOAT16_KERNELS = 2  # raised when the bits of a CPU's bfloat16 kernels change; 2: minimal filtering of 3x3
GPU_DTYPES = ("float32", "float16", "bfloat16", "mixed")  # two bits of a GPU's tag; float32 may be beside the others


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def check_kernels(dtype: torch.dtype, device: torch.device) -> None:
    """Refuses a precision in which none of the device's kernels computes, before a codec is compiled for it.

    Raises:
        NoBackendError: float16 on a CPU, unless Triton's interpreter stands in, or there are no kernels at all.
    """
    wanted = why_unavailable("cpu") is None and forced_backend() != "reference"
    if device.type == "cpu" and dtype == torch.float16 and wanted and os.environ.get("TRITON_INTERPRET") != "1":
        raise NoBackendError(
            f"dtype={dtype} on a CPU (needs torch.float32 or torch.bfloat16; strict=False runs it without kernels)"
        )


@dataclass(frozen=True)
class Numerics:
    """One way to compute the entropy networks.

    Attributes:
        name: for people.
        tag: 0 to 65535, for streams.
        unthreaded: `name` without the number of threads behind it, where the bits depend on that; else empty.
    """

    name: str
    tag: int
    unthreaded: str = ""


MANY_THREADS = 257  # from here on no encoder is looked for
PINNED = Numerics("fma32 (our float32 kernels: the same bits on every CPU, batch and thread count)", 1)
PORTABLE = Numerics("integers only between bytes and symbols: the same symbols on every device and backend", 2)
PORTABLE_VIDEO = Numerics("integers only between bytes and pictures: no frame differs on any device or backend", 3)


def eager_numerics(device: torch.device) -> Numerics:
    """torch's own layers: the bits depend on the version, the processor and the thread count."""
    name = f"torch {torch.__version__}"
    if device.type == "cuda":
        return _unnumbered(f"{name}, {torch.cuda.get_device_name(device)}, {_torch_on_gpu()}")
    return _unnumbered(f"{name}, {torch.backends.cpu.get_cpu_capability()}", torch.get_num_threads())


def _torch_on_gpu() -> str:
    """What torch's own layers on a GPU are told about their arithmetic."""
    convolutions = "tf32" * torch.backends.cudnn.allow_tf32 + " timed" * torch.backends.cudnn.benchmark
    return f"products {torch.get_float32_matmul_precision()}, convolutions {convolutions.strip() or 'float32'}"


def _unnumbered(name: str, threads: int | None = None) -> Numerics:
    full = name if threads is None else f"{name}, {threads} threads"
    return Numerics(full, 0x8000 | zlib.crc32(full.encode()) & 0x7FFF, "" if threads is None else name)


def _on_gpu(name: str, dtypes: Collection[str]) -> Numerics:
    """Kernels on a GPU: the tag also tells what they computed in."""
    narrow = sorted(set(dtypes) - {"float32"}) or ["float32"]
    kind = GPU_DTYPES.index(narrow[0] if len(narrow) == 1 else "mixed")
    return Numerics(name, GPU_TAG | kind << 12 | zlib.crc32(name.encode()) & 0xFFF)


def kernel_numerics(backends: frozenset[str], device: torch.device) -> Numerics:
    """What float32 networks compute with when `backends` run their steps.

    The CPU kernels give the same bits everywhere. Triton's add in the same order, but the compiler and the device have
    a say in it, so they are named.
    """
    if backends == {"cpu"}:
        return PINNED
    if backends == {"triton"}:
        name = f"triton {importlib.metadata.version('triton')} fma32"
        if device.type == "cuda":
            return _on_gpu(f"{name}, {torch.cuda.get_device_name(device)}", ("float32",))
        return _unnumbered(f"{name}, interpreter")
    return eager_numerics(device)


def video_numerics(
    backends: frozenset[str], dtypes: Collection[str], device: torch.device, threads: int | None = None
) -> Numerics:
    """What the loop of a video codec computes with: kernels of `backends` in `dtypes`, and torch's sums and copies.

    Everything in it feeds the next frame. Between processors float32 products agree (they are pinned) and bfloat16 ones
    do not.

    Args:
        threads: how many there are, where torch also reduces or multiplies matrices on a CPU; None: its share does not
            depend on their number.
    """
    name = "video loop in " + "+".join(sorted(dtypes)) + " on " + "+".join(sorted(backends))
    name += f", torch {torch.__version__}"
    if device.type == "cuda":
        if "triton" in backends:
            tiles = "static" if os.environ.get("SPARSECODEC_AUTOTUNE") == "0" else "timed"
            name += f", triton {importlib.metadata.version('triton')}, {tiles} tiles"
        name += f", {_torch_on_gpu()}"
        return _on_gpu(f"{name}, {torch.cuda.get_device_name(device)}", dtypes)
    name += f", {torch.backends.cpu.get_cpu_capability()}"
    if "bfloat16" in dtypes and "cpu" in backends:
        name += f", {resolve('sparsecodec._C:cpu_isa')()} kernels {BFLOAT16_KERNELS}"
    return _unnumbered(name, threads)


def described(tag: int) -> str:
    """What is known of the arithmetic behind a stream's tag, for people."""
    for numerics in (PINNED, PORTABLE, PORTABLE_VIDEO):
        if numerics.tag == tag:
            return numerics.name
    if tag & 0x8000:
        return "of one CPU, or of torch's own layers, and of their library versions"
    if tag & GPU_TAG:
        return f"kernels on a GPU in {GPU_DTYPES[tag >> 12 & 3]}, of one device and its library versions"
    return "unknown to this release"


class _Header(Protocol):
    model_hash: bytes
    numerics: int
    exact: bool


def check_made_here(header: _Header, model_hash: bytes, numerics: Numerics, exact_pictures: bool) -> None:
    """Refuses a stream that other weights or another arithmetic made.

    Args:
        header: of the stream.
        model_hash, numerics: of the codec that is to open it.
        exact_pictures: whether that codec gives the same pictures on every device.

    Raises:
        ModelMismatchError: it does not fit; the message says what made the stream, and what this codec is.
    """
    if header.model_hash != model_hash:
        raise ModelMismatchError(
            f"the stream was made by model {header.model_hash.hex()}, this one is {model_hash.hex()}"
        )
    if header.numerics != numerics.tag:
        raise ModelMismatchError(
            f"the stream was made with numerics {header.numerics:#06x} ({described(header.numerics)}), "
            f"this codec computes with {numerics.tag:#06x}: {numerics.name}{_with_threads(header.numerics, numerics)}"
        )
    if header.exact and not exact_pictures:
        raise ModelMismatchError("the stream promises exact pictures, this codec's synthesis rounds as its device does")


def _with_threads(tag: int, numerics: Numerics) -> str:
    """How many threads would have the numerics of a stream's `tag`, for people; empty if none would."""
    if not numerics.unthreaded:
        return ""
    found = [str(count) for count in range(1, MANY_THREADS) if _unnumbered(numerics.unthreaded, count).tag == tag]
    return f"; it opens with {found[0]} threads (--threads {found[0]}, torch.set_num_threads)" if found else ""
