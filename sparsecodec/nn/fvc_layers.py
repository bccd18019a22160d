"""Parts of FVC (arXiv 2105.09600): motion compensation and fusion of features.

No code or weights of it were published. What the paper leaves open is marked *our reading*.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.ops import deform_conv2d, pointwise

TAPS = 9


class DeformableConv2d(nn.Module):
    """3x3 deformable convolution: ``[N, C, H, W]`` and offsets -> ``[N, C, H, W]``.

    Offsets are ordered group by group, tap by tap, row before column (*our reading*: ``torchvision``'s order).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def constants(self) -> dict[str, Any]:
        """Those of `sparsecodec.ops.deform_conv2d`."""
        return {"weight": self.weight, "bias": self.bias, "border": False}

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        """The other arguments of `sparsecodec.ops.deform_conv2d`."""
        return deform_conv2d(x, offset, mask=mask, **self.constants())


class DeformableAlignment(nn.Module):
    """Offsets from a motion feature, then a deformable convolution with them.

    Args:
        channels: of both maps.
        groups: of channels that share offsets; 8 in the paper, so 144 offset channels.
        modulated: also weigh each tap, between 0 and 2 (*our reading*; the paper does not say, reimplementations do).
    """

    def __init__(self, channels: int, groups: int, modulated: bool) -> None:
        super().__init__()
        self.groups = groups
        self.modulated = modulated
        self.offsets = nn.Conv2d(channels, (3 if modulated else 2) * groups * TAPS, 3, padding=1)
        self.conv = DeformableConv2d(channels)
        # Still at first, as deformable layers are commonly begun.
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)

    def forward(self, motion: Tensor, reference: Tensor) -> Tensor:
        """``[N, C, H, W]`` motion and reference -> the reference where the motion puts it, ``[N, C, H, W]``."""
        found, moves = self.offsets(motion), 2 * self.groups * TAPS
        mask = 2 * torch.sigmoid(found[:, moves:]) if self.modulated else None
        return self.conv(reference, found[:, :moves], mask)


class Compensation(nn.Module):
    """The predicted feature: the aligned reference, refined by two convolutions over it and the reference.

    *Our reading*: LeakyReLU(0.1) behind the first of the two.
    """

    def __init__(self, channels: int, groups: int, modulated: bool) -> None:
        super().__init__()
        self.alignment = DeformableAlignment(channels, groups, modulated)
        self.refine = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, motion: Tensor, reference: Tensor) -> Tensor:
        """Decoded motion and reference feature, ``[N, C, H, W]`` each -> ``[N, C, H, W]``."""
        warped = self.alignment(motion, reference)
        return warped + self.refine(torch.cat([warped, reference], 1))


class PatchScore(nn.Conv2d):
    """A 1x1 convolution over pairs of positions, ``[N, 2C, H, W] -> [N, 1, H, W]``, but for what is left of it.

    It is linear, so what the first of a pair adds is the same for all positions that it is paired with. A softmax over
    these does not see that, and it is not computed.

    Args:
        channels: of each of the two.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(2 * channels, 1, 1)

    def forward(self, second: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> ``[N, 1, H, W]``."""
        return pointwise(second, self.weight[:, self.in_channels // 2 :, 0, 0], self.bias)


class PatchAttention(nn.Module):
    """Each position of one map attends to the patch around it in another: a weighted sum of that patch.

    The weights are a softmax over the patch of what a 1x1 convolution makes of the pair. *Our reading*: it makes one
    number of each pair of positions; a patch of 3 x 3, repeated at the borders.

    Args:
        channels: of both maps.
        size: side of the patch, odd.
    """

    def __init__(self, channels: int, size: int = 3) -> None:
        super().__init__()
        self.size = size
        self.score = PatchScore(channels)

    def forward(self, query: Tensor, source: Tensor) -> Tensor:
        """``[N, C, H, W]`` each -> ``[N, C, H, W]``."""
        (height, width), reach = query.shape[2:], self.size // 2
        around, theirs = (F.pad(values, (reach,) * 4, mode="replicate") for values in (source, self.score(source)))
        places = [(slice(i, i + height), slice(j, j + width)) for i in range(self.size) for j in range(self.size)]
        scores = torch.cat([theirs[:, :, rows, columns] for rows, columns in places], 1)
        weights = scores.softmax(1).split(1, 1)
        parts = (around[:, :, rows, columns] * w for (rows, columns), w in zip(places, weights, strict=True))
        return sum(parts, start=torch.zeros_like(query))


class Fusion(nn.Module):
    """Multi-frame fusion: the decoded feature plus what earlier features know of it.

    Each earlier feature is aligned to the present one and attended to, the present one attends to itself; one
    convolution over all of them is added. *Our reading*: the offsets of the alignment are predicted from both features
    by the decoder and cost no bits; alignment has weights of its own for each reference.

    Args:
        channels: of the features.
        references: earlier features.
        groups, modulated: as for `DeformableAlignment`.
        patch: side of the attention's patch.
    """

    def __init__(self, channels: int, references: int, groups: int, modulated: bool, patch: int = 3) -> None:
        super().__init__()
        self.motion = nn.ModuleList(nn.Conv2d(2 * channels, channels, 3, padding=1) for _ in range(references))
        self.alignment = nn.ModuleList(DeformableAlignment(channels, groups, modulated) for _ in range(references))
        self.attention = nn.ModuleList(PatchAttention(channels, patch) for _ in range(references + 1))
        self.fuse = nn.Conv2d((references + 1) * channels, channels, 3, padding=1)

    def forward(self, feature: Tensor, references: tuple[Tensor, ...]) -> Tensor:
        """``[N, C, H, W]`` and as many earlier ones, the latest first -> ``[N, C, H, W]``."""
        parts = [self.attention[-1](feature, feature)]
        for i, reference in enumerate(references):
            motion = self.motion[i](torch.cat([feature, reference], 1))
            parts.append(self.attention[i](feature, self.alignment[i](motion, reference)))
        return feature + self.fuse(torch.cat(parts, 1))
