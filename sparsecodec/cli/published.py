"""Clips as the test scripts of DCVC-RT, DCVC-HEM and DCVC (2021) write them: ``.bin`` files, and folders of such."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sparsecodec._clip_format import ClipFormat
from sparsecodec.cli.clip_checks import Observer
from sparsecodec.cli.clip_io import (
    DEFAULT_RATE,
    PIPE,
    check_frames_output,
    check_output,
    frame_sink,
    names_folder,
    opened_clip,
    opened_stream,
    output,
    refuse,
    remaining,
    report,
)
from sparsecodec.cli.clips import PICTURES_ONLY, QP
from sparsecodec.cli.files import VIDEO_SUFFIX, read_stream
from sparsecodec.cli.interrupts import whole_pieces
from sparsecodec.cli.options import compute_options, write_bytes
from sparsecodec.cli.progress import Progress
from sparsecodec.data.clip_headers import rate
from sparsecodec.data.colour import to_frame
from sparsecodec.data.picture_folders import is_picture_folder
from sparsecodec.data.video import is_clip
from sparsecodec.entropy import observing
from sparsecodec.entropy.published_clips import SUFFIX, frame_files, is_frame_folder, summary
from sparsecodec.errors import BitstreamError, SparseCodecError, UsageError
from sparsecodec.models.dcvc_rt import RESET_INTERVAL
from sparsecodec.models.video import VideoCodec
from sparsecodec.runtime.adapters.published import Published, published
from sparsecodec.zoo import load

RATES = 64
ONLY = {"reset_interval": "dcvc-rt", "force_zero_thres": "dcvc-rt", "rates": "dcvc-hem"}  # option -> whose it is
NOT_HERE = ("stream", "calibration", "save_model")


def is_published(path: str | Path) -> bool:
    """Whether commands take it for such a clip: by its suffix, or by a file ``0.bin`` in it."""
    return (Path(path).suffix.lower() == SUFFIX and not Path(path).is_dir()) or is_frame_folder(path)


def is_wanted(arguments: argparse.Namespace) -> bool:
    """Whether ``encode`` is to write such a clip: to ``.bin``, or from a clip to a folder."""
    if arguments.output != PIPE and Path(arguments.output).suffix.lower() == SUFFIX:
        return True
    if arguments.output == PIPE or not names_folder(arguments.output):
        return False
    if not Path(arguments.input).is_dir():
        return arguments.input == PIPE or is_clip(arguments.input) or arguments.size is not None
    named = arguments.model is not None and is_picture_folder(arguments.input)
    return named and isinstance(load(arguments.model), VideoCodec)


def encode(arguments: argparse.Namespace) -> None:
    """Runs ``encode`` to such a clip."""
    refuse(arguments, (*PICTURES_ONLY, *NOT_HERE), "pictures or .spv files")
    if arguments.model is None and names_folder(arguments.output):
        needed = f"{VIDEO_SUFFIX} for one file; a folder of {SUFFIX} files needs -m, a codec from sparsecodec convert"
        raise UsageError(f"{arguments.output} names a folder, {arguments.input} is a clip (needs {needed})")
    codec = published_codec(arguments)
    if codec.one_file:
        check_output(arguments, (SUFFIX,), f": {codec.family} writes one file")
    else:
        _check_folder(arguments, codec)
    settings = _settings(arguments, codec)
    with opened_clip(arguments) as clip:
        frames = islice(clip.frames, arguments.start, None)
        frames = islice(frames, arguments.frames)
        first = next(frames, None)
        if first is None:
            raise UsageError(f"--start {arguments.start} is behind the last frame of {arguments.input}")
        tensors = (to_frame(samples, clip.form, codec.colour) for samples in chain([first], frames))
        pieces = codec.encode(tensors, **settings)
        begun = time.perf_counter()
        head = next(pieces)
        count = remaining(clip.count, arguments)
        with _sink(arguments, codec) as write, Progress("encoded", clip.form, count, begun) as progress:
            for piece in chain([head], pieces):
                with whole_pieces():
                    write(piece)
                progress.add(len(piece))
    report(arguments, {"output": arguments.output, "family": codec.family, **settings, **progress.result()})


def decode(arguments: argparse.Namespace) -> None:
    """Runs ``decode`` for such a clip."""
    refuse(arguments, PICTURES_ONLY, "pictures")
    check_frames_output(arguments)
    fps = rate(arguments.rate or DEFAULT_RATE)
    codec = published_codec(arguments)
    with opened_source(arguments.input, codec) as source:
        decoded = iter(codec.decode(source, arguments.max_pixels))
        frames = islice(decoded, arguments.frames)
        try:
            next(islice(decoded, arguments.start, arguments.start), None)  # those before it are decoded and dropped
            begun, counted = time.perf_counter(), source.bytes
            first = next(frames, None)
        except BitstreamError as error:
            raise BitstreamError(f"{arguments.input}: {_explained(error)}") from error
        if first is None:
            raise UsageError(f"--start {arguments.start} is behind the last frame of {arguments.input}")
        height, width = first.shape[2:]
        form = ClipFormat(height, width, fps)
        of_pictures = ClipFormat(height, width, fps, matrix="bt709", full_range=True)
        with (
            frame_sink(arguments, form, of_pictures, codec.colour) as write,
            Progress("decoded", form, arguments.frames, begun) as progress,
        ):
            try:
                for frame in chain([first], frames):
                    if frame.shape != first.shape:
                        size = f"{frame.shape[3]} x {frame.shape[2]}"
                        raise BitstreamError(
                            f"frame {arguments.start + progress.frames}: {size} after {width} x {height}"
                        )
                    with whole_pieces():
                        write(frame)
                    progress.add(source.bytes - counted)
                    counted = source.bytes
            except SparseCodecError as error:
                told = f"{_explained(error)}; {progress.frames} frames before it were decoded"
                raise type(error)(f"{arguments.input}: {told}") from error
    report(arguments, {"output": arguments.output, "family": codec.family, **progress.result()})


def published_codec(arguments: argparse.Namespace) -> Published:
    """The codec that ``-m`` names, as its test script runs it: on one thread unless ``--threads`` says otherwise.

    Raises:
        UsageError: none is named, or it writes no such files.
    """
    if arguments.model is None:
        raise UsageError(f"{SUFFIX} files need -m, a codec that sparsecodec convert made of the published checkpoints")
    options = compute_options(arguments)
    if arguments.threads is None:
        torch.set_num_threads(1)
    model = load(arguments.model)
    codec = published(model, options["device"], options["dtype"], arguments.force_zero_thres, arguments.stored_tables)
    for name, family in ONLY.items():
        if getattr(arguments, name, None) is not None and family != codec.family:
            raise UsageError(f"--{name.replace('_', '-')} is for {family}, {arguments.model} is {codec.family}")
    return codec


class Counted:
    """A binary file that counts what is read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.bytes = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.bytes += len(data)
        return data


class CountedFiles:
    """The bytes of one file after another, and how many there were."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self.bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for path in self._paths:
            data = read_stream(path)
            self.bytes += len(data)
            yield data


@contextmanager
def opened_source(path: str | Path, codec: Published) -> Iterator[Counted | CountedFiles]:
    """What `Published.decode` reads."""
    if not codec.one_file:
        yield CountedFiles(frame_files(path) if Path(path).is_dir() else [Path(path)])
        return
    if Path(path).is_dir():
        raise UsageError(f"{path} is a folder ({codec.family} has one file of a clip)")
    with opened_stream(path) as file:
        yield Counted(file)


def _explained(error: SparseCodecError) -> str:
    if not isinstance(error, BitstreamError):
        return str(error)
    return f"{error} (damaged, cut off, or of other weights, settings, tables, precision, threads, or kind of machine)"


def _settings(arguments: argparse.Namespace, codec: Published) -> dict[str, int]:
    period = codec.intra_period if arguments.intra_period is None else arguments.intra_period
    if period < 0:
        raise UsageError(f"--intra-period {period} (needs at least 0; 0: only the first frame)")
    settings = {"intra_period": period}
    if codec.family == "dcvc":
        if arguments.qp is not None:
            raise UsageError(f"--qp {arguments.qp}: a DCVC checkpoint has one rate")
        return settings
    settings["qp"] = QP if arguments.qp is None else arguments.qp
    if codec.family == "dcvc-rt":
        interval = RESET_INTERVAL if arguments.reset_interval is None else arguments.reset_interval
        return {**settings, "reset_interval": interval}
    rates = RATES if arguments.rates is None else arguments.rates
    if arguments.qp is None:
        settings["qp"] = rates // 2
    return {**settings, "rates": rates}


def _check_folder(arguments: argparse.Namespace, codec: Published) -> None:
    path = Path(arguments.output)
    if arguments.output == PIPE or not names_folder(arguments.output):
        raise UsageError(f"{arguments.output}: {codec.family} writes a file for each frame (needs a folder)")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file (needs a folder for a file of each frame)")
    if path.is_dir() and any(path.glob(f"*{SUFFIX}")):
        raise UsageError(f"{path} holds {SUFFIX} files already (needs an empty folder, or one that is not there yet)")


@contextmanager
def _sink(arguments: argparse.Namespace, codec: Published) -> Iterator:
    """What takes the bytes of one frame after another; what is there after each can be decoded."""
    if codec.one_file:
        with output(arguments.output) as file:

            def write(piece: bytes) -> None:
                file.write(piece)
                file.flush()

            yield write
        return
    folder = Path(arguments.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}") from error
    names = (folder / f"{number}{SUFFIX}" for number in range(1 << 31))
    yield lambda piece: write_bytes(next(names), piece)


def describe(path: str) -> tuple[dict[str, Any], BitstreamError | None]:
    """What the layout of such a clip says, and what is wrong with it if its frames do not go to the end.

    Raises:
        BitstreamError: no frame is there.
        UsageError: no such file.
    """
    if not Path(path).exists():
        raise UsageError(f"{path} does not exist")
    found = summary(path)
    total, frames, pixels = sum(found.sizes), len(found.intra), found.height * found.width
    return {
        "families": list(found.families),
        "width": found.width or None,
        "height": found.height or None,
        "frames": frames,
        "complete": found.problem is None,
        "intra_frames": sum(found.intra),
        "qp_field": [min(found.qps), max(found.qps)] if found.qps else None,
        "bytes": total,
        "bpp": 8 * total / (frames * pixels) if pixels else None,
    }, found.problem


def check(path: str | Path, arguments: argparse.Namespace, observer: Observer, decoding: bool) -> None:
    """Verifies the layout of such a clip, which has no checksums; and, if `decoding`, decodes it.

    Args:
        observer: is given all decoded symbols.

    Raises:
        BitstreamError: it is damaged or cut off; the message names the frame.
    """
    problem = describe(str(path))[1]
    if problem is not None:
        raise problem
    if not decoding:
        return
    codec = published_codec(arguments)
    with opened_source(path, codec) as source, observing(observer):
        for _ in codec.decode(source, arguments.max_pixels):
            pass
