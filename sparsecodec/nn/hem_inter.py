"""DCVC-HEM's predicted frames at work: how the networks, two entropy models and the state play together.

Written once for the model, for the compiled codec and for training: networks are looked up by their path in the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecodec.entropy import Decoder, Encoder
from sparsecodec.nn.dual_prior import CodingLayout, DualPrior, DualPriorCoder, Network
from sparsecodec.nn.flow import LEVELS, Warp, estimate_flow, halve_size
from sparsecodec.nn.routine import Routine, eagerly, pulling, pushing
from sparsecodec.ops import laplace_scale_thresholds
from sparsecodec.ops.quantize_latent import MAX_LIMIT

FLOW = tuple(f"optic_flow.moduleBasic.{level}" for level in range(LEVELS))
HEM_INTRA_LAYOUT = CodingLayout(streams=1, symbol_max=MAX_LIMIT)  # the family clips no symbol
HEM_INTER_LAYOUT = CodingLayout(streams=1, symbol_max=MAX_LIMIT, thresholds=laplace_scale_thresholds)
Contexts = tuple[Tensor, Tensor, Tensor]
# What networks read and make of each other's, for `sparsecodec.sparsity.wiring`. A warp stands before the fusion.
HEM_WIRES = {
    "feature_adaptor_I": ((None,), ("adapted",)),
    "feature_adaptor_P": (("feature",), ("adapted",)),
    "feature_extractor": (("adapted",), ("full", "half", "quarter")),
    "context_fusion_net": (("full", "half", "quarter"), ("context", "context_half", "context_quarter")),
    "contextual_encoder": ((None, "context", "context_half", "context_quarter"), (None,)),
    "temporal_prior_encoder": (("context_quarter",), (None,)),
    "contextual_decoder": ((None, "context_half", "context_quarter"), ("decoded",)),
    "recon_generation_net": (("decoded", "context"), ("feature", None)),
}


@dataclass(frozen=True)
class HEMState:
    """What the next predicted frame needs of those before it.

    Attributes:
        frame: ``[N, 3, H, W]`` in [0, 1]. The last picture as decoded, padded.
        feature: ``[N, C, H, W]``, or None after a frame that stands alone.
        y: ``[N, M, H/16, W/16]``, or None likewise. Its latent, times step and gain.
        mv: ``[N, C_mv, H/16, W/16]``, or None likewise. The latent of its motion, times step and gain.
    """

    frame: Tensor
    feature: Tensor | None = None
    y: Tensor | None = None
    mv: Tensor | None = None

    @property
    def fields(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        return self.frame, self.feature, self.y, self.mv

    def tensors(self) -> tuple[Tensor, ...]:
        """Those that exist, in a fixed order: what a fingerprint is taken of."""
        return tuple(value for value in self.fields if value is not None)


class HEMInter:
    """The networks of a predicted frame.

    Args:
        network: path in the model -> what computes it there.
        warp: `sparsecodec.nn.flow.warp_by_grid`, or `sparsecodec.ops.warp`.
    """

    def __init__(self, network: Callable[[str], Callable[..., Any]], warp: Warp) -> None:
        self.network = network
        self.warp = warp
        self.mv_prior = self._prior("mv_hyper_prior_decoder", "mv_y_prior_fusion", "mv_y_spatial_prior")
        self.y_prior = self._prior("contextual_hyper_prior_decoder", "y_prior_fusion", "y_spatial_prior")

    def _prior(self, *paths: str) -> DualPrior:
        return DualPrior(*(self.network(path) for path in paths))

    def motion(self, x: Tensor, frame: Tensor) -> Tensor:
        """Latent of the motion from `x` back to `frame`, both ``[N, 3, H, W]`` -> ``[N, C_mv, H/16, W/16]``."""
        flow = estimate_flow([self.network(path) for path in FLOW], x, frame, self.warp)
        return self.network("mv_encoder")(flow)

    def join_motion(self, before: Tensor | None) -> Network:
        """What the fusion of the motion's prior reads: the hyper-decoder's output and the last frame's latent."""
        return lambda hyper: torch.cat([hyper, _or_zeros(before, hyper)], 1)

    def join_latent(self, quarter: Tensor, before: Tensor | None) -> Network:
        """As `join_motion` for the latent, with the context at 1/4 in front."""
        temporal = self.network("temporal_prior_encoder")(quarter)
        return lambda hyper: torch.cat([temporal, hyper, _or_zeros(before, hyper)], 1)

    def flow(self, mv_hat: Tensor) -> Tensor:
        """The decoded motion ``[N, 2, H, W]`` in pixels."""
        return self.network("mv_decoder")(mv_hat)

    def features(self, frame: Tensor, feature: Tensor | None) -> Contexts:
        """What the frame before gives, not yet moved: ``[N, C, H, W]`` at 1/1, 1/2 and 1/4."""
        if feature is None:
            return self.network("feature_extractor")(self.network("feature_adaptor_I")(frame))
        return self.network("feature_extractor")(self.network("feature_adaptor_P")(feature))

    def contexts(self, flow: Tensor, features: Contexts) -> Contexts:
        """What the reference says of this frame, ``[N, C, H, W]`` at 1/1, 1/2 and 1/4."""
        flow2 = halve_size(flow) / 2
        flow3 = halve_size(flow2) / 2
        full, half, quarter = features
        warped = (self.warp(full, flow), self.warp(half, flow2), self.warp(quarter, flow3))
        return self.network("context_fusion_net")(*warped)

    def picture(self, y_hat: Tensor, contexts: Contexts) -> tuple[Tensor, Tensor]:
        """Latent and contexts -> (feature ``[N, C, H, W]``, frame ``[N, 3, H, W]`` not yet in [0, 1])."""
        full, half, quarter = contexts
        return self.network("recon_generation_net")(self.network("contextual_decoder")(y_hat, half, quarter), full)


def _or_zeros(before: Tensor | None, hyper: Tensor) -> Tensor:
    """`before`, or as many zeros as the first frame after a picture has: half of the hyper-decoder's channels."""
    return torch.zeros_like(hyper[:, : hyper.shape[1] // 2]) if before is None else before


def _hyper_size(frame: Tensor) -> tuple[int, int]:
    """Of both hyper-latents."""
    return frame.shape[2] // 64, frame.shape[3] // 64


class HEMInterCoder:
    """Predicted frames to payloads and back.

    Args:
        networks: encoder and decoder must compute the same bits.
        mv_coder, y_coder: of the latents of motion and picture.
        run: runs a routine with its inputs, as `eagerly` does.
    """

    def __init__(
        self,
        networks: HEMInter,
        mv_coder: DualPriorCoder,
        y_coder: DualPriorCoder,
        run: Callable[..., Any] = eagerly,
    ) -> None:
        self._networks = networks
        self._run = run
        self._mv_coder = mv_coder
        self._y_coder = y_coder

    def encode(self, x: Tensor, state: HEMState, mv_gain: Tensor, y_gain: Tensor) -> tuple[bytes, HEMState]:
        """Codes ``x [1, 3, H, W]``; gains are ``[C]``, global times channel-wise steps.

        Returns:
            The payload, and the state as the decoder will have it.
        """
        encoder = Encoder()
        fields = self._run(self.encoding, x, mv_gain, y_gain, *state.fields, host=pushing(encoder))
        return encoder.finish(), HEMState(*fields)

    def decode(self, payload: bytes, state: HEMState, mv_gain: Tensor, y_gain: Tensor) -> HEMState:
        """The inverse of `encode`; sizes are those of the reference frame.

        Raises:
            BitstreamError: the payload is damaged or belongs to another state, model or arithmetic.
        """
        decoder = Decoder(payload)
        size = _hyper_size(state.frame)
        hyper = (coder.z_request(size) for coder in (self._mv_coder, self._y_coder))
        fields = self._run(self.decoding, mv_gain, y_gain, *state.fields, host=pulling(decoder, *hyper))
        decoder.finish()
        return HEMState(*fields)

    def encoding(
        self,
        x: Tensor,
        mv_gain: Tensor,
        y_gain: Tensor,
        frame: Tensor,
        feature: Tensor | None,
        y_before: Tensor | None,
        mv_before: Tensor | None,
    ) -> Routine:
        """Device work of `encode`; returns the fields of the next state."""
        nets = self._networks
        mv_y = nets.motion(x, frame) / mv_gain.view(1, -1, 1, 1)
        mv_z = nets.network("mv_hyper_prior_encoder")(mv_y)
        mv_hat = yield from self._mv_coder.encoding(mv_y, mv_z, mv_gain, nets.join_motion(mv_before))
        contexts = nets.contexts(nets.flow(mv_hat), nets.features(frame, feature))
        y = nets.network("contextual_encoder")(x, *contexts) / y_gain.view(1, -1, 1, 1)
        z = nets.network("contextual_hyper_prior_encoder")(y)
        y_hat = yield from self._y_coder.encoding(y, z, y_gain, nets.join_latent(contexts[2], y_before))
        return self._finish(y_hat, mv_hat, contexts)

    def decoding(
        self,
        mv_gain: Tensor,
        y_gain: Tensor,
        frame: Tensor,
        feature: Tensor | None,
        y_before: Tensor | None,
        mv_before: Tensor | None,
    ) -> Routine:
        """Device work of `decode`; returns the fields of the next state. What needs no hyper-latent comes before it."""
        nets, size = self._networks, _hyper_size(frame)
        features = nets.features(frame, feature)
        mv_z = yield from self._mv_coder.z_decoding(size, frame.device)
        mv_hat = yield from self._mv_coder.decoding(mv_z, mv_gain, nets.join_motion(mv_before))
        contexts = nets.contexts(nets.flow(mv_hat), features)
        join = nets.join_latent(contexts[2], y_before)
        z = yield from self._y_coder.z_decoding(size, frame.device)
        y_hat = yield from self._y_coder.decoding(z, y_gain, join)
        return self._finish(y_hat, mv_hat, contexts)

    def _finish(self, y_hat: Tensor, mv_hat: Tensor, contexts: Contexts) -> tuple[Tensor, ...]:
        feature, frame = self._networks.picture(y_hat, contexts)
        # Clamped on both sides: the next frame is predicted from it, and a decoder has no other.
        return frame.clamp(0, 1), feature, y_hat, mv_hat
