"""Several processes, one run: each computes on its part of every batch, and all take the same step.

Gradients are averaged by hand rather than by `DistributedDataParallel`, because methods put masked or quantised weights
in the place of parameters during a forward.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparsecodec.errors import UsageError


def start(device: str) -> torch.device:
    """Joins the group that ``torchrun`` describes in the environment, if it does, and gives this process' device.

    Raises:
        UsageError: torch does not know `device`, or nothing can be computed on it here.
    """
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"--device {device} is unknown to torch") from error
    if chosen.type == "meta":
        raise UsageError("--device meta holds no values (needs cpu or cuda)")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            _try(chosen)
            torch.cuda.set_device(chosen)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    _try(chosen)
    return chosen


def _try(device: torch.device) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        raise UsageError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from error


def rank() -> int:
    """Of this process, 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average(tensors: Iterable[Tensor]) -> None:
    """Replaces every tensor by its mean over the processes, in place, on whatever device each is.

    All processes must have them in the same order.
    """
    tensors = list(tensors)
    if world() == 1 or not tensors:
        return
    # Masks live on the CPU, weights may not.
    flat = torch.cat([tensor.detach().flatten().float().to(_device()) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world()
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the processes, in place; a process without it counts with zeros.

    Which parameters a step uses may differ between processes: DCVC-RT forgets its feature at random frames. One that
    no process used stays without gradient, as it would in a single process.
    """
    parameters = list(parameters)
    if world() == 1:
        return
    share = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    average([share])
    used = [parameter for parameter, part in zip(parameters, share.tolist(), strict=True) if part > 0]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    average(parameter.grad for parameter in used)


def gathered(data: bytes) -> list[bytes]:
    """`data` of every process, by rank; the same list in all of them.

    Args:
        data: at least one byte, and as many in every process.
    """
    if world() == 1:
        return [data]
    own = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(_device())
    found = [torch.empty_like(own) for _ in range(world())]
    dist.all_gather(found, own)
    return [part.cpu().numpy().tobytes() for part in found]


def _device() -> torch.device:
    """Where tensors that processes exchange must be."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def wait() -> None:
    """Until every process is here: after the first one has written a file that all read."""
    if dist.is_initialized():
        dist.barrier()
