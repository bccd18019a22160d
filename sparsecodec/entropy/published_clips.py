"""Whole clips in the layouts of DCVC's test scripts: one file of units, or a folder of numbered files of one frame."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sparsecodec.entropy.frame_files import FrameFile
from sparsecodec.entropy.nal import FAMILIES, NalFrame, NalReader
from sparsecodec.errors import BitstreamError, ResourceLimitError, UsageError

KINDS = {"dcvc-hem": ("hem-intra", "hem-inter"), "dcvc": ("dcvc-intra", "dcvc-inter")}  # family -> I file, P file
SUFFIX = ".bin"


def is_frame_folder(path: str | Path) -> bool:
    """Whether it is a folder with a file ``0.bin``."""
    return (Path(path) / f"0{SUFFIX}").is_file()


def frame_files(folder: str | Path) -> list[Path]:
    """The files of a clip, in the order of their numbers.

    Raises:
        BitstreamError: one is missing between others; the message names the frame.
        UsageError: there is none.
    """
    numbers = sorted(int(p.stem) for p in Path(folder).glob(f"*{SUFFIX}") if re.fullmatch(r"0|[1-9]\d*", p.stem))
    if not numbers:
        raise UsageError(f"{folder} holds no files 0{SUFFIX}, 1{SUFFIX}, ...")
    missing = next((wanted for wanted, number in enumerate(numbers) if wanted != number), None)
    if missing is not None:
        raise BitstreamError(f"frame {missing}: {Path(folder) / f'{missing}{SUFFIX}'} is missing")
    return [Path(folder) / f"{number}{SUFFIX}" for number in numbers]


def read_frame_file(family: str, data: bytes, max_pixels: int) -> FrameFile:
    """A file of one frame, of an I frame if it can be one: the file does not say what it is.

    Raises:
        BitstreamError: it is no file of that family; or too short or too long for what it says.
        ResourceLimitError: a picture of more than `max_pixels`.
    """
    errors = []
    for kind in KINDS[family]:
        try:
            file = FrameFile.from_bytes(kind, data)
        except BitstreamError as error:
            errors.append(str(error))
            continue
        pixels = file.fields.get("height", 1) * file.fields.get("width", 1)
        if pixels > max_pixels:
            raise ResourceLimitError(f"a picture of {pixels} pixels (max_pixels={max_pixels})")
        return file
    raise BitstreamError("; ".join(errors))


def numbered(units: Iterator[NalFrame]) -> Iterator[NalFrame]:
    """The same units; errors tell the number of the frame.

    Raises:
        BitstreamError: as the iterator, or there is no frame.
    """
    number = 0
    try:
        for unit in units:
            yield unit
            number += 1
    except BitstreamError as error:
        raise BitstreamError(f"frame {number}: {error}") from error
    if not number:
        raise BitstreamError("frame 0: there is none")


@dataclass(frozen=True)
class ClipSummary:
    """What the layout of a clip says.

    Attributes:
        families: whose it can be; several only where nothing in the bytes tells them apart.
        height, width: of the first frame; 0 if nothing says it.
        intra: of each frame, whether it is an I frame.
        qps: of each frame that has one, as it is stored.
        sizes: bytes of each frame.
        problem: why reading ended before the end, or None.
    """

    families: tuple[str, ...]
    height: int
    width: int
    intra: tuple[bool, ...]
    qps: tuple[int, ...]
    sizes: tuple[int, ...]
    problem: BitstreamError | None


def summary(path: str | Path) -> ClipSummary:
    """Reads a file of units, a file of one frame, or a folder of such, without a model.

    Raises:
        BitstreamError: no frame of any family is there.
    """
    folder = Path(path).is_dir()
    files = [file.read_bytes() for file in (frame_files(path) if folder else [Path(path)])]
    found = [_of_files(family, files) for family in KINDS]
    if not folder:
        found += [_of_units(family, files[0]) for family in FAMILIES]
    whole = [one for one in found if one.problem is None]
    best = whole[0] if whole else max(found, key=lambda one: len(one.intra))
    if not best.intra:
        raise BitstreamError(f"{path} begins with no frame of {', '.join((*KINDS, *map('dcvc-{}'.format, FAMILIES)))}")
    return replace(best, families=tuple(name for one in whole or [best] for name in one.families))


def _of_files(family: str, files: list[bytes]) -> ClipSummary:
    read, problem = [], None
    try:
        for data in files:
            read.append(read_frame_file(family, data, max_pixels=1 << 62))  # nothing is allocated for a picture
    except BitstreamError as error:
        problem = BitstreamError(f"frame {len(read)}: {error}")
    intra = tuple(file.kind.endswith("intra") for file in read)
    size = next((file.fields for file in read if "height" in file.fields), {"height": 0, "width": 0})
    steps = tuple(file.fields["step"] for file in read if "step" in file.fields)
    return ClipSummary(
        (family,), size["height"], size["width"], intra, steps, tuple(map(len, files))[: len(read)], problem
    )


def _of_units(family: str, data: bytes) -> ClipSummary:
    read, sizes, problem, position = [], [], None, 0
    reader = NalReader(family, io.BytesIO(data), max_pixels=1 << 62)
    try:
        for unit in numbered(iter(reader)):
            read += [replace(unit, qp=qp) for qp, _ in unit.group] or [unit]
            sizes += [reader.position - position, *([0] * (max(len(unit.group), 1) - 1))]
            position = reader.position
    except BitstreamError as error:
        problem = error
    height, width = (read[0].height, read[0].width) if read else (0, 0)
    frames = tuple(unit.intra for unit in read), tuple(unit.qp for unit in read), tuple(sizes)
    return ClipSummary((f"dcvc-{family}",), height, width, *frames, problem)
