"""DCVC-RT: frames from the feature of the frame before (arXiv 2502.20762)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.entropy import dcvc_gaussian16_tables
from sparsecodec.models.dcvc_rt import RESET_INTERVAL, SHIFT_OF_FRAME, STRIDE, RTModel
from sparsecodec.models.dcvc_rt_image import DCVCRTImage
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo
from sparsecodec.models.inputs import whole
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.nn.part_coder import PartCoder
from sparsecodec.nn.part_prior import PartParameters
from sparsecodec.nn.routine import Host, Routine
from sparsecodec.nn.rt_layers import PATCH
from sparsecodec.nn.rt_prior import IntraPrior
from sparsecodec.nn.rt_state import RTState
from sparsecodec.ops import rt_scale_thresholds
from sparsecodec.runtime.adapters.paired import OneModel, TwoModels
from sparsecodec.runtime.video import FRAMES
from sparsecodec.runtime.video_networks import Keeping, Network, VideoNetworks

SPLIT_AREA = 1280 * 720  # frames of more pixels have their symbols in two streams


class Picture(nn.Module):
    """The network that makes a picture: all but its last layers in one precision, those in float32.

    Args:
        trunk: ``(x, step) -> [1, C, h, w]``.
        head: ``[1, C, h, w] -> [1, 192, h, w]`` float32.
    """

    def __init__(self, trunk: Network, head: Network) -> None:
        super().__init__()
        self._trunk = trunk
        self._head = head

    def forward(self, x: Tensor, quant_step: Tensor) -> Tensor:
        """``[1, 3, 8h, 8w]`` float32, contiguous; new memory."""
        patches = self._head(self._trunk(x, quant_step))
        n, channels, h, w = patches.shape
        cells = patches.permute(0, 2, 3, 1).reshape(n, h, w, channels // PATCH**2, PATCH, PATCH)
        return cells.permute(0, 3, 1, 4, 2, 5).reshape(n, -1, PATCH * h, PATCH * w)


class CompiledIntraPrior(IntraPrior):
    """`IntraPrior` on channels_last tensors, with a sigmoid whose bits do not depend on the processor."""

    def parameters(self, z_hat: Tensor, size: tuple[int, int], temporal: Tensor | None = None) -> PartParameters:
        prior = self._fusion(self._hyper_dec(z_hat))[:, :, : size[0], : size[1]]
        # In float64 the error of any exponential is far below what float32 rounds away.
        quality = (prior[:, :2].double().sigmoid() * 1.5 + 0.5).float()
        scales, means = prior[:, 2:].chunk(2, 1)
        return PartParameters(scales, means, quality[:, :1], quality[:, 1:], self._reduction(prior))


class CompiledRT(OneModel, RTModel):
    """A model of the family on compiled networks: what it answers, and how, stays the model's own.

    Args:
        model: on the device, in eval mode.
        networks: of the whole codec; this model's are added to them, and their executor runs its routines.
        prefix: what paths in this model begin with there.
        dtype: of all networks but the head of the picture, and those of `ENTROPY` if they are to be exact.
    """

    ENTROPY: ClassVar[tuple[str, ...]]  # networks between the hyper-latent and the tables
    EXACT_ENTROPY: ClassVar[bool]  # whether these are float32, whose bits are the same on every CPU
    LATENTS: ClassVar[tuple[str, ...]]  # what the encoder alone runs
    FEATURES: ClassVar[tuple[str, ...]]  # of the loop
    PICTURE: ClassVar[tuple[str, str, str]]  # network, and its two parts

    def __init__(self, model: RTModel, networks: VideoNetworks, prefix: str, dtype: torch.dtype) -> None:
        with torch.device("meta"):  # for its structure: everything in it is replaced
            super().__init__(model.widths)
        for name, parameter in model.named_parameters(recurse=False):
            setattr(self, name, parameter)
        self.bit_estimator_z = model.bit_estimator_z
        self._networks, self._prefix = networks, prefix
        self._rates = torch.arange(self.rates, device=networks.device)
        for path in self.ENTROPY:
            setattr(self, path, networks.add(prefix + path, torch.float32 if self.EXACT_ENTROPY else dtype))
        for path in self.LATENTS:
            setattr(self, path, Keeping(networks.add(prefix + path, dtype), torch.float32))
        for path in self.FEATURES:
            setattr(self, path, networks.add(prefix + path, dtype))
        whole, trunk, head = self.PICTURE
        parts = (f"{prefix}{whole}.{trunk}", True, dtype), (f"{prefix}{whole}.{head}", False, torch.float32)
        picture = (networks.add(path, precision, stepped=stepped) for path, stepped, precision in parts)
        setattr(self, whole, Picture(*picture))
        self.eval().requires_grad_(False)
        self.update(model.force_zero_thres)

    def update(self, force_zero_thres: float | None = None) -> None:
        super().update(force_zero_thres)
        tables = dcvc_gaussian16_tables(), self._z_tables
        settings = rt_scale_thresholds(), force_zero_thres, self._networks.device, torch.channels_last
        self._coder = PartCoder(self.prior, *tables, *settings)
        self._networks.executor.forget()

    def coder(self) -> PartCoder:
        return self._coder

    def _run(self, routine: Callable[..., Routine], *inputs: Any, host: Host) -> Any:
        return self._networks.run(routine, *inputs, host=host)

    def _rate(self, qp: int) -> Tensor:
        return self._rates[qp : qp + 1]

    def decoder_paths(self) -> list[str]:
        whole, *parts = self.PICTURE
        paths = (*self.ENTROPY, *self.FEATURES, *(f"{whole}.{part}" for part in parts))
        return [self._prefix + path for path in paths if path != self.FIRST]


class CompiledRTImage(CompiledRT, DCVCRTImage):
    """`DCVCRTImage` on compiled networks: what it writes opens on every CPU."""

    EXACT_ENTROPY: ClassVar = True
    ENTROPY: ClassVar = (
        *("hyper_dec", "y_prior_fusion", "y_spatial_prior_reduction", "y_spatial_prior"),
        *(f"y_spatial_prior_adaptor_{i}" for i in (1, 2, 3)),
    )
    LATENTS: ClassVar = ("enc", "hyper_enc")
    FEATURES: ClassVar = ()
    PICTURE: ClassVar = ("dec", "dec_1", "dec_2")
    SCALE: ClassVar = ("dec.dec_1", STRIDE**2)

    @property
    def prior(self) -> CompiledIntraPrior:
        adaptors = (self.y_spatial_prior_adaptor_1, self.y_spatial_prior_adaptor_2, self.y_spatial_prior_adaptor_3)
        return CompiledIntraPrior(
            self.hyper_dec, self.y_prior_fusion, self.y_spatial_prior_reduction, adaptors, self.y_spatial_prior
        )


class CompiledRTVideo(CompiledRT, DCVCRTVideo):
    """`DCVCRTVideo` on compiled networks.

    All that its latents are predicted from goes through the loop's own precision, so its prior has that, too: exact
    ones would guard nothing. Of dcvc-rt-tiny in training the bytes changed by -0.06 to +0.04 %, the PSNR by 0.001 dB.
    """

    EXACT_ENTROPY: ClassVar = False
    ENTROPY: ClassVar = ("hyper_decoder", "temporal_prior_encoder", "y_prior_fusion", "y_spatial_prior")
    LATENTS: ClassVar = ("encoder", "hyper_encoder")
    FEATURES: ClassVar = ("feature_adaptor_i", "feature_adaptor_p", "feature_extractor", "decoder")
    PICTURE: ClassVar = ("recon_generation_net", "conv", "head")
    SCALE: ClassVar = ("feature_extractor", PATCH**2)
    FIRST: ClassVar = "feature_adaptor_i"

    def __init__(self, model: RTModel, networks: VideoNetworks, prefix: str, dtype: torch.dtype) -> None:
        super().__init__(model, networks, prefix, dtype)
        self.decoder = Keeping(self.decoder, dtype)  # its result outlives the frame

    def _check_state(self, state: RTState, shape: Sequence[int], layer: nn.Module | None) -> None:
        """Kind and shape alone: sessions hold what they made themselves, `add_ref_frame` looked at what was given."""
        super()._check_state(state, shape, None)


class DCVCRTCodec(TwoModels):
    """Compiled DCVC-RT; arguments as for `TwoModels`.

    The last layers of a picture, and in I frames the networks between hyper-latent and tables, compute in float32, all
    others in `dtype`. All of them are part of the loop, so both ends need the same `numerics`.
    """

    stride: ClassVar = STRIDE
    colour: ClassVar = "ycbcr"
    FLOAT32: ClassVar = "the last layers of a picture, and an I frame's entropy networks,"
    MODELS: ClassVar = (DCVCRTImage, DCVCRTVideo)
    COMPILED: ClassVar = (CompiledRTImage, CompiledRTVideo)
    RESET_INTERVAL: ClassVar = RESET_INTERVAL

    @torch.inference_mode()
    def intra_encode(self, x: Tensor, qp: int) -> tuple[bytes, RTState]:
        with _streams_of(self.intra, x):
            coded = self.intra.compress(x, qp)
        return coded["bit_stream"], RTState(frame=coded["x_hat"])

    @torch.inference_mode()
    def inter_encode(self, x: Tensor, state: RTState, qp: int, index: int) -> tuple[bytes, RTState]:
        with _streams_of(self.inter, x):
            return self.inter.compress_frame(x, state, self.shifted(qp, index))

    @torch.inference_mode()
    def intra_decode(self, payload: bytes, height: int, width: int, qp: int) -> tuple[Tensor, RTState]:
        x_hat = self.intra.decompress(payload, _parameter_set(height, width), qp)["x_hat"]
        return x_hat, RTState(frame=x_hat)

    @torch.inference_mode()
    def inter_decode(
        self, payload: bytes, state: RTState, height: int, width: int, qp: int, index: int
    ) -> tuple[Tensor, RTState]:
        return self.inter.decompress_frame(payload, state, _parameter_set(height, width), self.shifted(qp, index))

    @torch.inference_mode()
    def reset(self, state: RTState, qp: int, index: int) -> RTState:
        dropped = self.inter.reset(state, self.shifted(qp, index))
        return dropped if dropped is state else RTState(frame=dropped.frame.clone())  # out of the network's own buffer

    def magnitude(self, state: RTState) -> float:
        return 0.0 if state.feature is None else float(state.feature.float().abs().mean())

    def shifted(self, qp: int, index: int) -> int:
        """The quality at which a predicted frame is coded, 0 .. 71; `index`: frames since the I frame."""
        return self.inter.shift_qp(qp, SHIFT_OF_FRAME[whole(index, "index", FRAMES) % len(SHIFT_OF_FRAME)])

    @classmethod
    def own_copy(cls, model: nn.Module, device: torch.device, original: bool) -> nn.Module:
        """Of original models also the coding tables, if they bring none, maybe of weights before these were rounded."""
        model = super().own_copy(model, device, original)
        for half in model.modules():
            if original and isinstance(half, RTModel) and half.z_tables is None:
                half.update(half.force_zero_thres)
        return model

    @staticmethod
    def identity(model: nn.Module) -> bytes:
        """Of weights and of what streams do not say: the scales up to which nothing is coded."""
        skips = [getattr(model, half).force_zero_thres for half in ("intra", "inter")]
        digest = model_hash(model)
        return digest[:8] if skips == [None, None] else hashlib.sha256(digest + repr(skips).encode()).digest()[:8]


def _split(height: int, width: int) -> bool:
    return height * width > SPLIT_AREA


@contextmanager
def _streams_of(half: RTModel, x: Tensor) -> Iterator[None]:
    """Within the block frames of this size have as many streams as sessions give them, whatever the caller set."""
    before = half.uses_two_entropy_coders
    half.set_use_two_entropy_coders(_split(*x.shape[2:]))
    try:
        yield
    finally:
        half.set_use_two_entropy_coders(before)


def _parameter_set(height: int, width: int) -> dict[str, int]:
    return {"height": height, "width": width, "ec_part": int(_split(height, width))}
