"""Cases and the judge that tests and benches share: an implementation against the reference of its op."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sparsecodec.ops._registry import OpSpec, bind, bind_arguments, resolve, specs, use_backend

MARGIN = 64  # elements of poison before and after an island


@dataclass(frozen=True)
class OpCase:
    """One call of one op.

    Attributes:
        op: name in the registry.
        id: unique within the op.
        make: (dtype, generator) -> the op's arguments by name, activations in `dtype`.
        dtypes: in which the case runs.
        must_run: backends that may not refuse the case.
        interpreted: also run in Triton's interpreter, where a case takes seconds.
        terms: length of the sums behind one output, accumulated in float32.
        bench: also timed.
        flops: of one call, 2 per multiply-add.
        bytes_moved: (element size) -> least bytes read and written by one call.
        rival: (arguments) -> (name, call): the same work done in another way, timed beside.
    """

    op: str
    id: str
    make: Callable[[torch.dtype, torch.Generator], dict[str, Any]]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    must_run: frozenset[str] = frozenset({"cpu"})
    interpreted: bool = True
    terms: int = 0
    bench: bool = False
    flops: int = 0
    bytes_moved: Callable[[int], int] | None = None
    rival: Callable[[dict[str, Any]], tuple[str, Callable[[], object]]] | None = None

    @property
    def spec(self) -> OpSpec:
        return specs()[self.op]

    def arguments(self, dtype: torch.dtype) -> dict[str, Any]:
        """All arguments of the op, defaults included; the same values at every call."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.op}/{self.id}".encode()))
        return bind_arguments(self.spec, (), self.make(dtype, generator))


@dataclass(frozen=True)
class Verdict:
    """What `judge` found.

    Attributes:
        error: largest deviation from the float64 reference.
        reference_error: the same of the reference in the working dtype.
        bound: largest `error` that passes.
        complaint: None if the implementation passes, else what is wrong.
    """

    error: float
    reference_error: float
    bound: float
    complaint: str | None


def device_of(backend: str) -> torch.device:
    """Where cases run on `backend`: on the GPU if there is one and the backend is for GPUs."""
    return torch.device("cuda" if backend in ("triton", "cuda") and torch.cuda.is_available() else "cpu")


def _poison(dtype: torch.dtype) -> float | int:
    """What memory holds that a kernel must not touch: NaN, of integers the least value (255 of uint8)."""
    if dtype.is_floating_point:
        return float("nan")
    return torch.iinfo(dtype).min or torch.iinfo(dtype).max


def island(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """A copy of `tensor` with its strides, in the middle of a buffer of poison."""
    device = tensor.device if device is None else device
    if tensor.numel() == 0:
        return tensor.to(device)
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    buffer = torch.full((span + 2 * MARGIN,), _poison(tensor.dtype), dtype=tensor.dtype, device=device)
    result = buffer.as_strided(tensor.shape, tensor.stride(), MARGIN)
    return result.copy_(tensor)


def channel_slice(tensor: Tensor) -> Tensor:
    """`tensor` as channels of a wider channels_last tensor that is poison elsewhere."""
    n, c, h, w = tensor.shape
    wide = torch.full((n, 5 + c + 3, h, w), _poison(tensor.dtype), dtype=tensor.dtype)
    part = wide.to(memory_format=torch.channels_last)[:, 5:-3]
    return part.copy_(tensor)


def overrun(tensor: Tensor) -> bool:
    """Whether memory around an island, or between its elements, no longer holds poison."""
    storage = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
    outside = torch.ones(storage.numel(), dtype=torch.bool, device=tensor.device)
    outside.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(False)
    poison = _poison(tensor.dtype)
    untouched = storage[outside].isnan() if poison != poison else storage[outside] == poison
    return not bool(untouched.all())


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Within the block `torch.empty` is filled with NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def _outputs(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _cast(value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    return convert(value) if isinstance(value, Tensor) else value


def islanded(case: OpCase, backend: str, dtype: torch.dtype) -> dict[str, Any]:
    """The case's arguments, each tensor an island on the device of `backend`."""
    device = device_of(backend)
    return {name: _cast(value, lambda t: island(t, device)) for name, value in case.arguments(dtype).items()}


def _ulp(value: float, dtype: torch.dtype) -> float:
    limits = torch.finfo(dtype)
    return max(value * limits.eps, limits.tiny)


@lru_cache(maxsize=1)  # of large cases it takes longer than the kernel; who checks a case twice does so in a row
def _references(case: OpCase, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What the reference returns on the CPU, in `dtype` and in float64. Not to be written to."""
    arguments = case.arguments(dtype)
    exact_arguments = {
        name: _cast(value, lambda t: t.double() if t.is_floating_point() else t) for name, value in arguments.items()
    }
    with torch.no_grad():
        return _outputs(case.spec.reference(**arguments)), _outputs(case.spec.reference(**exact_arguments))


def run_eager(case: OpCase, backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The op's public path on `backend`: islanded inputs, poisoned allocations."""
    impl = next(impl for impl in case.spec.impls if impl.backend == backend)
    arguments = islanded(case, backend, dtype)
    with torch.no_grad(), poisoned_allocations():
        return _outputs(resolve(impl.target)(**arguments))


def run_planned(case: OpCase, backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The bound op, constants packed, written into poisoned islands; AssertionError if it writes beside them."""
    arguments = islanded(case, backend, dtype)
    with torch.no_grad(), use_backend(backend):
        on_cpu = device_of(backend).type == "cpu"
        like = _references(case, dtype)[0] if on_cpu else _outputs(case.spec.reference(**arguments))
        out = tuple(island(torch.full_like(t, _poison(t.dtype))) for t in like)
        bound = bind(case.spec, **arguments)
        free = {name: value for name, value in arguments.items() if name not in case.spec.constants}
        bound.run(**free, out=out if len(out) > 1 else out[0])
    if any(tensor.numel() and overrun(tensor) for tensor in out):
        raise AssertionError(f"{case.op}/{case.id} on {backend} wrote past its output")
    return out


def judge(case: OpCase, outputs: tuple[Tensor, ...], dtype: torch.dtype) -> Verdict:
    """Compares what an implementation returned with the reference.

    Integer outputs and ops with ``exact=True`` must be equal. Others may err by twice what the reference errs by in
    `dtype`, plus two units in the last place of the largest value; both against the reference in float64. A sum of
    `terms` products may err by sqrt(terms) float32 units more (how rounding errors of a running sum grow, Higham and
    Mary 2019): torch adds in blocks and errs less than a pinned order can.
    """
    working, wide = _references(case, dtype)
    if len(outputs) != len(working):
        return Verdict(0.0, 0.0, 0.0, f"{len(outputs)} results instead of {len(working)}")
    worst = Verdict(0.0, 0.0, 0.0, None)
    for index, (got, reference, truth) in enumerate(zip(outputs, working, wide, strict=True)):
        verdict = _judge_one(got.cpu(), reference, truth, case)
        if verdict.complaint is not None:
            return replace(verdict, complaint=f"result {index}: {verdict.complaint}")
        worst = max(worst, verdict, key=lambda v: v.error)
    return worst


def _judge_one(got: Tensor, reference: Tensor, truth: Tensor, case: OpCase) -> Verdict:
    if got.shape != reference.shape or got.dtype != reference.dtype:
        complaint = f"{list(got.shape)} {got.dtype} instead of {list(reference.shape)} {reference.dtype}"
        return Verdict(0.0, 0.0, 0.0, complaint)
    if case.spec.exact or not reference.is_floating_point():
        wrong = int((got != reference).sum())
        return Verdict(float(wrong), 0.0, 0.0, f"{wrong} of {got.numel()} values differ" if wrong else None)
    if got.numel() == 0:
        return Verdict(0.0, 0.0, 0.0, None)
    error = float((got.double() - truth).abs().max())
    reference_error = float((reference.double() - truth).abs().max())
    largest = float(truth.abs().max())
    bound = 2 * reference_error + 2 * _ulp(largest, got.dtype) + case.terms**0.5 * _ulp(largest, torch.float32)
    complaint = None
    if not error <= bound:  # NaN compares false
        complaint = f"error {error:.3g} exceeds {bound:.3g} (the reference errs by {reference_error:.3g})"
    return Verdict(error, reference_error, bound, complaint)
