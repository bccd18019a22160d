"""Clips on the command line: ``.spv``, frame by frame from file or pipe to file or pipe."""

from __future__ import annotations

import argparse
import time
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from sparsecodec.cli.clip_io import (
    PIPE,
    check_frames_output,
    check_output,
    frame_sink,
    opened_clip,
    opened_stream,
    output,
    refuse,
    remaining,
    report,
)
from sparsecodec.cli.encoders import encoding_codec
from sparsecodec.cli.files import VIDEO_SUFFIX, Codecs
from sparsecodec.cli.interrupts import whole_pieces
from sparsecodec.cli.options import DEFAULT_VIDEO_MODEL, compute_options
from sparsecodec.cli.progress import Progress
from sparsecodec.data.colour import Samples, to_frame
from sparsecodec.data.images import SUFFIXES as PICTURE_SUFFIXES
from sparsecodec.data.training_files import OTHER_SUFFIXES
from sparsecodec.data.video import is_clip, list_clips
from sparsecodec.data.video_io import open_clip
from sparsecodec.entropy import VIDEO_MAGIC, CodedFrame, VideoReader
from sparsecodec.errors import SparseCodecError, UsageError
from sparsecodec.quant.portable_video import LEAST_FRAMES, LEAST_SIDE
from sparsecodec.quant.video_families import family_of
from sparsecodec.runtime.video import INTRA_PERIOD, CompiledVideo

QP = 32
CALIBRATION_CLIPS, CALIBRATION_FRAMES, CALIBRATION_SIDE = 8, 4, 256
PICTURES_ONLY = ("quality", "prefix", "tile", "overlap", "max_memory", "region")
CLIPS_ONLY = ("qp", "intra_period", "start", "frames", "size", "rate", "depth", "raw")


def is_clip_to_encode(arguments: argparse.Namespace) -> bool:
    """Whether ``encode`` was given a clip.

    By its suffix, ``-``, because the size of raw frames was given, or because it is to become an ``.spv`` file and is
    not known as a picture, a text or the like: whether PyAV reads it is seen when it is opened.
    """
    wanted = Path(arguments.output).suffix.lower() == VIDEO_SUFFIX and not Path(arguments.output).is_dir()
    if Path(arguments.input).is_dir():
        return wanted
    if arguments.input == PIPE or is_clip(arguments.input) or arguments.size is not None:
        return True
    suffix = Path(arguments.input).suffix.lower()
    return wanted and (not suffix or (suffix not in PICTURE_SUFFIXES and suffix not in OTHER_SUFFIXES))


def is_coded_clip(path: str | Path) -> bool:
    """Whether it is an ``.spv`` file: by its first bytes, or ``-``, or its suffix."""
    if str(path) == PIPE or Path(path).suffix.lower() == VIDEO_SUFFIX:
        return True
    if not Path(path).is_file():
        return False
    with opened_stream(path) as file:
        return file.read(len(VIDEO_MAGIC)) == VIDEO_MAGIC


def encode(arguments: argparse.Namespace) -> None:
    """Runs ``encode`` for a clip."""
    refuse(arguments, PICTURES_ONLY, "pictures")
    check_output(arguments, (VIDEO_SUFFIX,), ", or .bin with -m for a published codec")
    arguments.model = arguments.model or DEFAULT_VIDEO_MODEL
    qp = QP if arguments.qp is None else arguments.qp
    period = INTRA_PERIOD if arguments.intra_period is None else arguments.intra_period
    with opened_clip(arguments) as clip:
        frames = islice(clip.frames, arguments.start, None)
        first = next(frames, None)
        if first is None:
            raise UsageError(f"--start {arguments.start} is behind the last frame of {arguments.input}")
        codec = encoding_codec(arguments, CompiledVideo, "clips", _calibration)
        encoder = codec.encoder(clip.form, qp, period)

        def pushed(samples: Samples) -> bytes:
            return encoder.push(to_frame(samples, clip.form, codec.colour, codec.device))

        begun = time.perf_counter()
        head = pushed(first)  # an output is opened once there is something to write
        with (
            output(arguments.output) as file,
            Progress("encoded", clip.form, remaining(clip.count, arguments), begun) as progress,
        ):
            try:
                for number, samples in enumerate(islice(chain([first], frames), arguments.frames)):
                    with whole_pieces():
                        piece = pushed(samples) if number else head
                        file.write(piece)
                        file.flush()  # whoever watches a growing file sees whole frames
                    progress.add(len(piece))
            finally:  # if the clip breaks off, or somebody interrupts: the frames until then are a whole file
                end = encoder.finish()
                file.write(end)
            progress.add(len(end), frames=0)
    report(arguments, {"output": arguments.output, "qp": qp, "intra_period": period, **progress.result()})


def decode(arguments: argparse.Namespace) -> None:
    """Runs ``decode`` for a clip."""
    refuse(arguments, PICTURES_ONLY, "pictures")
    check_frames_output(arguments)
    codecs = Codecs(arguments.model, compute_options(arguments))
    with opened_stream(arguments.input) as source:
        reader = _TimedReader(source, arguments.max_pixels, arguments.start)
        codec = codecs.of_clip(reader.header, arguments.input)
        form, total = reader.header.form, remaining(reader.count(), arguments)
        frames = islice(codec.decoder(reader, arguments.start), arguments.frames)
        first = next(frames)  # an output is opened once there is something to write
        position = reader.start_position
        with (
            frame_sink(arguments, form, form, codec.colour) as write,
            Progress("decoded", form, total, reader.start_time) as progress,
        ):
            try:
                for frame in chain([first], frames):
                    with whole_pieces():
                        write(frame)
                    progress.add(reader.position - position)
                    position = reader.position
            except SparseCodecError as error:
                raise type(error)(f"{error}; {progress.frames} frames before it were decoded") from error
    name = codecs.name(reader.header, arguments.input)
    report(arguments, {"output": arguments.output, "model": name, **progress.result()})


class _TimedReader(VideoReader):
    """Notes when and where frame `start` begins: those before it are decoded to get there, and dropped."""

    def __init__(self, source: BinaryIO, max_pixels: int, start: int) -> None:
        super().__init__(source, max_pixels)
        self._start = start
        self.start_time, self.start_position = time.perf_counter(), self.position

    def read(self) -> CodedFrame | None:
        if self.next == self._start:
            self.start_time, self.start_position = time.perf_counter(), self.position
        return super().read()


def opened_reader(
    source: BinaryIO, codecs: Codecs, path: str | Path, max_pixels: int
) -> tuple[VideoReader, CompiledVideo]:
    """Reader of an ``.spv`` file, and the codec that made it."""
    reader = VideoReader(source, max_pixels)
    return reader, codecs.of_clip(reader.header, path)


def _calibration(folder: str, model: nn.Module) -> list[Tensor]:
    """The middle of the first frames of a few clips, ``[T, 3, H, W]`` each, as `model` takes them."""
    family = family_of(model)
    if family is None:
        name = type(getattr(model, "inter", model)).__name__
        raise UsageError(
            f"{name} has no portable stream of clips (DCVC-RT, DCVC-HEM, and DCVC and FVC behind EVC have)"
        )
    samples = []
    for path in list_clips(folder)[:CALIBRATION_CLIPS]:
        with open_clip(path) as clip:
            planes = islice(clip.frames, CALIBRATION_FRAMES)
            frames = torch.cat([to_frame(p, clip.form, family.colour) for p in planes])
        if len(frames) < LEAST_FRAMES or min(frames.shape[2:]) < LEAST_SIDE:
            found = f"{len(frames)} frames of {frames.shape[3]}x{frames.shape[2]}"
            raise UsageError(
                f"{path}: {found} (calibration needs {LEAST_FRAMES} of {LEAST_SIDE}x{LEAST_SIDE} at least)"
            )
        top, left = (max((side - CALIBRATION_SIDE) // 2, 0) for side in frames.shape[2:])
        samples.append(frames[:, :, top : top + CALIBRATION_SIDE, left : left + CALIBRATION_SIDE].contiguous())
    return samples
