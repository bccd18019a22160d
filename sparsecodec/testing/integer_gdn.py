"""Cases of `integer_gdn`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from sparsecodec.ops.integer_gdn import NORM_LIMIT, SHIFTS, SQUARE_LIMIT
from sparsecodec.testing.compare import OpCase, channel_slice
from sparsecodec.testing.integer_conv2d import integers, nhwc


def _constants(c: int, limits: str, inverse: bool, generator: Generator) -> dict[str, Tensor]:
    beta = integers((c,), 0, 2**40, torch.int64, generator)
    gamma = integers((c, c), 0, 2**21 // c, torch.int32, generator)
    middle = 24
    shift = integers((c,), middle - 6, middle + 4, torch.int32, generator)
    low, high = SHIFTS[inverse]
    if limits == "largest":  # norms up to the limit, results from none to all bits
        gamma[:] = 0
        gamma[range(c), torch.randint(c, (c,), generator=generator)] = 2**21
        gamma[range(c), range(c)] += 2**21 - 1
        beta[:] = NORM_LIMIT - gamma.long().sum(1) * SQUARE_LIMIT
        shift = integers((c,), low, high, torch.int32, generator)
        shift[:1], shift[-1:] = low, high
    elif limits == "least":  # roots of 0 to 3
        beta, gamma = beta % 4, gamma * 0
        shift = integers((c,), low, low + 3, torch.int32, generator)
    return {"beta": beta, "gamma": gamma, "shift": shift}


def _case(
    id: str, n: int, c: int, h: int, w: int, inverse: bool = False, bits: int = 16, *,
    limits: str = "", extreme: int | None = None, sliced: bool = False, bench: bool = False,
) -> OpCase:  # fmt: skip
    """limits: constants at "largest" or "least"; extreme: all inputs are this or its opposite."""

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        x = integers((n, c, h, w), -(2**15), 2**15 - 1, dtype, generator)
        if extreme is not None:
            x = torch.where(x < 0, extreme, -1 - extreme).to(dtype)
        x = nhwc(x)
        constants = _constants(c, limits, inverse, generator)
        return {"x": channel_slice(x) if sliced else x, **constants, "inverse": inverse, "bits": bits}

    return OpCase(
        "integer_gdn",
        id,
        make,
        dtypes=(torch.int16,),
        must_run=frozenset({"cpu"} if bench else {"cpu", "triton"}),
        bench=bench,
        flops=2 * n * h * w * c * c,
        bytes_moved=lambda size: (size + bits // 8) * n * c * h * w,
    )


CASES = [
    # The CPU takes 64 positions a task, 8 by 16 channels a tile; Triton 32 by 32.
    _case("one-value", 1, 1, 1, 1),
    _case("one-value-inverse", 1, 1, 1, 1, True),
    _case("one-pixel", 1, 33, 1, 1, True),
    _case("task-exact", 1, 16, 8, 8),
    _case("task-and-one", 1, 17, 5, 13, True),
    _case("tiles-exact", 1, 64, 4, 8, True),
    _case("batch-32-bits", 3, 7, 4, 5, False, 32),
    _case("batch-32-bits-inverse", 3, 7, 4, 5, True, 32),
    _case("empty-batch", 0, 8, 4, 4),
    _case("slice", 2, 17, 6, 5, sliced=True),
    _case("slice-inverse", 2, 17, 6, 5, True, sliced=True),
    _case("least", 1, 20, 6, 5, limits="least"),
    _case("least-32-bits", 1, 20, 6, 5, False, 32, limits="least"),
    _case("least-inverse", 1, 20, 6, 5, True, limits="least"),
    _case("largest", 1, 37, 6, 5, False, 32, limits="largest"),
    _case("largest-inverse", 1, 37, 6, 5, True, 32, limits="largest"),
    _case("extremes", 1, 37, 6, 5, False, 32, limits="largest", extreme=-(2**15)),
    _case("extremes-inverse", 1, 37, 6, 5, True, 32, limits="largest", extreme=-(2**15)),
    _case("zeros", 1, 20, 5, 5, limits="least", extreme=0),
    _case("zeros-inverse", 1, 20, 5, 5, True, extreme=0),
    # The last one of DCVC's motion decoder, of its synthesis, and of its temporal prior, of 512x256.
    _case("128-128x256", 1, 128, 128, 256, True, bench=True),
    _case("64-128x256", 1, 64, 128, 256, True, bench=True),
    _case("64-128x256-divided", 1, 64, 128, 256, bench=True),
]
