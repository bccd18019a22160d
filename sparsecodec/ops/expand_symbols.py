"""Decoded symbols back to their places in the latent: the inverse of `compact_symbols`."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._kept import rejects_flat
from sparsecodec.ops._registry import Impl, OpSpec, call, register


def expand_symbols_reference(symbols: Tensor, indexes: Tensor) -> Tensor:
    """`expand_symbols` in plain torch, without a host synchronisation."""
    if symbols.dtype != torch.int32 or indexes.dtype != torch.int16:
        raise UsageError(f"symbols: {symbols.dtype}, indexes: {indexes.dtype} (needs torch.int32, torch.int16)")
    kept = indexes.flatten() >= 0
    zero = symbols.new_zeros(1)
    rank = kept.cumsum(0) - 1
    source = torch.where(kept, rank, symbols.numel()).clamp(max=symbols.numel())
    return torch.cat([symbols.flatten(), zero])[source].view(indexes.shape)


def _rejects(device: str, symbols: Tensor, indexes: Tensor) -> list[str]:
    return rejects_flat(device, symbols=(symbols, torch.int32), indexes=(indexes, torch.int16))


def _cpu_rejects(symbols: Tensor, indexes: Tensor) -> list[str]:
    return _rejects("cpu", symbols, indexes)


def _cuda_rejects(symbols: Tensor, indexes: Tensor) -> list[str]:
    return _rejects("cuda", symbols, indexes)


EXPAND_SYMBOLS = register(
    OpSpec(
        name="expand_symbols",
        schema="(Tensor symbols, Tensor indexes) -> Tensor",
        reference=expand_symbols_reference,
        impls=(
            Impl(
                "cuda",
                "sparsecodec._cuda:expand_symbols",
                rejects=_cuda_rejects,
                plan="sparsecodec._cuda:expand_symbols_plan",
            ),
            Impl(
                "cpu",
                "sparsecodec._C:expand_symbols",
                rejects=_cpu_rejects,
                plan="sparsecodec._C:expand_symbols_plan",
            ),
        ),
        exact=True,
    )
)


def expand_symbols(symbols: Tensor, indexes: Tensor) -> Tensor:
    """Each kept position's symbol, 0 at the skipped ones.

    The r-th position in flat order whose index is not negative gets ``symbols[r]``. Kept positions beyond the last
    symbol get 0 as well, symbols beyond the last kept position are ignored: how many are kept is known on the device
    only, and a check would cost a synchronisation. The bound op's ``out`` must not overlap the inputs.

    Args:
        symbols: ``[M]`` int32 contiguous. Kept symbols in flat order.
        indexes: ``[...]`` int16 contiguous, fewer than 2^31 elements. As given to `compact_symbols`.

    Returns:
        Shape of `indexes`, int32 contiguous.

    Exactness: exact.
    """
    return call(EXPAND_SYMBOLS, symbols, indexes)
