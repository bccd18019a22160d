"""What every compiled codec does: padding, container, report. A subclass per family lives in `adapters`."""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.entropy.bitstream import Container
from sparsecodec.errors import ModelMismatchError, UsageError
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.runtime.executor import Executor
from sparsecodec.runtime.graphs import CudaGraphs
from sparsecodec.runtime.numerics import Numerics, eager_numerics, kernel_numerics
from sparsecodec.runtime.report import Report
from sparsecodec.runtime.transform import CompiledTransform, EagerTransform
from sparsecodec.sparsity.macs import count
from sparsecodec.sparsity.rules import is_quantized
from sparsecodec.sparsity.scatter import ScatterConv2d

MAX_PIXELS = 2**28


def finished(x_hat: Tensor, height: int, width: int) -> Tensor:
    """A transform's output, ``[N, 3, H, W]`` in any layout and dtype -> a new contiguous float32 tensor in [0, 1].

    What lies beyond `height` and `width` is cut off.
    """
    x_hat = x_hat[:, :, :height, :width]
    return x_hat.to(torch.float32, memory_format=torch.contiguous_format, copy=True).clamp_(0, 1)


class CompiledCodec(ABC):
    """A codec whose transforms run on fused kernels. Made by `compile_codec`; a subclass per family.

    ``compress`` and ``decompress`` answer the family's own calls with the family's own strings: the networks between
    the hyper-latent and the tables then run as the original runs them, because one different bit loses the stream.
    ``encode`` and ``decode`` go through our container, which records the numerics, and use the compiled entropy
    networks on both sides.

    Attributes:
        device, dtype: of the synthesis and analysis transforms.
    """

    STRIDE: ClassVar[int] = 64
    SYNTHESIS: ClassVar[tuple[str, ...]]
    ANALYSIS: ClassVar[tuple[str, ...]]
    ENTROPY: ClassVar[tuple[str, ...]]
    EAGER: ClassVar[dict[str, str]] = {}  # of the above, those that run as the model's own layers: path -> why

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool) -> None:
        self.device = device
        self.dtype = dtype
        self.model_hash = model_hash(model)[:8]
        self._model = copy.deepcopy(model).to(device).float().eval().requires_grad_(False)
        self._lock = threading.Lock()
        self._executor = Executor(device, CudaGraphs(device) if device.type == "cuda" else None)
        self._transforms: dict[str, CompiledTransform | EagerTransform] = {}
        for path in (*self.ANALYSIS, *self.ENTROPY, *self.SYNTHESIS):
            module = self._model.get_submodule(path)
            exact = path in self.ENTROPY or any(map(is_quantized, module.modules()))
            precision = torch.float32 if exact else dtype  # between integer layers a lower one would move the integers
            if path in self.EAGER:
                self._transforms[path] = EagerTransform(module, path, self.EAGER[path])
            else:
                head = self._head(path)
                self._transforms[path] = CompiledTransform(module, path, precision, strict=strict, head=head)

    @classmethod
    @abstractmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether `model` has this family's structure."""

    def _head(self, path: str) -> dict[str, Any] | None:
        """The constants of `prior_head` for a transform that may end in one."""
        return None

    @abstractmethod
    def input_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int, int]]:
        """Input shape of each transform for a picture of that (padded) size."""

    @abstractmethod
    def _encode(self, x: Tensor, quality: float | None) -> tuple[list[bytes], int]:
        """Padded picture -> payloads, and the quality field of the container."""

    @abstractmethod
    def _decode(self, payloads: list[bytes], quality: int, height: int, width: int) -> Tensor:
        """Payloads -> picture of that size, as `finished` gives it."""

    def warm_up(self, sample: Tensor) -> None:
        """Codes `sample` once, so that every layer has its kernel and its buffers."""
        self.decode(self.encode(sample))

    @property
    def numerics(self) -> Numerics:
        """What the entropy networks of `encode` and `decode` compute with; a stream of other numerics is refused."""
        backends = frozenset().union(*(self._transforms[path].backends for path in self.ENTROPY)) or {"cpu"}
        return kernel_numerics(frozenset(backends), self.device)

    def encode(self, x: Tensor, quality: float | None = None) -> bytes:
        """One picture of any size to a file's bytes.

        Args:
            x: ``[1, 3, H, W]`` floating point in [0, 1], H and W at least 1.
            quality: 0 (smallest) to 100 (best) for codecs of variable rate; None is 50 there, and the only choice for
                codecs of one rate.

        Raises:
            UsageError: wrong shape, dtype or range.
        """
        return self._file(x, lambda padded: self._encode(padded, quality))

    @torch.inference_mode()
    def _file(self, x: Tensor, code: Callable[[Tensor], tuple[list[bytes], int]]) -> bytes:
        """Checks and pads a picture, and puts what `code` makes of it, as `_encode` does, into a container."""
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[:2] != (1, 3) or 0 in x.shape:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(f"picture {shape} (needs a tensor [1, 3, H, W], not empty)")
        if not x.is_floating_point():
            raise UsageError(f"picture of {x.dtype} (needs floating point in [0, 1]; divide by 255)")
        low, high = float(x.min()), float(x.max())
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise UsageError(f"picture in [{low:g}, {high:g}] (needs [0, 1], no NaN)")
        height, width = x.shape[2:]
        x = x.to(self.device, torch.float32)
        padded = F.pad(x, (0, -width % self.STRIDE, 0, -height % self.STRIDE), mode="replicate")
        with self._lock:
            payloads, field = code(padded)
        return Container(
            model_hash=self.model_hash,
            numerics=self.numerics.tag,
            height=height,
            width=width,
            quality=field,
            payloads=payloads,
        ).to_bytes()

    @torch.inference_mode()
    def decode(self, data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
        """A file's bytes to the picture.

        Args:
            data: what `encode` gave.
            max_pixels: refuse larger pictures before anything is allocated.

        Returns:
            ``[1, 3, H, W]`` float32 in [0, 1].

        Raises:
            BitstreamError: the bytes are damaged, truncated or foreign.
            ModelMismatchError: they were made by another model or with other numerics.
            ResourceLimitError: the picture is larger than `max_pixels`.
        """
        container = Container.from_bytes(data, max_pixels=max_pixels)
        if container.model_hash != self.model_hash:
            raise ModelMismatchError(
                f"the stream was made by model {container.model_hash.hex()}, this one is {self.model_hash.hex()}"
            )
        if container.numerics != self.numerics.tag:
            raise ModelMismatchError(
                f"the stream's entropy parameters were computed with numerics {container.numerics:#06x}, "
                f"this codec computes with {self.numerics.tag:#06x}: {self.numerics.name}"
            )
        with self._lock:
            return self._decode(list(container.payloads), container.quality, container.height, container.width)

    def _on_integers(self) -> str:
        return " and quantised transforms" if any(map(is_quantized, self._model.modules())) else ""

    @property
    def report(self) -> Report:
        """Each layer with its op, backend and MACs, or the reason why it stayed a torch layer."""
        height = width = 8 * self.STRIDE
        shapes = self.input_shapes(height, width)
        layers = {layer.name: layer for layer in count(self._model, shapes).layers}
        macs = {}
        for name, layer in layers.items():
            module = self._model.get_submodule(name)
            module = module.conv if isinstance(module, ScatterConv2d) else module
            dense_in, dense_out = getattr(module, "dense_channels", layer.channels)
            kept_in, kept_out = layer.channels
            shrunk = (kept_out, dense_out) if layer.kind == "depthwise" else (kept_in * kept_out, dense_in * dense_out)
            macs[name] = (layer.macs, layer.macs * shrunk[1] / max(shrunk[0], 1))
        rows = [row for transform in self._transforms.values() for row in transform.rows(height * width, macs)]
        precision = str(self.dtype).removeprefix("torch.")
        notes = (
            f"transforms in {precision}, entropy networks{self._on_integers()} in float32",
            f"encode and decode: {self.numerics.name}",
            f"compress and decompress: the original's own arithmetic ({eager_numerics(self.device).name})",
        )
        if self.device.type == "cuda":
            notes += (f"{self._executor.captures} CUDA graphs held", *self._executor.refusals)
        held = sum(transform.buffer_bytes for transform in self._transforms.values())
        return Report(tuple(rows), notes, (*self.ENTROPY, *self.SYNTHESIS), held)
