"""Runs routines: eagerly on a CPU, as captured graphs with host coding in between on a GPU."""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecodec.nn.routine import Coding, Host, Known, Routine, eagerly
from sparsecodec.runtime.graphs import CudaGraphs
from sparsecodec.runtime.planning import holding
from sparsecodec.runtime.turns import Turns

MAX_CAPTURES = 8  # combinations of routine and shapes; the least recently used goes first


@dataclass
class _Stretch:
    """Device work up to the next coding call, or to the end.

    Attributes:
        replay: launches it.
        request: the call, its tensors in pinned memory, which the stretch fills; None at the end.
        answer: pinned memory for decoded symbols, which the next stretch reads; None when encoding.
        done: behind its last launch.
    """

    replay: Callable[[], None]
    request: Coding | Known | None
    answer: Tensor | None
    done: Any = None


@dataclass
class _Captured:
    """A routine for one set of shapes.

    Attributes:
        inputs, result: at the addresses that the graphs know.
        held: what else the graphs read and write, so that it lives as long as they do.
        turns: of the transforms in them, whose buffers calls outside of graphs may use as well.
    """

    inputs: list[Any]
    stretches: list[_Stretch]
    result: Any
    held: list[Any]
    turns: set[Turns]


class Executor:
    """Runs the routines of one codec; not to be used by two threads at once.

    A routine's first run with new shapes is eager: kernels are chosen, tuned and given their buffers. It is then
    captured, one graph for each stretch between two coding calls, and later runs replay those: tensors among the inputs
    are data (another rate needs no other graph), everything else is part of the key. The host waits for the device
    before it decodes with what the device computed, and only then: for a `Known` it does not, and what is to be encoded
    it fetches while the stretches behind it run.

    Args:
        device: of the tensors.
        graphs: what captures; None: everything runs eagerly, as it always does on a CPU.
    """

    def __init__(self, device: torch.device, graphs: CudaGraphs | None = None) -> None:
        self._device = device
        self._graphs = graphs
        self._captured: OrderedDict[tuple, _Captured | None] = OrderedDict()
        self.refusals: list[str] = []  # routines that run eagerly although there are graphs, and why

    def run(self, routine: Callable[..., Routine], *inputs: Any, host: Host) -> Any:
        """Runs ``routine(*inputs)``, answering its requests by `host`.

        Args:
            routine: a generator function or bound method; equal ones share their graphs.
            inputs: tensors are moved to the device; other values must be hashable.
            host: gets requests on the host; decoded symbols may be written into its second argument.

        Returns:
            What the routine returns, a tensor or a tuple of tensors; new memory.
        """
        if self._graphs is None:
            return self._eager(routine, inputs, host)
        key = (routine, *map(_key, inputs))
        with self._graphs.session():
            if key in self._captured:
                self._captured.move_to_end(key)
                captured = self._captured[key]
                result = self._replay(captured, inputs, host) if captured else self._eager(routine, inputs, host)
            else:
                # On the tensors that the graphs will read: with other strides a kernel might have to be compiled in
                # the middle of a capture.
                witness, static = _Witness(host), [_clone(self._on_device(value)) for value in inputs]
                result = self._eager(routine, tuple(static), witness)
                self._captured[key] = self._capture(routine, static, witness.calls)
                if len(self._captured) > MAX_CAPTURES:
                    self._captured.popitem(last=False)
            return _map(self._graphs.handed_over, result)

    @property
    def captures(self) -> int:
        """How many graphs are held."""
        return sum(len(captured.stretches) for captured in list(self._captured.values()) if captured)

    def forget(self) -> None:
        """Drops all captures: what routines read beside their inputs has changed."""
        self._captured.clear()

    @property
    def holds(self) -> bool:
        """Whether there is something to release."""
        return bool(self._captured)

    def release(self) -> None:
        """Drops all captures, and gives back what memory of the device is unused."""
        self.forget()
        if self._graphs is not None:
            self._graphs.give_back()

    def _on_device(self, value: Any) -> Any:
        return value.to(self._device) if isinstance(value, Tensor) else value

    def _eager(self, routine: Callable[..., Routine], inputs: tuple, host: Host) -> Any:
        return eagerly(routine, *map(self._on_device, inputs), host=host)

    def _capture(
        self, routine: Callable[..., Routine], static: list[Any], calls: list[tuple[Coding | Known, Tensor | None]]
    ) -> _Captured | None:
        """`calls`: the requests and answers of the same routine in an eager run on `static`, for their sizes."""
        graphs = self._graphs
        requests = [_map_request(graphs.pinned, request) for request, _ in calls]
        answers = [None if answer is None else graphs.pinned(answer) for _, answer in calls]
        on_device = [None if answer is None else torch.empty_like(answer, device=self._device) for answer in answers]
        running, pool = routine(*static), graphs.new_pool()
        stretches: list[_Stretch] = []

        def advance(index: int) -> tuple[bool, Any]:
            answer = None
            if index and answers[index - 1] is not None:
                answer = on_device[index - 1].copy_(answers[index - 1], non_blocking=True)
            try:
                request = running.send(answer)
            except StopIteration as stop:
                return True, stop.value
            if isinstance(request, Coding):
                requests[index].indexes.copy_(request.indexes, non_blocking=True)
                if request.symbols is not None:
                    requests[index].symbols.copy_(request.symbols, non_blocking=True)
            return False, None

        try:
            with holding() as held:
                for index in range(len(calls) + 1):
                    (done, value), replay = graphs.capture(lambda index=index: advance(index), pool)
                    last = index == len(calls)
                    if done != last:
                        raise RuntimeError(f"the routine made {index} coding calls, {len(calls)} in its first run")
                    stretches.append(_Stretch(replay, *((None, None) if last else (requests[index], answers[index]))))
        except RuntimeError as error:  # an operation that cannot be captured, or no memory for the graphs
            refusal = f"{routine.__name__} could not be captured: {_cause(error)}"
            self.refusals += [refusal] if refusal not in self.refusals else []
            return None
        return _Captured(static, stretches, value, [*held, *on_device], {plan.turns for plan in held})

    def _replay(self, captured: _Captured, inputs: tuple, host: Host) -> Any:
        for turns in captured.turns:
            turns.take(self._device)
        with torch.inference_mode():  # made in it, perhaps: then they may be written to only in it
            for static, value in zip(captured.inputs, inputs, strict=True):
                if isinstance(value, Tensor):
                    static.copy_(value, non_blocking=True)
        graphs, unsent = self._graphs, []  # what is to be encoded, and still on its way to the host

        def send() -> None:
            for stretch in unsent:
                graphs.wait(stretch.done)
                host(stretch.request, None)
            unsent.clear()

        for stretch, behind in zip(captured.stretches, [*captured.stretches[1:], None], strict=True):
            stretch.replay()
            request, read = stretch.request, behind and behind.done  # by the run before, if it read the same memory
            stretch.done = graphs.mark()
            if request is None:
                break
            if stretch.answer is None:
                unsent.append(stretch)
                continue
            send()
            if not isinstance(request, Known):
                graphs.wait(stretch.done)
            elif read is not None:
                graphs.wait(read)
            answer = host(request, stretch.answer)
            if answer is not stretch.answer:
                stretch.answer.copy_(answer)
        send()
        return captured.result


class _Witness:
    """A host that remembers what it was asked and what it answered."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.calls: list[tuple[Coding | Known, Tensor | None]] = []

    def __call__(self, request: Coding | Known, out: Tensor | None) -> Tensor | None:
        answer = self._host(request, out)
        self.calls.append((request, answer))
        return answer


def _cause(error: RuntimeError) -> str:
    """What went wrong first, and where: ending a capture that failed raises once more, of the capture only."""
    first = before = error
    while (before := before.__context__) is not None:
        first = before if isinstance(before, RuntimeError) else first
    place = traceback.extract_tb(first.__traceback__)[-1]
    return f"{str(first).splitlines()[0]} ({Path(place.filename).name}:{place.lineno})"


def _key(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else value


def _clone(value: Any) -> Any:
    return value.clone(memory_format=torch.preserve_format) if isinstance(value, Tensor) else value


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_map(function, item) for item in value)
    return function(value) if isinstance(value, Tensor) else value


def _map_request(function: Callable[[Tensor], Tensor], request: Coding | Known) -> Coding | Known:
    if isinstance(request, Known):
        return request
    symbols = None if request.symbols is None else function(request.symbols)
    return Coding(request.tables, function(request.indexes), symbols)
