"""Windowed self-attention of Swin Transformer V2 (arXiv 2111.09883) on feature maps ``[N, C, H, W]``.

Written out here and not taken from torchvision: that is an optional package, its block wants channels last and lets
the zeros of the padding take part, and its layer normalisation starts at one. Here a new block is the identity, so a
codec with attention starts as the codec without it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsecodec.nn import DepthConvBlock

COORDINATE_RANGE = 8.0  # relative positions are stretched to +- this before the logarithm, whatever the window
BIAS_RANGE = 16.0  # of the relative position bias: (0, 16)
LOGIT_SCALE_MAX = math.log(100.0)
HIDDEN_BIAS = 512  # units of the bias network


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Out of autocast; the meta device has none."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _pieces(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Which positions along one side, padded and rolled by `shift`, belong together: ``[padded]`` int64.

    0: as they lie in the picture; 1: wrapped round from its other end by the roll; 2: padding.
    """
    padded = -(-size // window) * window
    source = (torch.arange(padded, device=device) + shift) % padded
    return torch.where(source >= size, 2, (source < shift).long())


def attended(height: int, width: int, window: int, shift: tuple[int, int], device: torch.device) -> Tensor:
    """Which positions of a window may attend to each other after padding and the cyclic shift.

    Args:
        height, width: of the map before padding.
        window: side of a window.
        shift: rows and columns by which the padded map is rolled towards the origin.

    Returns:
        ``[windows, window^2, window^2]`` bool, True = may attend; symmetric.
    """
    rows = _pieces(height, window, shift[0], device)
    columns = _pieces(width, window, shift[1], device)
    piece = (3 * rows[:, None] + columns).unflatten(0, (-1, window)).unflatten(2, (-1, window))
    piece = piece.transpose(1, 2).flatten(0, 1).flatten(1)
    return piece[:, :, None] == piece[:, None, :]


def window_attention(
    qv: Tensor, k: Tensor, bias: Tensor, logit_scale: Tensor, window: int, shift: int, num_heads: int
) -> Tensor:
    """Scaled cosine attention inside windows.

    softmax(exp(min(logit_scale, log 100)) * cos(q, k) + bias) v, for each head and window

    Sides that are no multiples of the window are padded at the end, and the padding is never attended to. A side of one
    window is not shifted.

    Args:
        qv: ``[N, 2C, H, W]`` float. Queries, then values.
        k: ``[N, C, H, W]`` float. Keys.
        bias: ``[num_heads, window^2, window^2]`` float. Row: position that asks.
        logit_scale: ``[num_heads]`` float. Natural logarithm of the inverse temperature.
        window: side of a window.
        shift: rows and columns by which the windows are displaced; 0 or more, less than `window`.
        num_heads: divides C.

    Returns:
        ``[N, C, H, W]``, dtype of `qv`. Logits and softmax are float32, or float64 for float64 inputs.
    """
    height, width = qv.shape[-2:]
    shifts = tuple(shift if side > window else 0 for side in (height, width))
    padding = (0, -width % window, 0, -height % window)

    def windows(x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, windows, heads, window^2, C / heads]``"""
        x = F.pad(x, padding).roll((-shifts[0], -shifts[1]), (2, 3))
        x = x.unflatten(3, (-1, window)).unflatten(2, (-1, window)).unflatten(1, (num_heads, -1))
        return x.permute(0, 3, 5, 1, 4, 6, 2).flatten(4, 5).flatten(1, 2)

    wide = torch.promote_types(qv.dtype, torch.float32)
    q, v = (windows(part) for part in qv.chunk(2, 1))
    with _full_precision(qv.device):
        q, k = F.normalize(q.to(wide), dim=-1), F.normalize(windows(k).to(wide), dim=-1)
        q = q * logit_scale.to(wide).clamp(max=LOGIT_SCALE_MAX).exp()[:, None, None]
        logits = q @ k.mT + bias.to(wide)
        if any(shifts) or any(padding):
            mask = attended(height, width, window, shifts, qv.device)[:, None]
            logits = logits.masked_fill(~mask, -math.inf)
        out = logits.softmax(-1).to(qv.dtype) @ v  # [N, windows, heads, window^2, C / heads]

    rows = -(-height // window)
    out = out.unflatten(1, (rows, -1)).unflatten(4, (window, window))
    out = out.permute(0, 3, 6, 1, 4, 2, 5).flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return out.roll(shifts, (2, 3))[:, :, :height, :width]


def channel_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer normalisation over the channels of each position: ``[N, C, H, W]``, dtype of `x`; `weight`, `bias` ``[C]``.

    The variance is taken with epsilon 1e-5.
    """
    return F.layer_norm(x.permute(0, 2, 3, 1), (len(weight),), weight, bias, 1e-5).permute(0, 3, 1, 2).to(x.dtype)


def position_bias(coordinates: Tensor, index: Tensor, first: Tensor, offset: Tensor, second: Tensor) -> Tensor:
    """Bias of the logits from the relative position d, by a small network on its logarithm.

    16 sigmoid(second relu(first u + offset)), u = sign(d) log2(1 + 8 |d| / (window - 1)) / log2(8)

    Args:
        coordinates: ``[R, 2]`` float. u of every relative position, rows and columns.
        index: ``[T, T]`` int64. Row of `coordinates` for a position that asks and one that is asked.
        first, offset: ``[B, 2]`` and ``[B]`` float.
        second: ``[num_heads, B]`` float.

    Returns:
        ``[num_heads, T, T]`` in (0, 16), dtype of the weights.
    """
    with _full_precision(coordinates.device):
        table = BIAS_RANGE * torch.sigmoid(F.relu(coordinates @ first.mT + offset) @ second.mT)
        return table[index].permute(2, 0, 1)


fx.wrap("window_attention")  # their control flow reads sizes: tracing takes each as one call
fx.wrap("channel_norm")
fx.wrap("position_bias")


class ChannelNorm(nn.Module):
    """`channel_norm` with a gain that starts at 0, for the end of a residual branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return channel_norm(x, self.weight, self.bias)


class PositionBias(nn.Module):
    """`position_bias` of a window: ``[num_heads, T, T]`` float32, T = window^2.

    Args:
        window: side of a window, at least 2.
        num_heads: of the attention.
    """

    coordinates: Tensor
    index: Tensor

    def __init__(self, window: int, num_heads: int) -> None:
        super().__init__()
        self.first = nn.Linear(2, HIDDEN_BIAS)
        self.second = nn.Linear(HIDDEN_BIAS, num_heads, bias=False)
        reach = torch.arange(1 - window, window, dtype=torch.float32)
        offsets = torch.cartesian_prod(reach, reach) * COORDINATE_RANGE / (window - 1)
        stretched = offsets.sign() * (1 + offsets.abs()).log2() / math.log2(COORDINATE_RANGE)
        places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        apart = places[:, None] - places[None] + window - 1  # [T, T, 2], each in [0, 2 window - 2]
        self.register_buffer("coordinates", stretched, persistent=False)
        self.register_buffer("index", apart[..., 0] * (2 * window - 1) + apart[..., 1], persistent=False)

    def forward(self) -> Tensor:
        return position_bias(self.coordinates, self.index, self.first.weight, self.first.bias, self.second.weight)


class WindowAttention(nn.Module):
    """Projections around `window_attention`: ``[N, C, H, W] -> [N, C, H, W]``.

    Keys have no bias: with cosine similarity it would favour positions whose features are small.

    Args:
        channels: C.
        num_heads: divides C.
        window, shift: as for `window_attention`.
    """

    def __init__(self, channels: int, num_heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.qv = nn.Conv2d(channels, 2 * channels, 1)
        self.k = nn.Conv2d(channels, channels, 1, bias=False)
        self.logit_scale = nn.Parameter(torch.full((num_heads,), math.log(10.0)))
        self.position = PositionBias(window, num_heads)
        self.projection = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        shape = (self.window, self.shift, self.num_heads)
        return self.projection(window_attention(self.qv(x), self.k(x), self.position(), self.logit_scale, *shape))


class SwinBlock(nn.Module):
    """Attention, then a network of two layers, each normalised *after* it and added: ``[N, C, H, W]``.

    The identity until trained.

    Args:
        channels: C, a multiple of `num_heads`.
        num_heads: of the attention.
        window: side of a window, at least 2.
        shift: of the windows; half of `window` in every second block.
        ratio: hidden units of the network, in channels.
    """

    def __init__(self, channels: int, num_heads: int, window: int, shift: int = 0, ratio: int = 4) -> None:
        super().__init__()
        self.attention = WindowAttention(channels, num_heads, window, shift)
        self.norm1 = ChannelNorm(channels)
        hidden = ratio * channels
        self.mlp = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.GELU(), nn.Conv2d(hidden, channels, 1))
        self.norm2 = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.attention(x))
        return x + self.norm2(self.mlp(x))


class AttentiveBlock(DepthConvBlock):
    """`DepthConvBlock`, then attention; the block's parameters keep their names: ``[N, C, H, W]``."""

    def __init__(self, channels: int, attention: Sequence[nn.Module]) -> None:
        super().__init__(channels)
        self.attention = nn.Sequential(*attention)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(super().forward(x))
