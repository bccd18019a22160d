"""DCVC-HEM on integers: the same symbols, the same States and the same pictures on every device (docs/portable.md)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables, dcvc_laplace64_tables
from sparsecodec.models.inputs import check_kind, input_channels
from sparsecodec.nn.dual_prior import Network
from sparsecodec.nn.flow import estimate_flow
from sparsecodec.nn.hem_inter import FLOW, Contexts, HEMState
from sparsecodec.nn.integer_prior import ONE, ExactPriorCoder, JoinedParameters, as_float, fixed_gain, narrowed
from sparsecodec.nn.routine import Coding, Routine
from sparsecodec.ops import integer_warp
from sparsecodec.quant.tables import SteppedTables
from sparsecodec.quant.video_families import HEMFamily
from sparsecodec.runtime.adapters.portable_behind_image import (
    LATENT,
    PortableBehindImage,
    PredictedFrame,
    check_fields,
    of_channels,
    rows_of,
)
from sparsecodec.runtime.adapters.portable_video import PartNetworks
from sparsecodec.runtime.video_networks import warp_any


def halved(flow: Tensor) -> Tensor:
    """The flow of a picture of half the size: means of 2 x 2, halved; int32 fixed-point, even sides."""
    total = sum(flow[:, :, i::2, j::2].long() for i in (0, 1) for j in (0, 1))
    return ((total + 4) >> 3).to(torch.int32)


class _Predicted(PredictedFrame):
    """What codes a frame from the one before."""

    def __init__(self, model: nn.Module, device: torch.device, strict: bool) -> None:
        parts = PartNetworks(model, "inter", strict)
        # From the end of each path to its beginning: a network gives what the next one reads.
        by_picture, by_feature = (f"feature_adaptor_{kind}" for kind in "IP")
        self._generator = parts.network("recon_generation_net", results=(parts.network(by_feature).exponent, None))
        self._feature_exponent = self._generator.result_exponents[0]
        decoded, full = self._generator.exponents
        self._decoder = parts.network("contextual_decoder", results=(decoded,))
        # What is warped has one exponent on both sides of it.
        wanted = parts.network("context_fusion_net", results=(full,)).exponents
        scales = {by_picture: None, by_feature: self._feature_exponent}
        for _ in range(2):  # the second time with what the first one gave
            self._features = {
                path: parts.network(path, "feature_extractor", sources=(source,), results=wanted)
                for path, source in scales.items()
            }
            wanted = tuple(map(max, *(network.result_exponents for network in self._features.values())))
        self._fusion = parts.network("context_fusion_net", sources=wanted, results=(full,))
        self._motion = parts.network("mv_decoder")
        self._by_picture, self._by_feature = self._features.values()
        self._feature_channels = input_channels(model.feature_adaptor_P)
        stored, of_motion = model.portable, model.bit_estimator_z_mv.f1.h.numel()
        rows = stored.tables()
        motion, latent = (
            _Prior(parts, paths, hyper_tables, stored, device)
            for paths, hyper_tables in (
                (("mv_hyper_prior_decoder", "mv_y_prior_fusion", "mv_y_spatial_prior"), rows_of(rows, 0, of_motion)),
                (
                    ("contextual_hyper_prior_decoder", "y_prior_fusion", "y_spatial_prior"),
                    rows_of(rows, of_motion, rows.rows),
                ),
            )
        )
        self._temporal = parts.network("temporal_prior_encoder", results=(latent.exponent,))
        self.motion, self.latent = motion, latent
        self._steps = stored.steps.tolist()
        self._basics = model.mv_y_q_basic, model.y_q_basic
        self.latents = sum(basic.numel() for basic in self._basics)
        self.decoder = (
            *(self._by_feature, *motion.networks, self._motion, self._fusion, self._temporal, *latent.networks),
            *(self._decoder, self._generator),
        )
        self.networks = (self._by_picture, *self.decoder)

    def first_call(self, size: tuple[int, int]) -> Coding:
        return self.motion.coder.z_request(size)

    def check_state(self, state: HEMState, height: int, width: int) -> None:
        check_kind(state, HEMState)
        wanted = {"frame": (1, 3, height, width)}
        if state.feature is not None:
            wanted["feature"] = (1, self._feature_channels, height, width)
            wanted["mv"], wanted["y"] = (
                (1, basic.numel(), height // LATENT, width // LATENT) for basic in self._basics
            )
        check_fields(state, wanted)

    def gains(self, qp: int) -> tuple[Tensor, Tensor]:
        """Of motion and latent, ``[C]`` int64 fixed-point."""
        of_motion, of_latent = map(fixed_gain, self._basics, self._steps[qp])
        return of_motion, of_latent

    def state(self, picture: Tensor) -> HEMState:
        """After a frame that stands alone: ``[1, 3, H, W]`` fixed-point."""
        return HEMState(narrowed(picture, self._by_picture.exponent))

    def frame(self, state: HEMState) -> Tensor:
        """The picture before, float32."""
        return state.frame.float() * 2.0**self._by_picture.exponent

    def join_motion(self, state: HEMState) -> Network:
        """What the fusion of the motion's prior reads."""
        return lambda hyper: torch.cat((hyper, _or_zeros(state.mv, hyper)), 1)

    def join_latent(self, quarter: Tensor, state: HEMState) -> Network:
        """As `join_motion` for the latent, with the context at 1/4 in front."""
        temporal = self._temporal(narrowed(quarter, self._temporal.exponent))
        return lambda hyper: torch.cat((temporal, hyper, _or_zeros(state.y, hyper)), 1)

    def contexts(self, mv_hat: Tensor, state: HEMState) -> Contexts:
        """At 1/1 int16, at 1/2 and 1/4 int32: ``[1, C, H, W]`` and so on."""
        flow = self._motion(narrowed(mv_hat, self._motion.exponent))
        flows = flow, halved(flow), halved(halved(flow))
        features = self._by_picture(state.frame) if state.feature is None else self._by_feature(state.feature)
        return self._fusion(*map(integer_warp, features, flows))

    def as_floats(self, contexts: Contexts) -> Contexts:
        """What encoders read of contexts."""
        full, half, quarter = contexts
        return full.float() * 2.0 ** self._fusion.result_exponents[0], as_float(half), as_float(quarter)

    def after(self, y_hat: Tensor, mv_hat: Tensor, contexts: Contexts) -> tuple[Tensor, HEMState]:
        """The picture ``[1, 3, H, W]`` fixed-point in [0, 1], and the State."""
        full, half, quarter = contexts
        decoded = self._decoder(narrowed(y_hat, self._decoder.exponent), half, quarter)
        feature, picture = self._generator(decoded, full)
        picture = picture.clamp(0, ONE)
        fields = self.state(picture).frame, feature.clone(), self.latent.kept(y_hat), self.motion.kept(mv_hat)
        return picture, HEMState(*fields)


class _Prior:
    """Networks and coder of one of a predicted frame's two latents."""

    def __init__(
        self,
        parts: PartNetworks,
        paths: tuple[str, str, str],
        hyper_tables: EntropyTables,
        stored: SteppedTables,
        device: torch.device,
    ) -> None:
        hyper, fusion, spatial = paths
        self._fusion, self._spatial = parts.network(fusion), parts.network(spatial)
        self.exponent = self._fusion.exponent
        self._hyper = parts.network(hyper, results=(self.exponent,))
        self.networks = self._hyper, self._fusion, self._spatial
        medians = stored.z_medians[: hyper_tables.rows]  # zeros
        tables = dcvc_laplace64_tables(), hyper_tables
        parameters = JoinedParameters(self._hyper, self._fusion)
        self.coder = ExactPriorCoder(parameters, self._spatial, *tables, medians, stored.thresholds, device)

    def kept(self, latent: Tensor) -> Tensor:
        """What the next frame's prior reads of this one's latent, int16."""
        return narrowed(latent, self.exponent)


def _or_zeros(before: Tensor | None, hyper: Tensor) -> Tensor:
    """`before`, or as many zeros as the first frame after a picture has: half of the hyper-decoder's channels."""
    return torch.zeros_like(hyper[:, : hyper.shape[1] // 2]) if before is None else before


class PortableHEMCodec(PortableBehindImage):
    """DCVC-HEM with portable streams; see `PortableVideo`."""

    FAMILY = HEMFamily
    INTER = _Predicted
    ANALYSIS = (
        *(*PortableBehindImage.ANALYSIS, *(f"inter.{path}" for path in FLOW), "inter.mv_encoder"),
        *("inter.mv_hyper_prior_encoder", "inter.contextual_encoder", "inter.contextual_hyper_prior_encoder"),
    )

    def magnitude(self, state: HEMState) -> float:
        return 0.0 if state.feature is None else float(state.feature.float().abs().mean())

    def _encoding(self, x: Tensor, state: HEMState, qp: int) -> Routine:
        parts, networks = self._inter, {path.removeprefix("inter."): run for path, run in self._analysis.items()}
        mv_gain, y_gain = parts.gains(qp)
        flow = estimate_flow([networks[path] for path in FLOW], x, parts.frame(state), warp_any)
        mv_y = networks["mv_encoder"](flow) / of_channels(mv_gain)
        mv_z = networks["mv_hyper_prior_encoder"](mv_y)
        mv_hat = yield from parts.motion.coder.encoding(mv_y, mv_z, mv_gain, parts.join_motion(state))
        contexts = parts.contexts(mv_hat, state)
        y = networks["contextual_encoder"](x, *parts.as_floats(contexts)) / of_channels(y_gain)
        z = networks["contextual_hyper_prior_encoder"](y)
        y_hat = yield from parts.latent.coder.encoding(y, z, y_gain, parts.join_latent(contexts[2], state))
        return parts.after(y_hat, mv_hat, contexts)

    def _decoding(self, symbols: Tensor, size: tuple[int, int], state: HEMState, qp: int) -> Routine:
        parts = self._inter
        mv_gain, y_gain = parts.gains(qp)
        mv_hat = yield from parts.motion.coder.decoding(symbols, mv_gain, parts.join_motion(state))
        contexts = parts.contexts(mv_hat, state)
        z = yield parts.latent.coder.z_request(size, self.device)
        y_hat = yield from parts.latent.coder.decoding(z, y_gain, parts.join_latent(contexts[2], state))
        return parts.after(y_hat, mv_hat, contexts)
