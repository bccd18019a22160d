"""Launches of `prior_head`. float32: products of plain FMA."""

from __future__ import annotations

import torch

from sparsecodec._triton import prior_head


def _nhwc(channels: int) -> torch.Tensor:
    return torch.empty(1, channels, 32, 48).to(memory_format=torch.channels_last)


def _launch(k: int, channels: int, **options) -> None:
    weight, bias, thresholds = torch.empty(2 * channels, k), torch.empty(2 * channels), torch.empty(255)
    prior_head.prior_head(_nhwc(k), weight, thresholds, bias, _nhwc(2 * channels), **options)


def launches(quick):
    variants = {
        "even": dict(k=1024, channels=192, part="even", order="by_group", activation="leaky_relu", slope=0.1),
        "quarter0 odd sizes": dict(k=333, channels=100, part="quarter0", activation="sigmoid_gate", skip=0.12),
    }
    for name, options in variants.items():
        if name == "even" or not quick:
            yield prior_head, f"float32 {name}", lambda o=options: _launch(**o)
