"""Rows of the CUDA kernels, compiled by nvcc with the flags of setup.py; none where there is no nvcc."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import triton

ROOT = Path(__file__).parents[3]
ARCHITECTURES = (80, 90)
PROCESSES = 2


def sources() -> list[Path]:
    """The files that hold kernels."""
    return [path for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu")) if "__global__" in path.read_text()]


def _of_kernels(text: str, pattern: str) -> dict[str, tuple[str, ...]]:
    """Kernel -> groups of `pattern`, which begins with its mangled name."""
    return {re.search(r"\d([a-z_]+_kernel)", match[0])[1]: match[1:] for match in re.findall(pattern, text)}


def _compile(source: Path, architecture: int, nvcc: str, flags: list[str]) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        command = [nvcc, *flags, f"-arch=sm_{architecture}", "-cubin", "--keep", f"--keep-dir={folder}"]
        subprocess.run([*command, str(source), "-o", str(cubin)], cwd=ROOT, check=True, capture_output=True)
        ptx = Path(folder, f"{source.stem}.ptx").read_text()
        usage, code = (
            subprocess.run([tool.path, option, str(cubin)], capture_output=True, text=True, check=True).stdout
            for tool, option in (
                (triton.knobs.nvidia.cuobjdump, "--dump-resource-usage"),
                (triton.knobs.nvidia.nvdisasm, "-c"),
            )
        )
    figures = _of_kernels(usage, r"Function (\w+):\s+REG:(\d+).*?STACK:(\d+).*?SHARED:(\d+).*?LOCAL:(\d+)")
    bodies = _of_kernels(code, r"(?s)\.section\s+\.text\.(\w+),(.*?)(?=\.section|\Z)")
    assembly = _of_kernels(ptx, r"(?s)\.entry (\w+)\((.*?)\n}")
    rows = []
    for kernel, (registers, stack, shared, local) in figures.items():
        (body,), (text,) = bodies[kernel], assembly[kernel]
        rows.append(
            {
                "kernel": kernel,
                "config": "cuda",
                "arch": f"sm_{architecture}",
                "registers": int(registers),
                "shared_bytes": int(shared),
                "spill_bytes": int(stack) + int(local) + 4 * len(re.findall(r"\b(?:LDL|STL)\b", body)),
                "mma": len(re.findall(r"\bHG?MMA\b", body)),
                "fma": len(re.findall(r"\bfma\.rn\b", text)),
            }
        )
    return rows


def _setup() -> tuple[str | None, list[str]]:
    """nvcc, if there is one, and its flags."""
    setup = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")
    return setup["find_nvcc"](os.environ), setup["NVCC_FLAGS"]


def version() -> str | None:
    """Of nvcc; None where there is none."""
    nvcc, _ = _setup()
    if nvcc is None:
        return None
    return re.search(r"V([\d.]+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)[1]


def rows(quick: bool) -> list[dict]:
    """One row for each kernel and architecture; `quick`: the last architecture only."""
    nvcc, flags = _setup()
    if nvcc is None:
        return []
    jobs = [(source, arch) for source in sources() for arch in (ARCHITECTURES[-1:] if quick else ARCHITECTURES)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        compiled = pool.map(lambda job: _compile(*job, nvcc, flags), jobs)
    return [row for part in compiled for row in part]
