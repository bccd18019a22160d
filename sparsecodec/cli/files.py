"""Which files a command works on, and the codec that a file needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparsecodec.data import list_images
from sparsecodec.entropy import Header, VideoHeader
from sparsecodec.errors import ModelMismatchError, ResourceLimitError, SparseCodecError, UsageError, reason
from sparsecodec.quant import is_portable
from sparsecodec.runtime import CompiledCodec, compile_codec
from sparsecodec.runtime.numerics import PORTABLE, PORTABLE_VIDEO
from sparsecodec.runtime.video import CompiledVideo
from sparsecodec.zoo import find, load

SUFFIX, VIDEO_SUFFIX = ".spc", ".spv"
MAX_BYTES = 1 << 30  # of a file that is read whole; a picture of a gigapixel takes a quarter of that
PIECE = 1 << 20
MADE_BY = "name the portable model that was saved when the file was made"


def read_stream(path: str | Path) -> bytes:
    """The bytes of a file, a pipe, or a device.

    Raises:
        UsageError: it does not exist or cannot be read.
        ResourceLimitError: it has more than `MAX_BYTES`; as much was read if its size was not known before.
    """
    try:
        with open(path, "rb") as file:
            size, data = os.fstat(file.fileno()).st_size, bytearray()
            while size <= MAX_BYTES and (piece := file.read(PIECE)):
                data += piece
                size = max(size, len(data))
            if size > MAX_BYTES:
                raise ResourceLimitError(f"{path} has more than {MAX_BYTES} bytes, which no picture needs")
            return bytes(data)
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from error


def streams(paths: Sequence[str], suffixes: tuple[str, ...] = (SUFFIX,)) -> list[Path]:
    """Files as they are named, and the files of those suffixes directly inside each folder, sorted by name.

    Raises:
        UsageError: a folder without such files.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.iterdir() if p.suffix in suffixes) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"no {' or '.join(suffixes)} files in {path}")
        found += inside
    return found


def pairs(source: str, target: str, suffix: str) -> list[tuple[Path, Path]]:
    """(input, output): the two as they are, or for a folder each of its files and where its result goes.

    Args:
        source: a file; or a folder of pictures if `suffix` is `SUFFIX`, else of ``.spc`` files.
        target: what to write; for a folder, the folder, which is created.
        suffix: of the results of a folder.

    Raises:
        UsageError: nothing to do, two results of one name, or `target` is no folder where one is needed.
    """
    if not Path(source).is_dir():
        return [(Path(source), Path(target))]
    inputs = list_images(source) if suffix == SUFFIX else streams([source])
    outputs = [Path(target) / f"{path.stem}{suffix}" for path in inputs]
    twice = {path.name for path in outputs if outputs.count(path) > 1}
    if twice:
        raise UsageError(f"{source} holds several files for {', '.join(sorted(twice))}")
    try:
        Path(target).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{target} is no folder and cannot be made one: {reason(error)}") from error
    return list(zip(inputs, outputs, strict=True))


def each(items: Sequence[Any], work: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    """What `work` says of each item; all are tried.

    Raises:
        SparseCodecError: of the first one that failed, and how many did.
    """
    results, failures = [], []
    for item in items:
        try:
            results.append(work(item))
        except SparseCodecError as error:
            failures.append((item, error))
    if not failures:
        return results
    (source, *_), error = failures[0]
    if len(items) == 1:
        raise error
    named = f"{error}" if str(source) in str(error) else f"{source}: {error}"
    raise type(error)(f"{len(failures)} of {len(items)} files failed, the first one: {named}") from error
    return results


class Codecs:
    """Compiled codecs for the files of a command, each made once.

    Args:
        model: shipped name or path; None: the shipped one that made a file.
        options: for `compile_codec`.
    """

    def __init__(self, model: str | None, options: dict[str, Any]) -> None:
        self._model = model
        self._options = options
        self._compiled: dict[tuple[str, str], Any] = {}

    def name(self, header: Header | VideoHeader, path: str | Path) -> str:
        """Of the model to use.

        Raises:
            ModelMismatchError: no shipped model made the file, and none was named.
        """
        name = self._model or find(header.model_hash)
        if name is None:
            raise ModelMismatchError(
                f"{path} was made by model {header.model_hash.hex()}, which is none of those that ship; "
                "name its files with -m"
            )
        return str(name)

    def of(self, header: Header, path: str | Path) -> CompiledCodec:
        """The codec for a picture's file with that header.

        Raises:
            ModelMismatchError: it is none for pictures, or no portable one where the file needs that.
        """
        codec = self._of(header, path)
        if not isinstance(codec, CompiledCodec):
            raise ModelMismatchError(f"{path} is a picture, {self.name(header, path)} is no codec for pictures")
        return codec

    def of_clip(self, header: VideoHeader, path: str | Path) -> CompiledVideo:
        """The codec for an ``.spv`` file with that header; as for `of`."""
        codec = self._of(header, path)
        if not isinstance(codec, CompiledVideo):
            raise ModelMismatchError(f"{path} is a clip, {self.name(header, path)} is no codec for clips")
        return codec

    def _of(self, header: Header | VideoHeader, path: str | Path) -> Any:
        on_integers = header.numerics in (PORTABLE.tag, PORTABLE_VIDEO.tag)
        key = self.name(header, path), "portable" if on_integers else "native"
        if key not in self._compiled:
            model = load(key[0])
            if key[1] == "portable" and not is_portable(model):
                raise ModelMismatchError(f"{path} is a portable stream, {key[0]} is a float model: {MADE_BY}")
            self._compiled[key] = compile_codec(model, stream=key[1], **self._options)
        return self._compiled[key]
