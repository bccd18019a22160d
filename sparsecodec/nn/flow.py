"""Optical flow and motion compensation of DCVC (2021) and DCVC-HEM, in the arithmetic of the published software.

What a decoder computes from a flow feeds the next entropy model, so the models use these; `sparsecodec.ops.warp` is the
compiled codecs' own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.errors import UsageError

LEVELS = 4
FLOW_WIDTHS = (32, 64, 32, 16)
Warp = Callable[[Tensor, Tensor], Tensor]


def warp_by_grid(x: Tensor, flow: Tensor) -> Tensor:
    """`x` read bilinearly at (column + flow[:, 0], row + flow[:, 1]), positions clamped to the border.

    Args:
        x: ``[N, C, H, W]`` float, H and W at least 2.
        flow: ``[N, 2, H, W]`` float, in pixels; positions are computed in float32 at least, since autocast hands over
            flows of bfloat16, which holds none between 64 and 128 but multiples of one half.

    Returns:
        ``[N, C, H, W]``.

    Exactness: `torch.nn.functional.grid_sample` on a grid of positions in [-1, 1], whose bits the published streams
        rest upon; `sparsecodec.ops.warp` takes pixels and rounds less.
    """
    height, width = x.shape[-2:]
    flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
    columns = torch.linspace(-1.0, 1.0, width, dtype=flow.dtype, device=flow.device).view(1, 1, 1, width)
    rows = torch.linspace(-1.0, 1.0, height, dtype=flow.dtype, device=flow.device).view(1, 1, height, 1)
    across = columns + flow[:, 0:1] / ((width - 1.0) / 2.0)
    down = rows + flow[:, 1:2] / ((height - 1.0) / 2.0)
    grid = torch.cat([across, down], 1).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def double_size(x: Tensor) -> Tensor:
    """``[N, C, H, W] -> [N, C, 2H, 2W]``, bilinear between pixel centres."""
    size = (2 * x.shape[-2], 2 * x.shape[-1])
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def halve_size(x: Tensor) -> Tensor:
    """``[N, C, H, W] -> [N, C, H/2, W/2]``, bilinear between pixel centres."""
    size = (x.shape[-2] // 2, x.shape[-1] // 2)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def estimate_flow(steps: Sequence[Callable[[Tensor], Tensor]], x: Tensor, reference: Tensor, warp: Warp) -> Tensor:
    """Flow from `x` to `reference`, coarse to fine, starting from none.

    Args:
        steps: of each level, the coarsest first: (frame, warped reference, flow) ``[N, 8, H, W]`` -> correction.
        x, reference: ``[N, 3, H, W]``, sides multiples of 2 to the number of levels.
        warp: `warp_by_grid`, or `sparsecodec.ops.warp`.

    Returns:
        ``[N, 2, H, W]`` in pixels: where a pixel of `x` is found in `reference`, relative to its own place.
    """
    pyramid = [(x, reference)]
    for _ in steps[1:]:
        pyramid.append(tuple(F.avg_pool2d(picture, 2, 2) for picture in pyramid[-1]))
    n, _, height, width = pyramid[-1][0].shape
    flow = x.new_zeros(n, 2, height // 2, width // 2)
    for step, (frame, before) in zip(steps, reversed(pyramid), strict=True):
        coarse = double_size(flow) * 2.0
        flow = coarse + step(torch.cat([frame, warp(before, coarse), coarse], 1))
    return flow


class FlowStep(nn.Module):
    """Correction of a flow at one level: five 7x7 convolutions, ``[N, 8, H, W] -> [N, 2, H, W]``."""

    def __init__(self, widths: Sequence[int] = FLOW_WIDTHS) -> None:
        super().__init__()
        channels = (8, *widths, 2)
        for i in range(len(channels) - 1):
            self.add_module(f"conv{i + 1}", nn.Conv2d(channels[i], channels[i + 1], 7, padding=3))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        x = self.relu(self.conv3(x))
        x = self.relu(self.conv4(x))
        return self.conv5(x)


class FlowNetwork(nn.Module):
    """Flow from a frame to its reference, coarse to fine over four levels (SpyNet, arXiv 1611.00850).

    Keys: ``moduleBasic.{0..3}.conv{1..5}``, the coarsest level first.
    """

    def __init__(self, widths: Sequence[int] = FLOW_WIDTHS) -> None:
        super().__init__()
        self.moduleBasic = nn.ModuleList(FlowStep(widths) for _ in range(LEVELS))

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """Two pictures ``[N, 3, H, W]``, sides multiples of 16 -> ``[N, 2, H, W]`` in pixels."""
        return estimate_flow(list(self.moduleBasic), x, reference, warp_by_grid)

    @torch.no_grad()
    def load_arrays(self, folder: str | Path) -> None:
        """Starts from published SpyNet weights, as the DVC codec passes them on.

        Args:
            folder: holds ``modelL{k}_F-{j}-weight.npy`` and ``-bias.npy`` for level k = 1 .. 4 (1 = coarsest) and layer
                j = 1 .. 5.

        Raises:
            UsageError: a file is missing, is no array, or has another shape than the layer.
        """
        for level, step in enumerate(self.moduleBasic, 1):
            for j in range(1, 6):
                for name, parameter in step.get_submodule(f"conv{j}").named_parameters():
                    parameter.copy_(_array(Path(folder) / f"modelL{level}_F-{j}-{name}.npy", parameter.shape))


def _array(path: Path, shape: torch.Size) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no NumPy array: {error}") from error
    if array.shape != tuple(shape):
        raise UsageError(f"{path} has shape {array.shape} (the layer needs {tuple(shape)})")
    return torch.from_numpy(array.astype(np.float32))
