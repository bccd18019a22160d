"""DCVC-RT's image codec, which codes the frames that stand alone (arXiv 2502.20762).

Attribute names follow the published checkpoints, so those load unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.models.dcvc_rt import QUALITIES, STRIDE, RTModel, pad_latent, quality_bank
from sparsecodec.models.fitting import Weights, filled, numbered
from sparsecodec.models.inputs import check_coded, check_picture
from sparsecodec.nn import BitEstimator
from sparsecodec.nn.likelihood import rate_rows
from sparsecodec.nn.part_prior import estimate
from sparsecodec.nn.routine import Known, Routine
from sparsecodec.nn.rt_layers import DCB, PATCH_CHANNELS, Down, Up, blocks, from_patches, to_patches
from sparsecodec.nn.rt_prior import IntraPrior


@dataclass(frozen=True)
class RTImageWidths:
    """Channels and depths; the defaults are those of the published checkpoint.

    Attributes:
        latent: channels of the latent, a multiple of 4.
        hyper: of the hyper-latent.
        trunk: of encoder and decoder at 1/8 of the size.
        encoder_blocks, decoder_blocks: between the first and last layer of each.
        fusion_blocks: behind the first block of the prior fusion.
        spatial_blocks: of the spatial prior, behind its adaptor.
    """

    latent: int = 256
    hyper: int = 128
    trunk: int = 368
    encoder_blocks: int = 6
    decoder_blocks: int = 12
    fusion_blocks: int = 2
    spatial_blocks: int = 3


RT_IMAGE_TINY = RTImageWidths(96, 32, 96, encoder_blocks=2, decoder_blocks=4, fusion_blocks=1, spatial_blocks=1)


class IntraEncoder(nn.Module):
    """Picture to latent: ``[N, 3, H, W] -> [N, C, H/16, W/16]``."""

    def __init__(self, widths: RTImageWidths) -> None:
        super().__init__()
        self.enc_1 = DCB(PATCH_CHANNELS, widths.trunk)
        self.enc_2 = nn.Sequential(
            *blocks(widths.encoder_blocks, widths.trunk),
            nn.Conv2d(widths.trunk, widths.latent, 3, stride=2, padding=1),
        )

    def forward(self, x: Tensor, quant_step: Tensor) -> Tensor:
        return self.enc_2(self.enc_1(to_patches(x), quant_step=quant_step))


class IntraDecoder(nn.Module):
    """Latent to picture: ``[N, C, H/16, W/16] -> [N, 3, H, W]``, not clamped."""

    def __init__(self, widths: RTImageWidths) -> None:
        super().__init__()
        self.dec_1 = nn.Sequential(Up(widths.latent, widths.trunk), *blocks(widths.decoder_blocks, widths.trunk))
        self.dec_2 = DCB(widths.trunk, PATCH_CHANNELS)

    def forward(self, x: Tensor, quant_step: Tensor) -> Tensor:
        return from_patches(self.dec_2(self.dec_1(x) * quant_step))


class DCVCRTImage(RTModel):
    """DCVC-RT's image codec (there `DMCI`).

    Pictures are YCbCr 4:4:4, BT.709, full range, Cb and Cr around 0.5.

    Args:
        widths: channels and depths.
    """

    family = "dcvc-rt-image"
    rates = QUALITIES
    widths_class = RTImageWidths
    banks = {"enc.quant_step": "q_scale_enc", "dec.quant_step": "q_scale_dec"}
    SIGNATURE = (
        "enc.enc_1.dc.0.weight",
        "hyper_enc.0.dc.0.weight",
        "y_spatial_prior_reduction.weight",
        "y_spatial_prior_adaptor_3.adaptor.weight",
        "q_scale_dec",
    )

    def __init__(self, widths: RTImageWidths | None = None) -> None:
        widths = widths or RTImageWidths()
        super().__init__(widths)
        n, z = widths.latent, widths.hyper
        self.enc = IntraEncoder(widths)
        self.dec = IntraDecoder(widths)
        self.hyper_enc = nn.Sequential(DCB(n, z), Down(z, z), Down(z, z))
        self.hyper_dec = nn.Sequential(Up(z, z), Up(z, z), DCB(z, n))
        self.y_prior_fusion = nn.Sequential(
            DCB(n, 2 * n), *blocks(widths.fusion_blocks, 2 * n), nn.Conv2d(2 * n, 2 * n + 2, 1)
        )
        self.y_spatial_prior_reduction = nn.Conv2d(2 * n + 2, n, 1)
        self.y_spatial_prior_adaptor_1 = DCB(2 * n, 2 * n, force_adaptor=True)
        self.y_spatial_prior_adaptor_2 = DCB(2 * n, 2 * n, force_adaptor=True)
        self.y_spatial_prior_adaptor_3 = DCB(2 * n, 2 * n, force_adaptor=True)
        self.y_spatial_prior = nn.Sequential(*blocks(widths.spatial_blocks, 2 * n), nn.Conv2d(2 * n, 2 * n, 1))
        self.bit_estimator_z = BitEstimator(z, self.rates)
        self.q_scale_enc = quality_bank(self.rates, widths.trunk, 1.5)
        self.q_scale_dec = quality_bank(self.rates, widths.trunk, -1.5)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> DCVCRTImage:
        """A model of the widths and with the weights of `state`, which may be pruned; in eval mode.

        Raises:
            UsageError: keys are missing or unknown, or the widths do not fit together.
        """
        state = Weights(state)
        widths = RTImageWidths(
            latent=state["y_spatial_prior_reduction.weight"].shape[0],
            hyper=state["bit_estimator_z.f1.h"].shape[1],
            trunk=state["q_scale_enc"].shape[1],
            encoder_blocks=numbered(state, "enc.enc_2.{}.dc.0.weight"),
            decoder_blocks=numbered(state, "dec.dec_1.{}.dc.0.weight"),
            fusion_blocks=numbered(state, "y_prior_fusion.{}.dc.0.weight") - 1,
            spatial_blocks=numbered(state, "y_spatial_prior.{}.dc.0.weight"),
        )
        return filled(lambda: cls(widths), state, lambda model: model(torch.empty(1, 3, 64, 64), 0))

    @property
    def prior(self) -> IntraPrior:
        """The networks between the hyper-latent and the tables."""
        adaptors = (self.y_spatial_prior_adaptor_1, self.y_spatial_prior_adaptor_2, self.y_spatial_prior_adaptor_3)
        return IntraPrior(
            self.hyper_dec, self.y_prior_fusion, self.y_spatial_prior_reduction, adaptors, self.y_spatial_prior
        )

    def forward(self, x: Tensor, rate: Tensor | int) -> dict[str, Any]:
        """One pass with an estimated rate.

        In training the rate is taken at uniform noise around the residual and the picture from rounded latents with a
        straight-through gradient; in eval mode both are what the coder would do.

        Args:
            x: ``[N, 3, H, W]`` float, in [0, 1]; H and W multiples of 16.
            rate: quality 0 .. 63, an int or ``[N]`` int.

        Returns:
            ``x_hat`` ``[N, 3, H, W]``, in [0, 1] in eval mode; ``bpp``, ``bpp_y``, ``bpp_z`` ``[N]``; ``bit``;
            ``latents``: ``y``, a `Latent`.
        """
        check_picture(x, STRIDE)
        rate = self.check_rate(rate, x.shape[0])
        y = self.enc(x, rate_rows(self.q_scale_enc, rate)).to(x.dtype)
        z = self.hyper_enc(pad_latent(y)).to(x.dtype)
        coded = estimate(
            self.prior, y, z, self.bit_estimator_z, rate, training=self.training, skip=self.force_zero_thres
        )
        x_hat = self.dec(coded.y_hat, rate_rows(self.q_scale_dec, rate)).to(x.dtype)
        return self.outcome(x, x_hat if self.training else x_hat.clamp(0, 1), coded)

    @torch.no_grad()
    def compress(self, x: Tensor, qp: int) -> dict[str, Any]:
        """One picture to the family's payload.

        Args:
            x: ``[1, 3, H, W]`` float, in [0, 1]; H and W multiples of 16.
            qp: quality 0 .. 63.

        Returns:
            ``bit_stream``: bytes; ``x_hat``: ``[1, 3, H, W]`` in [0, 1], as `decompress` will give it.

        Raises:
            UsageError: `update` was not called; another shape, dtype or quality; NaN.
        """
        check_coded(x, STRIDE, self.enc)
        qp = self.check_quality(qp)
        payload, x_hat = self._write(self._encoding, x, self._rate(qp))
        return {"bit_stream": payload, "x_hat": x_hat}

    @torch.no_grad()
    def decompress(self, bit_stream: bytes, sps: Mapping[str, int], qp: int) -> dict[str, Tensor]:
        """A payload to the picture; the inverse of `compress` on the same machine and thread count.

        Args:
            bit_stream: from `compress`.
            sps: ``height``, ``width`` of the picture before padding, ``ec_part`` (1: two streams).
            qp: as given to `compress`.

        Returns:
            ``x_hat``: ``[1, 3, H, W]`` in [0, 1], padded to multiples of 16.

        Raises:
            BitstreamError: the payload is damaged or belongs to other settings.
            UsageError: `update` was not called; a size below 1; another quality.
        """
        qp = self.check_quality(qp)
        height, width, _ = size = self.check_parameter_set(sps)
        return {"x_hat": self._read(bit_stream, size, qp, self._decoding, height, width, self._rate(qp))}

    def _encoding(self, x: Tensor, rate: Tensor | int) -> Routine:
        y = self.enc(x, rate_rows(self.q_scale_enc, rate))
        y_hat = yield from self.coder().encoding(y, self.hyper_enc(pad_latent(y)), rate)
        return self._picture(y_hat, rate)

    def _decoding(self, height: int, width: int, rate: Tensor | int) -> Routine:
        z_symbols = (yield Known(self._hyper_shape(height, width))).to(self.q_scale_dec.device)
        y_hat = yield from self.coder().decoding(z_symbols, (height, width), dtype=self.q_scale_dec.dtype)
        return self._picture(y_hat, rate)

    def _picture(self, y_hat: Tensor, rate: Tensor | int) -> Tensor:
        return self.dec(y_hat, rate_rows(self.q_scale_dec, rate)).clamp(0, 1)
