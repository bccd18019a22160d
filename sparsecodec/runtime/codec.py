"""What every compiled codec does: padding, container, report. A subclass per family lives in `adapters`."""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.entropy import DEFAULT_MAX_PIXELS, Container, Header, Tiling, Window, check_limit
from sparsecodec.errors import UsageError
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.runtime import memory
from sparsecodec.runtime.batch import BATCH, Decoded, check_batch, check_encodable, decode_each, runs
from sparsecodec.runtime.executor import Executor
from sparsecodec.runtime.graphs import CudaGraphs
from sparsecodec.runtime.module_calls import ModuleCalls
from sparsecodec.runtime.numerics import Numerics, check_made_here, eager_numerics, kernel_numerics
from sparsecodec.runtime.report import Report
from sparsecodec.runtime.settled import settled
from sparsecodec.runtime.tiles import Code, check_pixels, decode_tiles, encode_tiles, region_of, together, touched
from sparsecodec.runtime.transform import CompiledTransform, EagerTransform
from sparsecodec.sparsity.macs import count
from sparsecodec.sparsity.rules import is_quantized
from sparsecodec.sparsity.scatter import ScatterConv2d

T = TypeVar("T")


def finished(x_hat: Tensor, height: int, width: int) -> Tensor:
    """A transform's output, ``[N, 3, H, W]`` in any layout and dtype -> a new contiguous float32 tensor in [0, 1].

    What lies beyond `height` and `width` is cut off.
    """
    x_hat = x_hat[:, :, :height, :width]
    return x_hat.to(torch.float32, memory_format=torch.contiguous_format, copy=True).clamp_(0, 1)


class CompiledCodec(ModuleCalls, ABC):
    """A codec whose transforms run on fused kernels. Made by `compile_codec`; a subclass per family.

    ``compress`` and ``decompress`` answer the family's own calls with the family's own strings: the networks between
    the hyper-latent and the tables then run as the original runs them, because one different bit loses the stream. The
    analysis, of which a different bit only moves a latent to the other side, may be compiled (see the family).
    ``encode`` and ``decode`` go through our container, which records the numerics, and use the compiled entropy
    networks on both sides.

    Attributes:
        device, dtype: of the synthesis and analysis transforms.
        exact_pictures: whether the synthesis is integers, too: the same picture on every device.
    """

    exact_pictures = False

    STRIDE: ClassVar[int] = 64
    SYNTHESIS: ClassVar[tuple[str, ...]]
    ANALYSIS: ClassVar[tuple[str, ...]]
    ENTROPY: ClassVar[tuple[str, ...]]
    ENCODING: ClassVar[tuple[str, ...]] = ()  # transforms that run to encode, if they are not ANALYSIS and ENTROPY
    EAGER: ClassVar[dict[str, str]] = {}  # of the above, those that run as the model's own layers: path -> why

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool) -> None:
        self.device = device
        self.dtype = dtype
        self.model_hash = model_hash(model)[:8]
        self._model = copy.deepcopy(model).to(device).float().eval().requires_grad_(False)
        self._lock = threading.Lock()
        self._executor = Executor(device, CudaGraphs(device) if device.type == "cuda" else None)
        self._footprints: dict[str, float] = {}
        self._transforms: dict[str, CompiledTransform | EagerTransform] = {}
        for path in (*self.ANALYSIS, *self.ENTROPY, *self.SYNTHESIS):
            self._transforms[path] = self._compiled(path, strict)

    @classmethod
    @abstractmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether `model` has this family's structure."""

    def _compiled(self, path: str, strict: bool) -> CompiledTransform | EagerTransform:
        """The transform at `path`."""
        module = self._model.get_submodule(path)
        if path in self.EAGER:
            return EagerTransform(module, path, self.EAGER[path])
        # Between integer layers a lower precision would move the integers; what makes pictures may round otherwise.
        exact = path in self.ENTROPY or any(map(is_quantized, module.modules()))
        precision, pinned = torch.float32 if exact else self.dtype, exact or path not in self.SYNTHESIS
        return CompiledTransform(module, path, precision, strict=strict, head=self._head(path), pinned=pinned)

    def _head(self, path: str) -> dict[str, Any] | None:
        """The constants of `prior_head` for a transform that may end in one."""
        return None

    @abstractmethod
    def input_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int, int]]:
        """Input shape of each transform for a picture of that (padded) size."""

    @abstractmethod
    def _encode(self, x: Tensor, quality: float | None, size: tuple[int, int]) -> tuple[list[list[bytes]], int]:
        """Padded pictures ``[N, 3, H, W]`` -> the payloads of each, and the quality field of the container.

        Args:
            size: height and width before they were padded.
        """

    @abstractmethod
    def _decode(self, payloads: list[list[bytes]], quality: int, height: int, width: int) -> Tensor:
        """The payloads of each of N pictures -> the pictures, all of that size, as `finished` gives them."""

    def warm_up(self, sample: Tensor) -> None:
        """Codes `sample` once, so that every layer has its kernel and its buffers."""
        self.decode(self.encode(sample))

    @property
    def numerics(self) -> Numerics:
        """What the entropy networks of `encode` and `decode` compute with; a stream of other numerics is refused."""
        backends = frozenset().union(*(self._transforms[path].backends for path in self.ENTROPY)) or {"cpu"}
        return kernel_numerics(frozenset(backends), self.device)

    def encode(
        self,
        x: Tensor,
        quality: float | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        max_memory: int | None = None,
    ) -> bytes:
        """One picture of any size to a file's bytes.

        Args:
            x: ``[1, 3, H, W]`` floating point in [0, 1], H and W at least 1.
            quality: 0 (smallest) to 100 (best) for codecs of variable rate; None is 50 there, and the only choice for
                codecs of one rate.
            tile: side of the tiles of larger pictures, a multiple of 64; coding then needs no more memory than a tile
                does, and parts can be decoded alone. None: one tile, unless `max_memory` needs more.
            overlap: pixels that neighbouring tiles share and fade over, a multiple of 16, at most half of `tile`.
            max_memory: bytes that coding may take beside the model and `x`, by an estimate that is meant to be too
                high; tiles are made as small as needed.

        Raises:
            UsageError: wrong shape, dtype or range.
            ResourceLimitError: `max_memory` is not enough. Nothing was allocated.
        """
        return self._file(x, self._encode, quality, tile, overlap, max_memory)

    @settled
    def encode_batch(
        self, pictures: Tensor | Sequence[Tensor], quality: float | None = None, batch: int = BATCH
    ) -> list[bytes]:
        """Several pictures to the bytes of a file each, in their order.

        Args:
            pictures: ``[N, 3, H, W]``, or a sequence of ``[1, 3, H, W]``; else as for `encode`. Neighbours of one size
                are coded together.
            quality: as for `encode`.
            batch: how many at most; memory grows with it.

        Raises:
            UsageError: wrong shape, dtype or range; the message names the picture.
        """
        check_batch(batch)
        if not isinstance(pictures, Iterable):
            raise UsageError(f"pictures is a {type(pictures).__name__} (needs a tensor or a sequence of them)")
        pictures = [x[None] for x in pictures] if isinstance(pictures, Tensor) else list(pictures)
        for index, x in enumerate(pictures):
            check_encodable(x, f"picture {index}")
        blobs = []
        for run in runs([x.shape for x in pictures], [batch] * len(pictures)):
            size = pictures[run[0]].shape[2:]
            with memory.encoding_told(self, size, count=len(run)):
                x = torch.cat([pictures[index].to(self.device, torch.float32) for index in run])
                payloads, field = self._coded(x, self._encode, quality)
            blobs += [self._container(some, field, *size) for some in payloads]
        return blobs

    @settled
    def _file(
        self,
        x: Tensor,
        code: Code,
        quality: float | None,
        tile: int | None,
        overlap: int | None,
        max_memory: int | None,
    ) -> bytes:
        """Checks a picture and puts what `code` makes of its tiles, padded, into a container."""
        check_encodable(x, "picture")
        height, width = x.shape[2:]
        tiling = memory.fitting_tiling(self, height, width, tile, overlap, max_memory)

        def code_tile(part: Tensor) -> tuple[list[bytes], int]:
            (payloads,), field = self._coded(part, code, quality)
            return payloads, field

        with memory.encoding_told(self, (height, width), tiling):
            return self._container(*encode_tiles(x, tiling, code_tile), height, width, tiling)

    def _coded(self, x: Tensor, code: Code, quality: float | None) -> tuple[list[list[bytes]], int]:
        """What `code` makes of pictures, padded."""
        size = (x.shape[2], x.shape[3])
        below, beside = (-side % self.STRIDE for side in size)

        def work() -> tuple[list[list[bytes]], int]:
            padded = F.pad(x.to(self.device, torch.float32), (0, beside, 0, below), mode="replicate")
            return code(padded, quality, size)

        return self._with_room(work)

    @property
    def keepers(self) -> list[CompiledTransform | Executor]:
        """What holds memory between calls."""
        compiled = [transform for transform in self._transforms.values() if isinstance(transform, CompiledTransform)]
        return [*compiled, self._executor]

    def _with_room(self, work: Callable[[], T]) -> T:
        """Runs `work`, one thread at a time; see `memory.with_room`."""

        def alone() -> T:
            with self._lock:
                return work()

        return memory.with_room(alone, self._lock, self.keepers)

    def _compressing(self, x: Tensor, work: Callable[[], T]) -> T:
        """What `work` makes of pictures."""
        with memory.encoding_told(self, x.shape[2:], count=len(x)):
            return self._with_room(work)

    def _decompressing(self, size: tuple[int, int], count: int, work: Callable[[], T]) -> T:
        """What `work` makes `count` pictures of that height and width of."""
        with memory.decoding_told(self, Window(0, 0, *size), count=count):
            return self._with_room(work)

    def _container(
        self, payloads: list[bytes], field: int, height: int, width: int, tiling: Tiling | None = None
    ) -> bytes:
        fields = (self.model_hash, self.numerics.tag, height, width, field, tuple(payloads))
        return Container(*fields, self.exact_pictures, tiling).to_bytes()

    @settled
    def decode(
        self,
        data: bytes,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        region: Sequence[int] | None = None,
        max_memory: int | None = None,
    ) -> Tensor:
        """A file's bytes to the picture.

        Args:
            data: what `encode` gave.
            max_pixels: refuse what has more, before anything is allocated: the picture, or the region and each of the
                tiles that it needs.
            region: (top, left, height, width) of the part to decode; None: all. Only the tiles that touch it are
                decoded, and the result equals that part of the whole picture exactly.
            max_memory: bytes that decoding may take beside the model and `data`, the picture included, by an estimate
                that is meant to be too high.

        Returns:
            ``[1, 3, H, W]`` float32 in [0, 1].

        Raises:
            BitstreamError: the bytes are damaged, truncated or foreign. Of a damaged tile the message tells row and
                column; regions that do not touch it can still be decoded.
            ModelMismatchError: they were made by another model or with other numerics.
            ResourceLimitError: more than `max_pixels` pixels or `max_memory` bytes would be needed, or more symbols
                than a payload of the stream can hold.
            UsageError: the region is no part of the picture.
        """
        header = Header.read(data)
        window = region_of(header, region)
        check_pixels(header, window, max_pixels)
        check_made_here(header, self.model_hash, self.numerics, self.exact_pictures)
        parts = list(touched(header, window).values())
        memory.check_decoding(self, window, parts, max_memory)

        def restore(payloads: list[bytes], height: int, width: int) -> Tensor:
            return self._with_room(lambda: self._decode([payloads], header.quality, height, width))

        with memory.decoding_told(self, window, parts):
            return decode_tiles(header, data, window, restore)

    def decode_batch(
        self,
        blobs: Iterable[bytes],
        max_pixels: int = DEFAULT_MAX_PIXELS,
        on_error: str = "raise",
        batch: int = BATCH,
        max_memory: int | None = None,
    ) -> list[Tensor] | list[Decoded]:
        """Several files' bytes to pictures, in their order.

        Args:
            blobs: what `encode` gave, or whatever came in its place. Neighbours of one size and quality, without
                tiles, are decoded together.
            max_pixels: of each item, see `decode`; those that are decoded together take no more memory than one of
                these may.
            on_error: ``"raise"``: the first item that cannot be decoded ends the call with its error, whose message
                names the item. ``"status"``: every item is tried and reports for itself.
            batch: how many are decoded together at most; memory grows with it.
            max_memory: as for `decode`, of each item and of those that are decoded together.

        Returns:
            A tensor per item as `decode` gives it; with ``"status"`` a `Decoded`.

        Raises:
            UsageError: no sequence of bytes, another `on_error`, or a limit that is no positive number.
        """
        check_batch(batch)
        check_limit(max_pixels, "max_pixels")
        if max_memory is not None:
            check_limit(max_memory, "max_memory")

        def most(header: Header) -> int:
            count = min(batch, int(together(header, max_pixels)))
            if max_memory is None or count < 2:
                return count
            window = region_of(header, None)
            return min(count, max_memory // memory.decoding_bytes(self, window, [window]))

        def decode(some: Sequence[bytes]) -> list[Tensor]:
            if len(some) == 1:
                return [self.decode(some[0], max_pixels, max_memory=max_memory)]
            return self._decode_together(some)

        return decode_each(decode, blobs, on_error, most)

    @settled
    def _decode_together(self, blobs: Sequence[bytes]) -> list[Tensor]:
        """Files without tiles, all of one size and quality."""
        headers = [Header.read(blob) for blob in blobs]
        for header in headers:
            check_made_here(header, self.model_hash, self.numerics, self.exact_pictures)
        payloads = [header.payloads(blob, 0, 0) for header, blob in zip(headers, blobs, strict=True)]
        quality, height, width = headers[0].quality, headers[0].height, headers[0].width
        with memory.decoding_told(self, Window(0, 0, height, width), count=len(blobs)):
            pictures = self._with_room(lambda: self._decode(payloads, quality, height, width))
            return [picture.clone() for picture in pictures.split(1)]  # so that one does not hold the memory of all

    def bytes_per_pixel(self, path: str) -> float:
        """Memory that a transform's steps take, for each pixel of the (padded) picture."""
        if path not in self._footprints:
            side = 4 * self.STRIDE
            shape = self.input_shapes(side, side)[path.split("+")[0]]  # of networks that run as one, the first one's
            self._footprints[path] = self._transforms[path].footprint(shape, self.device) / side**2
        return self._footprints[path]

    def _notes(self) -> tuple[str, ...]:
        """What the report says of precision and guarantees."""
        precision = str(self.dtype).removeprefix("torch.")
        analysis = "kernels: its strings are valid, not the original's bytes where a latent rounds to the other side"
        if self._analyses_as_original:
            analysis = "the original's own layers: its strings are the original's bytes"
        return (
            f"transforms in {precision}, entropy networks{self._on_integers()} in float32",
            f"encode and decode: {self.numerics.name}",
            f"compress and decompress: tables by the original's own arithmetic ({eager_numerics(self.device).name}); "
            "other threads, another processor or another torch may not open such strings",
            f"compress: analysis by {analysis}",
            "stream native: a file opens where the same numerics run; other ones are refused, never decoded wrongly",
        )

    @property
    def _analyses_as_original(self) -> bool:
        """Whether `compress` runs the model's own analysis, not the compiled one."""
        return False

    def _on_integers(self) -> str:
        networks = map(self._model.get_submodule, (*self.ANALYSIS, *self.SYNTHESIS))
        return " and quantised transforms" * any(is_quantized(m) for network in networks for m in network.modules())

    @property
    def report(self) -> Report:
        """Each layer with its op, backend and MACs, or the reason why it stayed a torch layer."""
        side = 8 * self.STRIDE
        layers = {layer.name: layer for layer in count(self._model, self.input_shapes(side, side)).layers}
        macs = {}
        for name, layer in layers.items():
            module = self._model.get_submodule(name)
            module = module.conv if isinstance(module, ScatterConv2d) else module
            dense_in, dense_out = getattr(module, "dense_channels", layer.channels)
            kept_in, kept_out = layer.channels
            shrunk = (kept_out, dense_out) if layer.kind == "depthwise" else (kept_in * kept_out, dense_in * dense_out)
            macs[name] = (layer.macs, layer.macs * shrunk[1] / max(shrunk[0], 1))
        rows = [row for transform in self._transforms.values() for row in transform.rows(side * side, macs)]
        notes = self._notes()
        if self.device.type == "cuda":
            notes += (f"{self._executor.captures} CUDA graphs held", *self._executor.refusals)
        held = sum(transform.buffer_bytes for transform in self._transforms.values())
        return Report(tuple(rows), notes, (*self.ENTROPY, *self.SYNTHESIS), held)
