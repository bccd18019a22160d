"""Who may import whom, read off the syntax trees, so that imports inside functions count too."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# part -> the parts it may import beside itself. `ops < sparsity` etc. is spelled out: the order is part of the design.
_LOW = {"errors"}
_OPS = _LOW | {"ops"}
_SPARSITY = _OPS | {"sparsity"}
_ENTROPY = _SPARSITY | {"entropy", "_clip_format"}
_NN = _ENTROPY | {"nn", "_compat"}
_MODELS = _NN | {"models"}
ALLOWED = {
    "errors": set(),
    "_compat": _LOW,
    "_cuda": _LOW,
    "_clip_format": _LOW,
    "_files": set(),
    "ops": _LOW,
    "testing": _OPS,
    "info": _OPS | {"entropy", "__init__"},
    "sparsity": _OPS | {"_files"},
    "entropy": _SPARSITY | {"_clip_format"},
    "nn": _ENTROPY,
    "data": _LOW | {"_clip_format", "_files"},
    "metrics": _ENTROPY | {"data"},
    "models": _NN,
    "zoo": _MODELS | {"_files", "quant"},
    "distill": _MODELS,
    "quant": _MODELS,
    "runtime": _MODELS | {"quant"},
    "training": _MODELS | {"distill", "quant", "data", "_files"},
    "cli": _MODELS
    | {"_files", "data", "distill", "info", "metrics", "quant", "runtime", "training", "zoo", "__init__"},
    "__init__": _LOW,
    "__main__": {"cli"},
}
NATIVE = {"_C", "_cuda", "_triton"}  # only named by the strings of the registry, or by their one wrapper
MAY_IMPORT_NATIVE = {"ops", "entropy"}
HEAVY = {
    "triton",
    "compressai",
    "matplotlib",
    "bjontegaard",
    "pytorch_msssim",
    "constriction",
    "torchvision",
    "av",
    "tensorboard",
}
MAY_IMPORT_HEAVY = {
    "_compat": {"compressai"},
    "metrics": {"av", "bjontegaard", "pytorch_msssim"},
    "cli": {"matplotlib"},
    "data": {"av"},
    "training": {"tensorboard"},
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "sparsecodec").parts[0].removesuffix(".py")


class _WithoutTypeChecking(ast.NodeTransformer):
    """Drops the bodies of ``if TYPE_CHECKING:``, which never run."""

    def visit_If(self, node: ast.If) -> ast.AST:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
        return self.generic_visit(node)


def imported_modules(path: Path, root: Path = ROOT) -> set[str]:
    """Dotted names of everything the file imports; relative ones made absolute; ``from p import x`` gives ``p.x``."""
    package = list(path.relative_to(root).parent.parts)
    found = set()
    for node in ast.walk(_WithoutTypeChecking().visit(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{prefix}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            argument = node.args[0]
            found |= {argument.value} if isinstance(argument, ast.Constant) else set()
    return found


def imported_parts(path: Path, root: Path = ROOT) -> set[str]:
    """Parts of sparsecodec that the file imports; the bare package is ``__init__``."""
    parts = {name.split(".")[1] if "." in name else "__init__" for name in _ours(imported_modules(path, root))}
    folder = ROOT / "sparsecodec"
    known = {entry.stem for entry in folder.iterdir() if entry.suffix == ".py" or entry.is_dir()} | NATIVE | {"quant"}
    return {part if part in known else "__init__" for part in parts}


def _ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "sparsecodec"}


SOURCES = sorted((ROOT / "sparsecodec").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_lower_layers(path: Path):
    part = part_of(path)
    assert part in ALLOWED, f"{part} has no place in the layering: give it one in ALLOWED"
    native = NATIVE if part in MAY_IMPORT_NATIVE else set()
    wrong = imported_parts(path) - ALLOWED[part] - {part} - native
    assert not wrong, f"{part} may not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_optional_packages_stay_in_their_place(path: Path):
    heavy = {name.split(".")[0] for name in imported_modules(path)} & HEAVY
    wrong = heavy - MAY_IMPORT_HEAVY.get(part_of(path), set())
    assert not wrong, f"{', '.join(sorted(wrong))} is imported outside its one place"


@pytest.mark.parametrize("path", sorted((ROOT / "triton_kernels").glob("*.py")), ids=lambda path: path.name)
def test_triton_kernels_stand_alone(path: Path):
    roots = {tuple(name.split(".")[:2]) for name in imported_modules(path)}
    allowed = {"torch", "triton", "triton_kernels", *sys.stdlib_module_names}
    wrong = {root for root in roots if root[0] not in allowed} - {("sparsecodec", "_triton")}
    assert not wrong, f"{path.name} imports {wrong}; kernels import torch, triton, the standard library and each other"


@pytest.mark.parametrize("folder", ["common", "entropy"])
def test_shared_native_code_needs_only_the_standard_library(folder: str):
    files = [p for p in (ROOT / "csrc" / folder).glob("*") if p.suffix in (".h", ".cpp", ".inl")]
    for path in (p for p in files if p.stem.partition("_")[0] != "bind"):
        for name in re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', path.read_text()):
            ours = name.split("/")[0] in {"common", "entropy", "check.h"} or (path.parent / name).exists()
            compilers = name in {"omp.h", "immintrin.h", "nmmintrin.h", "arm_acle.h", "arm_neon.h"}
            assert ours or compilers or re.fullmatch(r"[a-z_0-9]+", name), f"{path.name} includes {name}"


def test_the_reader_sees_what_it_must(tmp_path: Path):
    """The checks above are worth what `imported_modules` finds."""
    file = tmp_path / "sparsecodec" / "ops" / "sample.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import sparsecodec.cli.demo\nfrom sparsecodec import runtime\nfrom ..training import trainer\n"
        "def late():\n    from sparsecodec.models import EVC\n    importlib.import_module('sparsecodec.zoo')\n"
        "if TYPE_CHECKING:\n    import sparsecodec.quant\n"
    )
    assert {"cli", "runtime", "training", "models", "zoo"} == imported_parts(file, tmp_path)
