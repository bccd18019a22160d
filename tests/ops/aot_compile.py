"""Compiles every Triton kernel as its launcher would launch it, for GPUs that need not be there.

Run it without TRITON_INTERPRET; it prints, or writes to ``--out``, one JSON object for each launch and architecture.
``spill_bytes`` is the stack frame plus 4 for each access to local memory; ``mma`` counts tensor-core instructions,
``fma`` fused multiply-adds (in PTX: a correctly rounded division consists of them later). Beside ``--out`` it writes
``<name>-compilers.json``: which versions the figures are of.

What is launched stands in ``aot/<op>.py``, a file for each op, which has one of

* ``launches(quick)``: yields (module, configuration, call); `call` launches kernels of `module`, all of which are
  recorded, with every tile that the launcher hands to ``choose``. `quick` asks for the few that tests compile: they are
  compiled with the first tile only.
* ``rows(quick)``: returns finished rows, of kernels that another compiler builds.

``WITHOUT_PRODUCTS``, optional, names its kernels that multiply no matrices. ``compiles_for(arguments, architecture)``,
optional, says for which architectures a launch is. ``barriers(arguments)``, optional, says how many barriers its author
put between steps of the launch that hand data on through global memory: what else would notice that one is gone?
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import multiprocessing
import random
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

FOLDER = Path(__file__).parent / "aot"
ARCHITECTURES = (80, 90)
PROCESSES = 2
SAMPLE = 12  # launches that a sample compiles: some ten seconds on two cores
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")


class Recorder:
    """Stands in for a kernel and appends the arguments of its launches to `launches`."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, dict[str, Any]]]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._launch

    def _launch(self, *args: Any, **kwargs: Any) -> None:
        self.launches.append((self.kernel, dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs))


class Offer:
    """Stands in for `choose`: takes tile number `at` and keeps how many there are."""

    def __init__(self) -> None:
        self.at = 0
        self.count = 1

    def __call__(self, name: str, key: tuple, tiles: Sequence[dict[str, int]], *_: Any) -> dict[str, int]:
        self.count = max(self.count, len(tiles))
        return tiles[min(self.at, len(tiles) - 1)]


@contextmanager
def recording(module: ModuleType) -> Iterator[tuple[list[tuple[Any, dict[str, Any]]], Offer]]:
    """Within the block the kernels of `module` are not launched: the list receives (kernel, arguments)."""
    launches: list[tuple[Any, dict[str, Any]]] = []
    before = {name: value for name, value in vars(module).items() if name.endswith("_kernel") or name == "choose"}
    offer = Offer()
    try:
        for name, value in before.items():
            setattr(module, name, offer if name == "choose" else Recorder(value, launches))
        yield launches, offer
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def source_of(kernel: Any, arguments: dict[str, Any]) -> ASTSource:
    """The kernel specialised for `arguments` as Triton's launcher does: 1 is a constant, multiples of 16 are known."""
    signature, constants, attributes = {}, {}, {}
    for at, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        specialised = isinstance(value, torch.Tensor) or (isinstance(value, int) and not parameter.do_not_specialize)
        if parameter.is_constexpr or value is None or (specialised and isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
        if specialised and (isinstance(value, torch.Tensor) or value % 16 == 0):
            attributes[(at,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)


def measure(kernel: Any, config: str, arguments: dict[str, Any], architecture: int, handed: int = 0) -> dict[str, Any]:
    """Compiles one specialisation and reads the result. `handed`: how many barriers have to stand between its steps.

    Raises:
        RuntimeError: the source has another number of them, or not all of them are in the PTX.
    """
    options = {name: arguments[name] for name in OPTIONS if name in arguments}
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source_of(kernel, arguments), target=target, options=options)
    written = compiled.asm["ttir"].count("ttg.barrier")
    barriers = len(re.findall(r"\bbar\.sync\b", compiled.asm["ptx"]))
    if written != handed or barriers < handed:
        raise RuntimeError(f"{config}: {written} barriers in the source, {barriers} in PTX; {handed} between its steps")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([tool.path, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (
                (triton.knobs.nvidia.cuobjdump, "--dump-resource-usage"),
                (triton.knobs.nvidia.nvdisasm, "-c"),
            )
        )
    found = re.search(r"REG:(\d+).*?STACK:(\d+).*?LOCAL:(\d+)", usage)
    registers, stack, local = map(int, found.groups())
    return {
        "kernel": kernel.fn.__name__,
        "config": config,
        "arch": f"sm_{architecture}",
        "registers": registers,
        "shared_bytes": compiled.metadata.shared,
        "spill_bytes": stack + local + 4 * len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "mma": len(re.findall(r"\b[HI]G?MMA\b", code)),
        "fma": len(re.findall(r"\bfma\.rn\b", compiled.asm["ptx"])),
    }


def described(config: str, arguments: dict[str, Any]) -> str:
    """`config` with the tile and the launch options of a kernel's arguments."""
    tile = "x".join(str(value) for name, value in arguments.items() if name.startswith("BLOCK_"))
    options = [f"{name}={arguments[name]}" for name in OPTIONS if name in arguments]
    return ", ".join(filter(None, [config, " ".join([*([f"tile {tile}"] if tile else []), *options])]))


def load(path: Path) -> ModuleType:
    """The file of an op, imported by its path: tests are no package."""
    spec = importlib.util.spec_from_file_location(f"aot_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def op_files(only: str | None = None) -> list[Path]:
    """The files of all ops, or of one."""
    files = [path for path in sorted(FOLDER.glob("*.py")) if only in (None, path.stem)]
    if not files:
        raise SystemExit(f"no {only}.py in {FOLDER}")
    return files


@functools.cache
def _launches(path: Path, quick: bool) -> list[tuple[ModuleType, str, Callable[[], Any]]]:
    module = load(path)
    return list(module.launches(quick)) if hasattr(module, "launches") else []


def compile_launch(path: Path, quick: bool, at: int, sample: int | None = None) -> list[dict[str, Any]]:
    """The rows of launch number `at` of the file; of a `sample`, with one tile for one architecture.

    A launch may reach one tile by several ways, with other sizes each time: a row is of the first of them.
    """
    module, config, launch = _launches(path, quick)[at]
    of_tile: list[list[tuple[Any, dict[str, Any]]]] = []
    with recording(module) as (launched, offer):
        while not of_tile or not quick and offer.at < offer.count - 1:
            offer.at = len(of_tile)
            launch()
            of_tile.append(launched.copy())
            launched.clear()
    if not any(of_tile):
        raise RuntimeError(f"{path.name}: {config!r} launched no kernel of {module.__name__}")
    file = load(path)
    wanted = getattr(file, "compiles_for", lambda arguments, architecture: True)
    handed = getattr(file, "barriers", lambda arguments: 0)
    first: dict[tuple[Any, str, int], dict[str, Any]] = {}
    keys: list[list[tuple[Any, str, int]]] = []
    for calls in of_tile:
        keys.append([])
        for kernel, arguments in calls:
            for architecture in ARCHITECTURES:
                if wanted(arguments, architecture):
                    keys[-1].append((kernel, described(config, arguments), architecture))
                    first.setdefault(keys[-1][-1], arguments)
    asked = list(first)
    if sample is not None:
        architecture = ARCHITECTURES[sample % len(ARCHITECTURES)]
        asked = [key for key in dict.fromkeys(keys[sample % len(keys)]) if key[2] == architecture]
    return [measure(*key[:2], first[key], key[2], handed(first[key])) for key in asked]


def launches_in(path: Path) -> int:
    """How many launches the file has in all."""
    return len(_launches(path, False))


def sampled(seed: int) -> list[tuple[Path, int, int]]:
    """A few launches of all, (file, number, which tile and architecture): others for another seed."""
    choice = random.Random(seed)
    launches = [(path, at) for path in op_files() for at in range(launches_in(path))]
    return [(path, at, choice.randrange(2**16)) for path, at in choice.sample(launches, SAMPLE)]


def compile_sample(seed: int) -> list[dict[str, Any]]:
    """The rows of a sample, each launch with one of its tiles for one architecture."""
    launches = sampled(seed)
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("fork")) as pool:
        futures = [pool.submit(compile_launch, path, False, at, number) for path, at, number in launches]
        rows = [row for future in futures for row in future.result()]
    return list({(row["kernel"], row["config"], row["arch"]): row for row in rows}.values())


def compilers() -> dict[str, str]:
    """Versions of what makes machine code: of Triton and its assembler, of nvcc where there is one."""
    versions = {"triton": triton.__version__, "ptxas": triton.knobs.nvidia.ptxas.version}
    nvcc = load(FOLDER / "cuda.py").version()
    return versions | ({"nvcc": nvcc} if nvcc else {})


def compile_all(quick: bool, only: str | None = None) -> list[dict[str, Any]]:
    """The rows of all files, in the order of their names."""
    rows = []
    # Forked: the children inherit the imports. Nothing has run on torch's threads yet.
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("fork")) as pool:
        pending = [
            (path, [pool.submit(compile_launch, path, quick, at) for at in range(len(_launches(path, quick)))])
            for path in op_files(only)
        ]
        for path, futures in pending:
            for future in futures:
                rows += future.result()
            if hasattr(module := load(path), "rows"):
                rows += module.rows(quick)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compile every kernel ahead of time.")
    parser.add_argument("--out", type=Path, help="where to write the JSON; default: print it")
    parser.add_argument("--quick", action="store_true", help="only what the tests compile")
    parser.add_argument("--only", metavar="OP", help="only the file aot/OP.py")
    parser.add_argument("--sample", type=int, metavar="SEED", help="only a few launches of all, others for other seeds")
    options = parser.parse_args()
    if options.sample is None:
        rows = compile_all(options.quick, options.only)
    else:
        rows = compile_sample(options.sample)
    text = "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"
    if options.out is None:
        print(text, end="")
    else:
        options.out.write_text(text)
        options.out.with_name(f"{options.out.stem}-compilers.json").write_text(json.dumps(compilers()) + "\n")
