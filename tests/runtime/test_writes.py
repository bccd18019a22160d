"""Modules that write to what they read: compiled to what they compute, or refused where tensors share memory."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.errors import GraphError
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.sparsity.tracing import trace


class Written(nn.Module):
    def __init__(self, write) -> None:
        super().__init__()
        self.conv, self.more = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.silu = nn.ReLU(inplace=True), nn.SiLU(inplace=True)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        early = self.more(y)
        return early + self.write(self, x, y)


def _added(m: Written, x: Tensor, y: Tensor) -> Tensor:
    other = y
    other += x
    return y


def _scaled(m: Written, x: Tensor, y: Tensor) -> Tensor:
    other = y
    other *= 2
    other -= x
    other /= 3
    return y


def _after(write):
    """Writes, and returns what was written to by its first name."""

    def run(m: Written, x: Tensor, y: Tensor) -> Tensor:
        write(m, x, y)
        return y

    return run


WRITES = {
    "+=": _added,
    "*= -= /=": _scaled,
    "F.relu_": _after(lambda m, x, y: F.relu_(y)),
    "torch.clamp_": _after(lambda m, x, y: torch.clamp_(y, 0, 0.1)),
    "F.leaky_relu_": _after(lambda m, x, y: F.leaky_relu_(y, 0.3)),
    "out=": _after(lambda m, x, y: torch.add(y, 1, out=y)),
    "inplace=True": _after(lambda m, x, y: F.leaky_relu(y, 0.3, inplace=True)),
    "inplace by place": _after(lambda m, x, y: F.silu(y, True)),
    "method": _after(lambda m, x, y: y.add_(x).clamp_(-0.2, 0.3)),
    "copy_": _after(lambda m, x, y: y.copy_(x)),
    "module": _after(lambda m, x, y: m.silu(y)),
    "a part that is all that is read": lambda m, x, y: torch.cat((m.relu((p := y.chunk(2, 1))[0]), p[1]), 1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_is_written_to_is_read_as_it_is_behind(write):
    torch.manual_seed(0)
    module = Written(write).eval().requires_grad_(False)
    x = torch.randn(2, 4, 5, 3)
    given = x.clone()
    transform = CompiledTransform(module, "t", torch.float32)
    for _ in range(2):
        torch.testing.assert_close(transform(given), module(x.clone()), atol=1e-6, rtol=1e-5)
    assert torch.equal(given, x)


@pytest.mark.parametrize(
    "write",
    [
        lambda m, x, y: (m.relu(y.chunk(2, 1)[0]), y)[1],
        lambda m, x, y: (part := y.chunk(2, 1)[0], m.relu(y), torch.cat((part, part), 1))[2],
        lambda m, x, y: (y.view(2, 4, -1).mul_(2), y)[1],
    ],
    ids=["a part", "the whole of a part", "a view"],
)
def test_tensors_that_share_memory_are_refused(write):
    module = Written(write).eval().requires_grad_(False)
    with pytest.raises(GraphError, match="in place, which shares memory with .* reads that later"):
        CompiledTransform(module, "t", torch.float32)


class Slow(nn.Module):
    """Holds its tracing up until another thread has run."""

    def __init__(self, tracing: threading.Event, done: threading.Event) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.tracing, self.done = tracing, done

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        self.tracing.set()
        assert self.done.wait(30)
        return self.layer(x)


def test_modules_of_other_threads_run_while_one_is_traced():
    tracing, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=trace, args=(Slow(tracing, done), "slow"))
    thread.start()
    try:
        assert tracing.wait(30)
        module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        assert module(torch.ones(1, 4)).shape == (1, 4)
    finally:
        done.set()
        thread.join()


def test_two_threads_trace_one_after_the_other():
    """What fx puts back when it is done has to be torch's own."""
    call = nn.Module.__call__
    modules = [nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(40))) for _ in range(4)]
    failed = []

    def run(module: nn.Module) -> None:
        try:
            trace(module, "t")
        except GraphError as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(module,)) for module in modules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and nn.Module.__call__ is call
