"""Launches of `integer_gdn`."""

from __future__ import annotations

from itertools import product

import torch

from sparsecodec._triton import integer_gdn

WITHOUT_PRODUCTS = {"_integer_gdn_fwd_kernel"}


def _launch(channels: int, inverse: bool, bits: int) -> None:
    x = torch.empty((1, channels, 32, 48), dtype=torch.int16).to(memory_format=torch.channels_last)
    beta, gamma = torch.ones(channels, dtype=torch.int64), torch.ones((channels, channels), dtype=torch.int32)
    integer_gdn.integer_gdn(x, beta, gamma, torch.ones(channels, dtype=torch.int32), inverse, bits)


def launches(quick):
    variants = [(64, True, 16)] if quick else list(product((64, 37), (True, False), (16, 32)))
    for channels, inverse, bits in variants:
        config = f"int16 {channels} channels, {'times' if inverse else 'divided by'} the root, {bits} bits"
        yield integer_gdn, config, lambda v=(channels, inverse, bits): _launch(*v)
