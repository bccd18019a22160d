"""Launches of `quantize_latent`."""

from __future__ import annotations

import torch

from sparsecodec._triton import quantize_latent

WITHOUT_PRODUCTS = {"_quantize_latent_fwd_kernel"}


def _latent(channels: int) -> torch.Tensor:
    return torch.empty(1, channels, 32, 48).to(memory_format=torch.channels_last)


def _launch(part: str, channels: int, count: int) -> None:
    quantize_latent.quantize_latent(*(_latent(channels) for _ in range(count)), part=part)


def launches(quick):
    variants = (("even", 192, 3), ("quarter1", 100, 3), ("all", 192, 2), ("all", 192, 1))
    for part, channels, count in variants[:1] if quick else variants:
        name = f"float32 {channels} channels {part} {('y', 'y means', 'y means step')[count - 1]}"
        yield quantize_latent, name, lambda p=part, c=channels, n=count: _launch(p, c, n)
