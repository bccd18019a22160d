"""DCVC-HEM: motion, and frames under contexts that it draws from the feature before (arXiv 2207.05894)."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, get_num_threads, nn

from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo
from sparsecodec.models.dual_prior_image import STRIDE
from sparsecodec.models.video import VideoCodec
from sparsecodec.nn import DualPriorCoder
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.nn.hem_inter import FLOW, HEM_INTER_LAYOUT, HEMInter, HEMInterCoder, HEMState
from sparsecodec.ops import warp
from sparsecodec.runtime.numerics import Numerics, eager_numerics
from sparsecodec.runtime.report import Report
from sparsecodec.runtime.video import QPS, CompiledVideo
from sparsecodec.runtime.video_networks import Keeping, Network, VideoNetworks


class Picture(nn.Module):
    """The last layer of a picture: new, contiguous float32 memory."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network

    def forward(self, x: Tensor) -> Tensor:
        return self._network(x).to(torch.float32, memory_format=torch.contiguous_format, copy=True)


class CompiledHEMImage(DCVCHEMImage):
    """`DCVCHEMImage` on compiled networks: it answers the same calls.

    Args:
        model: on a CPU, in eval mode.
        networks: of the whole codec; this model's are added to them.
        prefix: what paths in this model begin with there.
        dtype: of the transforms; entropy networks and the last layer of the picture are float32.
    """

    ENTROPY: ClassVar = ("hyper_dec", "y_prior_fusion", "y_spatial_prior")
    LATENTS: ClassVar = ("enc", "hyper_enc")
    PICTURE: ClassVar = ("dec", "refine.0", "refine.1")

    def __init__(self, model: DCVCHEMImage, networks: VideoNetworks, prefix: str, dtype: torch.dtype) -> None:
        with torch.device("meta"):  # for its structure: everything in it is replaced
            super().__init__(model.widths)
        _take(self, model)
        for path in self.ENTROPY:
            setattr(self, path, networks.add(prefix + path, torch.float32))
        for path in self.LATENTS:
            setattr(self, path, Keeping(networks.add(prefix + path, dtype), torch.float32))
        dec, net, last = self.PICTURE
        self.dec = networks.add(prefix + dec, dtype)
        self.refine = nn.Sequential(
            networks.add(prefix + net, dtype), Picture(networks.add(prefix + last, torch.float32))
        )
        self.eval().requires_grad_(False)
        self._coder = DualPriorCoder(self.prior, *model.tables(), layout=self.LAYOUT)

    def coder(self) -> DualPriorCoder:
        return self._coder


class CompiledHEMVideo(DCVCHEMVideo):
    """`DCVCHEMVideo` on compiled networks: it answers the same calls. Both ends need the same compiled arithmetic.

    Args:
        model: on a CPU, in eval mode.
        networks, prefix: as for `CompiledHEMImage`.
        dtype: of the transforms; entropy networks, motion and the last layer of the picture are float32.
    """

    ENTROPY: ClassVar = (
        *("mv_hyper_prior_decoder", "mv_y_prior_fusion", "mv_y_spatial_prior"),
        *("contextual_hyper_prior_decoder", "temporal_prior_encoder", "y_prior_fusion", "y_spatial_prior"),
    )
    MOTION: ClassVar = ("mv_decoder",)
    LATENTS: ClassVar = (
        *("mv_encoder", "mv_hyper_prior_encoder", "contextual_encoder", "contextual_hyper_prior_encoder"),
    )
    FEATURES: ClassVar = (
        *("feature_adaptor_I", "feature_adaptor_P", "feature_extractor", "context_fusion_net", "contextual_decoder"),
    )
    GENERATOR: ClassVar = "recon_generation_net"
    PICTURE: ClassVar = ("first_conv", "unet_1", "unet_2", "recon_conv")

    def __init__(self, model: DCVCHEMVideo, networks: VideoNetworks, prefix: str, dtype: torch.dtype) -> None:
        with torch.device("meta"):  # for its structure: everything in it is replaced
            super().__init__(model.widths)
        _take(self, model)
        for path in (*self.ENTROPY, *self.MOTION):
            setattr(self, path, networks.add(prefix + path, torch.float32))
        for path in self.LATENTS:
            setattr(self, path, Keeping(networks.add(prefix + path, dtype), torch.float32))
        for path in self.FEATURES:
            setattr(self, path, networks.add(prefix + path, dtype))
        for level, path in enumerate(FLOW):
            self.optic_flow.moduleBasic[level] = networks.add(prefix + path, torch.float32)
        *features, last = self.PICTURE
        generator = self.get_submodule(self.GENERATOR)
        for name in features:
            setattr(generator, name, networks.add(f"{prefix}{self.GENERATOR}.{name}", dtype))
        generator.unet_2 = Keeping(generator.unet_2, dtype)  # its result outlives the frame
        setattr(generator, last, Picture(networks.add(f"{prefix}{self.GENERATOR}.{last}", torch.float32)))
        self.eval().requires_grad_(False)
        of_latents, of_mv_z, of_z = model.tables()
        nets = HEMInter(self.get_submodule, _warp)
        mv, y = (
            DualPriorCoder(prior, of_latents, of_hyper, layout=HEM_INTER_LAYOUT)
            for prior, of_hyper in ((nets.mv_prior, of_mv_z), (nets.y_prior, of_z))
        )
        self._coder = HEMInterCoder(nets, mv, y)

    def coder(self) -> HEMInterCoder:
        return self._coder


class DCVCHEMCodec(CompiledVideo):
    """Compiled DCVC-HEM.

    Networks between the hyper-latents and the tables, motion and the last layer of a picture compute in float32, all
    others in `dtype`. All of them are part of the loop, so both ends need the same `numerics`.

    Args:
        model: a `VideoCodec` of both models of the family.
        device: where to run: a CPU, unless `original`.
        dtype: see above.
        strict: raise if a layer with a rule finds no kernel although its device has kernels.
        original: the models' own layers in float32 instead, as the published software runs them: it opens streams that
            were made so on the same kind of machine.

    Attributes:
        intra, inter: both models; they answer the published software's calls.
    """

    stride: ClassVar = STRIDE
    colour: ClassVar = "rgb"

    def __init__(
        self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool, original: bool = False
    ) -> None:
        super().__init__(model_hash(model)[:8], device)
        self.dtype = torch.float32 if original else dtype
        model = _own_copy(model, device, original)
        self._networks = None if original else VideoNetworks(model, strict)
        if original:
            self.intra, self.inter = model.intra, model.inter
        else:
            self.intra = CompiledHEMImage(model.intra, self._networks, "intra.", dtype)
            self.inter = CompiledHEMVideo(model.inter, self._networks, "inter.", dtype)
        self._intra_steps, self._inter_steps = model.intra.q_scales(QPS), model.inter.q_scales(QPS)
        self._warm_pixels = 0

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether `model` is both models of this family, or one of them."""
        if isinstance(model, VideoCodec):
            return isinstance(model.intra, DCVCHEMImage) and isinstance(model.inter, DCVCHEMVideo)
        return isinstance(model, DCVCHEMImage | DCVCHEMVideo)

    @staticmethod
    def half(model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool, original: bool) -> nn.Module:
        """One model of the family alone: it answers the published software's calls; arguments as for the codec."""
        model = _own_copy(model, device, original)
        if original:
            return model
        compiled = CompiledHEMImage if isinstance(model, DCVCHEMImage) else CompiledHEMVideo
        return compiled(model, VideoNetworks(model, strict), "", dtype)

    @property
    def numerics(self) -> Numerics:
        # Squeeze-and-excitation takes means over pictures and multiplies matrices, in torch's own order.
        return eager_numerics(self.device) if self._networks is None else self._networks.numerics_of(get_num_threads())

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
    def intra_encode(self, x: Tensor, qp: int) -> tuple[bytes, HEMState]:
        coded = self.intra.compress(x, self._intra_steps[qp])
        return coded["bit_stream"], HEMState(coded["x_hat"])

    @torch.inference_mode()
    def inter_encode(self, x: Tensor, state: HEMState, qp: int, index: int) -> tuple[bytes, HEMState]:
        """`index` changes nothing: this family moves no rate."""
        return self.inter.coder().encode(x, state, *self.inter.gains(*self._inter_steps[qp]))

    @torch.inference_mode()
    def intra_decode(self, payload: bytes, height: int, width: int, qp: int) -> tuple[Tensor, HEMState]:
        x_hat = self.intra.decompress(payload, height, width, self._intra_steps[qp])["x_hat"]
        return x_hat, HEMState(x_hat)

    @torch.inference_mode()
    def inter_decode(
        self, payload: bytes, state: HEMState, height: int, width: int, qp: int, index: int
    ) -> tuple[Tensor, HEMState]:
        if state.frame.shape[2:] != (height, width):
            raise UsageError(f"frame of {height} x {width} (the one before is {tuple(state.frame.shape[2:])})")
        state = self.inter.coder().decode(payload, state, *self.inter.gains(*self._inter_steps[qp]))
        return state.frame, state

    @property
    def report(self) -> Report:
        """Each layer with its op, backend and MACs, or the reason why it stayed a torch layer."""
        if self._networks is None:
            return Report((), ("original: every layer is the model's own, in float32",), (), 0)
        of = CompiledHEMVideo
        paths = (*of.ENTROPY, *of.MOTION, *of.FEATURES, *(f"{of.GENERATOR}.{part}" for part in of.PICTURE))
        precision = str(self.dtype).removeprefix("torch.")
        notes = (
            f"networks in {precision}; entropy networks, motion and the last layer of a picture in float32",
            f"both ends: {self.numerics.name}",
            "paired: the state after each frame is fingerprinted; where it drifts, decoding stops and says so",
        )
        decoder = [f"inter.{path}" for path in paths if path != "feature_adaptor_I"]
        return self._networks.report(self._warm_pixels, decoder, notes)


def _warp(x: Tensor, flow: Tensor) -> Tensor:
    """`sparsecodec.ops.warp` of tensors of any layout."""
    return warp(x.contiguous(memory_format=torch.channels_last), flow.float())


def _take(compiled: nn.Module, model: nn.Module) -> None:
    """Moves what is not compiled: steps, and the distributions of hyper-latents."""
    for name, parameter in model.named_parameters(recurse=False):
        setattr(compiled, name, parameter)
    for name, child in model.named_children():
        if name.startswith("bit_estimator"):
            setattr(compiled, name, child)


def _own_copy(model: nn.Module, device: torch.device, original: bool) -> nn.Module:
    if device.type != "cpu" and not original:
        raise UsageError(f"device={device}: DCVC-HEM is compiled for CPUs (original=True runs the model's own layers)")
    return copy.deepcopy(model).to(device).float().eval().requires_grad_(False)
