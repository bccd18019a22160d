"""DCVC's inter coding at work: what is coded when, and what each network is given (arXiv 2109.15047, section 3).

Written once for the plain model and for the compiled one, which differ in what runs the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparsecodec.entropy import EntropyTables, decode, encode
from sparsecodec.nn.flow import warp_by_grid
from sparsecodec.nn.routine import channel_indexes

MOTION, FRAME = "_mv", ""  # which latent: suffix of the names of its networks
STRIDE = 64  # of the hyper-latents
Network = Callable[[Tensor], Tensor]
# What networks read and make of each other's, for `sparsecodec.sparsity.wiring`. A warp stands before the refinement.
DCVC_WIRES = {
    "feature_extract": ((None,), ("feature",)),
    "context_refine": (("feature",), ("context",)),
    "temporalPriorEncoder": (("context",), (None,)),
    "contextualEncoder": (((None, "context"),), (None,)),
    "contextualDecoder_part1": ((None,), ("decoded",)),
    "contextualDecoder_part2": ((("decoded", "context"),), (None,)),
}


class LatentCoder(Protocol):
    """Codes a latent whose tables depend on a prior and on what was coded before."""

    def encode(self, y: Tensor, prior: Tensor) -> tuple[bytes, Tensor]:
        """``[1, M, H, W]`` and ``[1, P, H, W]`` -> string, and the latent as decoded."""

    def decode(self, string: bytes, prior: Tensor) -> Tensor:
        """The latent of a string."""


@dataclass(frozen=True)
class DCVCStrings:
    """A frame: the motion's latent and hyper-latent, the frame's latent and hyper-latent."""

    mv_y: bytes
    mv_z: bytes
    y: bytes
    z: bytes


class DCVCPrediction:
    """The networks between decoded latents and what they are good for; differentiable if the networks are.

    Args:
        network: path in the model -> network.
        warp: (features ``[N, C, H, W]``, flow ``[N, 2, H, W]``) -> the features there.
    """

    def __init__(
        self, network: Callable[[str], Network], warp: Callable[[Tensor, Tensor], Tensor] = warp_by_grid
    ) -> None:
        self.network = network
        self._warp = warp

    def flow(self, mv_y_hat: Tensor, reference: Tensor) -> Tensor:
        """Decoded motion's latent ``[N, motion, h, w]`` and the frame before -> ``[N, 2, 16h, 16w]`` in pixels."""
        flow = self.network("mvDecoder_part1")(mv_y_hat)
        return self.network("mvDecoder_part2")(torch.cat([flow, reference], 1)) + flow

    def context(self, flow: Tensor, reference: Tensor) -> Tensor:
        """Decoded motion and the frame before -> the context, ``[N, feature, 16h, 16w]``."""
        return self.network("context_refine")(self._warp(self.network("feature_extract")(reference), flow))

    def reconstruct(self, y_hat: Tensor, context: Tensor) -> Tensor:
        """Decoded latent ``[N, latent, h, w]`` and context -> picture ``[N, 3, 16h, 16w]``, not clamped."""
        features = self.network("contextualDecoder_part1")(y_hat)
        return self.network("contextualDecoder_part2")(torch.cat([features, context], 1))

    def motion_latents(self, x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """A frame and the one before -> latent and hyper-latent of the motion, not rounded."""
        y = self.network("mvEncoder")(self.network("opticFlow")(x, reference))
        return y, self.network("mvpriorEncoder")(y)

    def frame_latents(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """A frame and its context -> its latent and hyper-latent, not rounded."""
        y = self.network("contextualEncoder")(torch.cat([x, context], 1))
        return y, self.network("priorEncoder")(y)

    def motion_prior(self, z_hat: Tensor) -> Tensor:
        """What the motion's entropy parameters know beside its context model, ``[N, 2 motion, h, w]``."""
        return self.network("mvpriorDecoder")(z_hat)

    def frame_prior(self, z_hat: Tensor, context: Tensor) -> Tensor:
        """What the frame's entropy parameters know beside its context model, ``[N, 2 latent, h, w]``."""
        return torch.cat([self.network("temporalPriorEncoder")(context), self.network("priorDecoder")(z_hat)], 1)


class DCVCCoder(DCVCPrediction):
    """Frames to strings and back.

    Args:
        network, warp: as for `DCVCPrediction`. Encoder and decoder must compute the same bits.
        coders: what codes the latents, by `MOTION` and `FRAME`.
        z_tables: a row per channel of the hyper-latents, by `MOTION` and `FRAME`.
    """

    def __init__(
        self,
        network: Callable[[str], Network],
        coders: Mapping[str, LatentCoder],
        z_tables: Mapping[str, EntropyTables],
        warp: Callable[[Tensor, Tensor], Tensor] = warp_by_grid,
    ) -> None:
        super().__init__(network, warp)
        self.coders = coders
        self.z_tables = z_tables

    def encode(self, x: Tensor, reference: Tensor) -> tuple[DCVCStrings, Tensor]:
        """``[1, 3, H, W]`` frame and the one before -> strings, and the picture as `decode` will give it."""
        mv_y, mv_z = self.motion_latents(x, reference)
        mv_z_string, mv_z = self._encode_z(mv_z, MOTION)
        mv_y_string, mv_y = self.coders[MOTION].encode(mv_y, self.motion_prior(mv_z))
        context = self.context(self.flow(mv_y, reference), reference)
        y, z = self.frame_latents(x, context)
        z_string, z = self._encode_z(z, FRAME)
        y_string, y = self.coders[FRAME].encode(y, self.frame_prior(z, context))
        return DCVCStrings(mv_y_string, mv_z_string, y_string, z_string), self.reconstruct(y, context).clamp(0, 1)

    def decode(self, strings: DCVCStrings, reference: Tensor) -> Tensor:
        """The picture in [0, 1].

        Raises:
            BitstreamError: a string is damaged or belongs to another model, frame or arithmetic.
        """
        mv_z = self._decode_z(strings.mv_z, reference, MOTION)
        mv_y = self.coders[MOTION].decode(strings.mv_y, self.motion_prior(mv_z))
        context = self.context(self.flow(mv_y, reference), reference)
        z = self._decode_z(strings.z, reference, FRAME)
        y = self.coders[FRAME].decode(strings.y, self.frame_prior(z, context))
        return self.reconstruct(y, context).clamp(0, 1)

    def _encode_z(self, z: Tensor, part: str) -> tuple[bytes, Tensor]:
        z = z.round()
        return encode(z.int().cpu(), channel_indexes(z.shape), self.z_tables[part]), z

    def _decode_z(self, string: bytes, reference: Tensor, part: str) -> Tensor:
        tables = self.z_tables[part]
        height, width = reference.shape[2] // STRIDE, reference.shape[3] // STRIDE
        return decode(string, channel_indexes((1, tables.rows, height, width)), tables).to(reference)
