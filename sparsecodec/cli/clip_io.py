"""Clips in and out of the commands: files, pipes and folders of pictures, and what is said of them when done."""

from __future__ import annotations

import argparse
import errno
import io
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from sparsecodec._clip_format import ClipFormat
from sparsecodec.cli.options import check_parent, print_json
from sparsecodec.data.clip_headers import rate
from sparsecodec.data.colour import to_planes
from sparsecodec.data.picture_folders import PictureWriter, check_empty
from sparsecodec.data.video import RAW_SUFFIX, Y4M_SUFFIX
from sparsecodec.data.video_io import ClipStream, ClipWriter, open_clip, read_stream
from sparsecodec.errors import UsageError, reason

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of writing alone
PIPE = "-"
DEFAULT_RATE = "25"


def refuse(arguments: argparse.Namespace, names: Sequence[str], what: str) -> None:
    """Raises a UsageError for the first option of `names` that was given, also as 0; ``--start 0`` asks for nothing."""
    for name in names:
        value = getattr(arguments, name, None)
        if value is not None and value is not False and (name, value) != ("start", 0):
            raise UsageError(f"--{name.replace('_', '-')} is for {what}, {arguments.input} is none of them")


def names_folder(path: str) -> bool:
    """Whether an output is a folder: it exists, ends with a slash, or has no suffix."""
    return path != PIPE and (path.endswith("/") or Path(path).is_dir() or not Path(path).suffix)


@contextmanager
def opened_stream(path: str | Path) -> Iterator[BinaryIO]:
    """A file, or stdin for ``-``, open for reading.

    Raises:
        UsageError: it does not exist or cannot be read.
    """
    if str(path) == PIPE:
        yield _pipe(sys.stdin, "stdin")
        return
    try:
        file = open(path, "rb")
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from error
    with file:
        yield file


@contextmanager
def opened_clip(arguments: argparse.Namespace) -> Iterator[ClipStream]:
    """The clip that a command is to encode."""
    raw, given = None, None if arguments.rate is None else rate(arguments.rate)
    if arguments.size is not None:
        if Path(arguments.input).is_dir():
            raise UsageError(f"--size and --depth are for raw frames, {arguments.input} is a folder")
        width, height = arguments.size
        raw = ClipFormat(height, width, given or rate(DEFAULT_RATE), depth=arguments.depth or 8)
    elif arguments.depth is not None or (given and not Path(arguments.input).is_dir()):
        raise UsageError("--rate and --depth are for raw frames, whose size is given by --size, --rate for pictures")
    if arguments.input == PIPE:
        yield read_stream(_pipe(sys.stdin, "stdin"), "stdin", raw)
        return
    with open_clip(arguments.input, raw, given) as clip:
        yield clip


def check_output(arguments: argparse.Namespace, suffixes: tuple[str, ...], hint: str = "") -> None:
    """Raises a UsageError for an output that nothing would be able to read, or that is the input."""
    if arguments.output == PIPE:
        if arguments.json:
            raise UsageError("--json and the output - are both for stdout")
        if _pipe(sys.stdout, "stdout") and sys.stdout.isatty():
            raise UsageError("the output - is for pipes, stdout is a terminal")
    else:
        check_file(arguments, suffixes, f"{' or '.join(suffixes)}{hint}")


def check_file(arguments: argparse.Namespace, suffixes: Collection[str], needed: str) -> None:
    """As `check_output` for a file, before anything is computed for it; `needed` names the suffixes in the message."""
    path, source = Path(arguments.output), Path(arguments.input)
    if path.is_dir():
        raise UsageError(f"{path} is a folder (needs the name of a file)")
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{path} (needs {needed})")
    check_parent(path)
    if path.exists() and source.exists() and path.samefile(source):
        raise UsageError(f"{path} is input and output")


def check_frames_output(arguments: argparse.Namespace) -> None:
    """As `check_output`, for what `frame_sink` writes."""
    if names_folder(arguments.output):
        if arguments.raw:
            raise UsageError(f"--raw is for planes, {arguments.output} is a folder, which gets pictures")
        check_empty(arguments.output)
        return
    check_output(
        arguments, (Y4M_SUFFIX, RAW_SUFFIX), ", a folder for pictures, or - for a pipe: ffmpeg -i - makes anything else"
    )


@contextmanager
def output(path: str) -> Iterator[BinaryIO]:
    """A file or stdout, open for writing; the file grows frame by frame."""
    if path == PIPE:
        file = _pipe(sys.stdout, "stdout")
        if isinstance(file, io.RawIOBase):  # as PYTHONUNBUFFERED makes it; its writes may end early at a signal
            file = io.BufferedWriter(io.FileIO(file.fileno(), "wb", closefd=False))
        yield file
        file.flush()
        return
    try:
        file = open(path, "wb")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {reason(error)}") from error
    try:
        with file:
            yield file
    except OSError as error:
        if error.errno in FULL:  # others may be of the input
            raise OSError(f"{path} cannot be written: {reason(error)}") from error
        raise


@contextmanager
def frame_sink(
    arguments: argparse.Namespace, form: ClipFormat, of_pictures: ClipFormat, colour: str
) -> Iterator[Callable[[Tensor], None]]:
    """What takes decoded frames, ``[1, 3, H, W]`` in [0, 1], and writes them as y4m, raw or pictures.

    Args:
        form: of the planes.
        of_pictures: what the samples mean where they become pictures.
        colour: of the frames.
    """
    if names_folder(arguments.output):
        yield PictureWriter(arguments.output, of_pictures, colour).write
        return
    raw = arguments.raw or Path(arguments.output).suffix.lower() == RAW_SUFFIX
    with output(arguments.output) as file:
        writer = ClipWriter(file, form, raw)
        yield lambda frame: writer.write(to_planes(frame, form, colour))


def remaining(count: int | None, arguments: argparse.Namespace) -> int | None:
    """Frames that will be coded, if that is known."""
    counts = [] if count is None else [count - arguments.start]
    return min([*counts, *([] if arguments.frames is None else [arguments.frames])], default=None)


def report(arguments: argparse.Namespace, values: dict[str, Any]) -> None:
    """What was done: JSON on stdout, or a line on stderr."""
    if arguments.json:
        print_json(values)
        return
    rates = f"{values['bytes']} bytes, {values['kbit_s']:.1f} kbit/s, {values['bpp']:.4f} bpp"
    target = "stdout" if arguments.output == PIPE else arguments.output
    size = f"{values['frames']} frames of {values['width']} x {values['height']}"
    print(f"{target}: {size}, {rates}, {values['coding_fps']:.2f} frames per second", file=sys.stderr)


def _pipe(stream: Any, name: str) -> BinaryIO:
    """The bytes of stdin or stdout; Python has None where a shell closed it."""
    if stream is None:
        raise UsageError(f"{PIPE} is {name}, which is closed")
    return stream.buffer
