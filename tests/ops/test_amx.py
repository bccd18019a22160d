"""The bfloat16 kernel for AMX: emulated on any AVX-512 machine, and for real where the CPU and the system have it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsecodec import _C
from sparsecodec.ops import pointwise, use_backend
from sparsecodec.testing import CASES, judge, run_planned
from sparsecodec.testing.compare import OpCase
from sparsecodec.testing.pointwise import nhwc

ROOT = Path(__file__).parents[2]
SETS = ["amx-emulated"] + ["amx"] * (_C.why_no_amx() is None)
OPS = ("pointwise", "conv2d_act", "conv_transpose2d_act", "depth_conv_block", "gdn")
SHARED = [
    pytest.param(case, id=f"{case.op}-{case.id}")
    for case in CASES
    if case.op in OPS and torch.bfloat16 in case.dtypes and not case.bench
]

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="the emulated kernel needs AVX-512 around the tiles"
)


@pytest.fixture(params=SETS)
def isa(request, monkeypatch):
    monkeypatch.setenv("SPARSECODEC_CPU_ISA", request.param)
    assert _C.cpu_isa() == request.param
    return request.param


def _product(pixels: int, k: int, n: int) -> OpCase:
    def make(dtype, generator):
        weight = torch.randn(n, k, generator=generator) / k**0.5
        return {"x": nhwc((1, k, 1, pixels), dtype, generator), "weight": weight, "bias": torch.arange(float(n))}

    return OpCase("pointwise", f"{pixels}-{k}-{n}", make, terms=k)


def _convolution(k: int, height: int, width: int, stride: int) -> OpCase:
    def make(dtype, generator):
        weight = torch.randn(40, k, 3, 3, generator=generator) / (9 * k) ** 0.5
        return {"x": nhwc((1, k, height, width), dtype, generator), "weight": weight, "stride": stride, "padding": 1}

    return OpCase("conv2d_act", f"{k}-{height}-{width}-{stride}", make, terms=9 * k)


def _check(case: OpCase) -> None:
    verdict = judge(case, run_planned(case, "cpu", torch.bfloat16), torch.bfloat16)
    assert verdict.complaint is None, verdict.complaint


@pytest.mark.parametrize("case", SHARED)
def test_matches_reference(case, isa):
    _check(case)


@pytest.mark.parametrize("n", [1, 16, 17, 33])  # columns: 16 in a tile, 32 in a block
@pytest.mark.parametrize("k", [1, 2, 31, 32, 33, 64, 95])  # 32 in a tile
def test_every_edge_of_a_tile(isa, k, n):
    for pixels in (1, 15, 16, 17, 31, 32, 33, 49, 64):  # 16 in a tile, 32 at a time
        _check(_product(pixels, k, n))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(5, 7), (3, 16), (4, 18), (2, 33)])
def test_rows_at_any_distance(isa, height, width, stride):
    """At the border and at the end of a line the rows of a tile do not follow each other."""
    for k in (32, 40, 64):
        _check(_convolution(k, height, width, stride))


def test_bits_do_not_depend_on_how_pixels_are_cut(isa):
    """Rows at a constant distance are read in place, others copied; alone or among 31, a pixel is the same."""
    generator = torch.Generator().manual_seed(3)
    x, weight = nhwc((1, 70, 6, 37), torch.bfloat16, generator), torch.randn(40, 70, generator=generator)
    with torch.no_grad(), use_backend("cpu"):
        whole = pointwise(x, weight, activation="relu")
        for part in (x[..., 3:4, 5:6], x[..., :17], x[..., ::2], x[..., 1:, 7:20], x.expand(3, -1, -1, -1)[1:2]):
            rows, columns = part.shape[2:]
            again = pointwise(part, weight, activation="relu")
            flat = pointwise(part.contiguous(memory_format=torch.channels_last), weight, activation="relu")
            assert torch.equal(again, flat) and again.shape[2:] == (rows, columns)
        assert torch.equal(pointwise(x[..., 1:, 7:20], weight, activation="relu"), whole[..., 1:, 7:20])


PAGE_END = """
import ctypes, mmap, os, sys
import torch
from sparsecodec.ops import conv2d_act, pointwise, use_backend

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
size = 1 << 16
memory = mmap.mmap(-1, size + mmap.PAGESIZE)
torch.set_num_threads(1)
values = torch.frombuffer(memory, dtype=torch.uint8)
if libc.mprotect(values.data_ptr() + size, mmap.PAGESIZE, 0) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
for isa in sys.argv[1:]:
    os.environ["SPARSECODEC_CPU_ISA"] = isa
    for dtype in (torch.bfloat16, torch.float32):
        for k in (1, 15, 31, 33):
            for height, width in ((1, 16), (1, 17), (5, 7)):
                count = k * height * width
                last = values[:size].view(dtype)[-count:].view(1, height, width, k).permute(0, 3, 1, 2)
                last.copy_(torch.randn(last.shape))
                weight = torch.randn(33, k, 3, 3)
                with torch.no_grad(), use_backend("cpu"):
                    copy = last.clone(memory_format=torch.channels_last)
                    assert torch.equal(pointwise(last, weight[:, :, 0, 0]), pointwise(copy, weight[:, :, 0, 0]))
                    assert torch.equal(conv2d_act(last, weight, padding=1), conv2d_act(copy, weight, padding=1))
"""


def test_nothing_is_read_past_the_last_element():
    """The features end where memory does: one byte more and the process dies, whatever the instruction set."""
    result = subprocess.run(
        [sys.executable, "-c", PAGE_END, "scalar", "avx2", "avx512", *SETS], capture_output=True, text=True
    )
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stderr}"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_instructions_are_what_the_emulation_takes_them_for(tmp_path):
    """Operands and encodings, carried out by the CPU or, where it has no AMX, by a handler of SIGILL."""
    program = tmp_path / "amx_instructions"
    sources = [Path(__file__).with_name("amx_instructions.cpp"), ROOT / "csrc/cpu/igemm_amx.cpp"]
    options = ["-std=c++17", "-O1", "-ffp-contract=off", f"-I{ROOT / 'csrc'}", "-o", program]
    subprocess.run(["g++", *options, *sources], check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}{result.stderr}"


def test_amx_is_the_default_where_there_is_one_and_refused_elsewhere(monkeypatch):
    monkeypatch.delenv("SPARSECODEC_CPU_ISA", raising=False)
    assert (_C.cpu_isa() == "amx") == (_C.why_no_amx() is None)
    monkeypatch.setenv("SPARSECODEC_CPU_ISA", "amx")
    if _C.why_no_amx() is None:
        assert _C.cpu_isa() == "amx"
    else:
        with pytest.raises(ValueError, match="SPARSECODEC_CPU_ISA=amx: "), use_backend("cpu"), torch.no_grad():
            pointwise(nhwc((1, 8, 2, 2), torch.bfloat16, torch.Generator()), torch.randn(8, 8))


def test_avx512_means_without_amx(monkeypatch):
    monkeypatch.setenv("SPARSECODEC_CPU_ISA", "avx512")
    assert _C.cpu_isa() in ("avx512", "avx512bf16")
