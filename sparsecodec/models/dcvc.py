"""DCVC: a video codec whose frames are coded under a feature context (Li, Li, Lu, NeurIPS 2021, arXiv 2109.15047).

Attribute names follow the published checkpoints, so those load unchanged. One set of weights has one rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparsecodec.entropy import dcvc_laplace16_tables
from sparsecodec.errors import UsageError
from sparsecodec.models.codec import Codec, rates_of
from sparsecodec.models.dcvc_scripts import DCVCScripts
from sparsecodec.models.fitting import Weights, filled
from sparsecodec.models.inputs import check_coded, check_kind, check_picture, check_state
from sparsecodec.nn import BitEstimator, FlowNetwork, factorized_tables, laplace_likelihood, round_ste
from sparsecodec.nn.autoregressive import PositionCoder
from sparsecodec.nn.dcvc_coder import DCVC_WIRES, FRAME, MOTION, STRIDE, DCVCCoder, DCVCPrediction, DCVCStrings
from sparsecodec.nn.dcvc_layers import LeakyBlock, MaskedConv2d, PlainGDN, ReluBlock
from sparsecodec.nn.feature_codec import down5, up5
from sparsecodec.nn.flow import FLOW_WIDTHS, warp_by_grid
from sparsecodec.nn.likelihood import Estimate, Latent
from sparsecodec.ops import dcvc_scale_thresholds

CONTEXT = 5  # side of the masked kernels
LAMBDAS = (256, 512, 1024, 2048)  # of the published models, for MSE of pictures in [0, 1]


@dataclass(frozen=True)
class Widths:
    """Channels.

    Attributes:
        motion: of the motion's latent and transforms.
        feature: of the context and the contextual transforms, and of both hyper-latents.
        latent: of the frame's latent.
        refine, flow: of the networks that refine the decoded motion, and that find it at each level.
    """

    motion: int = 128
    feature: int = 64
    latent: int = 96
    refine: int = 64
    flow: tuple[int, int, int, int] = FLOW_WIDTHS


DCVC_WIDTHS: dict[str, Widths] = {"full": Widths(), "tiny": Widths(32, 32, 48, 24, (16, 32, 16, 8))}


@dataclass(frozen=True)
class DCVCState:
    """What the next frame is predicted from.

    Attributes:
        frame: ``[N, 3, H, W]``, in [0, 1]. The reconstruction before.
    """

    frame: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All of the state, in a fixed order."""
        return (self.frame,)


class Predicted(NamedTuple):
    """A frame under its context.

    Attributes:
        x_hat: ``[N, 3, H, W]``, not clamped.
        context: ``[N, feature, H, W]``.
        flow: decoded motion, ``[N, 2, H, W]`` in pixels.
        motion, frame: latents and bits of both.
        rates: as of `rates_of`.
    """

    x_hat: Tensor
    context: Tensor
    flow: Tensor
    motion: Estimate
    frame: Estimate
    rates: dict[str, Tensor]


def _up3(c_in: int, c_out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(c_in, c_out, 3, stride=2, padding=1, output_padding=1)


def _conv3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1)


def _subpel3(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(_conv3(c_in, 4 * c_out), nn.PixelShuffle(2))


def _prior_encoder(c_in: int, c: int) -> nn.Sequential:
    return nn.Sequential(_conv3(c_in, c), nn.LeakyReLU(0.01), down5(c, c), nn.LeakyReLU(0.01), down5(c, c))


def _prior_decoder(c: int, middle: tuple[int, int], c_out: int) -> nn.Sequential:
    return nn.Sequential(
        up5(c, middle[0]),
        nn.LeakyReLU(0.01),
        up5(middle[0], middle[1]),
        nn.LeakyReLU(0.01),
        nn.ConvTranspose2d(middle[1], c_out, 3, padding=1),
    )


def _entropy_parameters(c: int) -> nn.Sequential:
    first, second = c * 10 // 3, c * 8 // 3
    return nn.Sequential(
        nn.Conv2d(4 * c, first, 1),
        nn.LeakyReLU(0.01),
        nn.Conv2d(first, second, 1),
        nn.LeakyReLU(0.01),
        nn.Conv2d(second, 2 * c, 1),
    )


class DCVC(DCVCScripts, Codec):
    """DCVC's inter codec; the first frame comes from any image codec.

    Args:
        widths: channels, a `Widths` or a key of `DCVC_WIDTHS`.

    Attributes:
        warp: as of `DCVCHEMVideo`.

    Raises:
        UsageError: unknown preset.
    """

    family = "dcvc"
    warp = staticmethod(warp_by_grid)
    wires = DCVC_WIRES
    SIGNATURE = ("auto_regressive_mv.mask", "contextualDecoder_part2.3.weight", "temporalPriorEncoder.6.weight")

    def __init__(self, widths: Widths | str = "full") -> None:
        super().__init__()
        if isinstance(widths, str):
            if widths not in DCVC_WIDTHS:
                raise UsageError(f"DCVC preset {widths!r} does not exist; there are {', '.join(DCVC_WIDTHS)}")
            widths = DCVC_WIDTHS[widths]
        self.widths = widths
        motion, n, latent, refine = widths.motion, widths.feature, widths.latent, widths.refine

        self.bitEstimator_z = BitEstimator(n)
        self.bitEstimator_z_mv = BitEstimator(n)
        self.opticFlow = FlowNetwork(widths.flow)
        self.mvEncoder = nn.Sequential(
            _conv3(2, motion, 2),
            PlainGDN(motion),
            _conv3(motion, motion, 2),
            PlainGDN(motion),
            _conv3(motion, motion, 2),
            PlainGDN(motion),
            _conv3(motion, motion, 2),
        )
        self.mvDecoder_part1 = nn.Sequential(
            _up3(motion, motion),
            PlainGDN(motion, inverse=True),
            _up3(motion, motion),
            PlainGDN(motion, inverse=True),
            _up3(motion, motion),
            PlainGDN(motion, inverse=True),
            _up3(motion, 2),
        )
        middle = [layer for _ in range(5) for layer in (_conv3(refine, refine), nn.LeakyReLU(0.1))]
        self.mvDecoder_part2 = nn.Sequential(_conv3(5, refine), nn.LeakyReLU(0.1), *middle, _conv3(refine, 2))
        self.feature_extract = nn.Sequential(_conv3(3, n), ReluBlock(n))
        self.context_refine = nn.Sequential(ReluBlock(n), _conv3(n, n))
        self.temporalPriorEncoder = nn.Sequential(
            down5(n, n), PlainGDN(n), down5(n, n), PlainGDN(n), down5(n, n), PlainGDN(n), down5(n, latent)
        )
        self.contextualEncoder = nn.Sequential(
            down5(n + 3, n),
            PlainGDN(n),
            LeakyBlock(n),
            down5(n, n),
            PlainGDN(n),
            LeakyBlock(n),
            down5(n, n),
            PlainGDN(n),
            down5(n, latent),
        )
        self.contextualDecoder_part1 = nn.Sequential(
            _subpel3(latent, n),
            PlainGDN(n, inverse=True),
            _subpel3(n, n),
            PlainGDN(n, inverse=True),
            LeakyBlock(n),
            _subpel3(n, n),
            PlainGDN(n, inverse=True),
            LeakyBlock(n),
            _subpel3(n, n),
        )
        self.contextualDecoder_part2 = nn.Sequential(_conv3(2 * n, n), ReluBlock(n), ReluBlock(n), _conv3(n, 3))
        self.priorEncoder = _prior_encoder(latent, n)
        self.priorDecoder = _prior_decoder(n, (latent, latent), latent)
        self.mvpriorEncoder = _prior_encoder(motion, n)
        self.mvpriorDecoder = _prior_decoder(n, (n, n * 3 // 2), 2 * motion)
        self.auto_regressive = MaskedConv2d(latent, 2 * latent, CONTEXT)
        self.auto_regressive_mv = MaskedConv2d(motion, 2 * motion, CONTEXT)
        self.entropy_parameters = _entropy_parameters(latent)
        self.entropy_parameters_mv = _entropy_parameters(motion)

    @property
    def config(self) -> dict[str, Any]:
        return {"family": self.family, **asdict(self.widths), "flow": list(self.widths.flow)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DCVC:
        widths = {key: config[key] for key in ("motion", "feature", "latent", "refine")}
        return cls(Widths(**widths, flow=tuple(config["flow"])))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        """As `Codec.load_state_dict`; masked weights are masked."""
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.auto_regressive.hide()
        self.auto_regressive_mv.hide()
        return result

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> DCVC:
        """A model of the widths and with the weights of `state`, which may be pruned; in eval mode.

        Raises:
            UsageError: keys are missing or unknown, or the widths do not fit together.
        """
        state = Weights(state)
        widths = Widths(
            motion=state["mvEncoder.6.weight"].shape[0],
            feature=state["bitEstimator_z.f1.h"].shape[1],
            latent=state["contextualEncoder.8.weight"].shape[0],
            refine=state["mvDecoder_part2.0.weight"].shape[0],
            flow=tuple(state[f"opticFlow.moduleBasic.0.conv{i}.weight"].shape[0] for i in range(1, 5)),
        )

        def build() -> DCVC:
            model = cls(widths)
            for part in (MOTION, FRAME):
                c_out, c_in, size = state[f"auto_regressive{part}.weight"].shape[:3]
                setattr(model, f"auto_regressive{part}", MaskedConv2d(c_in, c_out, size))
            return model

        frame = torch.empty(1, 3, STRIDE, STRIDE, device="meta")
        return filled(build, state, lambda model: model(frame, DCVCState(frame)))

    def adopt(self, foreign: nn.Module) -> None:
        """Does nothing: all that decides about streams is in the state dict."""

    def start(self, x_hat: Tensor) -> DCVCState:
        """The state after an intra frame, ``[N, 3, H, W]``; H and W multiples of 64.

        Raises:
            UsageError: another shape.
        """
        check_picture(x_hat, STRIDE)
        return DCVCState(x_hat.clamp(0, 1))

    def forward(self, x: Tensor, state: DCVCState | Tensor, rate: float | None = None) -> dict[str, Any]:
        """One frame with an estimated rate, all positions at once.

        Two tensors are the published call, ``(ref_frame, input_image)``: see `estimate`, which answers it.

        As in the published software both context models see latents that were rounded without their means, and so does
        the picture; coded are latents rounded around them. Gradients pass the rounding unchanged. In training the rate
        is taken at uniform noise around the residual.

        Args:
            x: ``[N, 3, H, W]`` float, RGB in [0, 1]; H and W multiples of 64.
            state: of the frame before.
            rate: None; there is one rate.

        Returns:
            ``x_hat`` ``[N, 3, H, W]``, in [0, 1] in eval mode; ``bpp`` and its parts ``bpp_mv_y``, ``bpp_mv_z``,
            ``bpp_y``, ``bpp_z``, each ``[N]``; ``bit``; ``latents``: ``mv_y`` and ``y``, each a `Latent`; ``state``: of
            this frame; ``warped``: the last frame, moved by the decoded motion.
        """
        if rate is not None:
            raise UsageError(f"rate={rate}: a DCVC model has one rate (needs None)")
        if isinstance(state, Tensor):
            return self.estimate(x, state)
        check_picture(x, STRIDE)
        check_kind(state, DCVCState)
        reference = state.frame
        check_state({"the frame before": (reference, tuple(x.shape))})
        coded = self.predicted(x, reference)
        state = self.start(coded.x_hat)
        return {
            "x_hat": coded.x_hat if self.training else state.frame,
            **coded.rates,
            "latents": {"mv_y": coded.motion.latent, "y": coded.frame.latent},
            "state": state,
            "warped": self.warp(reference, coded.flow),
        }

    def predicted(self, x: Tensor, reference: Tensor) -> Predicted:
        """A frame and the one before, each ``[N, 3, H, W]``, through all networks, without coding anything."""

        def bits(likelihoods: Tensor) -> Tensor:
            return -likelihoods.log2().sum((1, 2, 3))

        def noisy(values: Tensor) -> Tensor:
            return values + torch.rand_like(values) - 0.5 if self.training else values.round()

        def coded(y: Tensor, z: Tensor, prior: Tensor, part: str) -> Estimate:
            y, z, prior = (value.to(x.dtype) for value in (y, z, prior))  # compiled transforms may be narrower
            context, parameters, estimator = self.entropy_networks(part)
            y_hat = round_ste(y)
            means, scales = parameters(torch.cat([prior, context(y_hat)], 1)).chunk(2, 1)
            latent = Latent(y, laplace_likelihood(noisy(y - means), scales), means, scales, laplace=True)
            return Estimate(y_hat, bits(latent.likelihoods), bits(estimator.likelihood(noisy(z))), latent)

        networks = DCVCPrediction(self.get_submodule, self.warp)
        mv_y, mv_z = networks.motion_latents(x, reference)
        motion = coded(mv_y, mv_z, networks.motion_prior(round_ste(mv_z)), MOTION)
        flow = networks.flow(motion.y_hat, reference)
        context = networks.context(flow, reference)
        y, z = networks.frame_latents(x, context)
        frame = coded(y, z, networks.frame_prior(round_ste(z), context), FRAME)
        x_hat = networks.reconstruct(frame.y_hat, context)
        rates = rates_of(x, mv_y=motion.bits_y, mv_z=motion.bits_z, y=frame.bits_y, z=frame.bits_z)
        return Predicted(x_hat, context, flow, motion, frame, rates)

    def entropy_networks(self, part: str) -> tuple[MaskedConv2d, nn.Module, BitEstimator]:
        """Context model, 1x1s and hyper-latent's distributions of the motion (``"_mv"``) or the frame (``""``)."""
        names = ("auto_regressive", "entropy_parameters", "bitEstimator_z")
        return tuple(self.get_submodule(f"{name}{part}") for name in names)

    def coder(self) -> DCVCCoder:
        """What codes frames with the present weights."""
        coders, z_tables = {}, {}
        for part in (MOTION, FRAME):
            context, parameters, estimator = self.entropy_networks(part)
            coders[part] = PositionCoder(context, parameters, dcvc_scale_thresholds(), dcvc_laplace16_tables())
            z_tables[part] = factorized_tables(estimator, estimator.f1.h.numel())
        return DCVCCoder(self.get_submodule, coders, z_tables)

    @torch.no_grad()
    def compress(self, referframe: Tensor, input_image: Tensor) -> dict[str, Any]:
        """One frame to the published strings, in the published order and arithmetic.

        Args:
            referframe: ``[1, 3, H, W]`` float32 in [0, 1]. The reconstruction before.
            input_image: same shape. The frame; H and W multiples of 64.

        Returns:
            ``mv_y_string``, ``mv_z_string``, ``y_string``, ``z_string``: bytes; ``bpp_*`` of each and ``bpp``;
            ``recon_image``: ``[1, 3, H, W]`` in [0, 1], as `decompress` will give it (the published call forgets to
            clamp it).
        """
        check_coded(input_image, STRIDE, self.contextualEncoder)
        check_picture(referframe, STRIDE, batch=1)
        check_state({"referframe": (referframe, tuple(input_image.shape))}, self.feature_extract)
        strings, x_hat = self.coder().encode(input_image, referframe)
        strings = asdict(strings)
        pixels = input_image.shape[-2] * input_image.shape[-1]
        rates = {f"bpp_{name}": len(string) * 8 / pixels for name, string in strings.items()}
        return {
            **rates,
            "bpp": sum(rates.values()),
            "recon_image": x_hat,
            **{f"{name}_string": string for name, string in strings.items()},
        }

    @torch.no_grad()
    def decompress(
        self,
        referframe: Tensor,
        mv_y_string: bytes,
        mv_z_string: bytes,
        y_string: bytes,
        z_string: bytes,
        height: int,
        width: int,
    ) -> Tensor:
        """The frame of `compress`, given the same frame before it, on the same machine and thread count.

        Returns:
            ``[1, 3, height, width]`` in [0, 1].

        Raises:
            BitstreamError: a string is damaged or belongs to another model, frame or arithmetic.
            UsageError: sizes that are no multiples of 64, or not those of `referframe`.
        """
        check_picture(referframe, STRIDE, batch=1)
        check_state({"referframe": (referframe, (1, 3, height, width))}, self.feature_extract)
        return self.coder().decode(DCVCStrings(mv_y_string, mv_z_string, y_string, z_string), referframe)
