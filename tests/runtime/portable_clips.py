"""Small portable video codecs and what they make of a clip, for the tests that all of their families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.models.video import VideoCodec
from sparsecodec.quant import portable
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.adapters.portable_video import PortableVideo
from sparsecodec.runtime.video import CompiledVideo, VideoState


def clip(frames: int, seed: int = 0, height: int = 48, width: int = 80) -> Tensor:
    """``[T, 3, H, W]``: waves that move, and noise that does not."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    tints = torch.tensor([1.0, 0.4, -0.3]).view(3, 1, 1)
    noise = 0.05 * torch.randn(3, height, width, generator=generator)
    waves = [torch.sin(0.2 * columns + 0.3 * t) * torch.cos(0.17 * rows - 0.2 * t) for t in range(frames)]
    return torch.stack([(0.5 + 0.3 * tints * wave + noise).clamp(0, 1) for wave in waves])


@dataclass(frozen=True)
class Coded:
    """A frame; `index` 0: it stands alone."""

    payload: bytes
    qp: int
    index: int
    state: VideoState


def decoded(codec: CompiledVideo, frames: tuple[Coded, ...], size: tuple[int, int]) -> list[tuple[Tensor, VideoState]]:
    """Each frame and the State behind it."""
    results, state = [], None
    for frame in frames:
        x, state = decoded_frame(codec, frame, state, size)
        results.append((x, state))
    return results


def decoded_frame(
    codec: CompiledVideo, frame: Coded, state: VideoState | None, size: tuple[int, int]
) -> tuple[Tensor, VideoState]:
    if frame.index == 0:
        return codec.intra_decode(frame.payload, *size, frame.qp)
    return codec.inter_decode(frame.payload, state, *size, frame.qp, frame.index)


def assert_same(found: list[tuple[Tensor, VideoState]], wanted: list[tuple[Tensor, VideoState]]) -> None:
    for number, ((x, state), (y, other)) in enumerate(zip(found, wanted, strict=False)):
        assert all(map(torch.equal, state.tensors(), other.tensors())), f"the state after frame {number}"
        assert torch.equal(x, y), f"frame {number}"


@dataclass(frozen=True)
class Kind:
    """A family's small codec. Nothing of it is to be changed.

    Attributes:
        make: an untrained float codec whose latents fill several symbols and tables, and whose pictures are grey.
        size: of the frames of its clip.
        frames: of the clip.
        alone: the frames that are coded alone, of which there are two.
        ops: of the report's integer rows that have MACs.
        paths: some of the report's.
        behind_symbols: a layer of the inter model whose results no symbol of the same frame depends on.
        least_bytes: of a frame.
        layers: quantised ones, at least.
        uncounted: MACs per pixel that the native codec's report leaves out (context models, deformable convolutions);
            and those of the dense codec.
    """

    make: Callable[[], VideoCodec]
    size: tuple[int, int]
    frames: int
    alone: tuple[int, int]
    ops: frozenset[str]
    paths: frozenset[str]
    behind_symbols: Callable[[nn.Module], nn.Module]
    least_bytes: int
    layers: int
    uncounted: tuple[float, float] = (0.0, 0.0)

    @cached_property
    def float_model(self) -> VideoCodec:
        return self.make()

    @cached_property
    def model(self) -> VideoCodec:
        calibration = clip(4, 0, *self.size)
        return portable(self.float_model, [F.interpolate(calibration, tuple(max(64, side) for side in self.size))])

    def compiled(self, which: VideoCodec | None = None) -> PortableVideo:
        return compile_codec(which or self.model, stream="portable", dtype=torch.float32)

    def clip(self, frames: int) -> Tensor:
        """Another one than that of the calibration."""
        return clip(frames, 1, *self.size)

    @cached_property
    def stream(self) -> tuple[Coded, ...]:
        """The clip at qualities that change."""
        return coded(self.compiled(), self.clip(self.frames), self.alone)

    @cached_property
    def expected(self) -> list[tuple[Tensor, VideoState]]:
        return decoded(self.compiled(), self.stream, self.size)


def coded(codec: CompiledVideo, frames: Tensor, alone: tuple[int, ...]) -> tuple[Coded, ...]:
    """Frames, some of them coded alone, at qualities that change."""
    results, state, since = [], None, 0
    for number, x in enumerate(frames):
        qp = (63, 32, 0, 47)[number // 2 % 4]
        if number in alone:
            since = number
            payload, state = codec.intra_encode(x[None], qp)
        else:
            payload, state = codec.inter_encode(x[None], state, qp, number - since)
        results.append(Coded(payload, qp, number - since, state))
    return tuple(results)
