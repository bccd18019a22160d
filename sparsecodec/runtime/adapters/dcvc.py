"""DCVC (2021): frames under a context made of the frame before, coded position by position (arXiv 2109.15047)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.entropy import FrameFile, dcvc_laplace16_tables
from sparsecodec.errors import UsageError
from sparsecodec.models.dcvc import DCVC, DCVCState
from sparsecodec.models.dcvc_scripts import FILE
from sparsecodec.models.inputs import check_coded, check_kind, check_state
from sparsecodec.models.video import VideoCodec
from sparsecodec.nn.autoregressive import PositionCoder, require_floats
from sparsecodec.nn.dcvc_coder import FRAME, MOTION, DCVCCoder, DCVCStrings, LatentCoder
from sparsecodec.nn.flow import estimate_flow
from sparsecodec.ops import dcvc_scale_thresholds
from sparsecodec.runtime.adapters.behind_image import BehindImage, Chain, check_size
from sparsecodec.runtime.adapters.paired import ORIGINAL, OneModel, copied
from sparsecodec.runtime.context_model import ContextModel, ContextRows, why_not_native
from sparsecodec.runtime.report import Report
from sparsecodec.runtime.uncopied import KeepsWeights
from sparsecodec.runtime.video_networks import VideoNetworks, warp_any

WAVES = "context models: wave by wave in one native call, pinned float32"


class CompiledFlow(nn.Module):
    """`FlowNetwork` with compiled steps, in float32."""

    def __init__(self, *steps: nn.Module) -> None:
        super().__init__()
        self._steps = nn.ModuleList(steps)

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        return estimate_flow(self._steps, x, reference, warp_any)


class RowsOrLayers:
    """Codes latents in the published order with the bits of torch's layers: natively where those are matched.

    Args:
        rows: compared with torch at each call, as what torch computes depends on its threads.
        layers: what codes where they differ.
        reach: of the context.
    """

    def __init__(self, rows: ContextRows | None, layers: PositionCoder, reach: int) -> None:
        self._rows = rows
        self._layers = layers
        self._reach = reach

    @property
    def native(self) -> bool:
        """Whether the native rows are at work here and now."""
        return self._rows is not None and self._rows.matches()

    def encode(self, y: Tensor, prior: Tensor) -> tuple[bytes, Tensor]:
        """As `PositionCoder.encode`."""
        if not self.native:
            return self._layers.encode(y, prior)
        string, y_hat = self._rows.encode(y, prior)
        return string, self._framed(y_hat)

    def decode(self, string: bytes, prior: Tensor) -> Tensor:
        """As `PositionCoder.decode`."""
        if not self.native:
            return self._layers.decode(string, prior)
        return self._framed(self._rows.decode(string, prior))

    def _framed(self, y_hat: Tensor) -> Tensor:
        """With the strides that it has among torch's layers, by which torch chooses how to compute what follows."""
        n, channels, height, width = y_hat.shape
        reach = self._reach
        frame = y_hat.new_zeros(n, channels, height + 2 * reach, width + 2 * reach)
        return frame[:, :, reach : reach + height, reach : reach + width].copy_(y_hat)


class OriginalDCVC(KeepsWeights, DCVC):
    """The model's own layers in float32, with native coding of the published strings."""

    def __init__(self, model: DCVC) -> None:
        with torch.device("meta"):  # for its structure: everything in it is replaced
            super().__init__(model.widths)
        for name, module in model.named_children():
            setattr(self, name, module)
        self.eval().requires_grad_(False)
        plain = DCVC.coder(self)
        coders = {part: self._coder_of(part, layers) for part, layers in plain.coders.items()}
        self._coder = DCVCCoder(self.get_submodule, coders, plain.z_tables)

    def _coder_of(self, part: str, layers: PositionCoder) -> RowsOrLayers:
        context, parameters, _ = self.entropy_networks(part)
        rows, constants = None, (context, parameters, dcvc_scale_thresholds(), dcvc_laplace16_tables())
        if not why_not_native(context, parameters, context.weight.device):
            rows = ContextRows(*constants, layers.parameters_at, means_first=True)
        return RowsOrLayers(rows, layers, context.kernel_size[0] // 2)

    def coder(self) -> DCVCCoder:
        return self._coder

    @property
    def report(self) -> Report:
        """No layers, but a note on how the context models code here and now."""
        native = all(coder.native for coder in self._coder.coders.values())
        how = "row by row in one native call" if native else "as torch layers"
        return Report((), (ORIGINAL, f"context models: {how}"), (), 0)


class CompiledDCVC(OneModel, DCVC):
    """`DCVC` on compiled networks: it answers the same calls. Both ends need the same compiled arithmetic.

    Latents are coded wave by wave (`ContextModel`), so strings hold other positions first than the published ones.

    Args:
        model: on a CPU, in eval mode.
        networks: of the whole codec; this model's are added to them.
        prefix: what paths in this model begin with there.
        dtype: of the transforms; entropy networks, motion and the last layer of the picture are float32.
    """

    ENTROPY: ClassVar = ("mvpriorDecoder", "priorDecoder", "temporalPriorEncoder")
    MOTION: ClassVar = ("mvDecoder_part1", "mvDecoder_part2")
    LATENTS: ClassVar = ("mvEncoder", "mvpriorEncoder", "contextualEncoder", "priorEncoder")
    FEATURES: ClassVar = ("feature_extract", "context_refine", "contextualDecoder_part1")
    PICTURE: ClassVar = tuple(f"contextualDecoder_part2.{i}" for i in range(4))
    SCALE: ClassVar = ("feature_extract", 1)
    warp = staticmethod(warp_any)

    def __init__(self, model: DCVC, networks: VideoNetworks, prefix: str, dtype: torch.dtype) -> None:
        with torch.device("meta"):  # for its structure: everything in it is replaced
            super().__init__(model.widths)
        for path in (*self.ENTROPY, *self.MOTION):
            setattr(self, path, networks.add(prefix + path, torch.float32))
        for path in (*self.LATENTS, *self.FEATURES):
            setattr(self, path, networks.add(prefix + path, dtype))
        steps = range(len(model.opticFlow.moduleBasic))
        names = (f"{prefix}opticFlow.moduleBasic.{i}" for i in steps)
        self.opticFlow = CompiledFlow(*(networks.add(name, torch.float32) for name in names))
        *features, last = self.PICTURE
        parts = [networks.add(prefix + path, dtype) for path in features]
        self.contextualDecoder_part2 = Chain(*parts, networks.add(prefix + last, torch.float32))
        for part in (MOTION, FRAME):
            names = ("auto_regressive", "entropy_parameters", "bitEstimator_z")
            for name, module in zip(names, model.entropy_networks(part), strict=True):
                setattr(self, f"{name}{part}", module)
        self.eval().requires_grad_(False)
        self._networks, self._prefix = networks, prefix
        coders = {part: self._coder_of(part) for part in (MOTION, FRAME)}
        self._coder = DCVCCoder(self.get_submodule, coders, DCVC.coder(self).z_tables, self.warp)

    def _coder_of(self, part: str) -> LatentCoder:
        context, parameters, _ = self.entropy_networks(part)
        reason = why_not_native(context, parameters, context.weight.device)
        if reason:
            raise UsageError(f"entropy_parameters{part}: {reason}; original=True can")
        constants = (context, parameters, dcvc_scale_thresholds(), dcvc_laplace16_tables())
        return Float32(ContextModel(*constants, means_first=True))

    def coder(self) -> DCVCCoder:
        return self._coder

    def decoder_paths(self) -> list[str]:
        return [self._prefix + path for path in (*self.ENTROPY, *self.MOTION, *self.FEATURES, *self.PICTURE)]

    def _notes(self) -> tuple[str, ...]:
        return (*super()._notes(), WAVES)


class Float32:
    """A coder of latents that come in any precision."""

    def __init__(self, coder: ContextModel) -> None:
        self._coder = coder

    def encode(self, y: Tensor, prior: Tensor) -> tuple[bytes, Tensor]:
        """As `ContextModel.encode`."""
        return self._coder.encode(y.float(), prior.float())

    def decode(self, string: bytes, prior: Tensor) -> Tensor:
        """As `ContextModel.decode`."""
        return self._coder.decode(string, prior.float())


class DCVCCodec(BehindImage):
    """Compiled DCVC behind an image codec; arguments as for the other adapters.

    Attributes:
        inter: the inter model; it answers the published calls.
    """

    FLOAT32: ClassVar = "entropy networks, motion and the last layer of a picture"

    def __init__(
        self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool, original: bool = False
    ) -> None:
        inter = _own_copy(model.inter, device, original)
        networks = None if original else VideoNetworks(inter, strict)
        super().__init__(model, device, dtype, strict, networks)
        self.inter = OriginalDCVC(inter) if original else CompiledDCVC(inter, networks, "", dtype)

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether `model` is a DCVC, or a `VideoCodec` of an image codec and one."""
        return isinstance(model.inter if isinstance(model, VideoCodec) else model, DCVC)

    @staticmethod
    def half(model: DCVC, device: torch.device, dtype: torch.dtype, strict: bool, original: bool) -> DCVC:
        """The inter model alone: it answers the published software's calls; arguments as for the codec."""
        model = _own_copy(model, device, original)
        return OriginalDCVC(model) if original else CompiledDCVC(model, VideoNetworks(model, strict), "", dtype)

    def start(self, x_hat: Tensor) -> DCVCState:
        return DCVCState(x_hat)

    @torch.inference_mode()
    def inter_encode(self, x: Tensor, state: DCVCState, qp: int, index: int) -> tuple[bytes, DCVCState]:
        check_coded(x, self.stride, self.inter.feature_extract)
        _check_state(state, x.shape)
        strings, x_hat = self.inter.coder().encode(x, state.frame)
        fields = {"height": x.shape[2], "width": x.shape[3]}
        file = FrameFile(FILE, fields, (strings.mv_y, strings.mv_z, strings.y, strings.z))
        return file.to_bytes(), DCVCState(x_hat)

    @torch.inference_mode()
    def inter_decode(
        self, payload: bytes, state: DCVCState, height: int, width: int, qp: int, index: int
    ) -> tuple[Tensor, DCVCState]:
        _check_state(state, (1, 3, height, width))
        file = FrameFile.from_bytes(FILE, payload)
        check_size(file.fields["height"], file.fields["width"], height, width)
        x_hat = self.inter.coder().decode(DCVCStrings(*file.strings), state.frame)
        return x_hat, DCVCState(x_hat)

    def notes(self) -> tuple[str, ...]:
        if self._networks is not None:
            return (*super().notes(), WAVES)
        return self.inter.report.notes


def _check_state(state: DCVCState, shape: Sequence[int]) -> None:
    """Raises a UsageError unless `state` can precede a frame of `shape` ``[1, 3, H, W]``."""
    check_kind(state, DCVCState)
    check_state({"the frame before": (state.frame, tuple(shape))})


def _own_copy(model: DCVC, device: torch.device, original: bool) -> DCVC:
    if device.type != "cpu" and not original:
        raise UsageError(
            f"device={device}: DCVC is compiled for CPUs, because its context models code position by position in a "
            "native call (original=True runs the model's own layers)"
        )
    require_floats(model.auto_regressive)
    model = copied(model, device)
    model.auto_regressive.hide()
    model.auto_regressive_mv.hide()
    return model
