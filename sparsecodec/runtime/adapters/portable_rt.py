"""DCVC-RT on integers: the same symbols, the same States and the same pictures on every device (docs/portable.md)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.entropy import dcvc_gaussian16_tables
from sparsecodec.entropy.lanes import LaneDecoder, LaneEncoder, payload_symbols
from sparsecodec.entropy.lanes_cuda import CudaLaneDecoder, decodes_on, lane_words
from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc_rt import HYPER, RESET_INTERVAL, SHIFT_OF_FRAME, STRIDE, pad_latent
from sparsecodec.models.inputs import check_coded, check_kind, whole
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.nn.integer_part import IntegerInterPrior, IntegerIntraPrior, IntegerPartCoder, with_skip_row
from sparsecodec.nn.integer_prior import ONE, as_float, narrowed
from sparsecodec.nn.likelihood import rate_rows
from sparsecodec.nn.routine import drive, drive_on_device, pulling, pushing
from sparsecodec.nn.rt_layers import PATCH
from sparsecodec.quant import is_portable
from sparsecodec.runtime.executor import Executor
from sparsecodec.runtime.integer_network import IntegerNetwork, IntegerScale
from sparsecodec.runtime.numerics import PORTABLE_VIDEO, Numerics
from sparsecodec.runtime.report import Report
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.runtime.video import FRAMES, QPS, CompiledVideo
from sparsecodec.runtime.video_networks import Keeping, VideoNetworks

ANALYSIS = ("intra.enc", "intra.hyper_enc", "inter.encoder", "inter.hyper_encoder")  # what encoders alone run


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


class _Networks:
    """Integer networks of one model of a video codec.

    Args:
        model: with the submodule ``portable``.
        prefix: of its paths in the codec.
        strict: as for `IntegerNetwork`.
    """

    def __init__(self, model: nn.Module, prefix: str, strict: bool) -> None:
        self.model = model
        self.prefix = prefix
        self.strict = strict
        self.exponents = model.portable.exponents.tolist()

    def network(self, *paths: str, source: int | None = None, result: int | None = None) -> IntegerNetwork:
        """The modules at `paths`, one behind the other."""
        parts = {f"{self.prefix}.{path}": self.model.get_submodule(path) for path in paths}
        return IntegerNetwork(parts, strict=self.strict, source=source, result=result)

    def alike(self, *paths: str, result: int) -> tuple[IntegerNetwork, ...]:
        """Networks that read the same tensor: each takes the coarsest exponent of all."""
        apart = [self.network(path, result=result) for path in paths]
        source = max(network.exponent for network in apart)
        return tuple(self.network(path, source=source, result=result) for path in paths)

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
        spatial = parts.network("y_spatial_prior")
        adaptors = parts.alike(*(f"y_spatial_prior_adaptor_{i}" for i in (1, 2, 3)), result=spatial.exponent)
        reduction = parts.network("y_spatial_prior_reduction", result=adaptors[0].exponent)
        parameters = parts.network("hyper_dec", "y_prior_fusion")
        self.coder = parts.coder(IntegerIntraPrior(parameters, reduction, adaptors, spatial), device)
        self.tail = parts.network("dec.dec_2")
        self.scale = parts.scale("q_scale_dec", parts.exponents[0], self.tail.exponent)
        self.trunk = parts.network("dec.dec_1", result=parts.exponents[0])
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
        self.head = parts.network("recon_generation_net.head")
        self.recon_scale = parts.scale("q_recon", parts.exponents[1], self.head.exponent)
        self.recon = parts.network("recon_generation_net.conv", result=parts.exponents[1])
        self.context_exponent = parts.network("decoder.conv1").exponent
        behind = parts.network("feature_extractor.conv2", result=self.context_exponent)
        adaptor = parts.network("feature_adaptor_p")
        # The feature is the State: one tensor for both of its readers.
        self.feature_exponent = max(adaptor.exponent, self.recon.exponent)
        self.recon = parts.network("recon_generation_net.conv", source=self.feature_exponent, result=parts.exponents[1])
        self.decode = parts.network("decoder.conv1", "decoder.conv2", result=parts.exponents[0])
        self.feature_scale = parts.scale("q_decoder", parts.exponents[0], self.feature_exponent)
        self.up = parts.network("decoder.up", result=self.context_exponent)
        self.context = behind
        self.shared = {
            name: parts.network(name, "feature_extractor.conv1", result=behind.exponent, source=source)
            for name, source in (("feature_adaptor_i", None), ("feature_adaptor_p", self.feature_exponent))
        }
        fusion, spatial = parts.network("y_prior_fusion"), parts.network("y_spatial_prior")
        self.temporal = parts.network("temporal_prior_encoder", result=fusion.exponent)
        self.temporal_scale = parts.scale("q_feature", behind.exponent, self.temporal.exponent)
        hyper = parts.network("hyper_decoder", result=fusion.exponent)
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


class PortableRTCodec(CompiledVideo):
    """DCVC-RT with portable streams: a decoder is integers from the bytes to the pictures.

    Args:
        model: from `quant.portable`; not modified.
        device: where the networks run.
        dtype: of the encoder's analysis, which no decoder runs.
        strict: raise if a step finds no kernel although its device has kernels.
    """

    stride = STRIDE
    colour = "ycbcr"
    exact_pictures: ClassVar[bool] = True
    RESET_INTERVAL: ClassVar[int] = RESET_INTERVAL

    @staticmethod
    def matches(model: nn.Module) -> bool:
        """Whether `model` is a portable video codec."""
        return hasattr(model, "intra") and hasattr(model, "inter") and is_portable(model)

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32, strict: bool = True):
        if not self.matches(model):
            raise UsageError(f"{type(model).__name__} is no portable video codec: see quant.portable")
        super().__init__(model_hash(model)[:8], device)
        self._model = copy.deepcopy(model).to(device).eval().requires_grad_(False)
        self._intra = _Intra(self._model.intra, device, strict)
        self._inter = _Inter(self._model.inter, device, strict)
        self._analysis_networks = VideoNetworks(self._model, strict)
        self._analysis = {path: Keeping(self._analysis_networks.add(path, dtype), torch.float32) for path in ANALYSIS}
        self._dtype = dtype

    @property
    def keepers(self) -> list[CompiledTransform | Executor]:
        analysis = self._analysis_networks
        return [*self._intra.networks, *self._inter.networks, *analysis.transforms, analysis.executor]

    @property
    def portable_model(self) -> nn.Module:
        """The model whose integers this codec computes with, for `zoo.save`."""
        return self._model

    @property
    def numerics(self) -> Numerics:
        return PORTABLE_VIDEO

    @property
    def report(self) -> Report:
        """Each layer with its op, backend and MACs: integer networks of both models, then the encoder's analysis."""
        networks = (*self._intra.networks, *self._inter.networks)
        precision = str(self._dtype).removeprefix("torch.")
        notes = (
            f"decoder: integers from the bytes to the pictures; analysis, which encoders alone run, in {precision}",
            f"stream portable: {PORTABLE_VIDEO.name}",
            "pictures: the same on every device; the state after each frame is fingerprinted",
        )
        analysis = self._analysis_networks.report(self._warm_pixels, (), notes)
        rows = [row for network in networks for row in network.report_rows(self._warm_pixels)]
        decoder = tuple(network.name for network in self._inter.decoder)
        held = sum(network.buffer_bytes for network in networks) + analysis.buffer_bytes
        return Report((*rows, *analysis.rows), notes, decoder, held)

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
        if decodes_on(self.device):
            decoder = CudaLaneDecoder(lane_words([payload], total).to(self.device), total)
            z_symbols = decoder.decode(first.indexes.to(self.device), first.tables)
            y_hat = drive_on_device(coder.decoding(z_symbols, size, temporal), decoder)
        else:
            decoder = LaneDecoder(payload, total)
            z_symbols = decoder.decode(first.indexes, first.tables).to(self.device)
            y_hat = drive(coder.decoding(z_symbols, size, temporal), pulling(decoder))
        decoder.finish()
        return y_hat

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
