"""EVC: an image codec of depthwise blocks with a dual spatial prior and variable rate (arXiv 2302.05071).

Attribute names follow the published checkpoints, so those load unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables, evc_gaussian_tables
from sparsecodec.errors import UsageError
from sparsecodec.models.attention import AttentiveBlock, SwinBlock
from sparsecodec.models.checkpoint import unwrap_state_dict
from sparsecodec.nn import (
    BitEstimator,
    DepthConvBlock,
    DualPrior,
    DualPriorCoder,
    PriorBlock,
    PriorBlockUp,
    ResidualBlockStride2,
    ResidualBlockUpsample,
    factorized_tables,
    first_pass,
    gaussian_likelihood,
    lower_bound,
    round_ste,
    subpel_conv1x1,
)

STRIDE = 64  # of the hyper-latent: pictures are padded to multiples of it
RATES = 4  # anchor rates in a checkpoint
LAMBDAS = (0.0022, 0.0050, 0.012, 0.027)  # of the anchors, for images in [0, 1] with 255^2 * MSE
Q_SCALE_RANGE = (0.01, 655.0)  # what a stream can carry, in steps of 1/100


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


class EVC(nn.Module):
    """EVC image codec.

    Args:
        encoder: width preset of the encoder, a key of `EVC_WIDTHS`.
        decoder: width preset of the decoder. Both must share the latent width.

    Raises:
        UsageError: unknown preset, or presets that do not fit together.
    """

    family = "evc"

    def __init__(self, encoder: str = "l", decoder: str = "l") -> None:
        super().__init__()
        for preset in (encoder, decoder):
            if preset not in EVC_WIDTHS:
                raise UsageError(f"EVC preset {preset!r} does not exist; there are {', '.join(EVC_WIDTHS)}")
        e, d = EVC_WIDTHS[encoder], EVC_WIDTHS[decoder]
        if e.latent != d.latent:
            raise UsageError(f"encoder {encoder!r} has {e.latent} latent channels, decoder {decoder!r} {d.latent}")
        self.presets = (encoder, decoder)
        n = self.latent_channels = d.latent
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
        self.bit_estimator_z = BitEstimator(n)
        self.q_basic = nn.Parameter(torch.ones(1, n, 1, 1))
        steps = torch.exp(torch.linspace(math.log(1.8), math.log(0.5), RATES))
        self.q_scale = nn.Parameter(steps.view(RATES, 1, 1, 1))

    @property
    def config(self) -> dict[str, Any]:
        """What `from_config` needs to build the same architecture; JSON-able."""
        return {"family": self.family, "encoder": self.presets[0], "decoder": self.presets[1]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> EVC:
        """Builds the architecture that `config` describes, with random weights."""
        return cls(config["encoder"], config["decoder"])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """Loads weights; wrappers (``state_dict``, ``net``) and ``module.`` prefixes are removed first.

        Raises:
            UsageError: keys are missing, unknown or of another shape; the message names them.
        """
        state_dict = unwrap_state_dict(state_dict)
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            raise UsageError(f"the checkpoint does not fit EVC {self.presets}: {error}") from error

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

    def q_scales(self, count: int) -> list[float]:
        """`count` global quantisation steps from the lowest to the highest rate, log-spaced between the outer anchors.

        Each is rounded to 1/100, the precision of a stream. ``count=4`` does not give the inner anchors in general.
        """
        anchors = self.q_scale.detach().flatten().log()
        if count == 1:
            return [self.round_q_scale(float(anchors.mean().exp()))]
        return [self.round_q_scale(float(step)) for step in torch.linspace(anchors[0], anchors[-1], count).exp()]

    @staticmethod
    def round_q_scale(q_scale: float) -> float:
        """The nearest global step that a stream can carry.

        Raises:
            UsageError: not a positive finite number.
        """
        if not (math.isfinite(q_scale) and q_scale > 0):
            raise UsageError(f"q_scale={q_scale} (needs a positive finite number)")
        return round(min(max(q_scale, Q_SCALE_RANGE[0]), Q_SCALE_RANGE[1]) * 100) / 100

    def curr_q(self, q_scale: Tensor | float) -> Tensor:
        """Channel-wise step of the transform latent: ``max(q_basic, 0.5) * q_scale``, ``[1 or N, C, 1, 1]``."""
        return lower_bound(self.q_basic, 0.5) * q_scale

    @property
    def prior(self) -> DualPrior:
        """The networks between the hyper-latent and the tables."""
        return DualPrior(self.hyper_dec, self.y_prior_fusion, self.y_spatial_prior)

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
            ``latent``: what the entropy model sees, ``[N, C, H/16, W/16]`` in quantisation steps: ``y`` before it is
            quantised, its ``means`` and ``scales``, and the ``likelihoods`` that the rate is taken from.
        """
        self._check_picture(x)
        return self._code(x, self.enc(x), q_scale)

    def _code(self, x: Tensor, y: Tensor, q_scale: Tensor | float) -> dict[str, Tensor]:
        """`forward` from the transform latent `y` on, ``[N, C, H/16, W/16]``."""
        q = self.curr_q(q_scale)
        y = y.to(x.dtype) / q
        z = self.hyper_enc(y).to(x.dtype)
        z_hat = round_ste(z)
        prior = self.prior
        step, scales, means = prior.parameters(z_hat)
        y = y / step

        first = first_pass(y)
        y_hat_first = (round_ste(y - means) + means) * first
        scales_second, means_second = prior.refine(y_hat_first, step, scales, means)
        scales = torch.where(first, scales, scales_second.flatten(1, 2))
        means = torch.where(first, means, means_second.flatten(1, 2))
        residual = y - means
        y_hat = round_ste(residual) + means
        x_hat = self.dec(y_hat * step * q).to(x.dtype)

        if self.training:
            coded_y, coded_z = residual + torch.rand_like(residual) - 0.5, z + torch.rand_like(z) - 0.5
        else:
            coded_y, coded_z, x_hat = residual.round(), z_hat, x_hat.clamp(0, 1)
        pixels = x.shape[-2] * x.shape[-1]
        likelihoods = gaussian_likelihood(coded_y, scales)
        bpp_y = -likelihoods.log2().sum((1, 2, 3)) / pixels
        bpp_z = -self.bit_estimator_z.likelihood(coded_z).log2().sum((1, 2, 3)) / pixels
        bpp = bpp_y + bpp_z
        latent = {"y": y, "means": means, "scales": scales, "likelihoods": likelihoods}
        rate = {"bpp": bpp, "bpp_y": bpp_y, "bpp_z": bpp_z, "bit": bpp.sum() * pixels}
        return {"x_hat": x_hat, **rate, "latent": latent}

    def tables(self) -> tuple[EntropyTables, EntropyTables]:
        """Of the latent and of the hyper-latent, computed from the present weights, on the CPU wherever those are."""
        return evc_gaussian_tables(), factorized_tables(self.bit_estimator_z, self.latent_channels)

    @torch.no_grad()
    def compress(self, x: Tensor, q_scale: float) -> dict[str, Any]:
        """One picture to the family's payload.

        Args:
            x: ``[1, 3, H, W]`` float, in [0, 1]; H and W multiples of 64.
            q_scale: global step; rounded to 1/100 first, as a file stores it.

        Returns:
            ``bit_stream``: bytes; ``x_hat``: ``[1, 3, H, W]`` in [0, 1], as `decompress` will give it.
        """
        self._check_picture(x, batch=1)
        return self._compress(self.enc(x), q_scale)

    def _compress(self, y: Tensor, q_scale: float) -> dict[str, Any]:
        """`compress` from the transform latent `y` on, ``[1, C, H/16, W/16]``."""
        q = self.curr_q(self.round_q_scale(q_scale))
        y = y / q
        coder = DualPriorCoder(self.prior, *self.tables(), y.device)
        payload, y_hat = coder.encode(y, self.hyper_enc(y), q.flatten())
        return {"bit_stream": payload, "x_hat": self.dec(y_hat).clamp(0, 1)}

    @torch.no_grad()
    def decompress(self, bit_stream: bytes, height: int, width: int, q_scale: float) -> dict[str, Tensor]:
        """A payload to the picture; the inverse of `compress` on the same machine and thread count.

        Args:
            bit_stream: from `compress`.
            height, width: of the picture; sizes that are no multiples of 64 are those before padding.
            q_scale: as given to `compress`.

        Returns:
            ``x_hat``: ``[1, 3, height, width]`` in [0, 1].

        Raises:
            BitstreamError: the payload is damaged or belongs to other settings.
            UsageError: a size below 1.
        """
        if height < 1 or width < 1:
            raise UsageError(f"picture of {height} x {width} (needs at least 1 x 1)")
        q = self.curr_q(self.round_q_scale(q_scale))
        z_shape = (1, self.latent_channels, -(-height // STRIDE), -(-width // STRIDE))
        coder = DualPriorCoder(self.prior, *self.tables(), q.device)
        x_hat = self.dec(coder.decode(bit_stream, z_shape, q.flatten())).clamp(0, 1)
        return {"x_hat": x_hat[:, :, :height, :width]}

    @staticmethod
    def _check_picture(x: Tensor, batch: int | None = None) -> None:
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point() or 0 in x.shape:
            raise UsageError(f"picture {tuple(x.shape)} {x.dtype} (needs [N, 3, H, W] floating point, not empty)")
        if x.shape[2] % STRIDE or x.shape[3] % STRIDE:
            raise UsageError(f"picture is {x.shape[2]} x {x.shape[3]} (needs multiples of {STRIDE}; pad it)")
        if batch is not None and x.shape[0] != batch:
            raise UsageError(f"batch of {x.shape[0]} pictures (a payload holds {batch})")
