"""The CUDA kernels on CPU threads, against the CPU kernels and under the sanitizers. No GPU is needed, only g++."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from sparsecodec import _cuda
from sparsecodec.ops._registry import resolve
from sparsecodec.testing import CASES, islanded, judge, run_eager

# Three blocks of threads are started for each launch, so only cases that fit into a few tiles.
CUDA_CASES = [
    case
    for case in CASES
    if not case.bench
    and any(impl.backend == "cuda" for impl in case.spec.impls)
    and sum(value.numel() for value in case.arguments(torch.float32).values() if isinstance(value, torch.Tensor)) < 4200
]
SCRIPT = Path(__file__).parents[1] / "cuda_emulator" / "emulate.py"


@pytest.fixture(scope="module")
def emulate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("emulate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.compiler() is None:
        assert os.environ.get("CI") != "true", "no g++: this lane must run the CUDA kernels"
        pytest.skip("no g++ on the PATH")
    return module


def test_every_kernel_has_a_program(emulate):
    kernels = {path.stem for path in (SCRIPT.parents[2] / "csrc" / "cuda").glob("*.cu")}
    assert set(emulate.PROGRAMS) == kernels - {"device"}  # which launches nothing


def test_kernels_agree_with_the_cpu_and_are_clean(emulate):
    runs = [
        emulate.Run(program, variant, few=variant != "address")
        for program in emulate.PROGRAMS
        for variant in emulate.VARIANTS
    ]
    failed = [outcome for outcome in emulate.execute(runs) if not outcome.passed]
    assert not failed, "\n".join(f"{outcome.run}\n{outcome.output[-3000:]}" for outcome in failed)


def test_a_missing_barrier_and_an_overrun_are_found(emulate):
    """What the lane above is worth: bugs that the emulator and the test programs plant on demand."""
    race = emulate.Run("entropy_parameters", "thread", few=True, define="SC_PLANT_RACE=1")
    overrun = emulate.Run("compact_symbols", "address", define="SC_PLANT_OVERRUN")
    found = emulate.execute([race, overrun])
    assert not any(outcome.passed for outcome in found)
    assert "ThreadSanitizer: data race" in found[0].output
    assert "AddressSanitizer: heap-buffer-overflow" in found[1].output


@pytest.fixture(scope="module")
def emulated(emulate, tmp_path_factory):
    """sparsecodec/_cuda.py on tensors of the CPU: the library is emulated, streams and devices do not exist."""
    path = tmp_path_factory.mktemp("emulated") / "library.so"
    emulate.build_library(path)
    loaded = _cuda.load(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "library", lambda: loaded)
        patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=None))
        yield


@pytest.mark.skipif(torch.cuda.is_available(), reason="the conformance tests run the kernels themselves")
@pytest.mark.parametrize("case", CUDA_CASES, ids=lambda case: f"{case.op}-{case.id}")
def test_the_op_matches_its_reference(case, emulated):
    (impl,) = (impl for impl in case.spec.impls if impl.backend == "cuda")
    outputs = run_eager(case, "cuda", torch.float32)
    assert judge(case, outputs, torch.float32).complaint is None
    arguments = islanded(case, "cuda", torch.float32)
    run = resolve(impl.plan)(**{name: arguments.pop(name) for name in case.spec.constants}, dtype=torch.float32)
    out = tuple(torch.full_like(tensor, 77) for tensor in outputs)
    run(**arguments, out=out if len(out) > 1 else out[0])
    assert judge(case, out, torch.float32).complaint is None
