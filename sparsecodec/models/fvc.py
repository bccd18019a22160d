"""FVC: a video codec whose motion, compensation and residual live in feature space (Hu, Lu, Xu, CVPR 2021, 2105.09600).

Nothing of it was published but the paper, so there is no state dict or stream to be compatible with. What the paper
leaves open is marked *our reading*, here and in `sparsecodec.nn.fvc_layers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.entropy import Decoder, Encoder, EntropyTables, evc_gaussian_tables
from sparsecodec.errors import UsageError
from sparsecodec.models.codec import Codec, rates_of
from sparsecodec.models.inputs import check_coded, check_float32, check_kind, check_picture, check_state, input_channels
from sparsecodec.nn import factorized_tables
from sparsecodec.nn.feature_codec import FeatureBlock, FeatureCodec, down5, up5
from sparsecodec.nn.fvc_layers import Compensation, Fusion
from sparsecodec.nn.routine import Coding, Routine, drive, pulling, pushing
from sparsecodec.ops import evc_scale_thresholds

STRIDE = 64  # of the hyper-latents: features have half the size of the picture
LAMBDAS = (256, 512, 1024, 2048)  # of the paper, for MSE of pictures in [0, 1]


@dataclass(frozen=True)
class Widths:
    """Channels and other sizes.

    Attributes:
        feature: of the features and of the motion; *our reading* for the latter.
        hidden: between the strides of the auto-encoders; *our reading*.
        latent: of all latents and hyper-latents; *our reading*.
        groups: of feature channels that share offsets.
        blocks: residual blocks behind the first and before the last layer; *our reading*.
        modulated: whether the taps of deformable convolutions are weighed; *our reading*.
        references: earlier frames that are fused into the present one, 0 for none. The paper has 3.
    """

    feature: int = 64
    hidden: int = 128
    latent: int = 128
    groups: int = 8
    blocks: int = 3
    modulated: bool = False
    references: int = 3


FVC_WIDTHS: dict[str, Widths] = {"full": Widths(), "tiny": Widths(24, 32, 32, 4, 1, references=0)}


# What networks read and make of each other's, for `sparsecodec.sparsity.wiring`. The compensated feature is subtracted
# from the frame's, and the residual is added to it: all are one.
WIRES = {
    "extraction": ((None,), ("feature",)),
    "motion_estimation": ((("feature", "feature"),), ("motion",)),
    "motion_codec.analysis": (("motion",), (None,)),
    "motion_codec.synthesis": ((None,), ("motion_hat",)),
    "compensation": (("motion_hat", "feature"), ("feature",)),
    "residual_codec.analysis": (("feature",), (None,)),
    "residual_codec.synthesis": ((None,), ("feature",)),
    "reconstruction": (("feature",), (None,)),
}
FUSION_WIRES = {"fusion": (("feature", "feature"), ("feature",))}  # no transform of the codec as a whole: it locks


@dataclass(frozen=True)
class FVCState:
    """What the next frame is predicted from.

    Attributes:
        features: of the reconstructions before, the latest first, each ``[N, feature, H/2, W/2]``; at least one.
    """

    features: tuple[Tensor, ...]

    def tensors(self) -> tuple[Tensor, ...]:
        """All of the state, in a fixed order."""
        return self.features


class FVC(Codec):
    """FVC's inter codec; the first frame comes from any image codec.

    Args:
        widths: a `Widths` or a key of `FVC_WIDTHS`.

    Raises:
        UsageError: unknown preset, or widths that do not fit together.
    """

    family = "fvc"

    def __init__(self, widths: Widths | str = "full") -> None:
        super().__init__()
        if isinstance(widths, str):
            if widths not in FVC_WIDTHS:
                raise UsageError(f"FVC preset {widths!r} does not exist; there are {', '.join(FVC_WIDTHS)}")
            widths = FVC_WIDTHS[widths]
        c, groups = widths.feature, widths.groups
        if c % groups:
            raise UsageError(f"{c} features in {groups} groups (needs a divisor)")
        self.widths = widths
        self.wires = WIRES | (FUSION_WIRES if widths.references else {})
        self.extraction = nn.Sequential(down5(3, c), *(FeatureBlock(c) for _ in range(widths.blocks)))
        # *Our reading*: LeakyReLU(0.1) between the two.
        self.motion_estimation = nn.Sequential(
            nn.Conv2d(2 * c, c, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(c, c, 3, padding=1)
        )
        self.motion_codec = FeatureCodec(c, widths.hidden, widths.latent)
        self.compensation = Compensation(c, groups, widths.modulated)
        self.residual_codec = FeatureCodec(c, widths.hidden, widths.latent)
        self.fusion = Fusion(c, widths.references, groups, widths.modulated) if widths.references else None
        self.reconstruction = nn.Sequential(*(FeatureBlock(c) for _ in range(widths.blocks)), up5(c, 3))

    @property
    def config(self) -> dict[str, Any]:
        return {"family": self.family, **asdict(self.widths)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FVC:
        return cls(Widths(**{key: config[key] for key in Widths.__dataclass_fields__}))

    def start(self, x_hat: Tensor) -> FVCState:
        """The state after an intra frame, ``[N, 3, H, W]``; H and W multiples of 64.

        Raises:
            UsageError: another shape.
        """
        check_picture(x_hat, STRIDE)
        return FVCState((self.extraction(x_hat.clamp(0, 1)),))

    def forward(self, x: Tensor, state: FVCState, rate: float | None = None) -> dict[str, Any]:
        """One frame with an estimated rate.

        Rounding has the gradient of the identity; in training the rate is taken at uniform noise around the residuals.

        Args:
            x: ``[N, 3, H, W]`` float, RGB in [0, 1]; H and W multiples of 64.
            state: of the frames before.
            rate: None; there is one rate.

        Returns:
            ``x_hat`` ``[N, 3, H, W]``, in [0, 1] in eval mode; ``bpp`` and its parts ``bpp_mv_y``, ``bpp_mv_z``,
            ``bpp_y``, ``bpp_z``, each ``[N]``; ``bit``; ``latents``: ``mv_y`` and ``y``, each a `Latent`; ``state``: of
            this frame.
        """
        check_picture(x, STRIDE)
        self._check_state(state, x.shape, None)
        if rate is not None:
            raise UsageError(f"rate={rate}: an FVC model has one rate (needs None)")
        feature, reference = self.extraction(x), state.features[0]
        motion, of_motion = self.motion_codec(self._motion(feature, reference))
        predicted = self.compensation(motion, reference)
        residual, coded = self.residual_codec(feature - predicted)
        x_hat, state = self._finish(predicted + residual, state)
        return {
            "x_hat": x_hat if self.training else x_hat.clamp(0, 1),
            **rates_of(x, mv_y=of_motion.bits_y, mv_z=of_motion.bits_z, y=coded.bits_y, z=coded.bits_z),
            "latents": {"mv_y": of_motion.latent, "y": coded.latent},
            "state": state,
        }

    def _motion(self, feature: Tensor, reference: Tensor) -> Tensor:
        """Features of a frame and of the one before -> the motion feature, of their size."""
        return self.motion_estimation(torch.cat([feature, reference], 1))

    def _finish(self, feature: Tensor, state: FVCState) -> tuple[Tensor, FVCState]:
        """Decoded feature -> picture ``[N, 3, H, W]``, not clamped, and the state after it."""
        count = self.widths.references
        if self.fusion is not None:
            # *Our reading*: while there are fewer frames, the earliest stands for those before it.
            earlier = state.features + (state.features[-1],) * (count - len(state.features))
            feature = self.fusion(feature, earlier)
        x_hat = self.reconstruction(feature)
        return x_hat, FVCState((self.start(x_hat).features + state.features)[: max(count, 1)])

    def tables(self) -> tuple[Tensor, EntropyTables, tuple[EntropyTables, EntropyTables]]:
        """(thresholds and tables of the latents, tables of the motion's and of the residual's hyper-latent).

        *Our reading*: the latents' Gaussians are EVC's, in one rANS-64 stream without a prefix.
        """
        device = self.reconstruction[-1].weight.device
        codecs = (self.motion_codec, self.residual_codec)
        z_tables = tuple(factorized_tables(codec.estimator, codec.latent_channels) for codec in codecs)
        return evc_scale_thresholds().to(device), evc_gaussian_tables(), z_tables

    @torch.no_grad()
    def compress(self, x: Tensor, state: FVCState) -> dict[str, Any]:
        """One frame to bytes: hyper-latent and latent of the motion, then of the residual, in one stream.

        Args:
            x: ``[1, 3, H, W]`` float32, RGB in [0, 1]; H and W multiples of 64.
            state: of the frames before.

        Returns:
            ``bit_stream``: bytes; ``x_hat`` ``[1, 3, H, W]`` in [0, 1] and ``state``, as `decompress` will give them.
        """
        check_float32(self.extraction)
        check_coded(x, STRIDE, self.extraction)
        self._check_state(state, x.shape, self.extraction)
        encoder = Encoder()
        x_hat, state = drive(self.encoding(x, state), pushing(encoder))
        return {"bit_stream": encoder.finish(), "x_hat": x_hat, "state": state}

    @torch.no_grad()
    def decompress(self, bit_stream: bytes, state: FVCState) -> dict[str, Any]:
        """The frame of `compress`, given the same state, on the same machine and thread count.

        Returns:
            ``x_hat`` ``[1, 3, H, W]`` in [0, 1]; ``state``: of this frame.

        Raises:
            BitstreamError: the bytes are damaged or belong to another model, state or arithmetic.
            UsageError: a state of another model.
        """
        check_float32(self.extraction)
        check_kind(state, FVCState)
        sides = [2 * side for feature in state.features[:1] for side in feature.shape[-2:]] or [STRIDE, STRIDE]
        check_picture(torch.empty(1, 3, *sides, device="meta"), STRIDE)
        self._check_state(state, (1, 3, *sides), self.extraction)
        decoder = Decoder(bit_stream)
        x_hat, state = drive(self.decoding(state), pulling(decoder, *self.hyper_calls(state)))
        decoder.finish()
        return {"x_hat": x_hat, "state": state}

    def encoding(self, x: Tensor, state: FVCState) -> Routine:
        """Device work of `compress`; returns the picture in [0, 1] and the state after it."""
        thresholds, tables, (motion_tables, residual_tables) = self.tables()
        feature, reference = self.extraction(x), state.features[0]
        motion = self._motion(feature, reference)
        motion = yield from self.motion_codec.encoding(motion, thresholds, tables, motion_tables)
        predicted = self.compensation(motion, reference)
        residual = yield from self.residual_codec.encoding(feature - predicted, thresholds, tables, residual_tables)
        x_hat, state = self._finish(predicted + residual, state)
        return x_hat.clamp(0, 1), state

    def hyper_calls(self, state: FVCState) -> list[Coding]:
        """What `decoding` asks for by `Known`: of the motion, of the residual."""
        size, codecs = tuple(state.features[0].shape[2:]), (self.motion_codec, self.residual_codec)
        return [codec.z_request(size, tables) for codec, tables in zip(codecs, self.tables()[2], strict=True)]

    def decoding(self, state: FVCState) -> Routine:
        """Device work of `decompress`; returns what `encoding` does."""
        thresholds, tables, _ = self.tables()
        reference = state.features[0]
        size = tuple(reference.shape[2:])
        motion = yield from self.motion_codec.decoding(size, thresholds, tables)
        predicted = self.compensation(motion, reference)
        residual = yield from self.residual_codec.decoding(size, thresholds, tables)
        x_hat, state = self._finish(predicted + residual, state)
        return x_hat.clamp(0, 1), state

    def _check_state(self, state: FVCState, shape: Sequence[int], layer: nn.Module | None) -> None:
        """Raises a UsageError unless `state` can precede a frame of `shape` ``[N, 3, H, W]``; `layer`: `check_state`"""
        check_kind(state, FVCState)
        channels = input_channels(self.motion_estimation)  # reads two such features
        n, _, height, width = shape
        wanted = (n, channels and channels // 2, height // 2, width // 2)
        most = max(self.widths.references, 1)
        if not 1 <= len(state.features) <= most:
            raise UsageError(f"a state of {len(state.features)} frames (needs 1 to {most})")
        check_state({f"feature {i} of the state": (value, wanted) for i, value in enumerate(state.features)}, layer)
