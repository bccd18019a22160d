"""Portable video codecs whose frames alone are pictures of a codec with a dual prior: EVC, or DCVC-HEM's."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables, evc_gaussian_tables
from sparsecodec.entropy.lanes import LaneEncoder, payload_symbols
from sparsecodec.errors import UsageError
from sparsecodec.models.dual_prior_image import STRIDE
from sparsecodec.models.inputs import check_coded, whole
from sparsecodec.nn.integer_prior import ONE, ExactPriorCoder, as_float, fixed_gain, narrowed
from sparsecodec.nn.routine import Coding, Routine, drive, pushing
from sparsecodec.runtime.adapters.portable_video import PartNetworks, PortableVideo
from sparsecodec.runtime.integer_network import IntegerNetwork
from sparsecodec.runtime.video import FRAMES, QPS, VideoState

LATENT = 16  # pixels per position of latents, per side; of hyper-latents there are STRIDE


class FrameAlone:
    """What codes a frame alone."""

    def __init__(self, model: nn.Module, device: torch.device, strict: bool) -> None:
        parts, stored = PartNetworks(model, "intra", strict), model.portable
        parameters, spatial = parts.network("hyper_dec", "y_prior_fusion"), parts.network("y_spatial_prior")
        self._synthesis = parts.network("dec", *(["refine"] if hasattr(model, "refine") else []))
        tables = evc_gaussian_tables(), stored.tables()
        self.coder = ExactPriorCoder(parameters, spatial, *tables, stored.z_medians, stored.thresholds, device)
        self._basic, self._steps = model.q_basic, stored.steps.flatten().tolist()
        self.latents = self._basic.numel()
        self.networks = (parameters, spatial, self._synthesis)

    def gain(self, qp: int) -> Tensor:
        """``[C]`` int64 fixed-point."""
        return fixed_gain(self._basic, self._steps[qp])

    def picture(self, y_hat: Tensor) -> Tensor:
        """``[1, C, H/16, W/16]`` fixed-point -> ``[1, 3, H, W]`` fixed-point in [0, 1]."""
        return self._synthesis(narrowed(y_hat, self._synthesis.exponent)).clamp(0, ONE)


class PredictedFrame:
    """What codes a frame from the one before; a subclass per family, made of (model, device, strict).

    Attributes:
        latents: channels of all latents together.
        decoder: networks that a frame behind another predicted one runs, in this order.
        networks: all.
    """

    latents: int
    decoder: tuple[IntegerNetwork, ...]
    networks: tuple[IntegerNetwork, ...]

    @abstractmethod
    def state(self, picture: Tensor) -> VideoState:
        """After a frame that stands alone: ``[1, 3, H, W]`` fixed-point."""

    @abstractmethod
    def first_call(self, size: tuple[int, int]) -> Coding:
        """The coding call that `PortableBehindImage._decoding` gets the symbols of; `size` of the hyper-latents."""

    @abstractmethod
    def check_state(self, state: VideoState, height: int, width: int) -> None:
        """Raises a UsageError unless `state` can precede a frame of that size."""


class PortableBehindImage(PortableVideo):
    """Such a codec; see `PortableVideo`.

    Latents have a position for 16 x 16 pixels, hyper-latents one for 64 x 64.
    """

    INTER: ClassVar[type[PredictedFrame]]
    ANALYSIS: ClassVar[tuple[str, ...]] = ("intra.enc", "intra.hyper_enc")
    stride = STRIDE
    colour = "rgb"

    def _halves(self, device: torch.device, strict: bool) -> tuple[FrameAlone, PredictedFrame]:
        return FrameAlone(self._model.intra, device, strict), self.INTER(self._model.inter, device, strict)

    @abstractmethod
    def _encoding(self, x: Tensor, state: VideoState, qp: int) -> Routine:
        """Codes a predicted frame; returns what decoding gives."""

    @abstractmethod
    def _decoding(self, symbols: Tensor, size: tuple[int, int], state: VideoState, qp: int) -> Routine:
        """`symbols`: what the first coding call gave; returns the picture, fixed-point in [0, 1], and the State."""

    @torch.inference_mode()
    def intra_encode(self, x: Tensor, qp: int) -> tuple[bytes, VideoState]:
        parts, gain = self._intra, self._intra.gain(whole(qp, "qp", QPS))
        check_coded(x, STRIDE, self._analysis["intra.enc"])
        y = self._analysis["intra.enc"](x) / of_channels(gain)
        encoder = LaneEncoder(self._symbols(self._model.intra, parts.latents, *x.shape[2:]))
        y_hat = drive(parts.coder.encoding(y, self._analysis["intra.hyper_enc"](y), gain), pushing(encoder))
        return encoder.finish(), self._inter.state(parts.picture(y_hat))

    @torch.inference_mode()
    def intra_decode(self, payload: bytes, height: int, width: int, qp: int) -> tuple[Tensor, VideoState]:
        parts, gain = self._intra, self._intra.gain(whole(qp, "qp", QPS))
        total = self._symbols(self._model.intra, parts.latents, height, width)
        first = parts.coder.z_request((height // STRIDE, width // STRIDE))
        y_hat = self._pulled(payload, total, first, lambda symbols: parts.coder.decoding(symbols, gain))
        picture = parts.picture(y_hat)
        return as_float(picture), self._inter.state(picture)

    @torch.inference_mode()
    def inter_encode(self, x: Tensor, state: VideoState, qp: int, index: int) -> tuple[bytes, VideoState]:
        """`index` changes nothing: these families move no rate."""
        qp = whole(qp, "qp", QPS)
        whole(index, "index", FRAMES)
        check_coded(x, STRIDE, self._analysis["intra.enc"])
        self._inter.check_state(state, *x.shape[2:])
        encoder = LaneEncoder(self._symbols(self._model.inter, self._inter.latents, *x.shape[2:]))
        _, after = drive(self._encoding(x, state, qp), pushing(encoder))
        return encoder.finish(), after

    @torch.inference_mode()
    def inter_decode(
        self, payload: bytes, state: VideoState, height: int, width: int, qp: int, index: int
    ) -> tuple[Tensor, VideoState]:
        qp = whole(qp, "qp", QPS)
        whole(index, "index", FRAMES)
        self._inter.check_state(state, height, width)
        size = height // STRIDE, width // STRIDE
        total = self._symbols(self._model.inter, self._inter.latents, height, width)
        first = self._inter.first_call(size)
        picture, after = self._pulled(payload, total, first, lambda symbols: self._decoding(symbols, size, state, qp))
        return as_float(picture), after

    @staticmethod
    def _symbols(model: nn.Module, latents: int, height: int, width: int) -> int:
        """Of a padded frame: of all its latents and hyper-latents."""
        hypers = len(model.portable.z_lengths)
        return payload_symbols(
            latents * (height // LATENT) * (width // LATENT) + hypers * (height // STRIDE) * (width // STRIDE)
        )


def check_fields(state: VideoState, wanted: dict[str, tuple[int, ...]]) -> None:
    """Raises a UsageError unless the fields of `state` are int16 tensors of these shapes, all others None."""
    for name, value in vars(state).items():
        shape = wanted.get(name)
        found = None if value is None else tuple(value.shape)
        if found != shape or value is not None and value.dtype != torch.int16:
            kind = "None" if value is None else f"{found} {value.dtype}"
            raise UsageError(f"{name} of the state is {kind} (needs {shape and f'{shape} torch.int16'})")


def rows_of(tables: EntropyTables, start: int, stop: int) -> EntropyTables:
    """Some of the rows."""
    return EntropyTables(*(values[start:stop] for values in (tables.cdf, tables.lengths, tables.offsets)))


def of_channels(gain: Tensor) -> Tensor:
    """``[C]`` fixed-point -> ``[1, C, 1, 1]`` float32."""
    return as_float(gain).view(1, -1, 1, 1)
