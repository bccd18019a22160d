"""Launches of `entropy_parameters`."""

from __future__ import annotations

import torch

from sparsecodec._triton import entropy_parameters

WITHOUT_PRODUCTS = {"_entropy_parameters_fwd_kernel"}


def _launch(part: str, thresholds: int) -> None:
    scales = torch.empty(1, 192, 32, 48).to(memory_format=torch.channels_last)
    entropy_parameters.entropy_parameters(scales, torch.empty(thresholds), part)


def launches(quick):
    for part, thresholds in (("all", 63),) if quick else (("all", 63), ("even", 255), ("quarter0", 255)):
        name = f"float32 {part} {thresholds} thresholds"
        yield entropy_parameters, name, lambda p=part, t=thresholds: _launch(p, t)
