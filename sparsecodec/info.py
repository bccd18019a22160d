"""What this installation can do on this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

import sparsecodec
from sparsecodec.ops._registry import BACKENDS, forced_backend, resolve, why_unavailable

PACKAGES = ("torch", "numpy", "triton", "safetensors", "compressai", "pillow")
CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd")


def backends() -> dict[str, str | None]:
    """Every backend -> None if it can be used here, else the sentence that says why not."""
    return {backend: why_unavailable(backend) for backend in BACKENDS}


def environment() -> dict[str, Any]:
    """Versions and hardware that a measured figure depends on; JSON-able."""
    cpu, flags = _cpu()
    return {
        "sparsecodec": sparsecodec.__version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "device": device_name(),
        "cpu": cpu,
        "cpu_flags": flags,
        "cpu_kernels": cpu_kernels(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "forced_backend": forced_backend(),
    }


def cpu_kernels() -> str | None:
    """Instruction set of the CPU kernels, with the reason where it is not AMX; None without the extension."""
    if why_unavailable("cpu") is not None:
        return None
    isa, reason = (resolve(f"sparsecodec._C:{name}")() for name in ("cpu_isa", "why_no_amx"))
    return isa if reason is None else f"{isa} ({reason})"


def device_name() -> str:
    """The GPU if there is one, else the processor."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()[0]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> tuple[str, list[str]]:
    """(model name, those of `CPU_FLAGS` it has); the flags are empty where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine(), []
    fields: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = fields.get("flags", fields.get("Features", "")).split()
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields and not any(character.isdigit() for character in name):  # a cloud's "AMD EPYC"
        name = f"{name} family {fields['cpu family']} model {fields['model']}"
    return name, [flag for flag in CPU_FLAGS if flag in present]
