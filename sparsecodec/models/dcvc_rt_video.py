"""DCVC-RT's video codec: frames from the feature of the frame before, without motion (arXiv 2502.20762).

Attribute names follow the published checkpoints, so those load unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc_rt import INTER_QUALITIES, STRIDE, RTModel, pad_latent, quality_bank
from sparsecodec.models.dcvc_rt_scripts import RTVideoScripts
from sparsecodec.models.fitting import Weights, filled, numbered
from sparsecodec.models.inputs import check_coded, check_kind, check_picture, check_state
from sparsecodec.nn import BitEstimator
from sparsecodec.nn.likelihood import rate_rows
from sparsecodec.nn.part_prior import estimate
from sparsecodec.nn.routine import Known, Routine
from sparsecodec.nn.rt_layers import (
    DCB,
    PATCH,
    PATCH_CHANNELS,
    Down,
    Stack,
    SubpelConv,
    Up,
    blocks,
    from_patches,
    to_patches,
)
from sparsecodec.nn.rt_prior import InterPrior
from sparsecodec.nn.rt_state import RT_WIRES, ReferenceFrame, RTState


@dataclass(frozen=True)
class RTVideoWidths:
    """Channels and depths; the defaults are those of the published checkpoint.

    Attributes:
        latent: channels of the latent, even.
        hyper: of the hyper-latent.
        main: of all that works at 1/8 of the size.
        recon: of the network that makes the picture.
        shared_blocks, context_blocks: of the extractor, up to the temporal context, and behind it.
        recon_blocks: of the network that makes the picture, behind its first.
    """

    latent: int = 128
    hyper: int = 128
    main: int = 256
    recon: int = 320
    shared_blocks: int = 2
    context_blocks: int = 4
    recon_blocks: int = 3


RT_VIDEO_TINY = RTVideoWidths(64, 32, 96, 96, shared_blocks=1, context_blocks=2, recon_blocks=1)


class FeatureExtractor(nn.Module):
    """Reference to contexts: ``[N, C, H/8, W/8]`` -> (context, temporal context), both of that shape."""

    def __init__(self, widths: RTVideoWidths) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*blocks(widths.shared_blocks, widths.main))
        self.conv2 = nn.Sequential(*blocks(widths.context_blocks, widths.main))

    def forward(self, x: Tensor, quant_step: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.conv1(x)
        return self.conv2(shared), shared * quant_step


class Encoder(nn.Module):
    """Picture and context to latent: ``[N, 3, H, W]``, ``[N, C, H/8, W/8]`` -> ``[N, M, H/16, W/16]``."""

    def __init__(self, widths: RTVideoWidths) -> None:
        super().__init__()
        d = widths.main
        self.conv1 = nn.Conv2d(PATCH_CHANNELS, d, 1)
        self.conv2 = nn.Sequential(DCB(2 * d, d), DCB(d, d))
        self.conv3 = DCB(d, d)
        self.down = nn.Conv2d(d, widths.latent, 3, stride=2, padding=1)

    def forward(self, x: Tensor, context: Tensor, quant_step: Tensor) -> Tensor:
        patches = self.conv1(to_patches(x))
        return self.down(self.conv3(self.conv2(torch.cat((patches, context), 1)), quant_step=quant_step))


class Decoder(nn.Module):
    """Latent and context to feature: ``[N, M, H/16, W/16]``, ``[N, C, H/8, W/8]`` -> ``[N, C, H/8, W/8]``."""

    def __init__(self, widths: RTVideoWidths) -> None:
        super().__init__()
        d = widths.main
        self.up = SubpelConv(widths.latent, d, 3)
        self.conv1 = nn.Sequential(DCB(2 * d, d), DCB(d, d), DCB(d, d))
        self.conv2 = nn.Conv2d(d, d, 1)

    def forward(self, y_hat: Tensor, context: Tensor, quant_step: Tensor) -> Tensor:
        return self.conv2(self.conv1(torch.cat((self.up(y_hat), context), 1))) * quant_step


class ReconGeneration(nn.Module):
    """Feature to picture: ``[N, C, H/8, W/8] -> [N, 3, H, W]``, not clamped."""

    def __init__(self, widths: RTVideoWidths) -> None:
        super().__init__()
        self.conv = nn.Sequential(DCB(widths.main, widths.recon), *blocks(widths.recon_blocks, widths.recon))
        self.head = nn.Conv2d(widths.recon, PATCH_CHANNELS, 1)

    def forward(self, feature: Tensor, quant_step: Tensor) -> Tensor:
        return from_patches(self.head(self.conv(feature) * quant_step))


def _run(model: DCVCRTVideo) -> None:
    """A frame from a picture, and one from a feature."""
    x = torch.empty(1, 3, 64, 64)
    model(x, model(x, model.start(x), 0)["state"], 0)


class DCVCRTVideo(RTVideoScripts, RTModel):
    """DCVC-RT's model of predicted frames (there `DMC`).

    Pictures are YCbCr 4:4:4, BT.709, full range, Cb and Cr around 0.5.

    Args:
        widths: channels and depths.
    """

    family = "dcvc-rt-video"
    rates = INTER_QUALITIES
    widths_class = RTVideoWidths
    wires = RT_WIRES
    stand_ins = {"feature_adaptor_i": "feature_adaptor_p"}
    banks = {
        "feature_extractor.quant_step": "q_feature",
        "encoder.quant_step": "q_encoder",
        "decoder.quant_step": "q_decoder",
        "recon_generation_net.quant_step": "q_recon",
    }
    SIGNATURE = (
        "feature_adaptor_p.weight",
        "feature_extractor.conv2.0.dc.0.weight",
        "hyper_encoder.conv.0.dc.0.weight",
        "recon_generation_net.head.weight",
        "q_recon",
    )

    def __init__(self, widths: RTVideoWidths | None = None) -> None:
        widths = widths or RTVideoWidths()
        super().__init__(widths)
        d, m, z = widths.main, widths.latent, widths.hyper
        self.feature_adaptor_i = DCB(PATCH_CHANNELS, d)
        self.feature_adaptor_p = nn.Conv2d(d, d, 1)
        self.feature_extractor = FeatureExtractor(widths)
        self.encoder = Encoder(widths)
        self.hyper_encoder = Stack(DCB(m, z), Down(z, z), Down(z, z))
        self.hyper_decoder = Stack(Up(z, z), Up(z, z), DCB(z, m))
        self.temporal_prior_encoder = Down(d, 2 * m)
        self.y_prior_fusion = Stack(*blocks(3, 3 * m), nn.Conv2d(3 * m, 3 * m, 1))
        self.y_spatial_prior = Stack(DCB(4 * m, 3 * m), DCB(3 * m, 3 * m), nn.Conv2d(3 * m, 2 * m, 1))
        self.decoder = Decoder(widths)
        self.recon_generation_net = ReconGeneration(widths)
        self.bit_estimator_z = BitEstimator(z, self.rates)
        self.q_encoder = quality_bank(self.rates, d, 1.5)
        self.q_decoder = quality_bank(self.rates, d, -1.5)
        self.q_feature = quality_bank(self.rates, d, 0)
        self.q_recon = quality_bank(self.rates, widths.recon, 0)
        self.dpb: list[ReferenceFrame] = []
        self.curr_poc = 0

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> DCVCRTVideo:
        """A model of the widths and with the weights of `state`, which may be pruned; in eval mode.

        Raises:
            UsageError: keys are missing or unknown, or the widths do not fit together, as they do where the published
                software has folded `encoder.conv1` into the next layer, on its first run on a GPU.
        """
        state = Weights(state)
        widths = RTVideoWidths(
            latent=state["encoder.down.weight"].shape[0],
            hyper=state["bit_estimator_z.f1.h"].shape[1],
            main=state["q_encoder"].shape[1],
            recon=state["q_recon"].shape[1],
            shared_blocks=numbered(state, "feature_extractor.conv1.{}.dc.0.weight"),
            context_blocks=numbered(state, "feature_extractor.conv2.{}.dc.0.weight"),
            recon_blocks=numbered(state, "recon_generation_net.conv.{}.dc.0.weight") - 1,
        )
        patches, inside = state["encoder.conv1.weight"].shape[:2]
        context = state[f"feature_extractor.conv2.{widths.context_blocks - 1}.ffn.2.weight"].shape[0]
        read = state["encoder.conv2.0.adaptor.weight"].shape[1] - context
        if read == inside != patches:
            raise UsageError("encoder.conv1 is folded into encoder.conv2.0.adaptor already: load the weights afresh")
        return filled(lambda: cls(widths), state, _run)

    @property
    def prior(self) -> InterPrior:
        """The networks between the hyper-latent and the tables."""
        return InterPrior(self.hyper_decoder, self.y_prior_fusion, self.y_spatial_prior)

    @staticmethod
    def start(x_hat: Tensor) -> RTState:
        """The state after a frame that stands alone: its reconstruction ``[N, 3, H, W]``, in [0, 1]."""
        return RTState(frame=x_hat)

    def reset(self, state: RTState, rate: Tensor | int) -> RTState:
        """The state with the picture in place of the feature, so that errors of the feature do not pile up.

        Args:
            state: after a frame.
            rate: the quality of that frame, shifted.
        """
        return state if state.feature is None else RTState(frame=self.picture(state.feature, rate))

    def picture(self, feature: Tensor, rate: Tensor | int) -> Tensor:
        """The frame of a feature: ``[N, C, H/8, W/8] -> [N, 3, H, W]`` in [0, 1]."""
        return self.recon_generation_net(feature, rate_rows(self.q_recon, rate)).clamp(0, 1)

    def adapt(self, state: RTState) -> Tensor:
        """The reference as the extractor reads it, ``[N, C, H/8, W/8]``."""
        if state.feature is None:
            return self.feature_adaptor_i(to_patches(state.frame))
        return self.feature_adaptor_p(state.feature)

    def forward(self, x: Tensor, state: RTState, rate: Tensor | int) -> dict[str, Any]:
        """One frame with an estimated rate; training and eval mode as in `DCVCRTImage.forward`.

        Args:
            x: ``[N, 3, H, W]`` float, in [0, 1]; H and W multiples of 16.
            state: from `start`, or from the frame before.
            rate: shifted quality 0 .. 71 (`shift_qp`), an int or ``[N]`` int.

        Returns:
            As `DCVCRTImage.forward`, and ``state``: the next one.
        """
        check_picture(x, STRIDE)
        rate = self.check_rate(rate, x.shape[0])
        self._check_state(state, x.shape, None)
        context, temporal = self.feature_extractor(self.adapt(state), rate_rows(self.q_feature, rate))
        y = self.encoder(x, context, rate_rows(self.q_encoder, rate)).to(x.dtype)
        z = self.hyper_encoder(pad_latent(y)).to(x.dtype)
        temporal = self.temporal_prior_encoder(temporal)
        coded = estimate(
            self.prior,
            y,
            z,
            self.bit_estimator_z,
            rate,
            training=self.training,
            skip=self.force_zero_thres,
            temporal=temporal,
        )
        feature = self.decoder(coded.y_hat, context, rate_rows(self.q_decoder, rate))
        x_hat = self.recon_generation_net(feature, rate_rows(self.q_recon, rate)).to(x.dtype)
        outcome = self.outcome(x, x_hat if self.training else x_hat.clamp(0, 1), coded)
        return {**outcome, "state": RTState(feature=feature)}

    # --- one frame, the state in the caller's hands -----------------------------------------------------------------

    @torch.no_grad()
    def compress_frame(self, x: Tensor, state: RTState, qp: int) -> tuple[bytes, RTState]:
        """One predicted frame to the family's payload.

        Args:
            x: ``[1, 3, H, W]`` float, in [0, 1]; H and W multiples of 16.
            state: as the decoder will have it; not changed.
            qp: shifted quality 0 .. 71 (`shift_qp`).

        Returns:
            The payload, and the state after this frame.

        Raises:
            UsageError: `update` was not called; another shape, dtype or quality; a state of another size or model; NaN.
        """
        check_coded(x, STRIDE, self.encoder)
        qp = self.check_quality(qp)
        self._check_state(state, x.shape, self.feature_adaptor_p)
        payload, feature = self._write(self._encoding, x, *state.fields, self._rate(qp))
        return payload, RTState(feature=feature)

    @torch.no_grad()
    def decompress_frame(
        self, payload: bytes, state: RTState, sps: Mapping[str, int], qp: int
    ) -> tuple[Tensor, RTState]:
        """A payload to the picture; the inverse of `compress_frame` on the same machine and thread count.

        Args:
            payload: from `compress_frame`.
            state, qp: as given to that.
            sps: ``height``, ``width`` of the picture before padding, ``ec_part`` (1: two streams).

        Returns:
            ``[1, 3, H, W]`` in [0, 1], padded to multiples of 16, and the state after this frame.

        Raises:
            BitstreamError: the payload is damaged or belongs to other settings.
            UsageError: `update` was not called; a size below 1; another quality; a state of another size or model.
        """
        qp = self.check_quality(qp)
        height, width, _ = size = self.check_parameter_set(sps)
        self._check_state(state, (1, 3, STRIDE * height, STRIDE * width), self.feature_adaptor_p)
        inputs = (*state.fields, height, width, self._rate(qp))
        x_hat, feature = self._read(payload, size, qp, self._decoding, *inputs)
        return x_hat, RTState(feature=feature)

    def _check_state(self, state: RTState, shape: Sequence[int], layer: nn.Module | None) -> None:
        """Raises a UsageError unless `state` can precede a frame of `shape` ``[N, 3, H, W]``; `layer`: `check_state`"""
        check_kind(state, RTState)
        n, _, height, width = shape
        feature = (n, self.q_decoder.shape[1], height // PATCH, width // PATCH)
        values = {"the state's frame": (state.frame, tuple(shape)), "its feature": (state.feature, feature)}
        check_state(values, layer)

    def _contexts(self, frame: Tensor | None, feature: Tensor | None, rate: Tensor | int) -> tuple[Tensor, Tensor]:
        """What the reference says of a frame, and of its latent's distribution."""
        reference = self.adapt(RTState(frame, feature))
        context, temporal = self.feature_extractor(reference, rate_rows(self.q_feature, rate))
        return context, self.temporal_prior_encoder(temporal)

    def _encoding(self, x: Tensor, frame: Tensor | None, feature: Tensor | None, rate: Tensor | int) -> Routine:
        context, temporal = self._contexts(frame, feature, rate)
        y = self.encoder(x, context, rate_rows(self.q_encoder, rate))
        z = self.hyper_encoder(pad_latent(y))
        y_hat = yield from self.coder().encoding(y, z, rate, temporal)
        return self.decoder(y_hat, context, rate_rows(self.q_decoder, rate))

    def _decoding(self, frame: Tensor | None, feature: Tensor | None, height: int, width: int, rate: Tensor) -> Routine:
        context, temporal = self._contexts(frame, feature, rate)  # before the hyper-latent, which they do not need
        z_symbols = (yield Known(self._hyper_shape(height, width))).to(self.q_decoder.device)
        y_hat = yield from self.coder().decoding(z_symbols, (height, width), temporal, dtype=self.q_decoder.dtype)
        feature = self.decoder(y_hat, context, rate_rows(self.q_decoder, rate))
        return self.picture(feature, rate), feature
