"""What the executor needs of CUDA: graphs, pinned memory, one stream, one way to wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
        """Records what `work` launches, without running it: its result, and what launches all of it again.

        Raises:
            RuntimeError: torch's, where `work` does what cannot be captured; the memory is then that of before.
        """
        graph = torch.cuda.CUDAGraph()
        with _capturing, torch.cuda.stream(self._stream):  # a capture that fails does not leave the stream by itself
            try:
                # thread_local: other threads may allocate and copy meanwhile
                with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                    result = work()
            except BaseException:
                _end_allocation(self._stream.device, pool)
                raise
        return result, graph.replay

    def give_back(self) -> None:
        """Returns unused memory to the device: that of dropped graphs can be had for nothing else before."""
        with _capturing:
            torch.cuda.empty_cache()

    def pinned(self, like: Tensor) -> Tensor:
        """Page-locked host memory for a tensor of that shape and dtype, contiguous."""
        return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)

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


def _end_allocation(device: torch.device, pool: object) -> None:
    """Tells torch's allocator that a capture is over, where ending it failed (seen in torch 2.13) before it was told.

    It would take the capture for one underway ever after, and keep all memory that another stream has used. Where it
    knows that the capture is over, it says so by an error. Other versions may lack the calls.
    """
    if hasattr(torch._C, "_cuda_endAllocateToPool"):
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device.index, pool)
            torch._C._cuda_releasePool(device.index, pool)  # which a graph that was recorded does itself
