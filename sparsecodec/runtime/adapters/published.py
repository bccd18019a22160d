"""The files that the test scripts of DCVC-RT, DCVC-HEM and DCVC (2021) write, read and written as they do it.

The models' own layers run, in the precision of the scripts, never compiled ones: what is decoded feeds the next frame,
so any other rounding ends in noise. The layouts are in `entropy.nal` and `entropy.frame_files`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from typing import Any, BinaryIO, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.entropy import FrameFile
from sparsecodec.entropy.computed_tables import computed_gaussian16_tables
from sparsecodec.entropy.published_clips import read_frame_file
from sparsecodec.errors import BitstreamError, SparseCodecError, UsageError
from sparsecodec.models.dcvc import DCVC
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo
from sparsecodec.models.dcvc_rt_image import DCVCRTImage
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo
from sparsecodec.models.frame_scripts import hundredths
from sparsecodec.models.video import VideoCodec
from sparsecodec.nn.dcvc_coder import DCVCStrings
from sparsecodec.runtime.adapters.dcvc import DCVCCodec
from sparsecodec.runtime.codec import finished
from sparsecodec.runtime.unit_stream import read_units, write_units

ANCHORS = 4  # rates of a DCVC-HEM checkpoint


class Published(ABC):
    """Reads and writes the files of one test script. Frames are ``[1, 3, H, W]`` float32 in [0, 1].

    Attributes:
        family: of the models.
        colour: of the frames.
        one_file: of a clip; else a file for each frame.
        intra_period: of the example configurations; 0: only the first frame is intra.
        intra, inter: the models.
    """

    family: ClassVar[str]
    colour: ClassVar[str]
    one_file: ClassVar[bool]
    intra_period: ClassVar[int]
    stride: ClassVar[int] = 64

    def __init__(self, model: VideoCodec, device: torch.device) -> None:
        self.device = device
        self.intra, self.inter = (half.to(device).eval().requires_grad_(False) for half in (model.intra, model.inter))

    @abstractmethod
    def encode(self, frames: Iterable[Tensor], **settings: Any) -> Iterator[bytes]:
        """What the script writes for one frame after another.

        Args:
            frames: of one size.
            settings: of the family.

        Raises:
            UsageError: a setting or a size that this family does not have.
        """

    @abstractmethod
    def decode(self, source: BinaryIO | Iterable[bytes], max_pixels: int) -> Iterator[Tensor]:
        """One frame after another.

        Args:
            source: the file, or one after another.
            max_pixels: larger frames are refused.

        Raises:
            BitstreamError: damaged, cut off, or of another model, setting or arithmetic; the message names the frame.
            ResourceLimitError: a frame of more than `max_pixels`.
        """


class PublishedRT(Published):
    """DCVC-RT: one file of units (`write_units`, `read_units`). Its script halves the models.

    Args:
        model: of both.
        device: where to run.
        dtype: of the models.
        skip: ``force_zero_thres`` of the script; files do not say it.
        stored: the stored coding tables instead of those that this machine computes, as the script does; some machines
            differ in a value.
    """

    family: ClassVar = "dcvc-rt"
    colour: ClassVar = "ycbcr"
    one_file: ClassVar = True
    intra_period: ClassVar = 0

    def __init__(
        self, model: VideoCodec, device: torch.device, dtype: torch.dtype, skip: float | None, stored: bool
    ) -> None:
        super().__init__(model, device)
        self._dtype = dtype
        for half in (self.intra, self.inter):
            if not stored:
                half.take_tables(computed_gaussian16_tables())
            half.update(skip)
            half.to(dtype)

    def encode(self, frames: Iterable[Tensor], qp: int, intra_period: int, reset_interval: int) -> Iterator[bytes]:
        """See `Published.encode` and `write_units`."""
        moved = (frame.to(self.device, self._dtype) for frame in frames)
        return write_units(self, moved, qp, intra_period=intra_period, reset_interval=reset_interval)

    def decode(self, source: BinaryIO, max_pixels: int) -> Iterator[Tensor]:
        for x in read_units(self, source, max_pixels):
            yield finished(x, *x.shape[2:])


class FrameFiles(Published):
    """A file for each frame, ``0.bin`` and so on."""

    one_file: ClassVar = False

    @torch.no_grad()
    def decode(self, source: Iterable[bytes], max_pixels: int) -> Iterator[Tensor]:
        read = self._read()
        next(read)
        number = 0
        try:
            for data in source:
                height, width, x = read.send(read_frame_file(self.family, data, max_pixels))
                yield finished(x, height, width)
                number += 1
        except (BitstreamError, UsageError) as error:
            raise BitstreamError(f"frame {number}: {error}") from error

    @abstractmethod
    def _read(self) -> Generator[tuple[int, int, Tensor] | None, FrameFile, None]:
        """A coroutine that is sent files and gives (height, width, frame padded) of each."""


class PublishedHEM(FrameFiles):
    """DCVC-HEM: a file for each frame, ``0.bin`` and so on; only those of I frames have a size."""

    family: ClassVar = "dcvc-hem"
    colour: ClassVar = "rgb"
    intra_period: ClassVar = 32

    @torch.no_grad()
    def encode(self, frames: Iterable[Tensor], qp: int, intra_period: int, rates: int) -> Iterator[bytes]:
        """See `Published.encode`; `qp`: 0 (smallest) to `rates` - 1, of that many rates; 4 are the checkpoint's own."""
        if not 0 <= qp < rates:
            raise UsageError(f"qp={qp} of {rates} rates (needs 0 to {rates - 1})")
        anchors = rates == ANCHORS
        step = float(self.intra.q_scale.flatten()[qp]) if anchors else self.intra.q_scales(rates)[qp]
        own = self.inter.mv_y_q_scale, self.inter.y_q_scale
        steps = tuple(float(s.flatten()[qp]) for s in own) if anchors else self.inter.q_scales(rates)[qp]
        dpb: dict[str, Tensor | None] = {}
        for index, frame in enumerate(frames):
            height, width = frame.shape[2:]
            x = F.pad(frame.to(self.device), (0, -width % self.stride, 0, -height % self.stride))
            if not dpb or (intra_period > 0 and index % intra_period == 0):
                coded = self.intra.compress(x, step)
                fields = {"height": height, "width": width, "step": hundredths(step)}
                file = FrameFile("hem-intra", fields, (coded["bit_stream"],))
                dpb = _first(coded["x_hat"])
            else:
                coded = self.inter.compress(x, dpb, *steps)
                fields = {"mv_step": hundredths(steps[0]), "step": hundredths(steps[1])}
                file, dpb = FrameFile("hem-inter", fields, (coded["bit_stream"],)), coded["dbp"]
            yield file.to_bytes()

    def _read(self) -> Generator[tuple[int, int, Tensor] | None, FrameFile, None]:
        dpb, size, result = {"ref_frame": None}, (0, 0), None
        while True:
            unit = yield result
            fields = unit.fields
            if unit.kind == "hem-intra":
                size = fields["height"], fields["width"]
                dpb = _first(self.intra.decompress(unit.strings[0], *size, fields["step"] / 100)["x_hat"])
            else:
                _check_reference(dpb["ref_frame"], *size, self.stride)
                steps = fields["mv_step"] / 100, fields["step"] / 100
                dpb = self.inter.decompress(dpb, unit.strings[0], *size, *steps)["dpb"]
            result = (*size, dpb["ref_frame"])


class PublishedDCVC(FrameFiles):
    """DCVC (2021): a file for each frame, ``0.bin`` and so on; I frames are CompressAI's."""

    family: ClassVar = "dcvc"
    colour: ClassVar = "rgb"
    intra_period: ClassVar = 10

    def __init__(self, model: VideoCodec, device: torch.device) -> None:
        super().__init__(model, device)
        if not hasattr(self.intra, "entropy_bottleneck"):
            raise UsageError(
                f"the first frame of such files is a CompressAI codec's, this one has {type(self.intra).__name__}: "
                "convert DCVC's checkpoint together with that of its I frames"
            )
        self.inter = DCVCCodec.half(self.inter, device, torch.float32, strict=True, original=True)

    @torch.no_grad()
    def encode(self, frames: Iterable[Tensor], intra_period: int) -> Iterator[bytes]:
        reference = None
        for index, frame in enumerate(frames):
            height, width = frame.shape[2:]
            if height % self.stride or width % self.stride:
                raise UsageError(f"frames of {width} x {height}: DCVC takes multiples of {self.stride}, cut the clip")
            x, size = frame.to(self.device), {"height": height, "width": width}
            if reference is None or (intra_period > 0 and index % intra_period == 0):
                y, z = (strings[0] for strings in self.intra.compress(x)["strings"])
                file, reference = FrameFile("dcvc-intra", size, (y, z)), self._intra(y, z, height, width)
            else:
                strings, reference = self.inter.coder().encode(x, reference)
                file = FrameFile("dcvc-inter", size, (strings.mv_y, strings.mv_z, strings.y, strings.z))
            yield file.to_bytes()

    def _read(self) -> Generator[tuple[int, int, Tensor] | None, FrameFile, None]:
        x, result = None, None
        while True:
            unit = yield result
            size = unit.fields["height"], unit.fields["width"]
            if unit.kind == "dcvc-intra":
                x = self._intra(*unit.strings, *size)
            else:
                _check_reference(x, *size, self.stride)
                x = self.inter.coder().decode(DCVCStrings(*unit.strings), x)
            result = (*size, x)

    def _intra(self, y: bytes, z: bytes, height: int, width: int) -> Tensor:
        shape = -(-height // self.stride), -(-width // self.stride)
        try:
            return self.intra.decompress([[y], [z]], shape)["x_hat"].clamp(0, 1)
        except SparseCodecError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:  # CompressAI's coder does not check what it reads
            raise BitstreamError(f"the I frame cannot be decoded: {error}") from error


def published(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype | None = None,
    skip: float | None = None,
    stored: bool = False,
) -> Published:
    """What reads and writes the files of the test script that `model` belongs to.

    Args:
        model: a `VideoCodec` of both models; it is moved and its precision changed.
        device: where to run.
        dtype: of DCVC-RT's models; the default, float16, is that of the script. Others are float32.
        skip: ``force_zero_thres`` of DCVC-RT's script, None by default there; files do not say it.
        stored: see `PublishedRT`.

    Raises:
        UsageError: no such model, or an option that its family does not have.
    """
    halves = (type(model.intra), type(model.inter)) if isinstance(model, VideoCodec) else ()
    if halves == (DCVCRTImage, DCVCRTVideo):
        return PublishedRT(model, device, dtype or torch.float16, skip, stored)
    if skip is not None or stored:
        raise UsageError("a threshold, or a choice of tables (only DCVC-RT has them)")
    if dtype not in (None, torch.float32):
        raise UsageError(f"dtype={dtype} (the scripts of DCVC-HEM and DCVC compute in float32)")
    if halves == (DCVCHEMImage, DCVCHEMVideo):
        return PublishedHEM(model, device)
    if halves[1:] == (DCVC,):
        return PublishedDCVC(model, device)
    raise UsageError(f"{type(model).__name__} writes no files of a published script (DCVC-RT, DCVC-HEM and DCVC do)")


def _check_reference(x: Tensor | None, height: int, width: int, stride: int) -> None:
    if x is None:
        raise BitstreamError("a P frame before any I frame")
    if [side + -side % stride for side in (height, width)] != list(x.shape[2:]):
        raise BitstreamError(f"a P frame of {width} x {height} behind a frame of another size")


def _first(x_hat: Tensor) -> dict[str, Tensor | None]:
    return {"ref_frame": x_hat.clamp(0, 1), "ref_feature": None, "ref_y": None, "ref_mv_y": None}
