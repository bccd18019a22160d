"""EVC: an image codec of depthwise blocks with a dual spatial prior and variable rate (arXiv 2302.05071).

Attribute names follow the published checkpoints, so those load unchanged.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.models.attention import AttentiveBlock, SwinBlock
from sparsecodec.models.checkpoint import unwrap_state_dict
from sparsecodec.models.dual_prior_image import STRIDE, DualPriorImage
from sparsecodec.models.fitting import Weights, filled, numbered
from sparsecodec.models.frame_scripts import SingleFrames
from sparsecodec.models.inputs import check_picture
from sparsecodec.nn import (
    DepthConvBlock,
    PriorBlock,
    PriorBlockUp,
    ResidualBlockStride2,
    ResidualBlockUpsample,
    subpel_conv1x1,
)

LAMBDAS = (0.0022, 0.0050, 0.012, 0.027)  # of the anchors, for images in [0, 1] with 255^2 * MSE


@dataclass(frozen=True)
class Widths:
    """Channels of a transform, and of what stands between the two.

    Attributes:
        stages: channels at strides 2, 4, 8 and 16.
        latent: channels of the latent and of the hyper-latent.
        attention: `SwinBlock`s behind the last block at stride 8, and at stride 16.
    """

    stages: tuple[int, int, int, int]
    latent: int
    attention: tuple[int, int] = (0, 0)


EVC_WIDTHS: dict[str, Widths] = {
    "l": Widths((192, 192, 192, 192), 192),
    "m": Widths((128, 128, 192, 192), 192),
    "s": Widths((64, 64, 128, 192), 192),
    "tiny": Widths((32, 48, 64, 96), 96),
    "tiny-m": Widths((24, 32, 64, 96), 96),
    "tiny-s": Widths((16, 16, 48, 96), 96),
    "nano": Widths((24, 32, 48, 64), 64),
    "tiny-swin": Widths((32, 48, 64, 96), 96, (2, 4)),
}
WINDOWS = (8, 4)  # positions at strides 8 and 16: 64 pixels, the least picture
HEAD = 16  # channels of an attention head


def _attention(channels: int, depth: int, window: int) -> list[nn.Module]:
    """`SwinBlock`s, every second one with shifted windows."""
    return [SwinBlock(channels, channels // HEAD, window, i % 2 * window // 2) for i in range(depth)]


def _block(channels: int, attention: int, window: int) -> DepthConvBlock:
    return AttentiveBlock(channels, _attention(channels, attention, window)) if attention else DepthConvBlock(channels)


def _encoder(widths: Widths) -> nn.Sequential:
    c2, c4, c8, c16 = widths.stages
    at8, at16 = widths.attention
    return nn.Sequential(
        ResidualBlockStride2(3, c2),
        DepthConvBlock(c2),
        ResidualBlockStride2(c2, c4),
        DepthConvBlock(c4),
        ResidualBlockStride2(c4, c8),
        _block(c8, at8, WINDOWS[0]),
        nn.Conv2d(c8, c16, 3, stride=2, padding=1),
        *_attention(c16, at16, WINDOWS[1]),
    )


def _decoder(widths: Widths) -> nn.Sequential:
    c2, c4, c8, c16 = widths.stages
    at8, at16 = widths.attention
    return nn.Sequential(
        _block(c16, at16, WINDOWS[1]),
        ResidualBlockUpsample(c16, c8),
        _block(c8, at8, WINDOWS[0]),
        ResidualBlockUpsample(c8, c4),
        DepthConvBlock(c4),
        ResidualBlockUpsample(c4, c2),
        DepthConvBlock(c2),
        subpel_conv1x1(c2, 3, 2),
    )


def encoder_preset(state: Mapping[str, Tensor], path: str) -> str:
    """The preset whose widths are the nearest to those of the encoder at `path`, which may be pruned."""
    keys = tuple(f"{path}.{layer}.weight" for layer in ("0.conv2", "2.conv2", "4.conv2", "6"))
    return _nearest(state, keys, (f"{path}.5.attention.{{}}", f"{path}.{{}}"))


def decoder_preset(state: Mapping[str, Tensor]) -> str:
    """As `encoder_preset`, of the decoder."""
    keys = ("dec.5.conv.weight", "dec.3.conv.weight", "dec.1.conv.weight", "dec.0.block.1.conv.2.weight")
    return _nearest(state, keys, ("dec.2.attention.{}", "dec.0.attention.{}"))


def _nearest(state: Mapping[str, Tensor], stages: tuple[str, ...], attention: tuple[str, str]) -> str:
    latent = state["q_basic"].shape[1]
    found = [state[key].shape[0] for key in stages] + [numbered(state, f"{path}.norm1.weight") for path in attention]

    def distance(preset: str) -> tuple[int, int, int]:
        widths = EVC_WIDTHS[preset]
        apart = (abs(a - b) for a, b in zip((*widths.stages, *widths.attention), found, strict=True))
        # The latent, and the less of two that are as near, comes first: encoder and decoder must end on one.
        return abs(widths.latent - latent), widths.latent, sum(apart)

    return min(EVC_WIDTHS, key=distance)


class EVC(SingleFrames, DualPriorImage):
    """EVC image codec.

    Args:
        encoder: width preset of the encoder, a key of `EVC_WIDTHS`.
        decoder: width preset of the decoder. Both must share the latent width.

    Raises:
        UsageError: unknown preset, or presets that do not fit together.
    """

    family = "evc"
    SIGNATURE = (
        "enc.1.block.0.depth_conv.0.weight",
        "dec.7.0.weight",
        "y_spatial_prior.2.block.1.conv.2.weight",
        "q_basic",
    )

    def __init__(self, encoder: str = "l", decoder: str = "l") -> None:
        for preset in (encoder, decoder):
            if preset not in EVC_WIDTHS:
                raise UsageError(f"EVC preset {preset!r} does not exist; there are {', '.join(EVC_WIDTHS)}")
        e, d = EVC_WIDTHS[encoder], EVC_WIDTHS[decoder]
        if e.latent != d.latent:
            raise UsageError(f"encoder {encoder!r} has {e.latent} latent channels, decoder {decoder!r} {d.latent}")
        super().__init__()
        self.presets = (encoder, decoder)
        n = d.latent
        self.enc = _encoder(e)
        self.dec = _decoder(d)
        self.hyper_enc = nn.Sequential(
            PriorBlock(n, n),
            nn.Conv2d(n, n, 3, stride=2, padding=1),
            nn.LeakyReLU(0.01),
            nn.Conv2d(n, n, 3, stride=2, padding=1),
        )
        self.hyper_dec = nn.Sequential(PriorBlockUp(n), PriorBlockUp(n), PriorBlock(n, n))
        self.y_prior_fusion = nn.Sequential(PriorBlock(n, 2 * n), PriorBlock(2 * n, 3 * n))
        self.y_spatial_prior = nn.Sequential(
            PriorBlock(4 * n, 3 * n), PriorBlock(3 * n, 2 * n), PriorBlock(2 * n, 2 * n)
        )
        self._add_rates(n)

    @property
    def config(self) -> dict[str, Any]:
        return {"family": self.family, "encoder": self.presets[0], "decoder": self.presets[1]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> EVC:
        return cls(config["encoder"], config["decoder"])

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> EVC:
        """A model of the widths and with the weights of `state`, which may be pruned; in eval mode.

        Its presets are those whose widths are the nearest.

        Raises:
            UsageError: keys are missing or unknown, or the widths do not fit together.
        """
        state = Weights(state)
        return cls._filled(state, encoder_preset(state, "enc"), decoder_preset(state))

    @classmethod
    def _filled(cls, state: Mapping[str, Tensor], *arguments: Any) -> EVC:
        return filled(lambda: cls(*arguments), state, lambda model: model(torch.zeros(1, 3, STRIDE, STRIDE), 1.0))

    def load_backbone(self, state_dict: Mapping[str, Any]) -> None:
        """Loads the weights of the codec of these widths without attention; the attention stays as it is.

        With untrained attention, which is the identity, this codec then computes exactly what that one does.

        Raises:
            UsageError: this codec has no attention, the weights hold some (use `load_state_dict`), or they do not fit.
        """
        blocks = tuple(f"{name}." for name, module in self.named_modules() if isinstance(module, SwinBlock))
        attention = {key: value for key, value in self.state_dict().items() if key.startswith(blocks)}
        state_dict = unwrap_state_dict(state_dict)
        if not attention:
            raise UsageError(f"EVC {self.presets} has no attention that its backbone could lack; load all its weights")
        if surplus := sorted(attention.keys() & state_dict.keys()):
            raise UsageError(f"the backbone holds attention, such as {surplus[0]}; load it as a whole")
        self.load_state_dict({**state_dict, **attention})

    def forward(self, x: Tensor, q_scale: Tensor | float) -> dict[str, Tensor]:
        """One pass with an estimated rate.

        In training the rate is taken at uniform noise around the residual and the picture from rounded latents with a
        straight-through gradient; in eval mode both are what the coder would do. Under autocast the networks run in the
        lower precision, latents and likelihoods stay in that of `x`.

        Args:
            x: ``[N, 3, H, W]`` float, in [0, 1]; H and W multiples of 64.
            q_scale: global step, a number or ``[N or 1, 1, 1, 1]``.

        Returns:
            ``x_hat`` ``[N, 3, H, W]``, in [0, 1] in eval mode; ``bpp``, ``bpp_y``, ``bpp_z`` ``[N]``; ``bit``;
            ``latents``: ``y``, a `Latent`.
        """
        check_picture(x, STRIDE)
        return self._code(x, self.enc(x), q_scale)

    @torch.no_grad()
    def decompress(self, bit_stream: bytes, height: int, width: int, q_scale: float) -> dict[str, Any]:
        """A payload to the picture; the inverse of `compress` on the same machine and thread count.

        Args:
            bit_stream: from `compress`.
            height, width: of the picture, before or after padding.
            q_scale: as given to `compress`.

        Returns:
            ``x_hat``: ``[1, 3, H, W]`` in [0, 1], H and W the next multiples of 64: the caller cuts off what it padded,
            as with the published class; ``dec_time``: seconds that this took.

        Raises:
            BitstreamError: the payload is damaged or belongs to other settings.
            UsageError: a size below 1.
        """
        start = time.perf_counter()
        x_hat = self._decompress(bit_stream, height, width, q_scale)
        return {"x_hat": x_hat, "dec_time": time.perf_counter() - start}
