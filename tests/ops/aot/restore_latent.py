"""Launches of `restore_latent`."""

from __future__ import annotations

import torch

from sparsecodec._triton import restore_latent

WITHOUT_PRODUCTS = {"_restore_latent_fwd_kernel"}


def _launch(part: str, groups: int, channels: int, names: tuple[str, ...]) -> None:
    latents = {name: torch.empty(1, channels, 32, 48).to(memory_format=torch.channels_last) for name in names}
    if "gain" in latents:
        latents["gain"] = torch.empty(channels)
    symbols = torch.empty((1, channels // groups, 32, 48), dtype=torch.int32)
    restore_latent.restore_latent(symbols, **latents, part=part)


def launches(quick):
    everything = ("means", "base", "step", "gain")
    variants = (("odd", 2, 192, everything), ("quarter1", 4, 100, everything), ("even", 2, 192, ("means",)))
    for part, groups, channels, names in variants[:1] if quick else variants:
        name = f"float32 {channels} channels {part} {' '.join(names)}"
        yield restore_latent, name, lambda p=part, g=groups, c=channels, n=names: _launch(p, g, c, n)
