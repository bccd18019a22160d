"""An activation of integers by a table, and the sum of its channel groups: the gates of portable video codecs."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._epilogue import channels_innermost
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects

ENTRIES = 2**16


def integer_gate_reference(x: Tensor, table: Tensor, chunks: int = 1) -> Tensor:
    """`integer_gate` in plain torch."""
    if table.shape != (ENTRIES,):
        raise UsageError(f"table.shape={list(table.shape)} (needs [{ENTRIES}])")
    if chunks < 1 or x.shape[1] % chunks:
        raise UsageError(f"chunks={chunks} of {x.shape[1]} channels (needs a divisor)")
    values = table[x.int() + ENTRIES // 2].int()
    total = values.unflatten(1, (chunks, x.shape[1] // chunks)).sum(1, dtype=torch.int32)
    return total.clamp_(-(2**15), 2**15 - 1).to(torch.int16, memory_format=torch.channels_last)


def _rejects(x: Tensor, table: Tensor, chunks: int) -> list[str]:
    """What all kernels ask for."""
    reasons = []
    for name, value in (("x", x), ("table", table)):
        if value.dtype != torch.int16:
            reasons.append(f"{name}.dtype={str(value.dtype).removeprefix('torch.')} (needs int16)")
    if x.dim() != 4:
        reasons.append(f"x.shape={list(x.shape)} (needs [N, C, H, W])")
    elif not channels_innermost(x):
        reasons.append(f"x.stride={x.stride()} (needs channels innermost, torch.channels_last)")
    elif chunks < 1 or x.shape[1] % chunks:
        reasons.append(f"chunks={chunks} of {x.shape[1]} channels (needs a divisor)")
    if table.shape != (ENTRIES,) or not table.is_contiguous():
        reasons.append(f"table.shape={list(table.shape)} (needs [{ENTRIES}], contiguous)")
    return reasons


def _cpu_rejects(x: Tensor, table: Tensor, chunks: int) -> list[str]:
    wrong = {name: value.device.type for name, value in (("x", x), ("table", table)) if value.device.type != "cpu"}
    return _rejects(x, table, chunks) + [f"{name}.device={device} (needs cpu)" for name, device in wrong.items()]


def _triton_rejects(x: Tensor, table: Tensor, chunks: int) -> list[str]:
    return _rejects(x, table, chunks) + triton_rejects((torch.int16,), x=x)


INTEGER_GATE = register(
    OpSpec(
        name="integer_gate",
        schema="(Tensor x, Tensor table, int chunks=1) -> Tensor",
        reference=integer_gate_reference,
        impls=(
            Impl("cpu", "sparsecodec._C:integer_gate", rejects=_cpu_rejects, plan="sparsecodec._C:integer_gate_plan"),
            Impl(
                "triton",
                "sparsecodec._triton.integer_gate:integer_gate",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.integer_gate:integer_gate_plan",
            ),
        ),
        constants=("table", "chunks"),
        exact=True,
    )
)


def integer_gate(x: Tensor, table: Tensor, chunks: int = 1) -> Tensor:
    """``out[n,c,h,w] = clip(sum_{k < chunks} table[x[n,c + k C,h,w] + 2^15], -2^15, 2^15 - 1)``.

    A function of one variable is exact this way whatever it is: the table is made once, with integers. The sum of the
    contiguous channel groups is the chunk addition of DCVC-RT's feed-forward layers.

    Args:
        x: ``[N, C * chunks, H, W]`` int16; channels_last for the kernels.
        table: ``[65536]`` int16: the values at -2^15, ..., 2^15 - 1.
        chunks: a divisor of the number of channels.

    Returns:
        ``[N, C, H, W]`` int16, channels_last.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: a table of another size, or chunks that do not divide.

    Exactness: exact.
    Gradients: none.
    """
    return call(INTEGER_GATE, x, table, chunks)
