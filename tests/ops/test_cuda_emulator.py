"""The CUDA kernels on CPU threads, against the CPU kernels and under the sanitizers. No GPU is needed, only g++."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from sparsecodec.entropy import EntropyTables, LaneDecoder, LaneEncoder, lanes_cuda
from sparsecodec.entropy.native import native
from sparsecodec.errors import BitstreamError, NoBackendError, UsageError
from sparsecodec.ops._registry import resolve
from sparsecodec.testing import CASES, islanded, judge, run_eager

from ..conftest import load_script_with_compiler

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
    return load_script_with_compiler(SCRIPT)


def test_every_kernel_has_a_program(emulate):
    kernels = {path.stem for path in (SCRIPT.parents[2] / "csrc" / "cuda").glob("*.cu")}
    assert set(emulate.PROGRAMS) == kernels - {"device"}  # which launches nothing


def test_kernels_agree_with_the_cpu_and_are_clean(emulate):
    """Without a sanitizer they run below, as a library."""
    runs = [
        emulate.Run(program, variant, few=variant == "thread")
        for program in emulate.PROGRAMS
        for variant in emulate.VARIANTS
        if variant != "plain"
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


TOTALS = {0: (1, 1), 60: (1, 1), 32768: (2, 1), 1048576: (32, 2)}  # symbols: lanes of each group, groups


def _tables(offset: int = -3) -> EntropyTables:
    """Two rows; what is no symbol of theirs escapes."""
    cdf = torch.tensor([[0, 100, 30000, 65535, 65536], [0, 40000, 65536, 0, 0]], dtype=torch.int32)
    return EntropyTables(cdf, torch.tensor([5, 3], dtype=torch.int32), torch.tensor([offset, 7], dtype=torch.int32))


def _lanes(total: int):
    """(payload, indexes of the first call, its symbols, the other symbols): the first calls are short, threads slow."""
    generator = torch.Generator().manual_seed(total)
    indexes = torch.randint(0, 2, (total,), generator=generator).short()
    symbols = torch.randint(-4, 9, (total,), generator=generator).int()
    encoder, first = LaneEncoder(total), min(total, 150)
    encoder.push(symbols[:first], indexes[:first], _tables())
    encoder.push(symbols[first:], indexes[first:], _tables())
    return encoder.finish(), indexes[:first], symbols[:first], symbols[first:]


@pytest.fixture
def lanes(emulated, monkeypatch):
    """`CudaLaneDecoder` with its tensors on the CPU."""
    monkeypatch.setattr(lanes_cuda, "why_unavailable", lambda backend: None)
    return lambda payload, total: _decoder([payload], total)


def _decoder(payloads: list[bytes], total: int) -> lanes_cuda.CudaLaneDecoder:
    return lanes_cuda.CudaLaneDecoder(lanes_cuda.lane_words(payloads, total), total)


@pytest.mark.parametrize("total", TOTALS)
def test_lanes_give_their_symbols_and_finish(total, lanes):
    assert native().lane_layout(total) == TOTALS[total]
    payload, indexes, symbols, rest = _lanes(total)
    decoder = lanes(bytearray(b"x" + payload)[1:], total)
    assert torch.equal(decoder.decode(indexes.view(-1, 1), _tables()), symbols.view(-1, 1))
    if len(rest):
        with pytest.raises(UsageError, match=f"{len(rest)} symbols of the total were not decoded"):
            decoder.finish()
        return
    with pytest.raises(UsageError, match="1 indexes, 0 symbols are left"):
        decoder.decode(torch.zeros(1, dtype=torch.int16), _tables())
    decoder.finish()


@pytest.mark.usefixtures("lanes")
def test_lanes_of_several_pictures():
    encoders = [LaneEncoder(90) for _ in range(3)]
    indexes = torch.randint(0, 2, (3, 90), generator=torch.Generator().manual_seed(5)).short()
    symbols = torch.randint(-4, 9, (3, 90), generator=torch.Generator().manual_seed(6)).int()
    for encoder, values, rows in zip(encoders, symbols, indexes, strict=True):
        encoder.push(values, rows, _tables())
    payloads = [encoder.finish() for encoder in encoders]
    decoder = _decoder(payloads, 90)
    for part in (slice(0, 50), slice(50, 90)):
        assert torch.equal(decoder.decode(indexes[:, part], _tables()), symbols[:, part])
    decoder.finish()
    decoder = _decoder([payloads[0], payloads[1] + b"ab"], 90)
    decoder.decode(indexes[:2], _tables())
    with pytest.raises(BitstreamError, match="group 0 of 1: 2 bytes are left"):
        decoder.finish()
    for shape in ((90,), (2, 60), ()):
        with pytest.raises(UsageError, match=r"needs \[3, ...\], one per picture"):
            _decoder(payloads, 90).decode(torch.zeros(shape, dtype=torch.int16), _tables())


def _complaint(decoder, indexes, tables):
    try:
        decoder.decode(indexes, tables)
        decoder.finish()
    except (BitstreamError, UsageError) as error:
        return type(error), str(error).partition(" (the tables")[0].partition(" has no row")[0]
    return None


def test_damage_is_called_by_the_same_words_as_on_the_cpu(lanes):
    payload, indexes, _, _ = _lanes(60)
    wrong = indexes.clone()
    wrong[30] = 2
    far = LaneEncoder(2)
    far.push(torch.tensor([7, 2**31 - 1], dtype=torch.int32), indexes[:2] * 0, _tables())
    cases = [
        (payload, 60, indexes, _tables()),
        (payload[:-2], 60, indexes, _tables()),
        (payload + b"ab", 60, indexes, _tables()),
        (payload[:4] + bytes(reversed(payload[4:])), 60, indexes, _tables()),
        (payload, 60, wrong, _tables()),
        (far.finish(), 2, indexes[:2] * 0, _tables(2**30)),
        (bytes([5, 0, 2, 0]), 1, indexes[:1] * 0 + 1, _tables()),
    ]
    complaints = []
    for data, total, rows, tables in cases:
        complaints.append(_complaint(LaneDecoder(data, total), rows, tables))
        assert _complaint(lanes(data, total), rows, tables) == complaints[-1]
    texts = " / ".join(str(complaint) for complaint in complaints)
    assert complaints[0] is None
    met = (
        "ends before symbol",
        "bytes are left",
        "not end in the state",
        "indexes[30] = 2",
        "digits (of 8)",
        "exceeds",
    )
    assert [text for text in met if text not in texts] == []
    for data in (b"", payload[:3], b"\xff\xff\0\0"):
        with pytest.raises(BitstreamError):
            lanes(data, 60)


def test_lanes_refuse_what_the_kernel_cannot_read(lanes, monkeypatch):
    payload, indexes, _, _ = _lanes(60)
    decoder = lanes(payload, 60)
    for rows, out, message in (
        (indexes.int(), None, "needs torch.int16"),
        (indexes, torch.empty(60, dtype=torch.int16), "needs .60. torch.int32"),
        (indexes, torch.empty(120, dtype=torch.int32)[::2], "contiguous"),
        (indexes, torch.empty(59, dtype=torch.int32), "needs .60. torch.int32"),
    ):
        with pytest.raises(UsageError, match=message):
            decoder.decode(rows, _tables(), out)
    monkeypatch.setattr(lanes_cuda, "why_unavailable", lambda backend: "no driver")
    with pytest.raises(NoBackendError, match="no driver"):
        lanes(payload, 60)
