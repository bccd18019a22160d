"""What the executor needs of CUDA: graphs, pinned memory, one stream, one way to wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_capturing = threading.Lock()  # to begin one capture torch waits for the whole device, which another would not survive


class CudaGraphs:
    """Captures and replays on a stream of its own, so that codecs and threads of one process do not meet.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._outside = self._stream

    @contextmanager
    def session(self) -> Iterator[None]:
        """Work inside follows the caller's stream, and the caller's stream follows it. The host waits for neither."""
        self._outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(self._outside)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            self._outside.wait_stream(self._stream)

    def new_pool(self) -> object:
        """Memory for the graphs of one capture; they must be replayed in the order in which they were captured."""
        return torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], T], pool: object) -> tuple[T, Callable[[], None]]:
        """Records what `work` launches, without running it: its result, and what launches all of it again."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may allocate and copy meanwhile
        with _capturing, torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        return result, graph.replay

    def give_back(self) -> None:
        """Returns unused memory to the device: that of dropped graphs can be had for nothing else before."""
        with _capturing:
            torch.cuda.empty_cache()

    def pinned(self, like: Tensor) -> Tensor:
        """Page-locked host memory for a tensor of that shape and dtype, contiguous."""
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def mark(self) -> torch.cuda.Event:
        """This point of the work, within a session: behind everything launched so far."""
        event = torch.cuda.Event()
        event.record()
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        """Blocks the host until everything in front of `mark` is done."""
        mark.synchronize()

    def handed_over(self, tensor: Tensor) -> Tensor:
        """A copy for the caller, whose stream will use it; within a session."""
        copy = tensor.clone()
        copy.record_stream(self._outside)
        return copy
