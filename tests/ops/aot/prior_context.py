"""Launches of `prior_context`."""

from __future__ import annotations

import torch

from sparsecodec._triton import prior_context

WITHOUT_PRODUCTS = {"_prior_context_fwd_kernel"}


def _launch(part: str, groups: int, channels: int, exponent: int) -> None:
    parameters = torch.empty(1, 3 * channels, 32, 48, dtype=torch.int32).to(memory_format=torch.channels_last)
    symbols = torch.empty((1, channels // groups, 32, 48), dtype=torch.int32)
    prior_context.prior_context(symbols, *parameters.chunk(3, 1), exponent, part)


def launches(quick):
    variants = (("even", 2, 192, -10), ("even", 2, 192, -20), ("quarter1", 4, 100, -10))
    for part, groups, channels, exponent in variants[:1] if quick else variants:
        name = f"int32 {channels} channels {part}, unit 2^{exponent}"
        yield prior_context, name, lambda p=part, g=groups, c=channels, e=exponent: _launch(p, g, c, e)
