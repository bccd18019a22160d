"""Video codecs without an intra codec of their own: what is common to those whose first frame an image codec codes."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.entropy import Header
from sparsecodec.errors import BitstreamError, UsageError
from sparsecodec.models.inputs import check_picture, whole
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.runtime.adapters.autoregressive import AutoregressiveCodec
from sparsecodec.runtime.adapters.compressai import FactorizedCodec, HyperpriorCodec
from sparsecodec.runtime.adapters.evc import EVCCodec
from sparsecodec.runtime.adapters.paired import PairedVideo
from sparsecodec.runtime.codec import CompiledCodec
from sparsecodec.runtime.executor import Executor
from sparsecodec.runtime.numerics import Numerics, eager_numerics, video_numerics
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.runtime.video import QPS, VideoState
from sparsecodec.runtime.video_networks import VideoNetworks

INTRA = (EVCCodec, FactorizedCodec, HyperpriorCodec, AutoregressiveCodec)


class Chain(nn.Module):
    """Networks one after another, each in its own precision: ``[N, C, H, W] -> [N, C', H, W]``."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self._networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        for network in self._networks:
            x = network(x)
        return x


class BehindImage(PairedVideo):
    """An inter codec behind EVC or one of CompressAI's codecs. It has one rate: only I frames listen to the qp.

    Args:
        model: a `VideoCodec`.
        device, dtype, strict: as for `compile_codec`.
        networks: of the inter model; None: its own layers in float32.

    Attributes:
        intra: the compiled image codec. A payload of an I frame is one of its files.
    """

    stride: ClassVar = 64
    colour: ClassVar = "rgb"

    def __init__(
        self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool, networks: VideoNetworks | None
    ) -> None:
        super().__init__(model_hash(model)[:8], device, dtype, networks)
        adapter = next((adapter for adapter in INTRA if adapter.matches(model.intra)), None)
        if adapter is None:
            known = ", ".join(adapter.__name__ for adapter in INTRA)
            raise UsageError(f"{type(model.intra).__name__} cannot code a clip's first frame ({known} can)")
        self.intra: CompiledCodec = adapter(model.intra, device, self.dtype, strict)

    @abstractmethod
    def start(self, x_hat: Tensor) -> VideoState:
        """The state after an I frame."""

    @property
    def keepers(self) -> list[CompiledTransform | Executor]:
        return [*super().keepers, *self.intra.keepers]

    @property
    def numerics(self) -> Numerics:
        if self._networks is None:
            return eager_numerics(self.device)
        transforms = (*self.intra._transforms.values(), *self._networks.transforms)
        backends = frozenset().union(*(transform.backends for transform in transforms))
        dtypes = {str(dtype).removeprefix("torch.") for dtype in (torch.float32, self.dtype)}
        return video_numerics(backends, dtypes, self.device)

    @torch.inference_mode()
    def intra_encode(self, x: Tensor, qp: int) -> tuple[bytes, VideoState]:
        qp = whole(qp, "qp", QPS)
        check_picture(x, self.stride, batch=1)
        quality = 100 * qp / (QPS - 1) if isinstance(self.intra, EVCCodec) else None
        payload = self.intra.encode(x, quality)
        return payload, self.start(self.intra.decode(payload))

    @torch.inference_mode()
    def intra_decode(self, payload: bytes, height: int, width: int, qp: int) -> tuple[Tensor, VideoState]:
        header = Header.read(payload)
        check_size(header.height, header.width, height, width)
        x_hat = self.intra.decode(payload)
        return x_hat, self.start(x_hat)


def check_size(height: int, width: int, wanted_height: int, wanted_width: int) -> None:
    """Raises a BitstreamError for a payload of another frame size."""
    if (height, width) != (wanted_height, wanted_width):
        raise BitstreamError(f"a payload of {height} x {width} in a clip of {wanted_height} x {wanted_width}")
