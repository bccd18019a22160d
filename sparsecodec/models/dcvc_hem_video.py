"""DCVC-HEM's codec of predicted frames, `DMC` (arXiv 2207.05894).

A frame is coded as motion, then as a latent under contexts that the motion draws from the last frame's feature. Both
have EVC's dual prior, which also reads what the last frame had. Attribute names follow the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables, dcvc_laplace64_tables
from sparsecodec.errors import UsageError
from sparsecodec.models.codec import Codec, rates_of
from sparsecodec.models.dcvc_hem_scripts import VideoScripts
from sparsecodec.models.dual_prior_image import STRIDE, contiguous
from sparsecodec.models.fitting import Weights, filled
from sparsecodec.models.inputs import (
    check_coded,
    check_float32,
    check_kind,
    check_picture,
    check_size,
    check_state,
    input_channels,
)
from sparsecodec.models.steps import first_anchors, round_step, spaced_steps, steps_of
from sparsecodec.nn import (
    BitEstimator,
    DualPriorCoder,
    FlowNetwork,
    factorized_tables,
    laplace_likelihood,
    lower_bound,
    warp_by_grid,
)
from sparsecodec.nn.flow import FLOW_WIDTHS
from sparsecodec.nn.hem_inter import HEM_INTER_LAYOUT, HEM_WIRES, HEMInter, HEMInterCoder, HEMState
from sparsecodec.nn.hem_layers import (
    UNET_WIDTHS,
    ContextFusion,
    ContextualDecoder,
    ContextualEncoder,
    FeatureExtractor,
    FrameGenerator,
    conv3x3,
    hyper_decoder,
    hyper_encoder,
    prior_network,
    short_hyper_encoder,
    strided_encoder,
    subpel_decoder,
)

LATENT = 16  # pixels per position of the latents, per side
DPB_KEYS = ("ref_frame", "ref_feature", "ref_y", "ref_mv_y")  # of the family's dict, in the order of `HEMState.fields`


@dataclass(frozen=True)
class HEMVideoWidths:
    """Channels.

    Attributes:
        mv: of the motion's latent and inside its transforms; even.
        channels: of features, contexts and both hyper-latents.
        latent: of the latent; even.
        decoded: between the contextual decoder and the frame generator.
        unet: inside the frame generator's networks at 1/1, 1/2 and 1/4.
        flow: hidden layers of the flow network, which only encoders run.
    """

    mv: int = 64
    channels: int = 64
    latent: int = 96
    decoded: int = 32
    unet: tuple[int, int, int] = UNET_WIDTHS
    flow: tuple[int, int, int, int] = FLOW_WIDTHS


# A flow network of the published widths would take more than half of all MACs of an encoder this small.
HEM_VIDEO_TINY = HEMVideoWidths(mv=24, channels=24, latent=48, decoded=16, unet=(8, 16, 32), flow=(16, 24, 16, 8))


class DCVCHEMVideo(VideoScripts, Codec):
    """Codec of predicted frames.

    Args:
        widths: of the networks; the published ones by default.

    Attributes:
        warp: moves features and pictures, for `HEMInter`; a compiled model, whose features are narrower, has its own.
    """

    family = "dcvc-hem-video"
    warp = staticmethod(warp_by_grid)
    wires = HEM_WIRES
    stand_ins = {"feature_adaptor_I": "feature_adaptor_P"}
    SIGNATURE = (
        "mv_y_q_basic",
        "mv_y_prior_fusion.4.weight",
        "context_fusion_net.conv3_up.0.weight",
        "recon_generation_net.unet_1.conv1.up_dim.weight",
        "y_spatial_prior.4.weight",
    )

    def __init__(self, widths: HEMVideoWidths = HEMVideoWidths()) -> None:
        super().__init__()
        self.widths = widths
        mv, n, m = widths.mv, widths.channels, widths.latent
        self.bit_estimator_z = BitEstimator(n)
        self.bit_estimator_z_mv = BitEstimator(n)
        self.optic_flow = FlowNetwork(widths.flow)
        self.mv_encoder = strided_encoder(2, mv, mv)
        self.mv_decoder = subpel_decoder(mv, mv, 2)
        self.mv_hyper_prior_encoder = hyper_encoder(mv, n)
        self.mv_hyper_prior_decoder = hyper_decoder(n, mv)
        self.mv_y_prior_fusion = prior_network(3 * mv, 3 * mv, 3 * mv, 3 * mv)
        self.mv_y_spatial_prior = prior_network(4 * mv, 3 * mv, 3 * mv, 2 * mv)
        self.feature_adaptor_I = conv3x3(3, n)
        self.feature_adaptor_P = nn.Conv2d(n, n, 1)
        self.feature_extractor = FeatureExtractor(n)
        self.context_fusion_net = ContextFusion(n)
        self.contextual_encoder = ContextualEncoder(n, m)
        self.contextual_hyper_prior_encoder = short_hyper_encoder(m, n)
        self.contextual_hyper_prior_decoder = hyper_decoder(n, m)
        self.temporal_prior_encoder = nn.Sequential(
            conv3x3(n, 3 * m // 2, 2), nn.LeakyReLU(0.1), conv3x3(3 * m // 2, 2 * m, 2)
        )
        self.y_prior_fusion = prior_network(5 * m, 4 * m, 3 * m, 3 * m)
        self.y_spatial_prior = prior_network(4 * m, 3 * m, 3 * m, 2 * m)
        self.contextual_decoder = ContextualDecoder(n, m, widths.decoded)
        self.recon_generation_net = FrameGenerator(widths.decoded, n, widths.unet)
        self.mv_y_q_basic = nn.Parameter(torch.ones(1, mv, 1, 1))
        self.mv_y_q_scale = nn.Parameter(first_anchors())
        self.y_q_basic = nn.Parameter(torch.ones(1, m, 1, 1))
        self.y_q_scale = nn.Parameter(first_anchors())

    # --- architecture and weights ---------------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        widths = asdict(self.widths)
        return {"family": self.family, **{k: list(v) if isinstance(v, tuple) else v for k, v in widths.items()}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DCVCHEMVideo:
        plain = {name: config[name] for name in ("mv", "channels", "latent", "decoded")}
        return cls(HEMVideoWidths(**plain, unet=tuple(config["unet"]), flow=tuple(config["flow"])))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> DCVCHEMVideo:
        """A model of the widths and with the weights of `state`, which may be pruned; in eval mode.

        Raises:
            UsageError: keys are missing or unknown, or the widths do not fit together.
        """
        state, net = Weights(state), "recon_generation_net.unet_1"
        widths = HEMVideoWidths(
            mv=state["mv_y_q_basic"].shape[1],
            channels=state["bit_estimator_z.f1.h"].shape[1],
            latent=state["y_q_basic"].shape[1],
            decoded=state["contextual_decoder.up4.0.weight"].shape[0] // 4,
            unet=tuple(state[f"{net}.conv{i}.up_dim.weight"].shape[0] for i in (1, 2, 3)),
            flow=tuple(state[f"optic_flow.moduleBasic.0.conv{i}.weight"].shape[0] for i in (1, 2, 3, 4)),
        )
        return filled(lambda: cls(widths), state, _run)

    # --- rates ------------------------------------------------------------------------------------------------------

    def q_scales(self, count: int) -> list[tuple[float, float]]:
        """`count` pairs (of the motion, of the latent) of global steps, as `spaced_steps` of each."""
        return list(zip(spaced_steps(self.mv_y_q_scale, count), spaced_steps(self.y_q_scale, count), strict=True))

    def curr_q(self, mv_y_q_scale: Tensor | float, y_q_scale: Tensor | float) -> tuple[Tensor, Tensor]:
        """Channel-wise steps of motion and latent: ``max(q_basic, 0.5) * q_scale``, each ``[1 or N, C, 1, 1]``."""
        mv, y = lower_bound(self.mv_y_q_basic, 0.5), lower_bound(self.y_q_basic, 0.5)
        return mv * mv_y_q_scale, y * y_q_scale

    def _steps(self, rate: int | Tensor, batch: int) -> tuple[Tensor, Tensor]:
        if isinstance(rate, Tensor) and rate.is_floating_point():
            if rate.shape[-1:] != (2,):
                raise UsageError(f"rate {tuple(rate.shape)} (steps come in pairs: of the motion, of the latent)")
            of_mv, of_y = rate.reshape(-1, 2).unbind(1)
        else:
            of_mv = of_y = rate
        return steps_of(self.mv_y_q_scale, of_mv, batch), steps_of(self.y_q_scale, of_y, batch)

    # --- frames -----------------------------------------------------------------------------------------------------

    def start(self, x_hat: Tensor) -> HEMState:
        """The state after a frame that stands alone: ``[N, 3, H, W]``, padded; clamped to [0, 1]."""
        check_picture(x_hat, STRIDE)
        return HEMState(x_hat.clamp(0, 1))

    def forward(self, x: Tensor, state: HEMState, rate: int | Tensor) -> dict[str, Any]:
        """One pass with an estimated rate, as `EVC.forward`: noise in training, what the coder would do in eval mode.

        Args:
            x: ``[N, 3, H, W]`` float, RGB in [0, 1]; H and W multiples of 64.
            state: of the frame before.
            rate: index of an anchor, ``[N]`` of them, or steps ``[N or 1, 2]``: of the motion, of the latent.

        Returns:
            ``x_hat`` ``[N, 3, H, W]``, in [0, 1] in eval mode; ``state``: the next one; ``bpp`` and its parts
            ``bpp_mv_y``, ``bpp_mv_z``, ``bpp_y``, ``bpp_z`` ``[N]``; ``bit``; ``latents``: ``mv_y`` and ``y``, each a
            `Latent`; ``warped`` ``[N, 3, H, W]``: the last frame moved by the decoded motion, for training that motion.
        """
        check_picture(x, STRIDE)
        self._check_state(state, x.shape, None)
        nets = HEMInter(self.get_submodule, self.warp)
        q_mv, q_y = self.curr_q(*self._steps(rate, len(x)))
        mv_y = nets.motion(x, state.frame).to(x.dtype) / q_mv
        mv_z = self.mv_hyper_prior_encoder(mv_y).to(x.dtype)
        how = {"likelihood": laplace_likelihood, "noisy": self.training}
        join = nets.join_motion(state.mv)
        motion = nets.mv_prior.estimate(mv_y, mv_z, self.bit_estimator_z_mv, join=join, **how)
        mv_hat = motion.y_hat * q_mv
        flow = nets.flow(mv_hat).to(x.dtype)
        contexts = nets.contexts(flow, nets.features(state.frame, state.feature))

        y = nets.network("contextual_encoder")(x, *contexts).to(x.dtype) / q_y
        z = self.contextual_hyper_prior_encoder(y).to(x.dtype)
        join = nets.join_latent(contexts[2], state.y)
        coded = nets.y_prior.estimate(y, z, self.bit_estimator_z, join=join, **how)
        y_hat = coded.y_hat * q_y
        feature, x_hat = nets.picture(y_hat, contexts)
        x_hat = x_hat.to(x.dtype)
        clamped = x_hat.clamp(0, 1)

        bits = {"mv_y": motion.bits_y, "mv_z": motion.bits_z, "y": coded.bits_y, "z": coded.bits_z}
        return {
            "x_hat": x_hat if self.training else clamped,
            "state": HEMState(clamped, feature, y_hat, mv_hat),
            **rates_of(x, **bits),
            "latents": {"mv_y": motion.latent, "y": coded.latent},
            "warped": self.warp(state.frame, flow),
        }

    def tables(self) -> tuple[EntropyTables, EntropyTables, EntropyTables]:
        """Of both latents, of the motion's hyper-latent and of the other, computed from the present weights."""
        if self._adopted is not None:
            return self._adopted
        estimators = (self.bit_estimator_z_mv, self.bit_estimator_z)
        return dcvc_laplace64_tables(), *(factorized_tables(e, e.f1.h.numel()) for e in estimators)

    def coder(self) -> HEMInterCoder:
        """What codes frames, with the tables of the present weights.

        Raises:
            UsageError: the weights are not float32.
        """
        check_float32(self.contextual_hyper_prior_decoder)
        networks = HEMInter(lambda path: contiguous(self.get_submodule(path)), self.warp)
        device = self.y_q_basic.device
        of_latents, of_mv_z, of_z = self.tables()
        mv = DualPriorCoder(networks.mv_prior, of_latents, of_mv_z, device, HEM_INTER_LAYOUT)
        return HEMInterCoder(networks, mv, DualPriorCoder(networks.y_prior, of_latents, of_z, device, HEM_INTER_LAYOUT))

    def gains(self, mv_y_q_scale: float, y_q_scale: float) -> tuple[Tensor, Tensor]:
        """Channel-wise steps of motion and latent ``[C]``, for global ones as a stream carries them."""
        mv, y = self.curr_q(round_step(mv_y_q_scale), round_step(y_q_scale))
        return mv.flatten(), y.flatten()

    @staticmethod
    def state_of(dpb: Mapping[str, Tensor | None]) -> HEMState:
        """The state in the family's dict.

        Raises:
            UsageError: a key or the frame is missing, or the frame is no padded picture.
        """
        missing = [key for key in DPB_KEYS if not isinstance(dpb, Mapping) or key not in dpb]
        if missing:
            raise UsageError(f"dpb has no {', '.join(missing)} (needs {', '.join(DPB_KEYS)}, None where missing)")
        state = HEMState(*(dpb[key] for key in DPB_KEYS))
        if state.frame is None:
            raise UsageError("ref_frame is None (a predicted frame needs one before it)")
        check_picture(state.frame, STRIDE, batch=1)
        return state

    def _check_state(self, state: HEMState, shape: Sequence[int], layer: nn.Module | None) -> None:
        """Raises a UsageError unless `state` can precede a frame of `shape` ``[N, 3, H, W]``; `layer`: `check_state`"""
        check_kind(state, HEMState)
        n, _, height, width = shape
        small = height // LATENT, width // LATENT
        channels = input_channels(self.feature_adaptor_P), self.y_q_basic.shape[1], self.mv_y_q_basic.shape[1]
        shapes = tuple(shape), (n, channels[0], height, width), (n, channels[1], *small), (n, channels[2], *small)
        check_state(dict(zip(DPB_KEYS, zip(state.fields, shapes, strict=True), strict=True)), layer)

    @staticmethod
    def dpb_of(state: HEMState) -> dict[str, Tensor | None]:
        """The family's dict of a state."""
        return dict(zip(DPB_KEYS, state.fields, strict=True))

    @torch.no_grad()
    def compress(
        self, x: Tensor, dpb: Mapping[str, Tensor | None], mv_y_q_scale: float, y_q_scale: float
    ) -> dict[str, Any]:
        """One frame to the family's payload.

        Args:
            x: ``[1, 3, H, W]`` float, RGB in [0, 1]; H and W multiples of 64.
            dpb: ``ref_frame``, ``ref_feature``, ``ref_y``, ``ref_mv_y``, None where missing; not written to.
            mv_y_q_scale, y_q_scale: global steps; rounded to 1/100 first, as a file stores them.

        Returns:
            ``bit_stream``: bytes; ``dbp`` (the family's spelling): the next frame's `dpb`, exactly as `decompress`
            gives it, so with a clamped ``ref_frame``.

        Raises:
            UsageError: a picture, reference or step that cannot be; NaN; a dpb of another size or model.
        """
        check_coded(x, STRIDE, self.contextual_encoder)
        state = self.state_of(dpb)
        self._check_state(state, x.shape, self.feature_adaptor_P)
        payload, state = self.coder().encode(x, state, *self.gains(mv_y_q_scale, y_q_scale))
        return {"bit_stream": payload, "dbp": self.dpb_of(state)}

    @torch.no_grad()
    def decompress(
        self,
        dpb: Mapping[str, Tensor | None],
        string: bytes,
        height: int,
        width: int,
        mv_y_q_scale: float,
        y_q_scale: float,
    ) -> dict[str, Any]:
        """A payload to the frame; the inverse of `compress` on the same machine and thread count.

        Args:
            dpb: as given to `compress`.
            string: its payload.
            height, width: of the picture before padding.
            mv_y_q_scale, y_q_scale: as given to `compress`.

        Returns:
            ``dpb``: the next frame's; its ``ref_frame`` is the decoded picture, padded, in [0, 1].

        Raises:
            BitstreamError: the payload is damaged or belongs to other settings.
            UsageError: a size that is not the reference's, or a dpb of another model.
        """
        state = self.state_of(dpb)
        check_size(height, width)
        if [-(-side // STRIDE) * STRIDE for side in (height, width)] != list(state.frame.shape[2:]):
            raise UsageError(f"picture of {height} x {width} (ref_frame is {tuple(state.frame.shape[2:])}, padded)")
        self._check_state(state, state.frame.shape, self.feature_adaptor_P)
        return {"dpb": self.dpb_of(self.coder().decode(string, state, *self.gains(mv_y_q_scale, y_q_scale)))}


def _run(model: DCVCHEMVideo) -> None:
    """A frame after a picture, and one after that, which reads all of a state."""
    x = torch.zeros(1, 3, STRIDE, STRIDE)
    model(x, model(x, model.start(x), 0)["state"], 0)
