"""Captured routines against eager ones. CUDA graphs are played by a recorder of torch operations."""

from __future__ import annotations

import pytest
import torch

from sparsecodec import BitstreamError
from sparsecodec.entropy import evc_gaussian_tables
from sparsecodec.nn.routine import Coding
from sparsecodec.ops import use_backend
from sparsecodec.runtime import compile_codec, executor
from sparsecodec.runtime.executor import Executor

from .conftest import build
from .recorded_graphs import RecordedGraphs

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def plain_torch():
    with use_backend("reference"):
        yield


@pytest.fixture
def pair(request):
    """A compiled codec, and the same with captured routines."""
    model = build(request.param, "dense")
    eager, captured = compile_codec(model, dtype=torch.float32), compile_codec(model, dtype=torch.float32)
    captured._executor = Executor(CPU, RecordedGraphs())
    return eager, captured


def pictures(count: int, height: int = 64, width: int = 128):
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(count, 3, height // 8, width // 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").split(1)


@pytest.mark.parametrize("pair", ["evc-tiny"], indirect=True)
def test_replays_decode_other_pictures_at_other_rates(pair):
    eager, captured = pair
    graphs = captured._executor._graphs
    for number, (x, quality) in enumerate(zip(pictures(4), (50, 0, 100, 30), strict=True)):
        blob = eager.encode(x, quality)
        assert captured.encode(x, quality) == blob
        graphs.events.clear()
        assert torch.equal(captured.decode(blob), eager.decode(blob))
        assert graphs.waits == (0 if number == 0 else 2)  # one for each pass over the latent, none else
    assert captured._executor.captures == graphs.recorded == 4 + 3
    assert captured._executor.refusals == []


@pytest.mark.parametrize("pair", ["bmshj2018-factorized", "mbt2018-mean", "bmshj2018-hyperprior"], indirect=True)
def test_replays_answer_the_familys_calls(pair):
    eager, captured = pair
    for x in map(torch.cat, (pictures(4)[:2], pictures(4)[2:], pictures(4)[1:3])):
        strings = eager.compress(x)
        assert captured.compress(x) == strings
        assert torch.equal(captured.decompress(**strings)["x_hat"], eager.decompress(**strings)["x_hat"])
    assert captured._executor.refusals == []


@pytest.mark.parametrize("pair", ["evc-tiny"], indirect=True)
def test_a_damaged_stream_leaves_the_next_one_alone(pair):
    eager, captured = pair
    x, q_scale = pictures(1)[0], 1.0
    payload = eager.compress(x, q_scale)["bit_stream"]
    expected = eager.decompress(payload, 64, 128, q_scale)["x_hat"]
    for _ in range(2):
        assert torch.equal(captured.decompress(payload, 64, 128, q_scale)["x_hat"], expected)
        with pytest.raises(BitstreamError):
            captured.decompress(payload[: len(payload) // 2], 64, 128, q_scale)
    assert torch.equal(captured.decompress(payload, 64, 128, q_scale)["x_hat"], expected)


@pytest.mark.parametrize("pair", ["evc-tiny"], indirect=True)
def test_results_are_the_callers_own(pair):
    _, captured = pair
    blobs = [captured.encode(x) for x in pictures(3)]
    first = captured.decode(blobs[0])
    kept = first.clone()
    captured.decode(blobs[1]), captured.decode(blobs[2])
    assert torch.equal(first, kept)


@pytest.mark.parametrize("pair", ["evc-tiny"], indirect=True)
def test_graphs_keep_the_buffers_that_they_know(pair):
    _, captured = pair
    captured.decode(captured.encode(pictures(1)[0]))
    held = [item for entry in captured._executor._captured.values() for item in entry.held]
    for transform in captured._transforms.values():
        plan = list(transform._plans.values())[-1]
        assert any(plan is item for item in held), transform.name


def test_old_captures_make_room(monkeypatch):
    monkeypatch.setattr(executor, "MAX_CAPTURES", 2)
    runner = Executor(CPU, RecordedGraphs())

    def double(x):
        yield from ()
        return 2 * x

    for size in (1, 2, 3, 1, 1):
        x = torch.arange(float(size))
        assert torch.equal(runner.run(double, x, host=None), 2 * x)
    assert runner.captures == 2 and runner._graphs.recorded == 4


def test_another_dtype_has_graphs_of_its_own():
    runner = Executor(CPU, RecordedGraphs())

    def half(x):
        yield from ()
        return x / 2

    for dtype in (torch.float32, torch.float64, torch.int32, torch.float32):
        x = torch.arange(3).to(dtype)
        result = runner.run(half, x, host=None)
        assert torch.equal(result, x / 2) and result.dtype == (x / 2).dtype
    assert runner.captures == 3


def test_the_host_is_asked_in_the_routines_order():
    """What is to be encoded waits for the device, but not behind what is decoded after it."""
    runner = Executor(CPU, RecordedGraphs())
    tables, indexes = evc_gaussian_tables(), torch.zeros(2, dtype=torch.int16)

    def both(x):
        yield Coding(tables, indexes.clone(), (2 * x).int())
        decoded = yield Coding(tables, indexes.clone())
        yield Coding(tables, indexes.clone(), (3 * x).int())
        return x + decoded

    for value in (1.0, 2.0, 3.0):
        asked = []

        def host(request, out, asked=asked, value=value):
            asked.append("decode" if request.symbols is None else request.symbols.tolist())
            if request.symbols is not None:
                return None
            answer = torch.full((2,), int(value), dtype=torch.int32)
            return answer if out is None else out.copy_(answer)

        x = torch.full((2,), value)
        assert torch.equal(runner.run(both, x, host=host), 2 * x)
        assert asked == [[2 * value] * 2, "decode", [3 * value] * 2]
    assert runner.refusals == [] and runner.captures == 4


def test_what_cannot_be_captured_runs_eagerly_and_is_named():
    class Refusing(RecordedGraphs):
        def capture(self, work, pool):
            raise RuntimeError("operation not permitted when stream is capturing\nmore text")

    runner = Executor(CPU, Refusing())

    def half(x):
        yield from ()
        return x / 2, None

    for x in (torch.ones(3), torch.zeros(3)):
        result, nothing = runner.run(half, x, host=None)
        assert torch.equal(result, x / 2) and nothing is None
    (refusal,) = runner.refusals
    assert refusal.startswith("half could not be captured: operation not permitted when stream is capturing (test_exec")


def test_a_routine_that_asks_differently_the_second_time_is_refused():
    asked = []

    def moody(x):
        asked.append(x)
        if len(asked) == 1:
            yield Coding(evc_gaussian_tables(), torch.zeros(2, dtype=torch.int16), torch.zeros(2, dtype=torch.int32))
        return x + 1

    runner = Executor(CPU, RecordedGraphs())
    assert torch.equal(runner.run(moody, torch.ones(2), host=lambda request, out: None), torch.full((2,), 2.0))
    (refusal,) = runner.refusals
    assert refusal.startswith("moody could not be captured: the routine made 0 coding calls, 1 in its first run")


@pytest.mark.parametrize("value", [lambda x: float(x[0]), lambda x: torch.tensor([2.0])], ids=["read", "copied"])
def test_the_recorder_refuses_values_of_the_host(value):
    """As a GPU does, where they would be captured once and wrong ever after, or copied from pageable memory."""
    runner = Executor(CPU, RecordedGraphs())

    def constant(x):
        yield from ()
        return x * value(x)

    for x in (torch.tensor([2.0]), torch.tensor([3.0])):
        assert torch.equal(runner.run(constant, x, host=None), x * value(x))
    assert len(runner.refusals) == 1 and "cannot be captured" in runner.refusals[0]


def test_a_refusal_tells_what_went_wrong_first():
    class Ending(RecordedGraphs):
        def capture(self, work, pool):
            try:
                return super().capture(work, pool)
            except RuntimeError:
                raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904

    runner = Executor(CPU, Ending())

    def reading(x):
        yield from ()
        return x * x.sum().item()

    runner.run(reading, torch.ones(2), host=None)
    assert "_local_scalar_dense" in runner.refusals[0] and "previous error" not in runner.refusals[0]
