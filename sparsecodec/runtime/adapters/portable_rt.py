"""DCVC-RT on integers: the same symbols, the same States and the same pictures on every device (docs/portable.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.entropy import dcvc_gaussian16_tables
from sparsecodec.entropy.lanes import LaneEncoder, payload_symbols
from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc_rt import HYPER, RESET_INTERVAL, SHIFT_OF_FRAME, STRIDE, pad_latent
from sparsecodec.models.inputs import check_coded, check_kind, whole
from sparsecodec.nn.integer_part import IntegerInterPrior, IntegerIntraPrior, IntegerPartCoder, with_skip_row
from sparsecodec.nn.integer_prior import ONE, as_float, narrowed
from sparsecodec.nn.likelihood import rate_rows
from sparsecodec.nn.routine import drive, pushing
from sparsecodec.nn.rt_layers import PATCH
from sparsecodec.quant.video_families import RTFamily
from sparsecodec.runtime.adapters.portable_video import PartNetworks, PortableVideo
from sparsecodec.runtime.integer_network import IntegerNetwork, IntegerScale
from sparsecodec.runtime.video import FRAMES, QPS


@dataclass(frozen=True)
class IntegerState:
    """The reference of the next predicted frame: exactly one of the two.

    Attributes:
        frame: ``[1, 3, H, W]`` int16, in units of the network that reads it.
        feature: ``[1, C, H/8, W/8]`` int16, likewise.
    """

    frame: Tensor | None = None
    feature: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """What a fingerprint is taken over."""
        return (self.frame if self.feature is None else self.feature,)


class _Networks(PartNetworks):
    """Of one model of DCVC-RT."""

    def __init__(self, model: nn.Module, prefix: str, strict: bool) -> None:
        super().__init__(model, prefix, strict)
        self.exponents = model.portable.exponents.tolist()

    def one(self, *paths: str, source: int | None = None, result: int | None = None) -> IntegerNetwork:
        """A network of one input and one result."""
        return self.network(*paths, sources=(source,), results=(result,))

    def alike(self, *paths: str, result: int) -> tuple[IntegerNetwork, ...]:
        """Networks that read the same tensor: each takes the coarsest exponent of all."""
        apart = [self.one(path, result=result) for path in paths]
        source = max(network.exponent for network in apart)
        return tuple(self.one(path, source=source, result=result) for path in paths)

    def scale(self, name: str, source: int, result: int) -> IntegerScale:
        """The factors that the model keeps under that name."""
        return IntegerScale(getattr(self.model, name), source, result, name)

    def coder(self, prior: IntegerIntraPrior | IntegerInterPrior, device: torch.device) -> IntegerPartCoder:
        stored = self.model.portable
        tables = with_skip_row(dcvc_gaussian16_tables()), stored.tables()
        return IntegerPartCoder(prior, *tables, stored.thresholds, device)


class _Intra:
    """What codes a frame alone; latents are fixed-point."""

    def __init__(self, model: nn.Module, device: torch.device, strict: bool) -> None:
        parts = _Networks(model, "intra", strict)
        spatial = parts.one("y_spatial_prior")
        adaptors = parts.alike(*(f"y_spatial_prior_adaptor_{i}" for i in (1, 2, 3)), result=spatial.exponent)
        reduction = parts.one("y_spatial_prior_reduction", result=adaptors[0].exponent)
        parameters = parts.one("hyper_dec", "y_prior_fusion")
        self.coder = parts.coder(IntegerIntraPrior(parameters, reduction, adaptors, spatial), device)
        self.tail = parts.one("dec.dec_2")
        self.scale = parts.scale("q_scale_dec", parts.exponents[0], self.tail.exponent)
        self.trunk = parts.one("dec.dec_1", result=parts.exponents[0])
        self.networks = (parameters, reduction, *adaptors, spatial, self.trunk, self.tail)

    def picture(self, y_hat: Tensor, rate: int) -> Tensor:
        """``[1, C, H/16, W/16]`` -> ``[1, 3, H, W]`` fixed-point in [0, 1]."""
        trunk = self.trunk(narrowed(y_hat, self.trunk.exponent))
        return F.pixel_shuffle(self.tail(self.scale(trunk, rate)).clamp(0, ONE), PATCH)


class _Inter:
    """What codes a frame from the one before; latents are fixed-point."""

    def __init__(self, model: nn.Module, device: torch.device, strict: bool) -> None:
        parts = _Networks(model, "inter", strict)
        # From the end of each path to its beginning: a network gives what the next one reads.
        self.head = parts.one("recon_generation_net.head")
        self.recon_scale = parts.scale("q_recon", parts.exponents[1], self.head.exponent)
        self.recon = parts.one("recon_generation_net.conv", result=parts.exponents[1])
        self.context_exponent = parts.one("decoder.conv1").exponent
        behind = parts.one("feature_extractor.conv2", result=self.context_exponent)
        adaptor = parts.one("feature_adaptor_p")
        # The feature is the State: one tensor for both of its readers.
        self.feature_exponent = max(adaptor.exponent, self.recon.exponent)
        self.recon = parts.one("recon_generation_net.conv", source=self.feature_exponent, result=parts.exponents[1])
        self.decode = parts.one("decoder.conv1", "decoder.conv2", result=parts.exponents[0])
        self.feature_scale = parts.scale("q_decoder", parts.exponents[0], self.feature_exponent)
        self.up = parts.one("decoder.up", result=self.context_exponent)
        self.context = behind
        self.shared = {
            name: parts.one(name, "feature_extractor.conv1", result=behind.exponent, source=source)
            for name, source in (("feature_adaptor_i", None), ("feature_adaptor_p", self.feature_exponent))
        }
        fusion, spatial = parts.one("y_prior_fusion"), parts.one("y_spatial_prior")
        self.temporal = parts.one("temporal_prior_encoder", result=fusion.exponent)
        self.temporal_scale = parts.scale("q_feature", behind.exponent, self.temporal.exponent)
        hyper = parts.one("hyper_decoder", result=fusion.exponent)
        self.coder = parts.coder(IntegerInterPrior(hyper, fusion, spatial), device)
        # What a frame behind another predicted one runs, in this order; behind an I frame the other adaptor.
        self.decoder = (
            *(self.shared["feature_adaptor_p"], self.context, self.temporal, hyper, fusion, spatial),
            *(self.up, self.decode, self.recon, self.head),
        )
        self.networks = (self.shared["feature_adaptor_i"], *self.decoder)

    @property
    def frame_exponent(self) -> int:
        """Of the picture that a State holds."""
        return self.shared["feature_adaptor_i"].exponent

    def contexts(self, state: IntegerState, rate: int) -> tuple[Tensor, Tensor]:
        """(context, ``[1, C, H/8, W/8]`` int16, what the prior reads of the frames before, int16)."""
        if state.feature is None:
            shared = self.shared["feature_adaptor_i"](F.pixel_unshuffle(state.frame, PATCH))
        else:
            shared = self.shared["feature_adaptor_p"](state.feature)
        return self.context(shared), self.temporal(self.temporal_scale(shared, rate))

    def feature(self, y_hat: Tensor, context: Tensor, rate: int) -> Tensor:
        """The State behind a latent, ``[1, C, H/8, W/8]`` int16."""
        up = self.up(narrowed(y_hat, self.up.exponent))
        return self.feature_scale(self.decode(torch.cat((up, context), 1)), rate)

    def picture(self, feature: Tensor, rate: int) -> Tensor:
        """``[1, 3, H, W]`` fixed-point in [0, 1]."""
        return F.pixel_shuffle(self.head(self.recon_scale(self.recon(feature), rate)).clamp(0, ONE), PATCH)


class PortableRTCodec(PortableVideo):
    """DCVC-RT with portable streams; see `PortableVideo`."""

    FAMILY = RTFamily
    ANALYSIS = ("intra.enc", "intra.hyper_enc", "inter.encoder", "inter.hyper_encoder")
    stride = STRIDE
    colour = RTFamily.colour
    RESET_INTERVAL: ClassVar[int] = RESET_INTERVAL

    def _halves(self, device: torch.device, strict: bool) -> tuple[_Intra, _Inter]:
        return _Intra(self._model.intra, device, strict), _Inter(self._model.inter, device, strict)

    @torch.inference_mode()
    def intra_encode(self, x: Tensor, qp: int) -> tuple[bytes, IntegerState]:
        model, coder, qp = self._model.intra, self._intra.coder, whole(qp, "qp", QPS)
        check_coded(x, STRIDE, self._analysis["intra.enc"])
        y = self._analysis["intra.enc"](x, quant_step=rate_rows(model.q_scale_enc, qp))
        z = self._analysis["intra.hyper_enc"](pad_latent(y))
        encoder = LaneEncoder(self._symbols(model, x.shape[2], x.shape[3]))
        y_hat = drive(coder.encoding(y, z, qp), pushing(encoder))
        return encoder.finish(), self._started(self._intra.picture(y_hat, qp))

    @torch.inference_mode()
    def intra_decode(self, payload: bytes, height: int, width: int, qp: int) -> tuple[Tensor, IntegerState]:
        qp = whole(qp, "qp", QPS)
        y_hat = self._decoded(self._model.intra, self._intra.coder, payload, height, width, qp, None)
        picture = self._intra.picture(y_hat, qp)
        return as_float(picture), self._started(picture)

    @torch.inference_mode()
    def inter_encode(self, x: Tensor, state: IntegerState, qp: int, index: int) -> tuple[bytes, IntegerState]:
        model, parts, rate = self._model.inter, self._inter, self._rate(qp, index)
        check_coded(x, STRIDE, self._analysis["inter.encoder"])
        _check_state(state, *x.shape[2:])
        context, temporal = parts.contexts(state, rate)
        as_read = context.float() * 2.0**parts.context_exponent
        y = self._analysis["inter.encoder"](x, as_read, quant_step=rate_rows(model.q_encoder, rate))
        z = self._analysis["inter.hyper_encoder"](pad_latent(y))
        encoder = LaneEncoder(self._symbols(model, x.shape[2], x.shape[3]))
        y_hat = drive(parts.coder.encoding(y, z, rate, temporal), pushing(encoder))
        return encoder.finish(), IntegerState(feature=parts.feature(y_hat, context, rate))

    @torch.inference_mode()
    def inter_decode(
        self, payload: bytes, state: IntegerState, height: int, width: int, qp: int, index: int
    ) -> tuple[Tensor, IntegerState]:
        parts, rate = self._inter, self._rate(qp, index)
        _check_state(state, height, width)
        context, temporal = parts.contexts(state, rate)
        y_hat = self._decoded(self._model.inter, parts.coder, payload, height, width, rate, temporal)
        feature = parts.feature(y_hat, context, rate)
        return as_float(parts.picture(feature, rate)), IntegerState(feature=feature)

    @torch.inference_mode()
    def reset(self, state: IntegerState, qp: int, index: int) -> IntegerState:
        if state.feature is None:
            return state
        return self._started(self._inter.picture(state.feature, self._rate(qp, index)))

    def magnitude(self, state: IntegerState) -> float:
        return 0.0 if state.feature is None else float(state.feature.float().abs().mean())

    def _rate(self, qp: int, index: int) -> int:
        """At which a predicted frame is coded, 0 .. 71."""
        return self._model.inter.shift_qp(qp, SHIFT_OF_FRAME[whole(index, "index", FRAMES) % len(SHIFT_OF_FRAME)])

    def _started(self, picture: Tensor) -> IntegerState:
        return IntegerState(frame=narrowed(picture, self._inter.frame_exponent))

    def _decoded(
        self,
        model: nn.Module,
        coder: IntegerPartCoder,
        payload: bytes,
        height: int,
        width: int,
        rate: int,
        temporal: Tensor | None,
    ) -> Tensor:
        size = height // STRIDE, width // STRIDE
        total = self._symbols(model, height, width)
        first = coder.z_request((1, model.widths.hyper, *(-(-side // HYPER) for side in size)), rate)
        return self._pulled(payload, total, first, lambda symbols: coder.decoding(symbols, size, temporal))

    @staticmethod
    def _symbols(model: nn.Module, height: int, width: int) -> int:
        """Of a padded frame: of the latent and of the hyper-latent."""
        rows, columns = height // STRIDE, width // STRIDE
        hyper = -(-rows // HYPER) * -(-columns // HYPER)
        return payload_symbols(model.widths.latent * rows * columns + model.widths.hyper * hyper)


def _check_state(state: IntegerState, height: int, width: int) -> None:
    """Raises a UsageError unless `state` can precede a frame of that size."""
    check_kind(state, IntegerState)
    found, patch = state.tensors()[0].shape, 1 if state.feature is None else PATCH
    if found[2:] != (height // patch, width // patch):
        size = f"{patch * found[2]} x {patch * found[3]}"
        raise UsageError(f"the state is of a frame of {size} (needs one of {height} x {width})")
