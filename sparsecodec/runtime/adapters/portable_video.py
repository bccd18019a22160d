"""What portable video codecs have in common: integers from the bytes to the pictures (docs/portable.md)."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.entropy.lanes import LaneDecoder
from sparsecodec.entropy.lanes_cuda import CudaLaneDecoder, decodes_on, lane_words
from sparsecodec.errors import UsageError
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.nn.routine import Coding, Routine, drive, drive_on_device, pulling
from sparsecodec.quant import is_portable
from sparsecodec.quant.video_families import VideoFamily, family_of
from sparsecodec.runtime.executor import Executor
from sparsecodec.runtime.integer_network import IntegerNetwork
from sparsecodec.runtime.numerics import PORTABLE_VIDEO, Numerics
from sparsecodec.runtime.report import Report
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.runtime.video import CompiledVideo
from sparsecodec.runtime.video_networks import Keeping, VideoNetworks


class PartNetworks:
    """Makes the integer networks of one model of a video codec.

    Args:
        model: with the submodule ``portable``.
        prefix: of its paths in the codec.
        strict: as for `IntegerNetwork`.
    """

    def __init__(self, model: nn.Module, prefix: str, strict: bool) -> None:
        self.model = model
        self.prefix = prefix
        self.strict = strict

    def network(
        self, *paths: str, sources: tuple[int | None, ...] = (), results: tuple[int | None, ...] = ()
    ) -> IntegerNetwork:
        """The modules at `paths`, one behind the other."""
        parts = {f"{self.prefix}.{path}": self.model.get_submodule(path) for path in paths}
        return IntegerNetwork(parts, strict=self.strict, sources=sources, results=results)


class PortableVideo(CompiledVideo):
    """A video codec with portable streams: a decoder is integers from the bytes to the pictures.

    Args:
        model: from `quant.portable`; not modified.
        device: where the networks run.
        dtype: of the encoder's analysis, which no decoder runs.
        strict: raise if a step finds no kernel although its device has kernels.
    """

    FAMILY: ClassVar[type[VideoFamily]]
    ANALYSIS: ClassVar[tuple[str, ...]]  # what encoders alone run
    exact_pictures: ClassVar[bool] = True

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether `model` is a portable video codec of this family."""
        return family_of(model) is cls.FAMILY and is_portable(model)

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32, strict: bool = True):
        if not self.matches(model):
            raise UsageError(f"{type(model).__name__} is no portable video codec: see quant.portable")
        super().__init__(model_hash(model)[:8], device)
        self._model = copy.deepcopy(model).to(device).eval().requires_grad_(False)
        self._analysis_networks = VideoNetworks(self._model, strict)
        self._analysis = {
            path: Keeping(self._analysis_networks.add(path, dtype), torch.float32) for path in self.ANALYSIS
        }
        self._dtype = dtype
        self._intra, self._inter = self._halves(device, strict)

    @abstractmethod
    def _halves(self, device: torch.device, strict: bool) -> tuple[Any, Any]:
        """Of both models what runs their networks, which it has as `networks`.

        The second also says as `decoder` what a frame behind another predicted one runs, in this order.
        """

    @property
    def integer_networks(self) -> tuple[IntegerNetwork, ...]:
        """All of both models."""
        return *self._intra.networks, *self._inter.networks

    @property
    def keepers(self) -> list[CompiledTransform | Executor]:
        analysis = self._analysis_networks
        return [*self.integer_networks, *analysis.transforms, analysis.executor]

    @property
    def portable_model(self) -> nn.Module:
        """The model whose integers this codec computes with, for `zoo.save`."""
        return self._model

    @property
    def numerics(self) -> Numerics:
        return PORTABLE_VIDEO

    @property
    def report(self) -> Report:
        """Each layer with its op, backend and MACs: integer networks of both models, then the encoder's analysis."""
        precision = str(self._dtype).removeprefix("torch.")
        notes = (
            f"decoder: integers from the bytes to the pictures; analysis, which encoders alone run, in {precision}",
            f"stream portable: {PORTABLE_VIDEO.name}",
            "pictures: the same on every device; the state after each frame is fingerprinted",
        )
        analysis = self._analysis_networks.report(self._warm_pixels, (), notes)
        rows = [row for network in self.integer_networks for row in network.report_rows(self._warm_pixels)]
        decoder = tuple(network.name for network in self._inter.decoder)
        held = sum(network.buffer_bytes for network in self.integer_networks) + analysis.buffer_bytes
        return Report((*rows, *analysis.rows), notes, decoder, held)

    def _pulled(self, payload: bytes, total: int, first: Coding, routine: Callable[[Tensor], Routine]) -> Tensor:
        """What a decoding routine gives.

        Args:
            payload: in lanes, of `total` symbols.
            first: its first coding call, on the host.
            routine: the symbols of that call, on the device -> what decodes the rest.
        """
        if decodes_on(self.device):
            decoder = CudaLaneDecoder(lane_words([payload], total).to(self.device), total)
            symbols = decoder.decode(first.indexes.to(self.device), first.tables)
            result = drive_on_device(routine(symbols), decoder)
        else:
            decoder = LaneDecoder(payload, total)
            symbols = decoder.decode(first.indexes, first.tables).to(self.device)
            result = drive(routine(symbols), pulling(decoder))
        decoder.finish()
        return result
