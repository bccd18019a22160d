"""A video codec of a page: blocks of 8 x 8 get a grey value, or a change of it. What container and sessions do with a
codec is tested with it in milliseconds; the real ones have their own tests."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec._clip_format import ClipFormat
from sparsecodec.data.colour import to_planes
from sparsecodec.data.video_io import ClipWriter
from sparsecodec.entropy import decode, encode, evc_gaussian_tables
from sparsecodec.runtime.numerics import Numerics
from sparsecodec.runtime.video import CompiledVideo

TABLES = evc_gaussian_tables()
FORM = ClipFormat(33, 50, (30000, 1001), (4, 3), siting="left")
ROW = 128
BLOCK = 8


@dataclass(frozen=True)
class ToyState:
    frame: Tensor  # [1, 3, H, W] float32
    age: Tensor  # [1] int16: frames since the I frame

    def tensors(self) -> tuple[Tensor, ...]:
        return self.frame, self.age


class ToyVideo(CompiledVideo):
    """Args:
    model_hash: 8 bytes; anything.
    drift: what decoding a P frame adds to the state, as another machine might.
    colour: of the frames, for what depends on it.
    """

    stride = 16
    colour = "ycbcr"
    numerics = Numerics("toy", 7)

    def __init__(self, model_hash: bytes = b"toytoyto", drift: float = 0.0, colour: str = "ycbcr") -> None:
        super().__init__(model_hash, torch.device("cpu"))
        self.drift, self.colour = drift, colour
        self.calls: list[str] = []

    def intra_encode(self, x, qp):
        self.calls.append("I")
        return self._encode(x, torch.full_like(x, 0.5), qp, 0)

    def inter_encode(self, x, state, qp, index):
        self.calls.append("P")
        return self._encode(x, state.frame, qp, index)

    def intra_decode(self, payload, height, width, qp):
        self.calls.append("i")
        return self._decode(payload, torch.full((1, 3, height, width), 0.5), qp, 0)

    def inter_decode(self, payload, state, height, width, qp, index):
        self.calls.append("p")
        assert state.frame.shape == (1, 3, height, width)
        return self._decode(payload, state.frame + self.drift, qp, index)

    def _encode(self, x, reference, qp, index):
        symbols = (F.avg_pool2d(x - reference, BLOCK) * (4 + qp)).round().int()
        payload = encode(symbols.flatten(), torch.full((symbols.numel(),), ROW, dtype=torch.int32), TABLES)
        return payload, self._state(symbols, reference, qp, index)

    def _decode(self, payload, reference, qp, index):
        shape = F.avg_pool2d(reference, BLOCK).shape
        indexes = torch.full((shape.numel(),), ROW, dtype=torch.int32)
        state = self._state(decode(payload, indexes, TABLES).reshape(shape), reference, qp, index)
        return state.frame, state

    def _state(self, symbols, reference, qp, index):
        change = F.interpolate(symbols.float() / (4 + qp), scale_factor=BLOCK)
        return ToyState(reference + change, torch.tensor([index], dtype=torch.int16))


def moving(frames: int, height: int = 33, width: int = 50, seed: int = 0) -> list[Tensor]:
    """Frames ``[1, 3, H, W]`` float32 in [0, 1]: a smooth pattern that drifts."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8 + 3, width // 8 + frames + 3, generator=generator)
    pattern = F.interpolate(coarse, scale_factor=8, mode="bilinear").clamp(0, 1)
    return [pattern[:, :, :height, t : t + width].contiguous() for t in range(frames)]


def y4m(frames: int = 12, form: ClipFormat = FORM) -> bytes:
    """A file of frames of `moving`."""
    file = io.BytesIO()
    writer = ClipWriter(file, form)
    for frame in moving(frames, form.height, form.width):
        writer.write(to_planes(frame, form, "ycbcr"))
    return file.getvalue()


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Gives the command line these bytes through a pipe."""

    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Pipe(data)))
