"""Portable FVC behind EVC: motion, compensation and residual in feature space, all of it on integers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsecodec.entropy import evc_gaussian_tables
from sparsecodec.errors import UsageError
from sparsecodec.models.fvc import FVCState
from sparsecodec.models.inputs import check_kind
from sparsecodec.nn.integer_mean_scale import IntegerMeanScaleCoder
from sparsecodec.nn.integer_prior import ONE, as_float, narrowed
from sparsecodec.nn.routine import Coding, Routine
from sparsecodec.ops.integer_conv2d import LIMIT
from sparsecodec.quant.video_families import FVCFamily
from sparsecodec.runtime.adapters.portable_behind_image import PortableBehindImage, PredictedFrame, rows_of
from sparsecodec.runtime.adapters.portable_video import PartNetworks
from sparsecodec.runtime.integer_attention import IntegerAttention
from sparsecodec.runtime.integer_network import IntegerNetwork

CODECS = ("motion_codec", "residual_codec")


class _Aligned(nn.Module):
    """An earlier feature where a motion that follows from both features puts it; its children have FVC's paths."""

    def __init__(self, fusion: nn.Module, index: int) -> None:
        super().__init__()
        self.index = str(index)
        self.motion = nn.ModuleDict({self.index: fusion.motion[index]})
        self.alignment = nn.ModuleDict({self.index: fusion.alignment[index]})

    def forward(self, feature: Tensor, reference: Tensor) -> Tensor:
        motion = self.motion[self.index](torch.cat([feature, reference], 1))
        return self.alignment[self.index](motion, reference)


class _Fusion:
    """Fusion of earlier features, which have the exponent of the present one."""

    def __init__(self, parts: PartNetworks, fusion: nn.Module) -> None:
        self._parts, self._fusion = parts, fusion
        paths = [f"{parts.prefix}.fusion.attention.{i}" for i in range(len(fusion.attention))]
        self._attention = [IntegerAttention(*pair) for pair in zip(fusion.attention, paths, strict=True)]
        networks = (*self._aligned(), parts.network("fusion.fuse"))
        self.exponent = max(part.exponent for part in (*networks, *self._attention))

    def _aligned(self, **exponents: tuple[int | None, ...]) -> list[IntegerNetwork]:
        prefix, strict = f"{self._parts.prefix}.fusion", self._parts.strict
        modules = (_Aligned(self._fusion, i) for i in range(len(self._fusion.motion)))
        return [IntegerNetwork({prefix: module}, strict=strict, **exponents) for module in modules]

    def bound(self, exponent: int) -> _Fusion:
        """Itself, for features of that exponent, which is no smaller than its own."""
        self._networks = self._aligned(sources=(exponent, exponent), results=(exponent,))
        self._fuse = self._parts.network("fusion.fuse", sources=(exponent,))
        self._attention = [attention.bound(exponent) for attention in self._attention]
        self.networks = (*self._networks, self._fuse)
        return self

    def __call__(self, feature: Tensor, references: tuple[Tensor, ...]) -> Tensor:
        """What is added to the feature, fixed-point; fewer earlier ones than there can be stand for those before."""
        found = [self._attention[-1](feature)]
        for i, (align, attention) in enumerate(zip(self._networks, self._attention, strict=False)):
            found.append(attention(align(feature, references[min(i, len(references) - 1)])))
        return self._fuse(torch.cat(found, 1))


class _Predicted(PredictedFrame):
    """What codes a frame from those before."""

    def __init__(self, model: nn.Module, device: torch.device, strict: bool) -> None:
        parts, self._references = PartNetworks(model, "inter", strict), max(model.widths.references, 1)
        fusion = None if model.fusion is None else _Fusion(parts, model.fusion)
        # Of all features, of the State and of a frame: the coarsest that a layer asks for.
        motion, reference = parts.network("compensation").exponents
        self._exponent = exponent = max(reference, reference if fusion is None else fusion.exponent)
        self._fusion = None if fusion is None else fusion.bound(exponent)
        self._extraction = parts.network("extraction", results=(exponent,))
        self._compensation = parts.network("compensation", sources=(motion, exponent))
        self._motion = parts.network("motion_codec.synthesis", results=(motion,))
        self._residual = parts.network("residual_codec.synthesis")
        self._reconstruction = parts.network("reconstruction")
        stored, rows = model.portable, model.portable.tables()
        of_motion = model.motion_codec.estimator.f1.h.numel()
        hypers = [parts.network(f"{codec}.hyper_synthesis") for codec in CODECS]
        self.motion, self.residual = (
            IntegerMeanScaleCoder(hyper, evc_gaussian_tables(), rows_of(rows, *part), stored.thresholds, device)
            for hyper, part in zip(hypers, ((0, of_motion), (of_motion, rows.rows)), strict=True)
        )
        self.latents = sum(getattr(model, codec).synthesis[0].in_channels for codec in CODECS)
        self._channels = model.compensation.alignment.conv.weight.shape[1]
        self.networks = self.decoder = (
            *(hypers[0], self._motion, self._compensation, hypers[1], self._residual),
            *(() if self._fusion is None else self._fusion.networks),
            *(self._reconstruction, self._extraction),
        )

    def _extracted(self, picture: Tensor) -> Tensor:
        return self._extraction(narrowed(picture, self._extraction.exponent))

    def state(self, picture: Tensor) -> FVCState:
        return FVCState((self._extracted(picture).clone(),))

    def first_call(self, size: tuple[int, int]) -> Coding:
        return self.motion.z_request(size)

    def check_state(self, state: FVCState, height: int, width: int) -> None:
        check_kind(state, FVCState)
        if not 1 <= len(state.features) <= self._references:
            raise UsageError(f"a state of {len(state.features)} frames (needs 1 to {self._references})")
        wanted = 1, self._channels, height // 2, width // 2
        for i, feature in enumerate(state.features):
            if tuple(feature.shape) != wanted or feature.dtype != torch.int16:
                found = f"{tuple(feature.shape)} {feature.dtype}"
                raise UsageError(f"feature {i} of the state is {found} (needs {wanted} torch.int16)")

    def seen(self, x: Tensor) -> Tensor:
        """The feature of a frame that is to be coded: ``[1, 3, H, W]`` float32 -> float32."""
        return self.as_float(self._extracted((x.clamp(0, 1) * ONE).round().to(torch.int32)))

    def as_float(self, feature: Tensor) -> Tensor:
        """int16 -> float32."""
        return feature.float() * 2.0**self._exponent

    def predicted(self, latent: Tensor, state: FVCState) -> Tensor:
        """The compensated feature, fixed-point, from the motion's latent."""
        motion = self._motion(narrowed(latent, self._motion.exponent))
        return self._compensation(motion, state.features[0]).clamp(-LIMIT, LIMIT - 1)

    def after(self, predicted: Tensor, latent: Tensor, state: FVCState) -> tuple[Tensor, FVCState]:
        """The picture ``[1, 3, H, W]`` fixed-point in [0, 1], and the State, from the residual's latent."""
        feature = _added(predicted, self._residual(narrowed(latent, self._residual.exponent)))
        if self._fusion is not None:
            feature = _added(feature, self._fusion(narrowed(feature, self._exponent), state.features))
        picture = self._reconstruction(narrowed(feature, self._reconstruction.exponent)).clamp(0, ONE)
        return picture, FVCState((self.state(picture).features + state.features)[: self._references])


def _added(values: Tensor, more: Tensor) -> Tensor:
    """The sum of fixed-point numbers and int32 of the same unit, both clipped."""
    return (values + more.clamp(-LIMIT, LIMIT - 1)).clamp_(-LIMIT, LIMIT - 1)


class PortableFVCCodec(PortableBehindImage):
    """FVC behind EVC with portable streams; see `PortableVideo`."""

    FAMILY = FVCFamily
    INTER = _Predicted
    ANALYSIS = (
        *(*PortableBehindImage.ANALYSIS, "inter.motion_estimation"),
        *(f"inter.{codec}.{part}" for codec in CODECS for part in ("analysis", "hyper_analysis")),
    )

    def _encoding(self, x: Tensor, state: FVCState, qp: int) -> Routine:
        parts, run = self._inter, self._analysis
        feature = parts.seen(x)
        motion = run["inter.motion_estimation"](torch.cat([feature, parts.as_float(state.features[0])], 1))
        latent = yield from self._coded("motion_codec", parts.motion, motion)
        predicted = parts.predicted(latent, state)
        latent = yield from self._coded("residual_codec", parts.residual, feature - as_float(predicted))
        return parts.after(predicted, latent, state)

    def _coded(self, codec: str, coder: IntegerMeanScaleCoder, x: Tensor) -> Routine:
        y = self._analysis[f"inter.{codec}.analysis"](x)
        return (yield from coder.encoding(y, self._analysis[f"inter.{codec}.hyper_analysis"](y)))

    def _decoding(self, symbols: Tensor, size: tuple[int, int], state: FVCState, qp: int) -> Routine:
        parts = self._inter
        latent = yield from parts.motion.decoding(symbols)
        predicted = parts.predicted(latent, state)
        latent = yield from parts.residual.decoding((yield parts.residual.z_request(size, self.device)))
        return parts.after(predicted, latent, state)
