"""FVC: motion, compensation and residual in feature space (arXiv 2105.09600)."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.entropy import Decoder, Encoder, EntropyTables
from sparsecodec.models.fvc import FVC, FVCState
from sparsecodec.models.inputs import check_coded
from sparsecodec.models.video import VideoCodec
from sparsecodec.nn.routine import Routine, pulling, pushing
from sparsecodec.ops._registry import bind
from sparsecodec.ops.deform_conv2d import DEFORM_CONV2D
from sparsecodec.runtime.adapters.behind_image import BehindImage, Chain
from sparsecodec.runtime.adapters.paired import OneModel, copied, reporting
from sparsecodec.runtime.video_networks import Keeping, VideoNetworks
from sparsecodec.sparsity.rules import is_quantized

CODECS = ("motion_codec", "residual_codec")


class BoundDeformable(nn.Module):
    """`DeformableConv2d` with packed weights, bound at its first call.

    Args:
        layer: whose weights.
        dtype: of the features.
    """

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._constants = (layer.weight.detach(), layer.bias.detach())
        self._dtype = dtype
        self._run = None

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        x = x.to(self._dtype).contiguous(memory_format=torch.channels_last)
        if self._run is None:
            weight, bias = self._constants
            self._run = bind(DEFORM_CONV2D, x, offset, weight, bias, mask).run
        return self._run(x=x, offset=offset, mask=mask)


class CompiledFVC(OneModel, FVC):
    """`FVC` on compiled networks: what it answers, and how, stays the model's own.

    Args:
        model: on the device, in eval mode.
        networks: of the whole codec; this model's are added to them.
        dtype: of the features; entropy networks, offsets, attention and the last layer of the picture are float32.
    """

    SCALE: ClassVar = ("extraction", 1)
    DECODER: ClassVar = ("extraction", "compensation.alignment.offsets", "compensation.refine")

    def __init__(self, model: FVC, networks: VideoNetworks, dtype: torch.dtype) -> None:
        with torch.device("meta"):  # for its structure: everything in it is replaced
            super().__init__(model.widths)
        self._networks = networks
        own = copy.deepcopy(model)
        for name, module in own.named_children():
            setattr(self, name, module)
        self.extraction = Keeping(networks.add("extraction", dtype), dtype)  # its results outlive the frame
        self.motion_estimation = networks.add("motion_estimation", dtype)
        for name in CODECS:
            codec = self.get_submodule(name)
            for part in ("analysis", "hyper_analysis"):
                setattr(codec, part, Keeping(networks.add(f"{name}.{part}", dtype), torch.float32))
            codec.hyper_synthesis = networks.add(f"{name}.hyper_synthesis", torch.float32)
            codec.synthesis = networks.add(f"{name}.synthesis", dtype)
        self._align(self.compensation.alignment, "compensation.alignment", networks, dtype)
        self.compensation.refine = networks.add("compensation.refine", dtype)
        self._paths = [
            *self.DECODER,
            *(f"{name}.{part}" for name in CODECS for part in ("hyper_synthesis", "synthesis")),
        ]
        if self.fusion is not None:
            for i in range(model.widths.references):
                path = f"fusion.motion.{i}"
                self.fusion.motion[i] = networks.add(path, dtype)
                self._align(self.fusion.alignment[i], f"fusion.alignment.{i}", networks, dtype)
                self._paths += [path, f"fusion.alignment.{i}.offsets"]
            self.fusion.attention = nn.ModuleList(InFloat32(layer) for layer in self.fusion.attention)
            self.fusion.fuse = networks.add("fusion.fuse", dtype)
            self._paths.append("fusion.fuse")
        *blocks, last = (f"reconstruction.{i}" for i in range(len(model.reconstruction)))
        parts = [networks.add(path, dtype) for path in blocks]
        self.reconstruction = Chain(*parts, networks.add(last, torch.float32))
        self._paths += [*blocks, last]
        self._tables = model.tables()
        self.eval().requires_grad_(False)

    @staticmethod
    def _align(alignment: nn.Module, path: str, networks: VideoNetworks, dtype: torch.dtype) -> None:
        alignment.offsets = networks.add(f"{path}.offsets", torch.float32)
        if not is_quantized(alignment.conv):
            alignment.conv = BoundDeformable(alignment.conv, dtype)

    def tables(self) -> tuple[Tensor, EntropyTables, tuple[EntropyTables, EntropyTables]]:
        return self._tables

    def decoder_paths(self) -> list[str]:
        return self._paths


class InFloat32(nn.Module):
    """A layer of two maps that computes in float32, on channels_last tensors: on our kernels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = layer

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self._layer(*(x.to(torch.float32, memory_format=torch.channels_last) for x in (a, b)))


class FVCCodec(BehindImage):
    """Compiled FVC behind an image codec; arguments as for the other adapters.

    Attributes:
        inter: the inter model; it answers the same calls as the plain one.
    """

    FLOAT32: ClassVar = "entropy networks, offsets, attention and the last layer of a picture"

    def __init__(
        self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool, original: bool = False
    ) -> None:
        inter = copied(model.inter, device)
        networks = None if original else VideoNetworks(inter, strict)
        super().__init__(model, device, dtype, strict, networks)
        self.inter = inter if original else CompiledFVC(inter, networks, dtype)

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether `model` is an FVC, or a `VideoCodec` of an image codec and one."""
        return isinstance(model.inter if isinstance(model, VideoCodec) else model, FVC)

    @staticmethod
    def half(model: FVC, device: torch.device, dtype: torch.dtype, strict: bool, original: bool) -> FVC:
        """The inter model alone; arguments as for the codec."""
        model = copied(model, device)
        return reporting(model) if original else CompiledFVC(model, VideoNetworks(model, strict), dtype)

    def start(self, x_hat: Tensor) -> FVCState:
        return self.inter.start(x_hat)

    @torch.inference_mode()
    def inter_encode(self, x: Tensor, state: FVCState, qp: int, index: int) -> tuple[bytes, FVCState]:
        check_coded(x, self.stride, self.inter.extraction)
        self.inter._check_state(state, x.shape, None)
        encoder = Encoder()
        _, features = self._run(self._encoding, x, *state.features, host=pushing(encoder))
        return encoder.finish(), FVCState(features)

    @torch.inference_mode()
    def inter_decode(
        self, payload: bytes, state: FVCState, height: int, width: int, qp: int, index: int
    ) -> tuple[Tensor, FVCState]:
        self.inter._check_state(state, (1, 3, height, width), None)
        decoder = Decoder(payload)
        host = pulling(decoder, *self.inter.hyper_calls(state))
        x_hat, features = self._run(self._decoding, *state.features, host=host)
        decoder.finish()
        return x_hat, FVCState(features)

    def _encoding(self, x: Tensor, *features: Tensor) -> Routine:
        x_hat, state = yield from self.inter.encoding(x, FVCState(features))
        return x_hat, state.features

    def _decoding(self, *features: Tensor) -> Routine:
        x_hat, state = yield from self.inter.decoding(FVCState(features))
        return x_hat, state.features
