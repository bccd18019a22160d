"""Small objects with the keys and calls of DCVC-UF's classes, written from their description; widths are free."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(4.0 * x)
        return x[:, 0::4] + x[:, 1::4] + x[:, 2::4] + x[:, 3::4]


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(4.0 * x)


class Block(nn.Module):
    def __init__(self, c_in: int, c: int, *, inside: int = 1, forced: bool = False) -> None:
        super().__init__()
        self.adaptor = nn.Conv2d(c_in, c, 1) if forced or c_in != c else None
        half = c // inside
        self.dc = nn.Sequential(
            nn.Conv2d(c, half, 1), Swish(), nn.Conv2d(half, half, 3, padding=1, groups=half), nn.Conv2d(half, c, 1)
        )
        self.ffn = nn.Sequential(nn.Conv2d(c, 4 * half, 1), Gate(), nn.Conv2d(half, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.adaptor is None else self.adaptor(x)
        x = self.dc(x) + x
        return self.ffn(x) + x


class Joining(Block):
    """The adaptor of HTS: it is given two tensors."""

    def forward(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        return super().forward(torch.cat((x1, x2), 1))


class Up(nn.Module):
    def __init__(self, c_in: int, c: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(c_in, 4 * c, 1, bias=False), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class UpBlock(nn.Module):
    def __init__(self, c_in: int, c: int) -> None:
        super().__init__()
        self.up, self.conv = Up(c_in, c), Block(c, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.up(x))


class Down(nn.Module):
    def __init__(self, c_in: int, c: int) -> None:
        super().__init__()
        self.down, self.conv = nn.Conv2d(4 * c_in, c, 1), Block(c, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.down(F.pixel_unshuffle(x, 2)))


class Variadic(nn.Module):
    """As the published video networks: the arguments are those of another method."""

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.run(*args, **kwargs)


class Row(Variadic):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Sequential(*layers)

    def run(self, *tensors: Tensor) -> Tensor:
        return self.conv(torch.cat(tensors, 1) if len(tensors) > 1 else tensors[0])


class Fusion(Row):
    """LD's: the second tensor is multiplied by the third."""

    def run(self, x1: Tensor, x2: Tensor, quant: Tensor) -> Tensor:
        return super().run(x1, x2 * quant)


class Temporal(Variadic):
    def __init__(self, c_in: int, c: int) -> None:
        super().__init__()
        self.conv = Down(c_in, c)

    def run(self, x: Tensor, quant: Tensor | None = None) -> Tensor:
        return self.conv(x if quant is None else x * quant)


class Encoder(Variadic):
    def __init__(self, c_in: int, c: int, y: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(Block(c_in, c, inside=2))
        self.down = nn.Conv2d(c, y, 3, stride=2, padding=1)

    def run(self, x: Tensor, ctx: Tensor, quant_step: Tensor) -> Tensor:
        return self.down(self.conv1(torch.cat((F.pixel_unshuffle(x, 8), ctx), 1)) * quant_step)


class Decoder(Variadic):
    def __init__(self, y: int, c: int) -> None:
        super().__init__()
        self.up, self.conv1 = Up(y, c), nn.Sequential(Block(2 * c, c, inside=2))

    def run(self, x: Tensor, ctx: Tensor, quant_step: Tensor) -> Tensor:
        return self.conv1(torch.cat((self.up(x), ctx), 1)) * quant_step


class Head(Variadic):
    """LD's."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Sequential(Block(c, c, inside=2)), nn.Conv2d(c, 192, 1)

    def run(self, x: Tensor, for_reset: bool = False) -> Tensor:
        out = self.head(self.conv(x))
        return out if for_reset else F.pixel_shuffle(out, 8)


class Heads(Variadic):
    """HT's: one row per frame."""

    def __init__(self, c: int, frames: int) -> None:
        super().__init__()
        self.conv = nn.ModuleList(nn.Sequential(Block(c, 16), nn.Conv2d(16, 192, 1)) for _ in range(frames))

    def run(self, x: Tensor, for_reset: bool = False) -> Tensor | list[Tensor]:
        return self.conv[-1](x) if for_reset else [F.pixel_shuffle(row(x), 8) for row in self.conv]


class Picture(nn.Module):
    """Encoder or decoder of images."""

    def __init__(self, c: int, y: int, *, encoder: bool) -> None:
        super().__init__()
        if encoder:
            self.enc_1 = Block(192, c)
            self.enc_2 = nn.Sequential(Block(c, c), nn.Conv2d(c, y, 3, stride=2, padding=1))
        else:
            self.dec_1 = nn.Sequential(UpBlock(y, c), Block(c, c))
            self.dec_2 = Block(c, 192)

    def forward(self, x: Tensor, quant_step: Tensor) -> Tensor:
        if hasattr(self, "enc_1"):
            return self.enc_2(self.enc_1(F.pixel_unshuffle(x, 8)) * quant_step)
        return F.pixel_shuffle(self.dec_2(self.dec_1(x) * quant_step), 8)


class Estimator(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.h, self.b = (nn.Parameter(torch.randn(64, channels, 4) * 0.05) for _ in range(2))
        self.a = nn.Parameter(torch.randn(64, channels, 3) * 0.05)


class _Codec(nn.Module):
    """Its coding calls are an extension's, as the published ones."""

    proxy = None

    def compress(self, *_: object) -> object:
        raise NotImplementedError("needs an extension")

    decompress = add_ref_feature_from_frame = update = compress


def _bank(channels: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(64, channels) + 0.5)


class Image(_Codec):
    def __init__(self, y: int = 16, z: int = 8, c: int = 24) -> None:
        super().__init__()
        self.enc, self.dec = Picture(c, y, encoder=True), Picture(c, y, encoder=False)
        self.hyper_enc = Row(Block(y, z), Down(z, z), Down(z, z))
        self.hyper_dec = Row(UpBlock(z, z), UpBlock(z, z), Block(z, y))
        self.y_prior_fusion = Row(Block(y, 2 * y), nn.Conv2d(2 * y, 2 * y, 1))
        _four_passes(self, 2 * y, y, 2 * y)
        self.bit_estimator_z = Estimator(z)
        self.q_scale_enc, self.q_scale_dec, self.q_scale_y_enc, self.q_scale_y_dec = map(_bank, (c, c, y, y))
        _wide_scales(self, y, 0)


class Video(_Codec):
    """``ld``, ``hts`` or ``htl``; groups have two frames."""

    def __init__(self, kind: str, y: int = 16, z: int = 8, c: int = 24) -> None:
        super().__init__()
        frames = 1 if kind == "ld" else 2
        self.feature_adaptor_i, self.feature_adaptor_m = Row(Block(192, c, inside=2)), Row(Block(2 * c, c, inside=2))
        self.feature_extractor = Row(Block(c, c, inside=2))
        self.encoder, self.decoder = Encoder(192 * frames + c, c, y), Decoder(y, c)
        self.hyper_encoder = Row(Block(y, z), Down(z, z), Down(z, z))
        self.hyper_decoder = Row(UpBlock(z, z), UpBlock(z, z), Block(z, y))
        self.temporal_prior_encoder = Temporal(c, 2 * y)
        fusion = Fusion if kind == "ld" else Row
        self.y_prior_fusion = fusion(Block(3 * y, 3 * y), nn.Conv2d(3 * y, 3 * y, 1))
        if kind == "ld":
            self.y_spatial_prior = Row(Block(4 * y, 2 * y), nn.Conv2d(2 * y, y, 1))
        else:
            _four_passes(self, 3 * y, y, y if kind == "hts" else 2 * y)
        self.recon_head = Head(c) if kind == "ld" else Heads(c, frames)
        self.bit_estimator_z = Estimator(z)
        self.q_encoder, self.q_decoder = _bank(c), _bank(c)
        self.q_feature = _bank(2 * y if kind == "ld" else c)
        self.ref_feature = self.memory = self.ctx = None
        _wide_scales(self, y, y)


def _four_passes(codec: nn.Module, prior: int, y: int, predicted: int) -> None:
    codec.y_spatial_prior_reduction = nn.Conv2d(prior, y, 1)
    adaptor = Joining if predicted == y else Block
    for i in (1, 2, 3):
        setattr(codec, f"y_spatial_prior_adaptor_{i}", adaptor(2 * y, 2 * y, forced=True))
    codec.y_spatial_prior = Row(Block(2 * y, 2 * y), nn.Conv2d(2 * y, predicted, 1))


def _wide_scales(codec: nn.Module, y: int, first: int) -> None:
    """Latents of a few symbols, scales on both sides of a threshold."""
    with torch.no_grad():
        (codec.enc.enc_2[-1] if hasattr(codec, "enc") else codec.encoder.down).weight.mul_(20)
        codec.y_prior_fusion.conv[-1].bias[first : first + y] += torch.linspace(-0.5, 2.5, y)
        if len(codec.y_spatial_prior.conv[-1].bias) > y:
            codec.y_spatial_prior.conv[-1].bias[:y] += torch.linspace(-0.5, 2.5, y)
