"""Buffers: shared where results do not live together, and refused with figures where they do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsecodec import ResourceLimitError
from sparsecodec.errors import GraphError
from sparsecodec.models import create
from sparsecodec.runtime import planning
from sparsecodec.runtime.fusion import fuse
from sparsecodec.runtime.lowering import lower
from sparsecodec.runtime.planning import holding, make_plan
from sparsecodec.runtime.transform import CompiledTransform


class Chain(nn.Sequential):
    """Six 1x1 layers without anything between them that would fuse."""

    def __init__(self) -> None:
        super().__init__(*(nn.Conv2d(8, 8, 1) for _ in range(6)))


def plan_of(module: nn.Module, x: torch.Tensor) -> planning.Plan:
    return make_plan(fuse(lower(module, "net")), "net", x)


def test_a_chain_needs_two_buffers():
    plan = plan_of(Chain(), torch.empty(1, 8, 10, 12))
    assert plan.bytes == 2 * 8 * 10 * 12 * 4
    assert len({out.data_ptr() for out in plan.out[1:]}) == 2
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(plan.out[1:], plan.out[2:], strict=False))
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in plan.out[1:])


def test_nothing_is_run_to_plan(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("ran")

    model = create("evc-tiny").eval()
    monkeypatch.setattr(planning, "available_bytes", lambda device: 2**62)
    huge = torch.empty(1, 96, 2**11, 2**11, device="meta")  # no memory behind it
    monkeypatch.setattr(torch.nn.Conv2d, "forward", forbidden)
    assert plan_of(model.dec, huge).bytes > 2**33


def test_the_plan_is_the_peak():
    model = create("evc-tiny").eval()
    whole, half = (plan_of(model.dec, torch.empty(1, 96, 8, w)).bytes for w in (16, 8))
    assert whole == 2 * half > 0


def test_too_large_says_how_large_and_what_would_fit(monkeypatch):
    monkeypatch.setattr(planning, "available_bytes", lambda device: 2**20)
    transform = CompiledTransform(create("evc-tiny").eval().dec, "dec", torch.float32)
    with pytest.raises(ResourceLimitError) as caught:
        transform(torch.zeros(1, 96, 64, 64))
    message = str(caught.value)
    assert message.startswith("dec on cpu needs ") and "1 x 64 x 64 positions, 1.0 MiB are free" in message
    fitting = int(message.split("about ")[1].split()[0])
    assert 16 < fitting < 64 * 64
    side = int(fitting**0.5) // 4 * 4
    assert transform(torch.zeros(1, 96, side, side)).shape == (1, 3, 16 * side, 16 * side)


def test_an_allocator_that_fails_is_reported_too(monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("can't allocate memory")

    program = fuse(lower(Chain(), "net"))
    x = torch.empty(1, 8, 4, 4)
    results = planning._infer(program, "net", x)
    monkeypatch.setattr(planning, "_infer", lambda *args: results)
    monkeypatch.setattr(torch, "empty", fails)
    with pytest.raises(ResourceLimitError, match="net on cpu needs 0.0 MiB for 1 x 4 x 4 positions"):
        make_plan(program, "net", x)


def test_a_layer_whose_shape_cannot_be_told_is_named():
    class Sizes(nn.Module):
        def forward(self, x):
            return x[x > 0]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.odd = nn.Conv2d(8, 8, 1), Sizes()

        def forward(self, x):
            return self.odd(self.conv(x))

    with pytest.raises(GraphError, match="the shape of .* cannot be inferred"):
        plan_of(Net(), torch.empty(1, 8, 4, 4))


def test_plans_are_held_while_someone_asks():
    transform = CompiledTransform(Chain(), "net", torch.float32)
    with holding() as held:
        transform(torch.zeros(1, 8, 4, 4))
    transform(torch.zeros(1, 8, 4, 5))
    assert held == [transform._plans[(torch.Size((1, 8, 4, 4)),)]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_free_memory_of_a_gpu_is_known():
    assert 0 < planning.available_bytes(torch.device("cuda")) <= torch.cuda.mem_get_info()[1]


def test_buffers_are_counted_while_another_thread_adds_some():
    transform = CompiledTransform(Chain(), "net", torch.float32)
    x = torch.zeros(1, 8, 4, 4)
    transform(x)
    (plan,) = transform._plans.values()

    class Meanwhile:
        @property
        def bytes(self) -> int:
            transform._plans["another"] = plan
            return plan.bytes

    transform._plans["first"], transform._plans["second"] = Meanwhile(), plan
    assert transform.buffer_bytes == 3 * plan.bytes


def test_layouts_that_another_thread_clears_at_once_are_used_all_the_same(monkeypatch):
    class Cleared(dict):
        def __setitem__(self, key, value) -> None:
            pass

    monkeypatch.setattr(planning, "_inferred", Cleared())
    assert plan_of(Chain(), torch.empty(1, 8, 10, 12)).bytes == 2 * 8 * 10 * 12 * 4


def test_what_launches_allocate_is_in_the_footprint_and_not_in_what_is_held(monkeypatch):
    """Counted as on a GPU. Nothing is refused for it: a way with fewer launches may be taken, which needs less."""
    transform = CompiledTransform(create("evc-tiny").eval().dec, "dec", torch.float32)
    x, cpu, scratch = torch.empty(1, 96, 8, 16), torch.device("cpu"), planning._scratch
    gpu, held = torch.device("cuda"), make_plan(transform._program, "dec", x).bytes
    assert held <= transform.footprint(x.shape, cpu) < 1.1 * held
    monkeypatch.setattr(planning, "_scratch", lambda program, results, _: scratch(program, results, gpu))
    last = [step for step in transform._program.steps if step.op == "depth_conv_block"][-1]  # of the most pixels
    c, hidden = last.constants["w1"].shape[0], last.constants["w4"].shape[1]
    pixels = (8 * 8) * (16 * 8)
    assert transform.footprint(x.shape, cpu) == held + 4 * pixels * (64 + c + hidden)
    monkeypatch.setattr(planning, "available_bytes", lambda device: held)
    assert make_plan(transform._program, "dec", x).bytes == held
