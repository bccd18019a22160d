"""Launches of `integer_scale`."""

from __future__ import annotations

from itertools import product

import torch

from sparsecodec._triton import integer_scale

WITHOUT_PRODUCTS = {"_integer_scale_fwd_kernel"}
DTYPES = (torch.int16, torch.int32)


def _launch(channels: int, dtype: torch.dtype, residual: torch.dtype | None, bits: int) -> None:
    def image(dtype):
        return torch.empty((1, channels, 32, 48), dtype=dtype).to(memory_format=torch.channels_last)

    multiplier, shift = (torch.ones(size, dtype=torch.int32) for size in ((2, channels), (channels,)))
    added = None if residual is None else image(residual)
    integer_scale.integer_scale(image(dtype), multiplier, shift, added, bits=bits)


def _named(dtype: torch.dtype | None) -> str:
    return "no" if dtype is None else str(dtype).removeprefix("torch.")


def launches(quick):
    variants = list(product((64, 37), DTYPES, (None, *DTYPES), (16, 32)))
    for channels, dtype, residual, bits in [(64, torch.int32, torch.int32, 16)] if quick else variants:
        config = f"{_named(dtype)} {channels} channels, {_named(residual)} residual, {bits} bits"
        yield integer_scale, config, lambda v=(channels, dtype, residual, bits): _launch(*v)
