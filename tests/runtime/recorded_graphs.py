"""CUDA graphs played by a recorder of torch operations, on a device that works only when it is waited for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

# What needs the host while a graph is captured: `torch.tensor`, whose values come from pageable memory, and `item`.
FORBIDDEN = (torch.ops.aten.lift_fresh.default, torch.ops.aten._local_scalar_dense.default)


class Recorder(TorchDispatchMode):
    """Keeps every operation with the tensors it read and wrote; refuses what no CUDA graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in FORBIDDEN:
            raise RuntimeError(f"{function} cannot be captured")
        out = function(*args, **kwargs)
        read = {storage_of(value) for value in tree_leaves((args, kwargs))}
        written = any(
            value.alias_info is not None and value.alias_info.is_write for value in function._schema.arguments
        )
        new = [value for value in tree_leaves(out) if isinstance(value, torch.Tensor) and storage_of(value) not in read]
        if new or written:  # else a view, which changes with its base
            self.calls.append((function, args, kwargs, out))
        return out

    def replay(self) -> None:
        for function, args, kwargs, out in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and storage_of(old) != storage_of(new):
                    old.copy_(new)


def launching(launch: Callable[..., None]) -> Callable[..., None]:
    """What starts a kernel that torch knows nothing of, for recorders to keep as well."""

    def launched(*args) -> None:
        launch(*args)
        recorder = _get_current_dispatch_mode()
        if isinstance(recorder, Recorder):
            recorder.calls.append((launch, args, {}, None))

    return launched


def storage_of(value) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, torch.Tensor) else None


class RecordedGraphs:
    """`CudaGraphs` without CUDA. What is launched runs when the host waits for it, and not before.

    Attributes:
        events: ``"launch"`` and ``"wait"``, in their order; tests may add what else the host does.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.events: list[str] = []
        self._launched: list[Callable[[], None]] = []
        self._done = 0

    @property
    def waits(self) -> int:
        return self.events.count("wait")

    @contextmanager
    def session(self):
        yield
        self._work(len(self._launched))  # the caller's stream follows

    def new_pool(self):
        return None

    def capture(self, work, pool):
        self.recorded += 1
        with Recorder() as recorder:
            result = work()

        def launch() -> None:
            self.events.append("launch")
            self._launched.append(recorder.replay)

        return result, launch

    def give_back(self):
        pass

    def pinned(self, like):
        return torch.empty(like.shape, dtype=like.dtype)

    def mark(self):
        return len(self._launched)

    def wait(self, mark):
        self.events.append("wait")
        self._work(mark)

    def handed_over(self, tensor):
        self._work(len(self._launched))
        return tensor.clone()

    def _work(self, until: int) -> None:
        for launched in self._launched[self._done : until]:
            launched()
        self._done = max(self._done, until)
