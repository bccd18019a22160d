"""What is in the stream of what is in the latent: symbols and table indexes without the skipped positions."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._kept import rejects_flat
from sparsecodec.ops._registry import Impl, OpSpec, call, register

SKIPPED = -1  # table index of a position whose symbol is not in the stream


def compact_symbols_reference(indexes: Tensor, symbols: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """`compact_symbols` in plain torch, without a host synchronisation."""
    if indexes.dtype != torch.int16:
        raise UsageError(f"indexes: {indexes.dtype} (needs torch.int16)")
    if symbols is not None and (symbols.shape != indexes.shape or symbols.dtype != torch.int32):
        raise UsageError(
            f"symbols: {list(symbols.shape)} {symbols.dtype} (needs {list(indexes.shape)} torch.int32, as indexes)"
        )
    flat = indexes.flatten()
    kept = flat >= 0
    upto = kept.cumsum(0)
    position = torch.arange(flat.numel(), device=flat.device)
    # The r-th kept one goes to place r, the r-th skipped one to the r-th place from the end.
    place = torch.where(kept, upto - 1, flat.numel() - 1 - (position - upto))

    def pack(values: Tensor, beyond: int) -> Tensor:
        return torch.empty_like(values).scatter_(0, place, values.masked_fill(~kept, beyond))

    packed_symbols = flat.new_empty(0, dtype=torch.int32) if symbols is None else pack(symbols.flatten(), 0)
    return pack(flat, SKIPPED), packed_symbols, kept.sum(dtype=torch.int32).reshape(1)


def _rejects(device: str, indexes: Tensor, symbols: Tensor | None) -> list[str]:
    reasons = rejects_flat(device, indexes=(indexes, torch.int16), symbols=(symbols, torch.int32))
    if symbols is not None and symbols.shape != indexes.shape:
        reasons.append(f"symbols.shape={list(symbols.shape)} (needs {list(indexes.shape)}, as indexes)")
    return reasons


def _cpu_rejects(indexes: Tensor, symbols: Tensor | None) -> list[str]:
    return _rejects("cpu", indexes, symbols)


def _cuda_rejects(indexes: Tensor, symbols: Tensor | None) -> list[str]:
    return _rejects("cuda", indexes, symbols)


COMPACT_SYMBOLS = register(
    OpSpec(
        name="compact_symbols",
        schema="(Tensor indexes, Tensor? symbols=None) -> (Tensor, Tensor, Tensor)",
        reference=compact_symbols_reference,
        impls=(
            Impl(
                "cuda",
                "sparsecodec._cuda:compact_symbols",
                rejects=_cuda_rejects,
                plan="sparsecodec._cuda:compact_symbols_plan",
            ),
            Impl(
                "cpu",
                "sparsecodec._C:compact_symbols",
                rejects=_cpu_rejects,
                plan="sparsecodec._C:compact_symbols_plan",
            ),
        ),
        exact=True,
    )
)


def compact_symbols(indexes: Tensor, symbols: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The kept positions in the order of the stream, at the front of buffers as long as the latent.

    A position is kept if its index is not negative. Nothing is read back to the host: the count stays on the device,
    and the lengths do not depend on it, so the op can be part of a CUDA graph. The bound op's ``out`` is a tuple of the
    three results; it must not overlap the inputs.

    Args:
        indexes: ``[...]`` int16 contiguous, fewer than 2^31 elements. Table index of each position, -1 = skipped.
        symbols: shape of `indexes`, int32 contiguous, or None (a decoder has none yet).

    Returns:
        packed: ``[P]`` int16, P the elements of `indexes`. Indexes of the kept positions in flat order, -1 beyond them.
        packed_symbols: ``[P]`` int32, their symbols, 0 beyond them; ``[0]`` without `symbols`.
        count: ``[1]`` int32. How many are kept.

    Exactness: exact.
    """
    return call(COMPACT_SYMBOLS, indexes, symbols)
