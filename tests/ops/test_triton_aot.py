"""Every GPU kernel compiles for the GPUs we ship for, without spills, and on tensor cores where it should."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from sparsecodec.ops import specs
from sparsecodec.ops._registry import resolve

from ..conftest import load_script

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "aot_compile.py"
RECORD = ROOT / "bench" / "results" / "aot.json"
COMPILERS = RECORD.with_name("aot-compilers.json")
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}


def kernels_in(source: str) -> set[str]:
    """Names of the ``@triton.jit`` functions that end in ``_kernel``; the others are parts of kernels."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
            found |= {node.name} if any(ast.unparse(d).startswith("triton.jit") for d in node.decorator_list) else set()
    return found


def complaints(rows: list[dict], without_products: set[str]) -> list[str]:
    """What is wrong with compiled kernels; one sentence each. `without_products`: kernels that multiply no matrices."""
    exact = {f"_{spec.name}_fwd_kernel" for spec in specs().values() if spec.exact}
    found = []
    for row in rows:
        name = f"{row['kernel']} on {row['arch']}, {row['config']}"
        if row["spill_bytes"]:
            found.append(f"{name}: {row['spill_bytes']} bytes spilled")
        if row["shared_bytes"] > SHARED_LIMIT[row["arch"]]:
            found.append(f"{name}: {row['shared_bytes']} bytes of shared memory")
        narrow = re.search(r"\b(b?float16|int8|int16)\b", row["config"]) is not None
        if (narrow and row["kernel"] not in without_products) != (row["mma"] > 0):  # float32 on them would be tf32
            found.append(f"{name}: {row['mma']} tensor-core instructions")
        if row["kernel"] in exact and row["fma"]:  # one rounding where the reference has two
            found.append(f"{name}: {row['fma']} fused multiply-adds")
    return found


@pytest.fixture(scope="module")
def without_products() -> set[str]:
    pytest.importorskip("triton")
    script = load_script(SCRIPT)
    return {name for path in script.op_files() for name in getattr(script.load(path), "WITHOUT_PRODUCTS", ())}


def compiling(*arguments: str) -> subprocess.CompletedProcess:
    """What the script does, without the interpreter."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    """The quick subset; the record has all."""
    result = compiling("--quick")
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def sample() -> list[dict]:
    """A few rows of all, others every day."""
    seed = str(date.today().toordinal())
    result = compiling("--sample", seed)
    assert result.returncode == 0, f"--sample {seed}: {result.stderr[-2000:]}"
    return json.loads(result.stdout)


@pytest.mark.parametrize("rows", ["compiled", "sample"])
def test_kernels_compile_without_spills(rows, request, without_products):
    assert complaints(request.getfixturevalue(rows), without_products) == []


@pytest.mark.parametrize("source", ["compiled", "record"])
def test_every_kernel_is_compiled_for_every_architecture(source, compiled):
    rows = compiled if source == "compiled" else json.loads(RECORD.read_text())
    sources = [path.read_text() for path in sorted((ROOT / "triton_kernels").glob("*.py"))]
    names = set().union(*map(kernels_in, sources))
    assert "_pointwise_fwd_kernel" in names
    missing = {(name, arch) for name in names for arch in SHARED_LIMIT} - {(row["kernel"], row["arch"]) for row in rows}
    assert not missing


def key_of(row: dict) -> tuple[str, str, str]:
    return row["kernel"], row["config"], row["arch"]


def test_the_record_is_clean_and_up_to_date(compiled, sample, without_products):
    """``make aot`` wrote it."""
    record = json.loads(RECORD.read_text())
    assert complaints(record, without_products) == []
    assert set(map(key_of, compiled + sample)) <= set(map(key_of, record))
    assert len(set(map(key_of, record))) == len(record), "two rows of one configuration"


def outdated(rows: list[dict], record: list[dict], same: set[str]) -> list[str]:
    """Rows whose figures are not those of the record; `same`: "triton", "cuda", whose compilers made both."""
    recorded = {key_of(row): row for row in record}
    by = [(row, "cuda" if row["config"] == "cuda" else "triton") for row in rows]
    return [str(row) for row, compiler in by if compiler in same and row != recorded[key_of(row)]]


def test_the_record_has_the_figures_of_today(compiled, sample):
    """Registers, shared memory, spills, tensor-core instructions, wherever the same compilers are at work."""
    pytest.importorskip("triton")
    now, then = load_script(SCRIPT).compilers(), json.loads(COMPILERS.read_text())
    needed = {"triton": ("triton", "ptxas"), "cuda": ("nvcc",)}
    same = {name for name, tools in needed.items() if all(now.get(tool) == then[tool] for tool in tools)}
    if not same:
        pytest.skip(f"the record is of {then}, here are {now}")
    assert outdated(compiled + sample, json.loads(RECORD.read_text()), same) == []


def test_figures_that_changed_are_named():
    good = {"kernel": "k", "config": "float32", "arch": "sm_80", "registers": 40, "mma": 2}
    cuda = good | {"config": "cuda"}
    assert outdated([good, cuda], [good, cuda], {"triton", "cuda"}) == []
    changed = [good | {"registers": 41}, cuda | {"mma": 1}]
    assert [len(outdated(changed, [good, cuda], same)) for same in ({"triton", "cuda"}, {"triton"}, set())] == [2, 1, 0]


def test_another_day_has_another_sample_and_the_same_day_the_same():
    pytest.importorskip("triton")
    script = load_script(SCRIPT)
    assert script.sampled(3) == script.sampled(3) != script.sampled(4)
    days = [{(path.stem, at) for path, at, _ in script.sampled(day)} for day in range(730_000, 730_120)]
    assert len(set.union(*days)) == sum(script.launches_in(path) for path in script.op_files())


def test_a_sample_compiles_what_the_record_is_of(monkeypatch):
    """Where a launch reaches one tile with other sizes, too, which other registers are of."""
    pytest.importorskip("triton")
    script = load_script(SCRIPT)
    monkeypatch.setattr(script, "measure", lambda kernel, name, arguments, architecture, handed: {
        "key": (kernel, name, architecture), "sizes": {k: v for k, v in arguments.items() if isinstance(v, int)},
    })  # fmt: skip
    (path,) = script.op_files("pointwise")
    sizes = {}
    for at, (_, config, _) in enumerate(script._launches(path, False)):
        whole = {row["key"]: row["sizes"] for row in script.compile_launch(path, False, at)}
        for number in range(12):
            sampled = script.compile_launch(path, False, at, number)
            assert all(whole[row["key"]] == row["sizes"] for row in sampled), config
            sizes[config] = sizes.get(config, 0) + len(sampled)
    assert min(sizes.values()) >= 6


@pytest.mark.parametrize("op", ["pointwise", "conv2d_act", "conv_transpose2d_act", "gdn"])
def test_the_record_has_every_tile(op):
    found = {(row["config"].partition(" ")[0] != "float32", *row["config"].partition(", ")[2].split()[1:4])
             for row in json.loads(RECORD.read_text()) if row["kernel"] == f"_{op}_fwd_kernel"}  # fmt: skip
    for table in ("DOT_TILES", "SCALAR_TILES"):
        for size, tiles in resolve(f"sparsecodec._triton._tile:{table}").items():
            for tile in tiles:
                blocks = "x".join(str(tile[name]) for name in ("BLOCK_P", "BLOCK_N", "BLOCK_K"))
                options = (f"{name}={tile[name]}" for name in ("num_warps", "num_stages"))
                assert (size == 2, blocks, *options) in found


def test_the_record_has_every_tile_of_bytes():
    rows = [row["config"].split() for row in json.loads(RECORD.read_text()) if "_integer_conv2d_fwd" in row["kernel"]]
    found = {(2 if config[0] == "int16" else 1, config[1] == "odd,", *config[-3:]) for config in rows}
    vectors, scalars = (resolve(f"sparsecodec._triton._tile:INTEGER_{part}TILES") for part in ("", "SCALAR_"))
    for planes, tiles in vectors.items():
        for odd, table in enumerate((tiles, scalars)):
            for tile in table:
                blocks = "x".join(str(tile[name]) for name in ("BLOCK_P", "BLOCK_N", "BLOCK_K"))
                options = (f"{name}={tile[name]}" for name in ("num_warps", "num_stages"))
                assert (planes, bool(odd), blocks, *options) in found


def test_complaints_are_made():
    good = {"kernel": "_pointwise_fwd_kernel", "config": "bfloat16 x", "arch": "sm_80", "registers": 1, "mma": 8}
    good |= {"shared_bytes": 0, "spill_bytes": 0, "fma": 3}
    other = {"kernel": "other"}
    fine = [good, good | {"config": "int8 x"}, good | {"config": "float32", "mma": 0}, good | other | {"mma": 0}]
    assert complaints(fine, {"other"}) == []
    bad = [{"spill_bytes": 8}, {"mma": 0}, {"config": "int16 x", "mma": 0}, {"config": "float32"}, other]
    bad.append({"shared_bytes": 10**6})
    assert all(len(complaints([good | change], {"other"})) == 1 for change in bad)
    exact = good | {"kernel": "_entropy_parameters_fwd_kernel", "config": "float32", "mma": 0}
    assert [len(complaints([exact | {"fma": count}], {exact["kernel"]})) for count in (0, 1)] == [0, 1]


def test_kernels_are_found():
    source = "@triton.jit\ndef a_kernel(): pass\n@triton.jit(x=1)\ndef b_kernel(): pass\n@triton.jit\ndef part(): pass"
    assert kernels_in(source + "\ndef c_kernel(): pass") == {"a_kernel", "b_kernel"}
