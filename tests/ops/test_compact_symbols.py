"""By hand, and there and back."""

from __future__ import annotations

import pytest
import torch

from sparsecodec.errors import NoBackendError, UsageError
from sparsecodec.ops import bind, compact_symbols, expand_symbols, use_backend
from sparsecodec.ops.compact_symbols import COMPACT_SYMBOLS
from sparsecodec.ops.expand_symbols import EXPAND_SYMBOLS

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


@BACKENDS
def test_by_hand(backend):
    indexes = torch.tensor([[7, -1, 0], [-1, -1, 255]], dtype=torch.int16)
    symbols = torch.tensor([[10, 11, 12], [13, 14, -15]], dtype=torch.int32)
    with use_backend(backend):
        packed, packed_symbols, count = compact_symbols(indexes, symbols)
        alone = compact_symbols(indexes)
        expanded = expand_symbols(torch.tensor([1, -2, 3], dtype=torch.int32), indexes)
        cut = expand_symbols(torch.tensor([1, -2], dtype=torch.int32), indexes)
    assert packed.tolist() == alone[0].tolist() == [7, 0, 255, -1, -1, -1]
    assert packed_symbols.tolist() == [10, 12, -15, 0, 0, 0] and alone[1].shape == (0,)
    assert count.tolist() == alone[2].tolist() == [3]
    assert expanded.tolist() == [[1, 0, -2], [0, 0, 3]]
    assert cut.tolist() == [[1, 0, -2], [0, 0, 0]]


@BACKENDS
@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
def test_expanding_undoes_compacting(backend, kept):
    generator = torch.Generator().manual_seed(1)
    shape = (2, 12, 5, 7)
    skipped = torch.rand(shape, generator=generator) >= kept
    indexes = torch.randint(0, 256, shape, generator=generator, dtype=torch.int16).masked_fill(skipped, -1)
    symbols = torch.randint(-99, 99, shape, generator=generator).int().masked_fill(skipped, 0)
    with use_backend(backend):
        packed, packed_symbols, count = compact_symbols(indexes, symbols)
        assert torch.equal(expand_symbols(packed_symbols[: int(count)], indexes), symbols)
        assert torch.equal(expand_symbols(packed[: int(count)].int() + 1, indexes), indexes.int() + 1)


def test_bound_ops_write_where_they_are_told():
    indexes = torch.tensor([3, -1, 4], dtype=torch.int16)
    symbols = torch.tensor([1, 2, 3], dtype=torch.int32)
    out = (torch.empty(3, dtype=torch.int16), torch.empty(3, dtype=torch.int32), torch.empty(1, dtype=torch.int32))
    with use_backend("cpu"):
        run = bind(COMPACT_SYMBOLS, indexes, symbols).run
        assert [tensor.data_ptr() for tensor in run(indexes, symbols, out=out)] == [t.data_ptr() for t in out]
        assert [tensor.tolist() for tensor in out] == [[3, 4, -1], [1, 3, 0], [2]]
        latent = torch.empty(1, 3, dtype=torch.int32)
        assert bind(EXPAND_SYMBOLS, symbols, indexes).run(out[1], indexes.view(1, 3), out=latent) is latent
        assert latent.tolist() == [[1, 0, 3]]
        with pytest.raises(UsageError, match="out: 2 elements"):
            bind(EXPAND_SYMBOLS, symbols, indexes).run(symbols, indexes, out=latent[0, :2])
        with pytest.raises(UsageError, match=r"out\[0\]: dtype torch.int32"):
            run(indexes, symbols, out=(out[1], out[1], out[2]))


def test_refuses_what_does_not_fit():
    indexes = torch.zeros(4, 6, dtype=torch.int16)
    symbols = torch.zeros(4, 6, dtype=torch.int32)
    with use_backend("cpu"):
        with pytest.raises(NoBackendError, match="indexes.dtype=int32 .*needs int16.*indexes.stride=.*contiguous"):
            compact_symbols(symbols.t())
        with pytest.raises(NoBackendError, match=r"symbols.shape=\[4, 5\] .*needs \[4, 6\]"):
            compact_symbols(indexes, symbols[:, :5].contiguous())
        with pytest.raises(NoBackendError, match="symbols.dtype=int64"):
            expand_symbols(symbols.long(), indexes)
    with use_backend("cuda"), pytest.raises(NoBackendError, match="cuda: "):
        compact_symbols(indexes, symbols)
    with use_backend("reference"):
        with pytest.raises(UsageError, match="needs torch.int16"):
            compact_symbols(symbols)
        with pytest.raises(UsageError, match="as indexes"):
            compact_symbols(indexes, symbols.view(-1))
        with pytest.raises(UsageError, match="torch.int64"):
            expand_symbols(symbols.long(), indexes)
