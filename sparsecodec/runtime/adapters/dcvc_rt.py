"""DCVC-RT: frames from the feature of the frame before (arXiv 2502.20762)."""

from __future__ import annotations

import copy
import hashlib
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.entropy import dcvc_gaussian16_tables
from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc_rt import SHIFT_OF_FRAME, STRIDE, RTModel
from sparsecodec.models.dcvc_rt_image import DCVCRTImage
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo
from sparsecodec.models.video import VideoCodec
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.nn.part_coder import PartCoder
from sparsecodec.nn.part_prior import PartParameters
from sparsecodec.nn.rt_layers import PATCH
from sparsecodec.nn.rt_prior import IntraPrior
from sparsecodec.nn.rt_state import RTState
from sparsecodec.ops import rt_scale_thresholds
from sparsecodec.runtime.numerics import Numerics, eager_numerics
from sparsecodec.runtime.report import Report
from sparsecodec.runtime.video import CompiledVideo
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


class CompiledRT(RTModel):
    """A model of the family on compiled networks: what it answers, and how, stays the model's own.

    Args:
        model: on a CPU, in eval mode.
        networks: of the whole codec; this model's are added to them.
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
        thresholds = rt_scale_thresholds()
        self._coder = PartCoder(self.prior, *tables, thresholds, force_zero_thres, layout=torch.channels_last)

    def coder(self) -> PartCoder:
        return self._coder


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

    def __init__(self, model: RTModel, networks: VideoNetworks, prefix: str, dtype: torch.dtype) -> None:
        super().__init__(model, networks, prefix, dtype)
        self.decoder = Keeping(self.decoder, dtype)  # its result outlives the frame


class DCVCRTCodec(CompiledVideo):
    """Compiled DCVC-RT.

    The last layers of a picture, and in I frames the networks between hyper-latent and tables, compute in float32, all
    others in `dtype`. All of them are part of the loop, so both ends need the same `numerics`.

    Args:
        model: a `VideoCodec` of both models of the family.
        device: where to run.
        dtype: see above.
        strict: raise if a layer with a rule finds no kernel although its device has kernels.
        original: the model's own layers in float32 instead, as the published software runs them: it opens streams
            that were made so on the same kind of machine.

    Attributes:
        intra, inter: both models; they answer the published software's calls.
    """

    stride: ClassVar = STRIDE
    colour: ClassVar = "ycbcr"

    def __init__(
        self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool, original: bool = False
    ) -> None:
        super().__init__(_identity(model), device)
        self.dtype = torch.float32 if original else dtype
        model = _own_copy(model, device, original)
        self._networks = None if original else VideoNetworks(model, strict)
        if original:
            self.intra, self.inter = model.intra, model.inter
        else:
            self.intra = CompiledRTImage(model.intra, self._networks, "intra.", dtype)
            self.inter = CompiledRTVideo(model.inter, self._networks, "inter.", dtype)
        self._warm_pixels = 0

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether `model` is both models of this family, or one of them."""
        if isinstance(model, VideoCodec):
            return isinstance(model.intra, DCVCRTImage) and isinstance(model.inter, DCVCRTVideo)
        return isinstance(model, DCVCRTImage | DCVCRTVideo)

    @staticmethod
    def half(model: RTModel, device: torch.device, dtype: torch.dtype, strict: bool, original: bool) -> RTModel:
        """One model of the family alone: it answers the published software's calls; arguments as for the codec."""
        model = _own_copy(model, device, original)
        if original:
            return model
        compiled = CompiledRTImage if isinstance(model, DCVCRTImage) else CompiledRTVideo
        return compiled(model, VideoNetworks(model, strict), "", dtype)

    @property
    def numerics(self) -> Numerics:
        return eager_numerics(self.device) if self._networks is None else self._networks.numerics

    def warm_up(self, sample: Tensor) -> None:
        """Codes `sample` as three frames, so that every layer has its kernel and its buffers."""
        x = self.padded(sample)
        self._warm_pixels = x.shape[2] * x.shape[3]
        _, state = self.intra_encode(x, 0)
        for index in (1, 2):
            payload, after = self.inter_encode(x, state, 0, index)
            self.inter_decode(payload, state, x.shape[2], x.shape[3], 0, index)
            state = after

    @torch.inference_mode()
    def intra_encode(self, x: Tensor, qp: int) -> tuple[bytes, RTState]:
        self.intra.set_use_two_entropy_coders(_split(*x.shape[2:]))
        coded = self.intra.compress(x, qp)
        return coded["bit_stream"], RTState(frame=coded["x_hat"])

    @torch.inference_mode()
    def inter_encode(self, x: Tensor, state: RTState, qp: int, index: int) -> tuple[bytes, RTState]:
        self.inter.set_use_two_entropy_coders(_split(*x.shape[2:]))
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

    def shifted(self, qp: int, index: int) -> int:
        """The quality at which a predicted frame is coded, 0 .. 71; `index`: frames since the I frame."""
        return self.inter.shift_qp(qp, SHIFT_OF_FRAME[index % len(SHIFT_OF_FRAME)])

    @property
    def report(self) -> Report:
        """Each layer with its op, backend and MACs, or the reason why it stayed a torch layer."""
        if self._networks is None:
            return Report((), ("original: every layer is the model's own, in float32",), (), 0)
        path, *parts = CompiledRTVideo.PICTURE
        paths = (*CompiledRTVideo.ENTROPY, *CompiledRTVideo.FEATURES, *(f"{path}.{part}" for part in parts))
        precision = str(self.dtype).removeprefix("torch.")
        notes = (
            f"networks in {precision}; the last layers of a picture, and an I frame's entropy networks, in float32",
            f"both ends: {self.numerics.name}",
            "paired: the state after each frame is fingerprinted; where it drifts, decoding stops and says so",
        )
        decoder = [f"inter.{path}" for path in paths if path != "feature_adaptor_i"]
        return self._networks.report(self._warm_pixels, decoder, notes)


def _own_copy(model: nn.Module, device: torch.device, original: bool) -> nn.Module:
    """A copy to compile or, with its coding tables, to use as it is."""
    if device.type != "cpu" and not original:
        raise UsageError(f"device={device}: DCVC-RT is compiled for CPUs (original=True runs the model's own layers)")
    model = copy.deepcopy(model).to(device).float().eval().requires_grad_(False)
    for half in model.modules():
        if original and isinstance(half, RTModel):
            half.update(half.force_zero_thres)
    return model


def _identity(model: nn.Module) -> bytes:
    """Of weights and of what streams do not say: the scales up to which nothing is coded. 8 bytes."""
    skips = [getattr(model, half).force_zero_thres for half in ("intra", "inter")]
    digest = model_hash(model)
    return digest[:8] if skips == [None, None] else hashlib.sha256(digest + repr(skips).encode()).digest()[:8]


def _split(height: int, width: int) -> bool:
    return height * width > SPLIT_AREA


def _parameter_set(height: int, width: int) -> dict[str, int]:
    return {"height": height, "width": width, "ec_part": int(_split(height, width))}
