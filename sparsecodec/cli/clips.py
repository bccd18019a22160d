"""Clips on the command line: ``encode`` and ``decode`` of one, frame by frame from file or pipe to file or pipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sparsecodec._clip_format import ClipFormat
from sparsecodec.cli.encoders import encoding_codec
from sparsecodec.cli.files import VIDEO_SUFFIX, Codecs
from sparsecodec.cli.options import DEFAULT_VIDEO_MODEL, compute_options, print_json
from sparsecodec.cli.progress import Progress
from sparsecodec.data.clip_headers import rate
from sparsecodec.data.colour import to_frame, to_planes
from sparsecodec.data.video import RAW_SUFFIX, Y4M_SUFFIX, is_clip, list_clips
from sparsecodec.data.video_io import ClipStream, ClipWriter, open_clip, read_stream
from sparsecodec.entropy import VIDEO_MAGIC, VideoReader
from sparsecodec.errors import SparseCodecError, UsageError
from sparsecodec.runtime.video import INTRA_PERIOD, CompiledVideo

PIPE = "-"
QP = 32
CALIBRATION_CLIPS, CALIBRATION_FRAMES, CALIBRATION_SIDE = 8, 8, 256
PICTURES_ONLY = ("quality", "prefix", "tile", "overlap", "max_memory", "region")
CLIPS_ONLY = ("qp", "intra_period", "start", "frames", "size", "rate", "depth", "raw")


def is_clip_to_encode(arguments: argparse.Namespace) -> bool:
    """Whether ``encode`` was given a clip: by its suffix, ``-``, or because the size of raw frames was given."""
    return arguments.input == PIPE or is_clip(arguments.input) or arguments.size is not None


def is_coded_clip(path: str | Path) -> bool:
    """Whether it is an ``.spv`` file: by its first bytes, or ``-``, or its suffix."""
    if str(path) == PIPE or Path(path).suffix.lower() == VIDEO_SUFFIX:
        return True
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(VIDEO_MAGIC)) == VIDEO_MAGIC


def refuse(arguments: argparse.Namespace, names: Sequence[str], what: str) -> None:
    """Raises a UsageError for the first option of `names` that was given."""
    for name in names:
        if getattr(arguments, name, None) not in (None, False):
            raise UsageError(f"--{name.replace('_', '-')} is for {what}, {arguments.input} is none of them")


def encode(arguments: argparse.Namespace) -> None:
    """Runs ``encode`` for a clip."""
    refuse(arguments, PICTURES_ONLY, "pictures")
    _check_output(arguments, (VIDEO_SUFFIX,))
    arguments.model = arguments.model or DEFAULT_VIDEO_MODEL
    qp = QP if arguments.qp is None else arguments.qp
    period = INTRA_PERIOD if arguments.intra_period is None else arguments.intra_period
    with _opened_clip(arguments) as clip:
        frames = islice(clip.frames, arguments.start, None)
        first = next(frames, None)
        if first is None:
            raise UsageError(f"--start {arguments.start} is behind the last frame of {arguments.input}")
        codec = encoding_codec(arguments, CompiledVideo, "clips", _calibration)
        encoder = codec.encoder(clip.form, qp, period)
        pieces = (
            encoder.push(to_frame(planes, clip.form, codec.colour, codec.device))
            for planes in islice(chain([first], frames), arguments.frames)
        )
        head = next(pieces)
        with (
            _output(arguments.output) as file,
            Progress("encoded", clip.form, _remaining(clip.count, arguments)) as progress,
        ):
            try:
                for piece in chain([head], pieces):
                    file.write(piece)
                    file.flush()  # whoever watches a growing file sees whole frames
                    progress.add(len(piece))
            finally:  # if the clip breaks off, or somebody interrupts: the frames until then are a whole file
                end = encoder.finish()
                file.write(end)
            progress.add(len(end), frames=0)
    _report(arguments, {"output": arguments.output, "qp": qp, "intra_period": period, **progress.result()})


def decode(arguments: argparse.Namespace) -> None:
    """Runs ``decode`` for a clip."""
    refuse(arguments, PICTURES_ONLY, "pictures")
    _check_output(arguments, (Y4M_SUFFIX, RAW_SUFFIX))
    codecs = Codecs(arguments.model, compute_options(arguments))
    with opened_stream(arguments.input) as source:
        reader, codec = opened_reader(source, codecs, arguments.input, arguments.max_pixels)
        form = reader.header.form
        frames = islice(codec.decoder(reader, arguments.start), arguments.frames)
        position = reader.position
        first = next(frames)  # an output is opened once there is something to write
        raw = arguments.raw or Path(arguments.output).suffix.lower() == RAW_SUFFIX
        with _output(arguments.output) as file, Progress("decoded", form, arguments.frames) as progress:
            writer = ClipWriter(file, form, raw)
            try:
                for frame in chain([first], frames):
                    writer.write(to_planes(frame, form, codec.colour))
                    progress.add(reader.position - position)
                    position = reader.position
            except SparseCodecError as error:
                raise type(error)(f"{error}; {progress.frames} frames before it were decoded") from error
    name = codecs.name(reader.header, arguments.input)
    _report(arguments, {"output": arguments.output, "model": name, **progress.result()})


@contextmanager
def opened_stream(path: str | Path) -> Iterator[BinaryIO]:
    """A file, or stdin for ``-``, open for reading.

    Raises:
        UsageError: it does not exist or cannot be read.
    """
    if str(path) == PIPE:
        yield sys.stdin.buffer
        return
    try:
        file = open(path, "rb")
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    with file:
        yield file


def opened_reader(
    source: BinaryIO, codecs: Codecs, path: str | Path, max_pixels: int
) -> tuple[VideoReader, CompiledVideo]:
    """Reader of an ``.spv`` file, and the codec that made it."""
    reader = VideoReader(source, max_pixels)
    return reader, codecs.of_clip(reader.header, path)


@contextmanager
def _opened_clip(arguments: argparse.Namespace) -> Iterator[ClipStream]:
    raw = None
    if arguments.size is not None:
        width, height = arguments.size
        raw = ClipFormat(height, width, rate(arguments.rate or "25"), depth=arguments.depth or 8)
    elif arguments.rate is not None or arguments.depth is not None:
        raise UsageError("--rate and --depth are for raw frames, whose size is given by --size")
    if arguments.input == PIPE:
        yield read_stream(sys.stdin.buffer, "stdin", raw)
        return
    with open_clip(arguments.input, raw) as clip:
        yield clip


def _calibration(folder: str) -> list[Tensor]:
    """The middle of the first frames of a few clips, ``[T, 3, H, W]`` each."""
    samples = []
    for path in list_clips(folder)[:CALIBRATION_CLIPS]:
        with open_clip(path) as clip:
            planes = islice(clip.frames, CALIBRATION_FRAMES)
            frames = torch.cat([to_frame(p, clip.form, "ycbcr") for p in planes])
        top, left = (max((side - CALIBRATION_SIDE) // 2, 0) for side in frames.shape[2:])
        samples.append(frames[:, :, top : top + CALIBRATION_SIDE, left : left + CALIBRATION_SIDE].contiguous())
    return samples


def _check_output(arguments: argparse.Namespace, suffixes: tuple[str, ...]) -> None:
    """Raises a UsageError for an output that nothing would be able to read, or that is the input."""
    if arguments.output == PIPE:
        if arguments.json:
            raise UsageError("--json and the output - are both for stdout")
        if sys.stdout.isatty():
            raise UsageError("the output - is for pipes, stdout is a terminal")
    elif Path(arguments.output).suffix.lower() not in suffixes:
        hint = "" if VIDEO_SUFFIX in suffixes else ", or - for a pipe: ffmpeg -i - makes anything else"
        raise UsageError(f"{arguments.output} (needs {' or '.join(suffixes)}{hint})")
    elif Path(arguments.output).exists() and Path(arguments.output).samefile(arguments.input):
        raise UsageError(f"{arguments.output} is input and output")


@contextmanager
def _output(path: str) -> Iterator[BinaryIO]:
    """A file or stdout, open for writing; the file grows frame by frame."""
    if path == PIPE:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        file = open(path, "wb")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error
    with file:
        yield file


def _remaining(count: int | None, arguments: argparse.Namespace) -> int | None:
    counts = [] if count is None else [count - arguments.start]
    return min([*counts, *([] if arguments.frames is None else [arguments.frames])], default=None)


def _report(arguments: argparse.Namespace, values: dict[str, Any]) -> None:
    """What was done: JSON on stdout, or a line on stderr."""
    if arguments.json:
        print_json(values)
        return
    rates = f"{values['bytes']} bytes, {values['kbit_s']:.1f} kbit/s, {values['bpp']:.4f} bpp"
    target = "stdout" if arguments.output == PIPE else arguments.output
    size = f"{values['frames']} frames of {values['width']} x {values['height']}"
    print(f"{target}: {size}, {rates}, {values['coding_fps']:.2f} frames per second", file=sys.stderr)
