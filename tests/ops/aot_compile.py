"""Compiles every Triton kernel as its launcher would launch it, for GPUs that need not be there.

Run it without TRITON_INTERPRET; it prints, or writes to ``--out``, one JSON object for each kernel, configuration and
architecture. ``spill_bytes`` is the stack frame plus 4 for each access to local memory; ``mma`` counts tensor-core
instructions.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsecodec._triton import entropy_parameters, pointwise
from sparsecodec._triton._tile import DOT_TILES

ARCHITECTURES = (80, 90)
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int16: "*i16",
}
OPTIONS = ("num_warps", "num_stages")
# Of `pointwise`. odd: sizes that allow no vector loads; like scatter, hungry for registers.
VARIANTS = ("plain", "odd", "scatter", "shuffle")


class Recorder:
    """Stands in for a kernel and keeps the arguments of its last launch."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.arguments: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._launch

    def _launch(self, *args: Any, **kwargs: Any) -> None:
        self.arguments = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs


def source_of(kernel: Any, arguments: dict[str, Any]) -> ASTSource:
    """The kernel specialised for `arguments` as Triton's launcher does: 1 is a constant, multiples of 16 are known."""
    signature, constants, attributes = {}, {}, {}
    for at, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(at,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)


def measure(kernel: Any, config: str, arguments: dict[str, Any], architecture: int) -> dict[str, Any]:
    """Compiles one specialisation and reads the result."""
    options = {name: arguments[name] for name in OPTIONS if name in arguments}
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source_of(kernel, arguments), target=target, options=options)
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
        "mma": len(re.findall(r"\bHG?MMA\b", code)),
    }


def _nhwc(channels: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty((1, channels, 32, 48), dtype=dtype).to(memory_format=torch.channels_last)


def _pointwise(variant: str, dtype: torch.dtype, columns: int) -> None:
    weight, bias = torch.empty(columns, 192), torch.empty(columns)
    if variant == "plain":
        pointwise.pointwise(_nhwc(192, dtype), weight, bias, activation="leaky_relu")
    elif variant == "odd":
        pointwise.pointwise(_nhwc(129, dtype), weight[1:, :129], bias[1:], activation="sigmoid_gate")
    elif variant == "scatter":
        kept = torch.arange(0, columns - columns // 4, dtype=torch.int32)
        arguments = {"in_index": torch.arange(192), "out_index": kept, "residual": _nhwc(columns, dtype)}
        pointwise.pointwise(_nhwc(256, dtype), weight[kept], bias[kept], activation="sigmoid_gate", **arguments)
    else:
        residual = _nhwc(columns // 4, dtype).repeat(1, 1, 2, 2)
        pointwise.pointwise(_nhwc(192, dtype), weight, bias, residual=residual, activation="relu", shuffle=2)


def _entropy_parameters(part: str, thresholds: int) -> None:
    entropy_parameters.entropy_parameters(_nhwc(192, torch.float32), torch.empty(thresholds), part)


def launches(wanted: Sequence[str]) -> Iterator[tuple[Any, str, Callable[[], None]]]:
    """(module, configuration, a call that launches its kernel once); every shipped tile occurs.

    `wanted` restricts the variants of `pointwise`.
    """
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for columns in DOT_TILES[dtype.itemsize]:
            for variant in wanted:
                name = f"{str(dtype).removeprefix('torch.')} {columns} columns {variant}"
                yield pointwise, name, lambda v=variant, d=dtype, c=columns: _pointwise(v, d, c)
    for part, thresholds in (("all", 63), ("even", 255), ("quarter0", 255)):
        name = f"{part} {thresholds} thresholds"
        yield entropy_parameters, name, lambda p=part, t=thresholds: _entropy_parameters(p, t)


def compile_all(variants: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each of `launches` and each architecture."""
    rows = []
    for module, config, launch in launches(variants):
        name = f"_{module.__name__.rpartition('.')[2]}_fwd_kernel"
        kernel = getattr(module, name)
        recorder = Recorder(kernel)
        setattr(module, name, recorder)
        launch()
        setattr(module, name, kernel)
        tile = "x".join(str(value) for key, value in recorder.arguments.items() if key.startswith("BLOCK_"))
        options = " ".join(f"{option}={recorder.arguments[option]}" for option in OPTIONS)
        for architecture in ARCHITECTURES:
            rows.append(measure(kernel, f"{config}, tile {tile} {options}", recorder.arguments, architecture))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compile every Triton kernel ahead of time.")
    parser.add_argument("--out", type=Path, help="where to write the JSON; default: print it")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="of pointwise; default: all")
    options = parser.parse_args()
    text = "[\n" + ",\n".join(json.dumps(row) for row in compile_all(options.variants)) + "\n]\n"
    print(text, end="") if options.out is None else options.out.write_text(text)
