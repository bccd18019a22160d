"""A network with one layer of each kind, gradient decay over it, and a training step of both."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.sparsity import ChannelGraph, DecayConfig, GradientDecay, count

SHAPE = (2, 4, 6, 6)


class Net(nn.Module):
    """One of each: conv, conv without bias, depthwise, sub-pixel, transposed, grouped (locked), a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, 12, 3, padding=1)
        self.plain = nn.Conv2d(12, 12, 1, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.join = nn.Conv2d(12, 12, 1)
        self.sub_pixel = nn.Sequential(nn.Conv2d(12, 32, 1), nn.PixelShuffle(2))
        self.deconv = nn.ConvTranspose2d(8, 10, 3, padding=1)
        self.gated = nn.Conv2d(10, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.head(x))
        x = x + F.relu(self.join(self.depthwise(F.leaky_relu(self.plain(x)))))
        x = F.relu(self.deconv(self.sub_pixel(x)))
        return self.grouped(self.gated(torch.sigmoid(x)))  # zeroed filters do not make zeros behind the sigmoid


def decaying(net: nn.Module, **config) -> GradientDecay:
    graph = ChannelGraph.trace(net)
    config = {"sparsity": 0.5, "t0": 10, "t1": 20, "schedule": "linear", "apply_to": "gradient"} | config
    return GradientDecay(net, graph, count(net, {"": SHAPE}), DecayConfig(**config))


def one_step(net: nn.Module, decay: GradientDecay, opt: torch.optim.Optimizer, step: int) -> None:
    decay.set_step(step)
    with decay.applied():
        loss = (net(picture()) - 1).square().mean() + decay.penalty()
    opt.zero_grad()
    loss.backward()
    decay.step(opt)


def mask_about_half(decay: GradientDecay, step: int) -> None:
    with torch.no_grad():
        decay.theta.fill_(1.0)  # scores have mean 1 in every space
    decay.set_step(step)
    for name, (kept, width) in decay.masks().widths.items():
        assert 0 < kept < width, name


def picture() -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
