"""Launches of `integer_gate`."""

from __future__ import annotations

import torch

from sparsecodec._triton import integer_gate

WITHOUT_PRODUCTS = {"_integer_gate_fwd_kernel"}


def _launch(channels: int, chunks: int) -> None:
    x = torch.empty((1, channels * chunks, 32, 48), dtype=torch.int16).to(memory_format=torch.channels_last)
    integer_gate.integer_gate(x, torch.empty(2**16, dtype=torch.int16), chunks)


def launches(quick):
    for channels, chunks in ((64, 2),) if quick else ((64, 2), (64, 1), (37, 2)):
        yield integer_gate, f"int16 {channels} channels, {chunks} chunks", lambda c=channels, k=chunks: _launch(c, k)
