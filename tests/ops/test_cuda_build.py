"""How the CUDA library is built, loaded and refused. Nothing here needs a GPU; most of it not even nvcc."""

from __future__ import annotations

import ctypes
import os
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from setuptools import Distribution

from sparsecodec import _cuda
from sparsecodec.errors import SparseCodecError
from sparsecodec.ops import why_unavailable

from ..conftest import load_script

ROOT = Path(__file__).parents[2]
NO_LIBRARY = "the CUDA kernels are not built here: no nvcc"
KINDS = {"*": ctypes.c_void_p, "unsigned": ctypes.c_uint, "int": ctypes.c_int, "char*": ctypes.c_char_p}


@pytest.fixture
def setup(monkeypatch):
    monkeypatch.chdir(ROOT)
    return runpy.run_path("setup.py", run_name="setup")


@pytest.fixture(scope="module")
def aot():
    pytest.importorskip("triton")
    return load_script(Path(__file__).parent / "aot" / "cuda.py")


@pytest.fixture
def fresh():
    """What _cuda.py remembers is forgotten before and after."""
    caches = (_cuda.library, _cuda.why_unavailable)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def _program(folder: Path, name: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(0o755)
    return str(path)


def test_nvcc_is_looked_for_in_order(setup, tmp_path):
    find = setup["find_nvcc"]
    environment = {
        "CUDACXX": _program(tmp_path, "my-nvcc"),
        "CUDA_HOME": str(Path(_program(tmp_path / "home" / "bin", "nvcc")).parents[1]),
        "CUDA_PATH": str(Path(_program(tmp_path / "path" / "bin", "nvcc")).parents[1]),
        "PATH": str(Path(_program(tmp_path / "on-path", "nvcc")).parent),
    }
    found = []
    for name in list(environment):
        found.append(str(Path(find(environment)).relative_to(tmp_path)))
        del environment[name]
    assert found == ["my-nvcc", "home/bin/nvcc", "path/bin/nvcc", "on-path/nvcc"]


@pytest.mark.parametrize("nvcc", ["toolkit/nvcc", None])
def test_what_the_variable_decides(setup, monkeypatch, nvcc):
    plan = setup["plan_cuda"]
    monkeypatch.setitem(plan.__globals__, "find_nvcc", lambda environment: nvcc)
    assert plan({"SPARSECODEC_CUDA": "0"})[0] is None
    assert "SPARSECODEC_CUDA=0" in plan({"SPARSECODEC_CUDA": "0"})[2]
    with pytest.raises(SystemExit, match="one of auto, 0, 1"):
        plan({"SPARSECODEC_CUDA": "yes"})
    if nvcc is None:
        assert plan({})[:2] == (None, False) and "no nvcc found" in plan({})[2]
        with pytest.raises(SystemExit, match="SPARSECODEC_CUDA=1, but no nvcc found"):
            plan({"SPARSECODEC_CUDA": "1"})
    else:
        assert plan({}) == plan({"SPARSECODEC_CUDA": "auto"}) == (nvcc, False, None)
        assert plan({"SPARSECODEC_CUDA": "1"}) == (nvcc, True, None)


def test_a_failing_nvcc_stops_the_build_only_if_it_was_demanded(setup, tmp_path, capfd):
    for required in (False, True):
        library = setup["CudaLibrary"](_program(tmp_path, "nvcc"), required)
        command = setup["BuildExt"](Distribution({"name": "sample", "ext_modules": [library]}))
        command.build_lib = str(tmp_path / "build")
        command.ensure_finalized()
        if required:
            with pytest.raises(SystemExit, match="SPARSECODEC_CUDA=1, but nvcc failed.*exit status 3"):
                command.build_extension(library)
        else:
            command.build_extension(library)
            assert capfd.readouterr().out.splitlines()[-1].startswith("CUDA kernels are not built: nvcc failed")
        assert list((tmp_path / "build").rglob("*.so")) == []


def test_the_library_gets_machine_code_and_ptx_for_later_gpus(setup):
    command = setup["nvcc_command"]("nvcc", "80;90", ["a.cu"], "out.so")
    codes = [argument for argument in command if argument.startswith("-gencode")]
    assert codes == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert "-fmad=false" in command and "-cudart=static" in command and command[-3:] == ["a.cu", "-o", "out.so"]


def test_python_declares_what_the_library_exports():
    sources = "".join(path.read_text() for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu")))
    exports = re.findall(r"SC_EXPORT ([\w:]+\*?(?: char\*)?) sparsecodec_(\w+)\(([^)]*)\)", sources)
    assert {name for _, name, _ in exports} == set(_cuda.SIGNATURES)
    for _, name, parameters in exports:
        declared = _cuda.SIGNATURES[name][1]
        kinds = []
        for parameter in filter(None, (" ".join(text.split()) for text in parameters.split(","))):
            kind = "*" if "*" in parameter and "char*" not in parameter else parameter.rpartition(" ")[0]
            kinds.append(KINDS[kind.removeprefix("const ")])
        assert kinds == declared, name


def test_kernels_need_only_the_cuda_runtime():
    for path in sorted((ROOT / "csrc" / "cuda").iterdir()):
        for name in re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', path.read_text()):
            ours = name.split("/")[0] in {"common", "cuda"} or name == "cuda_runtime.h"
            assert ours or re.fullmatch(r"[a-z_0-9]+", name), f"{path.name} includes {name}"


def test_a_missing_or_foreign_library_is_one_sentence(monkeypatch, tmp_path, fresh):
    monkeypatch.setattr(_cuda, "LIBRARY", tmp_path / "library.so")
    assert "not built" in _cuda.why_unavailable()
    _cuda.why_unavailable.cache_clear()
    _cuda.LIBRARY.write_bytes(b"no library")
    assert "library.so cannot be loaded" in _cuda.why_unavailable()


@pytest.mark.parametrize(
    ("capabilities", "torch_sees_it", "reason"),
    [
        ([], True, "no CUDA driver or device: the driver offers none"),
        ([90], False, f"torch {torch.__version__} cannot use the CUDA device"),
        ([70, 75], True, "is built for compute capabilities 80;90, the newest device has 75"),
        ([70, 86], True, None),
        ([103], True, None),
    ],
)
def test_what_is_missing_is_said(monkeypatch, fresh, tmp_path, capabilities, torch_sees_it, reason):
    monkeypatch.setattr(_cuda, "LIBRARY", tmp_path)
    library = SimpleNamespace(sparsecodec_architectures=lambda: b"80;90")
    monkeypatch.setattr(_cuda, "library", lambda: library)
    monkeypatch.setattr(_cuda, "_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_sees_it)
    found = _cuda.why_unavailable()
    assert found is None if reason is None else reason in found


def test_the_library_loads_and_says_what_is_missing(setup):
    if not _cuda.LIBRARY.exists():
        assert setup["plan_cuda"](os.environ)[0] is None, "nvcc is here, but its library is not: install again"
        pytest.skip(NO_LIBRARY)
    assert _cuda.library().sparsecodec_architectures() == os.environ.get("SPARSECODEC_CUDA_ARCHS", "80;90").encode()
    reason = why_unavailable("cuda")
    if torch.cuda.is_available():
        assert reason is None
    else:
        assert reason.startswith("no CUDA driver or device: device_count: CUDA error"), reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="launches succeed on this machine")
def test_a_failed_launch_is_our_exception():
    if not _cuda.LIBRARY.exists():
        pytest.skip(NO_LIBRARY)
    memory = torch.zeros(16, dtype=torch.int64)
    for n in (0, 3):
        with pytest.raises(SparseCodecError, match="compact_symbols: CUDA error [0-9]+, [A-Za-z]+"):
            _cuda.run("compact_symbols", memory, None, n, memory, memory, None, memory, None)
    with pytest.raises(SparseCodecError, match="expand_symbols: CUDA error"):
        _cuda.run("expand_symbols", memory, 3, memory, 3, memory, memory, None)
    strides = (ctypes.c_int64 * 5)()
    with pytest.raises(SparseCodecError, match="entropy_parameters: CUDA error"):
        _cuda.run("entropy_parameters", memory, 1, 1, 1, 1, strides, b"all", memory, 0, memory, None)
    for pictures, groups, lanes in ((1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 33), (2**16, 2**15, 32)):
        with pytest.raises(SparseCodecError, match="decode_lanes: CUDA error"):
            _cuda.run("decode_lanes", *5 * [memory], pictures, groups, lanes, *3 * [memory], 1, memory, 1, memory, None)


def test_kernels_are_compiled_without_spills(setup, aot):
    rows = aot.rows(quick=False)
    if not rows:
        assert setup["find_nvcc"](os.environ) is None
        pytest.skip("no nvcc on this machine: the CUDA kernels have no rows")
    names = {source.stem + "_kernel" for source in aot.sources()}
    assert {(row["kernel"], row["arch"]) for row in rows} == {(n, f"sm_{a}") for n in names for a in (80, 90)}
    assert all(row["spill_bytes"] == row["mma"] == row["fma"] == 0 for row in rows), rows


def test_a_spill_and_a_fused_multiply_add_are_seen(setup, aot, tmp_path):
    nvcc = setup["find_nvcc"](os.environ)
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    source = tmp_path / "planted.cu"
    source.write_text(
        "__global__ void planted_kernel(float* x, int n) {\n"
        "    float values[64];\n"
        "    for (int i = 0; i < 64; ++i) values[i] = x[i * n];\n"
        "    x[0] = values[n % 64] * values[n / 64] + values[n / 7];\n"
        "}\n"
    )
    (row,) = aot._compile(source, 90, nvcc, [flag for flag in setup["NVCC_FLAGS"] if flag != "-fmad=false"])
    assert row["kernel"] == "planted_kernel" and row["spill_bytes"] >= 256 and row["fma"] == 1
