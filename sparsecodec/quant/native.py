"""Convolutions of 8-bit integers on a CPU's own instructions, by oneDNN through torch: the accumulators, exactly."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Convolution = Callable[[Tensor], Tensor]


def accumulate(conv: nn.Conv2d, weight: Tensor, low: int) -> Convolution:
    """A function from a layer's input integers to its accumulators without the bias.

    Scales of 1 and no bias leave nothing to round: oneDNN's float32 result is the int32 accumulator.

    Args:
        conv: for stride, padding, dilation and groups.
        weight: ``[C_out, C_in / groups, Kh, Kw]`` int8, on the CPU.
        low: of the input's range, -255 to 0.

    Returns:
        ``[N, C_in, H, W]`` float32 integers in ``[low, low + 255]`` -> ``[N, C_out, H', W']`` float32 integers.
    """
    geometry = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
    ones, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int32)
    packed = torch.ops.onednn.qconv_prepack(weight, ones, 1.0, -low, *geometry)

    def run(q: Tensor) -> Tensor:
        q = (q - low).to(torch.uint8).contiguous(memory_format=torch.channels_last)
        output = (1.0, 0, torch.float32, "none", [], "")
        return torch.ops.onednn.qconv2d_pointwise(q, 1.0, -low, packed, ones, zeros, None, *geometry, *output)

    return run


@functools.cache
def why_unavailable() -> str | None:
    """Why this machine or build cannot compute `accumulate`; None if it can.

    Processors without VNNI add pairs of products in 16 bits, which saturate: one layer of extremes tells.
    """
    if not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        return "this torch has no onednn.qconv2d_pointwise"
    conv = nn.Conv2d(64, 16, 3, padding=1, bias=False)
    weight = torch.full(conv.weight.shape, 127, dtype=torch.int8)
    weight[8:] = -127
    q = torch.full((1, 64, 8, 8), 200.0, dtype=torch.float32)
    with torch.no_grad():
        try:
            found = accumulate(conv, weight, -55)(q)
        except (RuntimeError, NotImplementedError) as error:
            return f"onednn.qconv2d_pointwise: {str(error).splitlines()[0]}"
        expected = F.conv2d(q.double(), weight.double(), padding=1)
    return None if torch.equal(found.double(), expected) else "this processor's 8-bit products saturate"
