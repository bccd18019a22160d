"""x264 and x265 with the interface of a video codec of ours, as anchors for rate-distortion curves."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from sparsecodec._clip_format import ClipFormat
from sparsecodec.data.colour import Planes
from sparsecodec.errors import SparseCodecError, UsageError

# Low delay as the learned codecs: no frame waits for a later one, one intra frame, one quantiser for the clip. Tuned
# for PSNR, which is what is measured: psychovisual decisions would count against them.
X264 = {"x264-params": "keyint=infinite:scenecut=0:bframes=0:rc-lookahead=0:psy=0:aq-mode=0"}
X265 = "keyint=-1:scenecut=0:bframes=0:rc-lookahead=0:psy-rd=0:psy-rdoq=0:aq-mode=0:pools=none:frame-threads=1"


@dataclass(frozen=True)
class ClipAnchor:
    """An encoder that PyAV brings. Files are raw streams of the standard, without a container.

    Attributes:
        name: as `CLIP_ANCHORS` has it.
        encoder: FFmpeg's name of it.
        format: FFmpeg's name of the raw stream.
        options: for the encoder.
        preset: effort; the default is "medium".
        curve: quantisers that span the qualities of a small learned codec.
        least: height and width that the encoder takes; smaller and odd ones are padded with their last samples, whose
            bits count, and cropped again.
    """

    name: str
    encoder: str
    format: str
    options: Mapping[str, str]
    preset: str = "medium"
    curve: tuple[int, ...] = (22, 27, 32, 37, 42, 47)
    least: int = 2

    def why_not(self) -> str | None:
        """None if PyAV is installed with this encoder, else the sentence that says why not."""
        if importlib.util.find_spec("av") is None:
            return f"{self.name} needs the extra sparsecodec[video]"
        import av

        return None if self.encoder in av.codecs_available else f"this PyAV was built without {self.encoder}"

    def encode(self, form: ClipFormat, frames: Iterable[Planes], qp: int) -> Iterator[bytes]:
        """A packet for each frame.

        Raises:
            UsageError: no such qp, samples of another depth than 8, or a PyAV without the encoder.
        """
        reason = self.why_not()
        if reason is not None:
            raise UsageError(reason)
        if not 0 <= qp <= 51:
            raise UsageError(f"{self.name} qp {qp} (needs 0 to 51)")
        if form.depth != 8:
            raise UsageError(f"{self.name} of {form.depth} bits (needs 8)")
        context = self._context(form, qp)
        for number, planes in enumerate(frames):
            frame = _frame(planes, *self._coded_size(form))
            frame.pts = number
            yield from map(bytes, context.encode(frame))
        yield from map(bytes, context.encode(None))

    def decode(self, data: bytes, form: ClipFormat) -> Iterator[Planes]:
        """The frames of a raw stream."""
        import av

        with av.open(io.BytesIO(data), format=self.format) as container:
            for frame in container.decode(video=0):
                if (frame.height, frame.width) != self._coded_size(form):
                    raise SparseCodecError(f"{self.name} gave {frame.width} x {frame.height}")
                yield _planes(frame, form)

    def _coded_size(self, form: ClipFormat) -> tuple[int, int]:
        return tuple(max(side + side % 2, self.least) for side in (form.height, form.width))

    def _context(self, form: ClipFormat, qp: int) -> Any:
        import av

        context = av.CodecContext.create(self.encoder, "w")
        (context.height, context.width), context.pix_fmt = self._coded_size(form), "yuv420p"
        context.framerate = Fraction(*form.rate)
        context.time_base = 1 / context.framerate
        context.thread_count = 1
        context.options = {"preset": self.preset, **{key: value.format(qp=qp) for key, value in self.options.items()}}
        return context


def _frame(planes: Planes, height: int, width: int) -> Any:
    import av

    frame = av.VideoFrame(width, height, "yuv420p")
    for plane, samples in zip(frame.planes, planes, strict=True):
        below, beside = plane.height - samples.shape[0], plane.width - samples.shape[1]
        lines = np.zeros((plane.height, plane.line_size), np.uint8)
        lines[:, : plane.width] = np.pad(samples, ((0, below), (0, beside)), "edge")
        plane.update(lines)
    return frame


def _planes(frame: Any, form: ClipFormat) -> Planes:
    planes = []
    for plane, (height, width) in zip(frame.planes, ((form.height, form.width), form.chroma, form.chroma), strict=True):
        lines = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size]
        planes.append(lines.reshape(plane.height, plane.line_size)[:height, :width].copy())
    y, u, v = planes
    return y, u, v


CLIP_ANCHORS: dict[str, ClipAnchor] = {
    anchor.name: anchor
    for anchor in (
        ClipAnchor("x264", "libx264", "h264", {**X264, "qp": "{qp}"}),
        ClipAnchor("x265", "libx265", "hevc", {"x265-params": f"log-level=error:qp={{qp}}:{X265}"}, least=16),
    )
}
