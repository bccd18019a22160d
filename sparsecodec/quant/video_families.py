"""Video codecs that have a portable form: what their decoders compute, and the integers that they store beside it."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from operator import attrgetter
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables, rt_factorized_tables
from sparsecodec.nn import factorized_tables
from sparsecodec.ops import dcvc_scale_thresholds, evc_scale_thresholds, laplace_scale_thresholds
from sparsecodec.ops.scale_thresholds import rt_scale_thresholds
from sparsecodec.quant.tables import IntegerTables, SteppedTables, VideoTables, in_fixed_point

QPS = 64  # qualities of a video stream


class VideoFamily(ABC):
    """A family of `VideoCodec`s.

    Attributes:
        networks: of each of the two models, what a decoder computes; a model may have None there.
        more: of each, other parts that it is recognised by.
        factors: of each, banks of factors per rate, and the module whose result each multiplies.
        fixed_factors: of each, banks that multiply what a layer reads, too: its scale gives their exponent.
        stride: sides of a frame are multiples of it.
        colour: of the frames, as `CompiledVideo.colour`.
        qualities: of the calibration; the extremes are among them.
        tables: of each of the two models, what it stores.
    """

    networks: ClassVar[dict[str, tuple[str, ...]]]
    more: ClassVar[dict[str, tuple[str, ...]]]
    factors: ClassVar[dict[str, dict[str, str]]] = {}
    fixed_factors: ClassVar[dict[str, tuple[str, ...]]] = {}
    stride: ClassVar[int]
    colour: ClassVar[str]
    qualities: ClassVar[tuple[int, ...]]
    tables: ClassVar[dict[str, type[IntegerTables]]]

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether `model` has this structure."""
        return all(
            _has(model, f"{part}.{path}")
            for part, paths in cls.networks.items()
            for path in (*paths, *cls.more[part], *cls.factors.get(part, ()))
        )

    @classmethod
    def decoder_networks(cls, model: nn.Module) -> tuple[str, ...]:
        """Paths in a video codec of this family of all that a decoder computes."""
        paths = (f"{part}.{path}" for part, paths in cls.networks.items() for path in paths)
        return tuple(path for path in paths if attrgetter(path)(model) is not None)

    @staticmethod
    def rate(model: nn.Module, quality: int, index: int) -> float | None:
        """What a model takes as its rate for that quality, `index` frames behind the one that stands alone."""
        return quality

    @classmethod
    @abstractmethod
    def stored(cls, part: nn.Module, exponents: Tensor) -> IntegerTables:
        """The filled tables of one model; `exponents`: int32, of what `factors` multiply."""


class RTFamily(VideoFamily):
    """DCVC-RT."""

    networks = {
        "intra": (
            *("hyper_dec", "y_prior_fusion", "y_spatial_prior_reduction"),
            *(f"y_spatial_prior_adaptor_{i}" for i in (1, 2, 3)),
            *("y_spatial_prior", "dec"),
        ),
        "inter": (
            *("feature_adaptor_i", "feature_adaptor_p", "feature_extractor", "temporal_prior_encoder"),
            *("hyper_decoder", "y_prior_fusion", "y_spatial_prior", "decoder", "recon_generation_net"),
        ),
    }
    more = {"intra": ("bit_estimator_z",), "inter": ("bit_estimator_z", "q_feature")}
    factors = {
        "intra": {"q_scale_dec": "dec.dec_1"},
        "inter": {"q_decoder": "decoder.conv2", "q_recon": "recon_generation_net.conv"},
    }
    fixed_factors = {"inter": ("q_feature",)}
    stride = 16
    colour = "ycbcr"
    qualities = (0, 32, 63)
    tables = {"intra": VideoTables, "inter": VideoTables}

    @staticmethod
    def rate(model: nn.Module, quality: int, index: int) -> int:
        return quality + (model.inter.rates - model.intra.rates) * (index % 2)

    @classmethod
    def stored(cls, part: nn.Module, exponents: Tensor) -> IntegerTables:
        estimator = copy.deepcopy(part.bit_estimator_z).to("cpu", torch.float32)
        channels = estimator.f1.h.shape[1]
        rates = torch.arange(part.rates)

        def cumulative(x: Tensor) -> Tensor:  # [1, R, K, 1], row = rate * channels + channel
            by_rate = x[0].view(part.rates, channels, -1, 1)
            return estimator.cdf(by_rate, rates).reshape(x.shape)

        rows = rt_factorized_tables(cumulative, part.rates * channels)
        skip, thresholds = part.force_zero_thres, in_fixed_point(rt_scale_thresholds())
        least = in_fixed_point(torch.tensor([-math.inf if skip is None else skip], dtype=torch.float32))
        tables = VideoTables()
        tables.fill(rows, torch.zeros(rows.rows), torch.zeros(0))
        tables.thresholds = torch.cat([least, thresholds.clamp(min=int(least)) if skip is not None else thresholds])
        tables.exponents = exponents
        return tables


class BehindImageFamily(VideoFamily):
    """Whose frames alone are pictures of a codec with a dual prior.

    Attributes:
        estimators: of an inter model, the distributions of its hyper-latents in the order in which they are coded.
    """

    stride = 64
    colour = "rgb"
    estimators: ClassVar[tuple[str, ...]]

    @staticmethod
    @abstractmethod
    def thresholds() -> Tensor:
        """Of the latents of an inter model, ``[R - 1]`` float32."""

    @classmethod
    def stored(cls, part: nn.Module, exponents: Tensor | None) -> IntegerTables:
        inter = hasattr(part, cls.more["inter"][0])
        made = getattr(part, "portable", None)  # an image codec may come on integers
        if inter:
            found = [part.get_submodule(name) for name in cls.estimators]
            rows = _joined([factorized_tables(one, one.f1.h.numel()) for one in found])
        else:
            estimator = part.bit_estimator_z
            rows = made.tables() if made is not None else factorized_tables(estimator, estimator.f1.h.numel())
        tables = cls.tables["inter" if inter else "intra"]()
        tables.fill(rows, torch.zeros(rows.rows), cls.thresholds() if inter else evc_scale_thresholds())
        if isinstance(tables, SteppedTables):
            steps = torch.tensor(part.q_scales(QPS), dtype=torch.float64).view(QPS, -1)
            tables.steps = (100 * steps).round().to(torch.int32)
        return tables


class HEMFamily(BehindImageFamily):
    """DCVC-HEM."""

    networks = {
        "intra": ("hyper_dec", "y_prior_fusion", "y_spatial_prior", "dec", "refine"),
        "inter": (
            *("mv_hyper_prior_decoder", "mv_y_prior_fusion", "mv_y_spatial_prior", "mv_decoder"),
            *("feature_adaptor_I", "feature_adaptor_P", "feature_extractor", "context_fusion_net"),
            *("temporal_prior_encoder", "contextual_hyper_prior_decoder", "y_prior_fusion", "y_spatial_prior"),
            *("contextual_decoder", "recon_generation_net"),
        ),
    }
    more = {
        "intra": ("bit_estimator_z", "q_basic", "q_scale"),
        "inter": ("bit_estimator_z_mv", "bit_estimator_z", "mv_y_q_basic", "y_q_basic"),
    }
    qualities = (0, 3)  # anchors
    tables = {"intra": SteppedTables, "inter": SteppedTables}
    estimators = ("bit_estimator_z_mv", "bit_estimator_z")
    thresholds = staticmethod(laplace_scale_thresholds)


class BehindEVCFamily(BehindImageFamily):
    """An inter codec of one rate behind EVC; a subclass adds what is ``inter``."""

    networks = {"intra": ("hyper_dec", "y_prior_fusion", "y_spatial_prior", "dec")}
    more = {"intra": ("bit_estimator_z", "q_basic", "q_scale")}
    qualities = (0, QPS - 1)
    tables = {"intra": SteppedTables, "inter": IntegerTables}

    @staticmethod
    def rate(model: nn.Module, quality: int, index: int) -> float | None:
        return None if index else model.intra.q_scales(QPS)[quality]


class DCVCFamily(BehindEVCFamily):
    """DCVC (2021)."""

    networks = {
        **BehindEVCFamily.networks,
        "inter": (
            *("mvpriorDecoder", "auto_regressive_mv", "entropy_parameters_mv", "mvDecoder_part1", "mvDecoder_part2"),
            *("feature_extract", "context_refine", "temporalPriorEncoder"),
            *("priorDecoder", "auto_regressive", "entropy_parameters"),
            *("contextualDecoder_part1", "contextualDecoder_part2"),
        ),
    }
    more = {**BehindEVCFamily.more, "inter": ("bitEstimator_z_mv", "bitEstimator_z")}
    estimators = ("bitEstimator_z_mv", "bitEstimator_z")
    thresholds = staticmethod(dcvc_scale_thresholds)


class FVCFamily(BehindEVCFamily):
    """FVC behind EVC."""

    networks = BehindEVCFamily.networks | {
        "inter": (
            *("extraction", "motion_codec.hyper_synthesis", "motion_codec.synthesis", "compensation"),
            *("residual_codec.hyper_synthesis", "residual_codec.synthesis", "fusion", "reconstruction"),
        )
    }
    more = BehindEVCFamily.more | {"inter": ("motion_estimation",)}
    estimators = ("motion_codec.estimator", "residual_codec.estimator")
    thresholds = staticmethod(evc_scale_thresholds)


FAMILIES: tuple[type[VideoFamily], ...] = (RTFamily, HEMFamily, DCVCFamily, FVCFamily)


def family_of(model: nn.Module) -> type[VideoFamily] | None:
    """The family of a video codec, if it has a portable form."""
    return next((family for family in FAMILIES if family.matches(model)), None)


def _has(model: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(model)
    except AttributeError:
        return False
    return True


def _joined(tables: list[EntropyTables]) -> EntropyTables:
    """The rows of all, in order."""
    width = max(one.cdf.shape[1] for one in tables)
    cdf = [np.pad(one.cdf, ((0, 0), (0, width - one.cdf.shape[1]))) for one in tables]
    lengths, offsets = (np.concatenate([getattr(one, name) for one in tables]) for name in ("lengths", "offsets"))
    return EntropyTables(np.concatenate(cdf), lengths, offsets)
