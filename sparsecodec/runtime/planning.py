"""Buffers for the steps of a program: how large, which of them share memory, and whether they fit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from sparsecodec.errors import GraphError, ResourceLimitError
from sparsecodec.ops._registry import specs
from sparsecodec.runtime.lowering import INPUTS, PLAIN, Program, Step
from sparsecodec.runtime.torch_steps import writer
from sparsecodec.runtime.turns import Turns

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


@dataclass
class Plan:
    """Buffers of one input shape.

    Attributes:
        out: per step the tensor it writes, None if it allocates.
        bytes: of all buffers, which steps share whose results do not live together.
        turns: of the transform whose plan it is.
        converted: inputs that came in another dtype, in memory that is kept: new memory costs page faults.
        streams: that the allocator knows to use the buffers.
    """

    out: list[Tensor | None]
    bytes: int
    turns: Turns
    converted: dict[Step, Tensor] = field(default_factory=dict)
    streams: set[torch.cuda.Stream] = field(default_factory=set)

    def used_on(self, stream: torch.cuda.Stream) -> None:
        """The memory of a plan that is dropped goes to nobody else before `stream` has done its work so far."""
        if stream not in self.streams:
            self.streams.add(stream)
            for tensor in self.out:
                if tensor is not None:
                    tensor.record_stream(stream)


_held: ContextVar[list[Any] | None] = ContextVar("sparsecodec_held", default=None)


@contextmanager
def holding() -> Iterator[list[Any]]:
    """Collects the plans that are used within the block; a graph captured there must keep them."""
    held: list[Any] = []
    token = _held.set(held)
    try:
        yield held
    finally:
        _held.reset(token)


def hold(plan: Plan) -> None:
    """Says that `plan` is used."""
    held = _held.get()
    if held is not None:
        held.append(plan)


def make_plan(program: Program, name: str, *inputs: Tensor, turns: Turns | None = None) -> Plan:
    """Buffers for the steps that can write into a given tensor, before anything runs.

    Args:
        program: what runs.
        name: of the transform, for messages.
        inputs: for their shapes, dtypes and device.
        turns: of the transform; None: the plan has its own.

    Raises:
        GraphError: the shape of a step's result cannot be inferred.
        ResourceLimitError: the buffers do not fit into memory; the message says how large they are and what would fit.
    """
    results = _infer(program, name, inputs)
    x = inputs[0]
    pool, assigned = _share(program, results)
    planned, free = sum(pool), available_bytes(x.device)
    if free is not None and planned > free:  # before a system that overcommits would promise it
        raise _too_large(name, x, planned, free)
    with torch.inference_mode(False):  # tensors made in inference mode could not be written to outside it
        try:
            storage = [torch.empty(size, dtype=torch.uint8, device=x.device) for size in pool]
        except RuntimeError as error:  # torch's, on a CPU and on a GPU
            raise _too_large(name, x, planned, None) from error
        out = [None if b is None else _view(storage[b], results[i]) for i, b in enumerate(assigned)]
    return Plan(out, planned, turns or Turns())


def footprint(
    program: Program, name: str, shapes: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device
) -> int:
    """Bytes that a call holds at its peak: its plan's buffers, what steps that allocate hold, and, on a GPU, what the
    launches of a step may allocate beside its result. Allocates nothing.

    Args:
        program, name: as for `make_plan`.
        shapes: of the inputs.
        dtype, device: of all of them.
    """
    with FakeTensorMode():
        inputs = [torch.empty(*shape, dtype=dtype, device=device) for shape in shapes]
    results = _infer(program, name, inputs)
    pool, assigned = _share(program, results)
    until = list(_last_uses(program).values())
    own = [
        0 if buffer is not None or not isinstance(result, Tensor) else result.numel() * result.element_size()
        for buffer, result in zip(assigned, results, strict=True)
    ]
    scratch = _scratch(program, results, device)
    held = (scratch[now] + sum(own[i] for i in range(now + 1) if until[i] >= now) for now in range(len(own)))
    return sum(pool) + max(held)


def _scratch(program: Program, results: Sequence[Any], device: torch.device) -> list[int]:
    """Bytes that each step's launches on a GPU may allocate beside its result, while they run."""
    known = dict(zip(program.steps, results, strict=True))

    def of(step: Step) -> int:
        spec = None if step.op in (*INPUTS, PLAIN) else specs()[step.op]
        if spec is None or spec.scratch is None:
            return 0
        return spec.scratch(**{name: known[source] for name, source in step.inputs.items()}, **step.constants)

    return [of(step) if device.type == "cuda" else 0 for step in program.steps]


def _too_large(name: str, x: Tensor, planned: int, free: int | None) -> ResourceLimitError:
    n, _, height, width = x.shape
    known = "" if free is None else f", {in_units(free)} are free: about {height * width * free // planned} would fit"
    return ResourceLimitError(
        f"{name} on {x.device} needs {in_units(planned)} for {n} x {height} x {width} positions{known}"
    )


def available_bytes(device: torch.device) -> int | None:
    """Memory that could be had, as far as the system and the limit of a container tell; None if neither does."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    return min((free for free in (_system_bytes(), _container_bytes()) if free is not None), default=None)


def _system_bytes() -> int | None:
    if MEMINFO.exists():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None


def _container_bytes() -> int | None:
    """Up to the limit of the control group (version 2) that a container sees as the root; None without one.

    What its processes read of files counts as used, but is dropped where memory is short.
    """
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit == "max":
            return None
        words = (CGROUP / "memory.stat").read_text().split()
    except OSError:
        return None
    counts = dict(zip(words[::2], words[1::2], strict=True))
    return max(int(limit) - int(used) + int(counts.get("inactive_file", 0)), 0)


def _infer(program: Program, name: str, inputs: Sequence[Tensor]) -> list[Any]:
    """Every step's result as a tensor without memory."""
    given = dict(zip(program.inputs, inputs, strict=True))
    results: dict[Step, Any] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for step in program.steps:
            try:
                results[step] = _like(given[step]) if step in given else _infer_one(step, results)
            except Exception as error:  # a step may be any torch layer of the model's, which may raise anything
                label = ", ".join(step.paths) or step.op
                raise GraphError(f"{name}: the shape of {label} cannot be inferred: {error}") from error
    return list(results.values())


def _like(x: Tensor) -> Tensor:
    empty = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return empty.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else empty


@dataclass(frozen=True)
class _Layout:
    """What a tensor is, without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def empty(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


def _layout(value: Any) -> Any:
    """Of a tensor, or of those in a sequence; another argument of an op stands for itself."""
    if isinstance(value, Tensor):
        return _Layout(tuple(value.shape), value.stride(), value.dtype, value.device)
    return tuple(map(_layout, value)) if isinstance(value, list | tuple) else value


# Layouts of an op's arguments -> of its results. They follow from each other, blocks of a network repeat, and running a
# reference on tensors without memory costs milliseconds: most of what compiling a codec takes.
_inferred: dict[tuple[Any, ...], Any] = {}
MOST_INFERRED = 4096


def _infer_one(step: Step, results: dict[Step, Any]) -> Any:
    if step.op == "prior_head":
        return None  # two results, which it allocates; nothing comes after it
    if step.op != PLAIN:
        arguments = {argument: results[source] for argument, source in step.inputs.items()} | step.constants
        key = (step.op, *((name, _layout(value)) for name, value in sorted(arguments.items())))
        layouts = _inferred.get(key)  # not read again: another thread may clear them
        if layouts is None:
            if len(_inferred) >= MOST_INFERRED:
                _inferred.clear()
            layouts = _inferred[key] = tree_map(_layout, specs()[step.op].reference(**arguments))
        return tree_map(lambda value: value.empty() if isinstance(value, _Layout) else value, layouts)

    def take(value: Any) -> Any:
        return results[value] if isinstance(value, Step) else value

    return step.function(*fx.node.map_aggregate(step.args, take), **fx.node.map_aggregate(step.kwargs, take))


def _last_uses(program: Program) -> dict[Step, int]:
    """Step -> index of the last step that reads its result."""
    steps = program.steps
    last_use = {step: index for index, step in enumerate(steps)}
    last_use[program.output] = len(steps)
    for index in reversed(range(len(steps))):
        for source in steps[index].sources:
            # What a plain step returns may be a view of what it read, so its inputs live as long as its result.
            view = steps[index].op == PLAIN and writer(steps[index]) is None
            until = last_use[steps[index]] if view else index
            last_use[source] = max(last_use[source], until)
    return last_use


def _share(program: Program, results: list[Any]) -> tuple[list[int], list[int | None]]:
    """(bytes of each buffer, buffer of each step): a buffer is reused once its last reader is done."""
    steps = program.steps
    last_use = _last_uses(program)
    pool: list[int] = []
    free: list[int] = []
    held: list[tuple[int, int]] = []  # (last use, buffer)
    assigned: list[int | None] = []
    for index, step in enumerate(steps):
        free += [buffer for until, buffer in held if until < index]
        held = [(until, buffer) for until, buffer in held if until >= index]
        if not _writes(step, results[index]):
            assigned.append(None)
            continue
        need = results[index].numel() * results[index].element_size()
        fitting = sorted((pool[buffer], buffer) for buffer in free if pool[buffer] >= need)
        if fitting:
            buffer = fitting[0][1]
        elif free:
            buffer = max(free, key=pool.__getitem__)
            pool[buffer] = need
        else:
            buffer = len(pool)
            pool.append(need)
        free = [other for other in free if other != buffer]
        held.append((last_use[step], buffer))
        assigned.append(buffer)
    return pool, assigned


def _writes(step: Step, result: Any) -> bool:
    """Whether the step can write into a given tensor."""
    if step.op == PLAIN:
        return writer(step) is not None and isinstance(result, Tensor) and result.dim() == 4
    return step.op not in (*INPUTS, "prior_head")


def _view(storage: Tensor, like: Tensor) -> Tensor:
    """The beginning of `storage` as a channels_last tensor with the shape and dtype of `like`."""
    n, c, h, w = like.shape
    flat = storage[: like.numel() * like.element_size()].view(like.dtype)
    return flat.view(n, h, w, c).permute(0, 3, 1, 2)


def in_units(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
