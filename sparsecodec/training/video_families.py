"""The families of video codecs that can be trained: rates, colours, and which transform reads what."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from sparsecodec.data.bt709 import halved_chroma, rgb_to_ycbcr, yuv_error
from sparsecodec.models.dcvc import DCVC
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo
from sparsecodec.models.dcvc_rt import QUALITIES, SHIFT_OF_FRAME, SHIFTS, STRIDE
from sparsecodec.models.dcvc_rt_image import DCVCRTImage
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo
from sparsecodec.models.fvc import FVC
from sparsecodec.training.video import Image, Inter, Shape, Shapes, draw_rates

RT_LAMBDAS = (0.002, 0.064)  # of the lowest and the highest quality; log-spaced between them
HEM_LAMBDAS = (0.0022, 0.0050, 0.012, 0.027)  # of its four anchors; EVC's
RT_FRAME_WEIGHTS = (0.5, 1.2, 0.9)  # of the distortion, by feature adaptor: what is coded well helps the frames behind


def to_planes(x: Tensor) -> Tensor:
    """R'G'B' -> Y'CbCr 4:4:4 as a file of 4:2:0 gives it."""
    return halved_chroma(rgb_to_ycbcr(x))


def _lambdas(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(low * math.exp(i / (count - 1) * math.log(high / low)) for i in range(count))


class RTImage:
    """The image codec of DCVC-RT, alone."""

    lambdas = _lambdas(*RT_LAMBDAS, QUALITIES)
    stride = STRIDE
    model = DCVCRTImage
    entropy = (
        *("hyper_dec", "y_prior_fusion", "y_spatial_prior_reduction", "y_spatial_prior"),
        *(f"y_spatial_prior_adaptor_{i}" for i in (1, 2, 3)),
    )

    def forward(self, model: nn.Module, x: Tensor, rate: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        rates = draw_rates(len(x), QUALITIES, rate, x.device)
        planes = to_planes(x)
        out = model(planes, rates)
        error = yuv_error(out["x_hat"], planes)
        return {**out, "distortion": error, "mse": error}, rates

    def transforms(self, model: nn.Module, side: int) -> tuple[Shapes, Shapes]:
        w, h = model.widths, side // 16
        decoder: Shapes = {
            "hyper_dec": (1, w.hyper, h // 4, h // 4),
            "y_prior_fusion": (1, w.latent, h, h),
            "y_spatial_prior_reduction": (1, 2 * w.latent + 2, h, h),
            **{f"y_spatial_prior_adaptor_{i}": (1, 2 * w.latent, h, h) for i in (1, 2, 3)},
            "y_spatial_prior": (3, 2 * w.latent, h, h),  # it runs three times
            "dec": ((1, w.latent, h, h), _row(model.q_scale_dec)),
        }
        encoder: Shapes = {"enc": ((1, 3, side, side), _row(model.q_scale_enc)), "hyper_enc": (1, w.latent, h, h)}
        return decoder, encoder


class RTVideo:
    """The inter model of DCVC-RT: 64 qualities, shifted from frame to frame; some frames forget the feature."""

    lambdas = RTImage.lambdas
    stride = STRIDE
    model = DCVCRTVideo
    entropy = ("temporal_prior_encoder", "hyper_decoder", "y_prior_fusion", "y_spatial_prior")
    colour = staticmethod(to_planes)
    error = staticmethod(yuv_error)
    resets = 0.1

    def weight(self, index: int) -> float:
        return RT_FRAME_WEIGHTS[SHIFT_OF_FRAME[index % 8]]

    def reset(self, model: nn.Module, state: Any, rates: Tensor, index: int) -> Any:
        return model.reset(state, rates + _shift(index - 1))

    def step(self, model: nn.Module, x: Tensor, state: Any, rates: Tensor, index: int) -> dict[str, Any]:
        return model(x, state, rates + _shift(index))

    def transforms(self, model: nn.Module, side: int) -> tuple[Shapes, Shapes]:
        w, e, h = model.widths, side // 8, side // 16
        adaptor, temporal = model.feature_adaptor_p, model.q_feature.shape[1]
        up, read = model.decoder.up.conv[0].out_channels // 4, model.decoder.conv1[0].adaptor.in_channels
        feature, adapted, context = ((1, c, e, e) for c in (adaptor.in_channels, adaptor.out_channels, read - up))
        decoder: Shapes = {
            "feature_adaptor_p": feature,
            "feature_extractor": (adapted, _row(model.q_feature)),
            "temporal_prior_encoder": (1, temporal, e, e),
            "hyper_decoder": (1, w.hyper, h // 4, h // 4),
            "y_prior_fusion": (1, 3 * w.latent, h, h),
            "y_spatial_prior": (1, 4 * w.latent, h, h),
            "decoder": ((1, w.latent, h, h), context, _row(model.q_decoder)),
            "recon_generation_net": (feature, _row(model.q_recon)),
        }
        encoder: Shapes = {
            "encoder": ((1, 3, side, side), context, _row(model.q_encoder)),
            "hyper_encoder": (1, w.latent, h, h),
        }
        return decoder, encoder


class HEMImage:
    """The image codec of DCVC-HEM, alone."""

    lambdas = HEM_LAMBDAS
    stride = 64
    model = DCVCHEMImage
    entropy = ("hyper_dec", "y_prior_fusion", "y_spatial_prior")

    def forward(self, model: nn.Module, x: Tensor, rate: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        rates = draw_rates(len(x), len(self.lambdas), rate, x.device)
        return model(x, rates), rates

    def transforms(self, model: nn.Module, side: int) -> tuple[Shapes, Shapes]:
        c, h = model.widths.latent, side // 16
        decoder: Shapes = {
            "hyper_dec": (1, c, h // 4, h // 4),
            "y_prior_fusion": (1, 2 * c, h, h),
            "y_spatial_prior": (1, 4 * c, h, h),
            "dec": (1, c, h, h),
            "refine": (1, model.widths.refine, side, side),
        }
        return decoder, {"enc": (1, 3, side, side), "hyper_enc": (1, c, h, h)}


class _InRGB:
    """Inter models of R'G'B' whose frames weigh alike."""

    stride = 64
    resets = 0.0

    @staticmethod
    def colour(x: Tensor) -> Tensor:
        return x

    @staticmethod
    def error(x_hat: Tensor, x: Tensor) -> Tensor:
        return (x_hat - x).square().mean((1, 2, 3))

    def weight(self, index: int) -> float:
        return 1.0

    def reset(self, model: nn.Module, state: Any, rates: Tensor, index: int) -> Any:
        raise NotImplementedError(f"{type(model).__name__} is trained without resets")


class HEMVideo(_InRGB):
    """The inter model of DCVC-HEM: motion, then a latent under contexts that the motion draws from the feature."""

    lambdas = HEM_LAMBDAS
    model = DCVCHEMVideo
    entropy = (
        *("mv_hyper_prior_decoder", "mv_y_prior_fusion", "mv_y_spatial_prior"),
        *("temporal_prior_encoder", "contextual_hyper_prior_decoder", "y_prior_fusion", "y_spatial_prior"),
    )

    def step(self, model: nn.Module, x: Tensor, state: Any, rates: Tensor, index: int) -> dict[str, Any]:
        return model(x, state, rates)

    def transforms(self, model: nn.Module, side: int) -> tuple[Shapes, Shapes]:
        w, h = model.widths, side // 16
        adaptor, extractor, fusion = model.feature_adaptor_P, model.feature_extractor, model.context_fusion_net
        decoded = model.contextual_decoder.up4[0].out_channels // 4
        layers = (
            (extractor.conv1, extractor.conv2, extractor.conv3),
            (fusion.conv1_out, fusion.conv2_out, fusion.conv3_out),
        )
        warped, (full, half, quarter) = (
            tuple((1, made.out_channels, side // k, side // k) for made, k in zip(makers, (1, 2, 4), strict=True))
            for makers in layers
        )
        hyper = (1, w.channels, h // 4, h // 4)
        decoder: Shapes = {
            "mv_hyper_prior_decoder": hyper,
            "mv_y_prior_fusion": (1, 3 * w.mv, h, h),
            "mv_y_spatial_prior": (1, 4 * w.mv, h, h),
            "mv_decoder": (1, w.mv, h, h),
            "feature_adaptor_P": (1, adaptor.in_channels, side, side),
            "feature_extractor": (1, adaptor.out_channels, side, side),
            "context_fusion_net": warped,
            "temporal_prior_encoder": quarter,
            "contextual_hyper_prior_decoder": hyper,
            "y_prior_fusion": (1, 5 * w.latent, h, h),
            "y_spatial_prior": (1, 4 * w.latent, h, h),
            "contextual_decoder": ((1, w.latent, h, h), half, quarter),
            "recon_generation_net": ((1, decoded, side, side), full),
        }
        encoder: Shapes = {
            **_flow("optic_flow", model.optic_flow, side),
            "mv_encoder": (1, 2, side, side),
            "mv_hyper_prior_encoder": (1, w.mv, h, h),
            "contextual_encoder": ((1, 3, side, side), full, half, quarter),
            "contextual_hyper_prior_encoder": (1, w.latent, h, h),
        }
        return decoder, encoder


class _OneRate(_InRGB):
    """Inter models of one rate, whose lambda the recipe names."""

    lambdas = None

    def step(self, model: nn.Module, x: Tensor, state: Any, rates: Tensor, index: int) -> dict[str, Any]:
        return model(x, state)


class DCVCVideo(_OneRate):
    """DCVC (2021): motion, a context in feature space, latents with context models."""

    model = DCVC
    entropy = (
        *("mvpriorDecoder", "auto_regressive_mv", "entropy_parameters_mv"),
        *("temporalPriorEncoder", "priorDecoder", "auto_regressive", "entropy_parameters"),
    )

    def transforms(self, model: nn.Module, side: int) -> tuple[Shapes, Shapes]:
        w, h = model.widths, side // 16
        hyper = (1, w.feature, h // 4, h // 4)
        feature, context = model.feature_extract[0].out_channels, model.context_refine[1].out_channels
        decoded = model.contextualDecoder_part1[8][0].out_channels // 4
        decoder: Shapes = {
            "mvpriorDecoder": hyper,
            "auto_regressive_mv": (1, w.motion, h, h),
            "entropy_parameters_mv": (1, 4 * w.motion, h, h),
            "mvDecoder_part1": (1, w.motion, h, h),
            "mvDecoder_part2": (1, 5, side, side),
            "feature_extract": (1, 3, side, side),
            "context_refine": (1, feature, side, side),
            "temporalPriorEncoder": (1, context, side, side),
            "priorDecoder": hyper,
            "auto_regressive": (1, w.latent, h, h),
            "entropy_parameters": (1, 4 * w.latent, h, h),
            "contextualDecoder_part1": (1, w.latent, h, h),
            "contextualDecoder_part2": (1, decoded + context, side, side),
        }
        encoder: Shapes = {
            **_flow("opticFlow", model.opticFlow, side),
            "mvEncoder": (1, 2, side, side),
            "mvpriorEncoder": (1, w.motion, h, h),
            "contextualEncoder": (1, context + 3, side, side),
            "priorEncoder": (1, w.latent, h, h),
        }
        return decoder, encoder


class FVCVideo(_OneRate):
    """FVC: motion, compensation and residual in feature space."""

    model = FVC
    entropy = ("motion_codec.hyper_synthesis", "residual_codec.hyper_synthesis")

    def transforms(self, model: nn.Module, side: int) -> tuple[Shapes, Shapes]:
        w, f, h = model.widths, side // 2, side // 16
        alignment, width = model.compensation.alignment, model.motion_estimation[0].in_channels // 2
        motion_hat, feature = (1, alignment.offsets.in_channels, f, f), (1, width, f, f)
        motion, pair = (1, model.motion_estimation[2].out_channels, f, f), (1, 2 * width, f, f)
        latent, hyper = (1, w.latent, h, h), (1, w.latent, h // 4, h // 4)
        decoder: Shapes = {
            "motion_codec.hyper_synthesis": hyper,
            "motion_codec.synthesis": latent,
            "compensation": (motion_hat, feature),
            "residual_codec.hyper_synthesis": hyper,
            "residual_codec.synthesis": latent,
            "reconstruction": feature,
            "extraction": (1, 3, side, side),
        }
        for i in range(w.references):
            decoder |= {f"fusion.motion.{i}": pair, f"fusion.alignment.{i}": (feature, feature)}
        if w.references:
            decoder["fusion.fuse"] = (1, (w.references + 1) * w.feature, f, f)
        encoder: Shapes = {
            "motion_estimation": pair,
            "motion_codec.analysis": motion,
            "residual_codec.analysis": feature,
            **{f"{codec}.hyper_analysis": latent for codec in ("motion_codec", "residual_codec")},
        }
        return decoder, encoder


IMAGES: tuple[type, ...] = (RTImage, HEMImage)
INTERS: tuple[type, ...] = (RTVideo, HEMVideo, DCVCVideo, FVCVideo)


def image_of(model: nn.Module) -> Image | None:
    """The family of an intra model of ours that is no EVC, None for anything else."""
    return next((family() for family in IMAGES if isinstance(model, family.model)), None)


def inter_of(model: nn.Module) -> Inter | None:
    """The family of an inter model, None for anything else."""
    return next((family() for family in INTERS if isinstance(model, family.model)), None)


def _shift(index: int) -> int:
    """Of RT's quality, at a frame counted from the intra frame."""
    return SHIFTS[SHIFT_OF_FRAME[index % 8]]


def _flow(path: str, network: nn.Module, side: int) -> Shapes:
    """The levels of a flow network, the coarsest first."""
    levels = len(network.moduleBasic)
    sides = [side >> (levels - 1 - level) for level in range(levels)]
    return {f"{path}.moduleBasic.{level}": (1, 8, sides[level], sides[level]) for level in range(levels)}


def _row(bank: Tensor) -> Shape:
    """Of one row of a table of steps, as narrow as pruning has made it."""
    return (1, bank.shape[1], 1, 1)
