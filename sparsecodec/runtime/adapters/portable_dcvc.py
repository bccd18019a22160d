"""DCVC (2021) with portable streams: integers from the bytes to the pictures (docs/portable.md, section 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables, dcvc_laplace16_tables
from sparsecodec.models.dcvc import DCVC, DCVCState
from sparsecodec.models.inputs import check_kind
from sparsecodec.nn.dcvc_coder import FRAME, MOTION
from sparsecodec.nn.flow import LEVELS, estimate_flow
from sparsecodec.nn.integer_prior import ONE, SYMBOL_LIMIT, fixed_point, narrowed
from sparsecodec.nn.routine import Coding, Routine, channel_indexes
from sparsecodec.ops import integer_warp, quantize_latent
from sparsecodec.ops._fixed_point import FRACTION_BITS
from sparsecodec.ops.integer_conv2d import LIMIT, shifted
from sparsecodec.quant import quantized_layers
from sparsecodec.quant.video_families import DCVCFamily
from sparsecodec.runtime.adapters.portable_behind_image import (
    PortableBehindImage,
    PredictedFrame,
    check_fields,
    rows_of,
)
from sparsecodec.runtime.adapters.portable_video import PartNetworks
from sparsecodec.runtime.integer_constants import wanted_exponent
from sparsecodec.runtime.integer_context import ColumnNetwork, WaveCoder
from sparsecodec.runtime.integer_network import IntegerNetwork
from sparsecodec.runtime.video_networks import warp_any

FLOW = tuple(f"opticFlow.moduleBasic.{level}" for level in range(LEVELS))


class _Reconstruction(nn.Module):
    """Both parts of the contextual decoder."""

    def __init__(self, model: DCVC) -> None:
        super().__init__()
        self.contextualDecoder_part1 = model.contextualDecoder_part1
        self.contextualDecoder_part2 = model.contextualDecoder_part2

    def forward(self, y_hat: Tensor, context: Tensor) -> Tensor:
        return self.contextualDecoder_part2(torch.cat([self.contextualDecoder_part1(y_hat), context], 1))


class _Prior:
    """Networks and coder of one of a frame's two latents and of its hyper-latent."""

    def __init__(
        self, parts: PartNetworks, suffix: str, hyper: str, z_tables: EntropyTables, device: torch.device
    ) -> None:
        model, stored = parts.model, parts.model.portable
        context = model.get_submodule(f"auto_regressive{suffix}")
        names = f"auto_regressive{suffix}", f"entropy_parameters{suffix}"
        self.parameters = ColumnNetwork(model, parts.prefix, names, parts.strict)
        channels, reach = context.in_channels, context.kernel_size[0] // 2
        thresholds = stored.thresholds.to(device)
        self.coder = WaveCoder(self.parameters, channels, reach, dcvc_laplace16_tables(), thresholds)
        self._hyper = parts.network(hyper, results=(self.coder.prior_exponent,))
        self._z_tables = z_tables
        self.networks = self._hyper, self.parameters

    def z_request(self, size: tuple[int, int], device: torch.device | None = None) -> Coding:
        """The coding call of the hyper-latent, ``[1, C_z, *size]``, its indexes on `device` (None: on the host)."""
        return Coding(self._z_tables, channel_indexes((1, self._z_tables.rows, *size), device))

    def z_coding(self, z: Tensor) -> Coding:
        """The coding call of an encoder's hyper-latent, float32."""
        symbols = quantize_latent(z, limit=SYMBOL_LIMIT - 1)
        return Coding(self._z_tables, channel_indexes(symbols.shape, symbols.device), symbols)

    def prior(self, z_symbols: Tensor) -> Tensor:
        """What the entropy parameters read of the hyper-latent, int16."""
        return self._hyper(narrowed(fixed_point(z_symbols), self._hyper.exponent))


class _Predicted(PredictedFrame):
    def __init__(self, model: DCVC, device: torch.device, strict: bool) -> None:
        parts = PartNetworks(model, "inter", strict)
        of_motion = model.bitEstimator_z_mv.f1.h.numel()
        rows = model.portable.tables()
        self.motion = _Prior(parts, MOTION, "mvpriorDecoder", rows_of(rows, 0, of_motion), device)
        self.latent = _Prior(parts, FRAME, "priorDecoder", rows_of(rows, of_motion, rows.rows), device)
        self.latents = self.motion.coder.channels + self.latent.coder.channels
        self._flow, self._refine = parts.network("mvDecoder_part1"), parts.network("mvDecoder_part2")
        # From the end of each path to its beginning: a network gives what those behind it read.
        wanted, joined = self.latent.coder.prior_exponent, {"inter": _Reconstruction(model)}
        readers = parts.network("temporalPriorEncoder"), IntegerNetwork(joined, strict=strict)
        self._context_exponent = max(readers[0].exponent, readers[1].exponents[1])
        self._temporal = parts.network("temporalPriorEncoder", sources=(self._context_exponent,), results=(wanted,))
        self._reconstruct = IntegerNetwork(joined, sources=(None, self._context_exponent), strict=strict)
        # No layer reads what is warped: it has the exponent of the first that reads what a ReLU leaves of it.
        warped = wanted_exponent(next(iter(quantized_layers(model.context_refine).values())))
        self._refine_context = parts.network("context_refine", sources=(warped,), results=(self._context_exponent,))
        self._features = parts.network("feature_extract", results=(warped,))
        self.decoder = (
            *(*self.motion.networks, self._flow, self._refine, self._features, self._refine_context, self._temporal),
            *(*self.latent.networks, self._reconstruct),
        )
        self.networks = self.decoder

    def first_call(self, size: tuple[int, int]) -> Coding:
        return self.motion.z_request(size)

    def check_state(self, state: DCVCState, height: int, width: int) -> None:
        check_kind(state, DCVCState)
        check_fields(state, {"frame": (1, 3, height, width)})

    def state(self, picture: Tensor) -> DCVCState:
        return DCVCState(narrowed(picture, self._features.exponent))

    def frame(self, state: DCVCState) -> Tensor:
        """The picture before, float32."""
        return state.frame.float() * 2.0**self._features.exponent

    def context(self, mv_hat: Tensor, state: DCVCState) -> Tensor:
        """Decoded motion ``[1, C, H/16, W/16]`` fixed-point -> the context ``[1, feature, H, W]`` int16."""
        flow = self._flow(narrowed(mv_hat, self._flow.exponent))
        frame = shifted(state.frame.long(), self._features.exponent + FRACTION_BITS)
        read = torch.cat([narrowed(part, self._refine.exponent) for part in (flow, frame)], 1)
        flow = (self._refine(read) + flow).clamp_(-LIMIT, LIMIT - 1)
        return self._refine_context(integer_warp(self._features(state.frame), flow))

    def as_float(self, context: Tensor) -> Tensor:
        """What encoders read of a context."""
        return context.float() * 2.0**self._context_exponent

    def latent_prior(self, z_symbols: Tensor, context: Tensor) -> Tensor:
        """What the entropy parameters of the frame's latent read, int16."""
        return torch.cat([self._temporal(context), self.latent.prior(z_symbols)], 1)

    def after(self, y_hat: Tensor, context: Tensor) -> tuple[Tensor, DCVCState]:
        """The picture ``[1, 3, H, W]`` fixed-point in [0, 1], and the State."""
        picture = self._reconstruct(narrowed(y_hat, self._reconstruct.exponent), context).clamp(0, ONE)
        return picture, self.state(picture)


class PortableDCVCCodec(PortableBehindImage):
    """DCVC (2021) behind EVC with portable streams; see `PortableVideo`."""

    FAMILY = DCVCFamily
    INTER = _Predicted
    ANALYSIS = (
        *(*PortableBehindImage.ANALYSIS, *(f"inter.{path}" for path in FLOW), "inter.mvEncoder"),
        *("inter.mvpriorEncoder", "inter.contextualEncoder", "inter.priorEncoder"),
    )

    def _encoding(self, x: Tensor, state: DCVCState, qp: int) -> Routine:
        parts, networks = self._inter, {path.removeprefix("inter."): run for path, run in self._analysis.items()}
        flow = estimate_flow([networks[path] for path in FLOW], x, parts.frame(state), warp_any)
        mv_y = networks["mvEncoder"](flow)
        coding = parts.motion.z_coding(networks["mvpriorEncoder"](mv_y))
        yield coding
        mv_hat = yield from parts.motion.coder.encoding(mv_y, parts.motion.prior(coding.symbols))
        context = parts.context(mv_hat, state)
        y = networks["contextualEncoder"](torch.cat([x, parts.as_float(context)], 1))
        coding = parts.latent.z_coding(networks["priorEncoder"](y))
        yield coding
        y_hat = yield from parts.latent.coder.encoding(y, parts.latent_prior(coding.symbols, context))
        return parts.after(y_hat, context)

    def _decoding(self, symbols: Tensor, size: tuple[int, int], state: DCVCState, qp: int) -> Routine:
        parts = self._inter
        mv_hat = yield from parts.motion.coder.decoding(parts.motion.prior(symbols))
        context = parts.context(mv_hat, state)
        z_symbols = yield parts.latent.z_request(size, self.device)
        y_hat = yield from parts.latent.coder.decoding(parts.latent_prior(z_symbols, context))
        return parts.after(y_hat, context)
