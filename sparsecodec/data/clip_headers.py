"""What a raw file's name and a y4m file's first line say of a clip."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

from sparsecodec._clip_format import DEPTHS, MAX_RATIO_PART, ClipFormat
from sparsecodec.errors import UsageError

Y4M_MAGIC = b"YUV4MPEG2"
UNKNOWN_RATE, DEFAULT_RATE = "0:0", "25:1"  # of a y4m header; the first is y4m's convention, the second FFmpeg's guess
LINE_BYTES = 1024  # that a y4m header may have
BROADCAST = r"23[_-]976?|29[_-]97|47[_-]95|59[_-]94|119[_-]88"  # rates in names that have no points
DEPTH_WORDS = {"8bit": 8, "yuv420p": 8, "10bit": 10, "yuv420p10le": 10}
# colour spaces of y4m: depth and siting
Y4M_SPACES = {
    "420": (8, "unknown"),
    "420jpeg": (8, "center"),
    "420mpeg2": (8, "left"),
    "420paldv": (8, "top-left"),
    "420p10": (10, "unknown"),
}


def wanted(depths: tuple[int, ...]) -> str:
    """The samples that are accepted, for messages."""
    return f"{' or '.join(f'{depth}-bit' for depth in depths)} 4:2:0"


def raw_format(path: Path, depths: tuple[int, ...] = DEPTHS) -> tuple[ClipFormat, int | None]:
    """Format of a raw file, and its number of frames if the name has it: ``pass_416x240_50fps_8bit_420_100f.yuv``.

    Raises:
        UsageError: no size in the name, several, or samples that are not planar 4:2:0 of one of `depths`.
    """
    words = re.split(r"[_.\s-]+", path.stem.lower())
    sizes = {match.groups() for word in words if (match := re.fullmatch(r"(\d+)x(\d+)", word))}
    if len(sizes) != 1:
        raise UsageError(f"{path}: {len(sizes)} sizes in the name (needs one, as in name_416x240.yuv)")
    width, height = map(int, sizes.pop())
    if not (width and height):
        raise UsageError(f"{path}: {width}x{height} in the name (needs at least 1x1)")
    accepted = [word for word, depth in DEPTH_WORDS.items() if depth in depths]
    other = r"\d+bit|400|411|422|444|nv12|p010|yuv4\w+"
    foreign = [word for word in words if re.fullmatch(other, word) and word not in accepted]
    if foreign:
        raise UsageError(f"{path} is named {' and '.join(foreign)} (needs {wanted(depths)}, planes Y, U, V)")
    named = {DEPTH_WORDS[word] for word in words if word in DEPTH_WORDS}
    if len(named) > 1:
        raise UsageError(f"{path}: several depths in the name (needs {wanted(depths)})")
    numbers = re.findall(rf"(?<![\d.])({BROADCAST}|\d+(?:\.\d+)?)fps(?![a-z0-9])", path.stem.lower())
    frames = [int(word[:-1]) for word in words if re.fullmatch(r"\d+f", word)]
    try:
        rates = [rate(re.sub("[_-]", ".", number)) for number in numbers]
        form = ClipFormat(height, width, (rates or [(25, 1)])[0], depth=named.pop() if named else 8)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return form, frames[0] if frames else None


def y4m_format(header: bytes, name: str | Path, depths: tuple[int, ...] = DEPTHS) -> ClipFormat:
    """Format of a clip by the first line of a y4m file; an unknown rate becomes 25 frames per second.

    Raises:
        UsageError: no such line, or samples that are not progressive 4:2:0 of one of `depths`.
    """
    fields = header.split()
    if not header.endswith(b"\n") or fields[:1] != [Y4M_MAGIC]:
        raise UsageError(f"{name} has no YUV4MPEG2 header")
    values = {chr(field[0]): field[1:].decode("ascii", "replace") for field in fields[1:]}
    width, height = (int(values[key]) if values.get(key, "").isdigit() else 0 for key in "WH")
    if not (width and height):
        raise UsageError(f"{name}: width {values.get('W')} and height {values.get('H')} (needs at least 1 and 1)")
    space = values.get("C", "420")
    depth, siting = Y4M_SPACES.get(space, (0, ""))
    if depth not in depths:
        raise UsageError(f"{name} has colour space {space} (needs {wanted(depths)}; ffmpeg -pix_fmt yuv420p gives it)")
    if values.get("I", "p") not in ("p", "?"):
        raise UsageError(
            f"{name} is interlaced, I{values['I']} (needs progressive frames; ffmpeg -vf yadif makes them)"
        )
    aspect = tuple(int(part) for part in values["A"].split(":")) if _is_ratio(values.get("A", "")) else (0, 0)
    if max(aspect) > MAX_RATIO_PART:
        aspect = (0, 0)  # nobody can say what it means
    full_range = b"XCOLORRANGE=FULL" in fields
    frames_per_s = values.get("F", UNKNOWN_RATE)
    if frames_per_s == UNKNOWN_RATE:
        frames_per_s = DEFAULT_RATE
    if not _is_ratio(frames_per_s):
        raise UsageError(f"{name} has {frames_per_s} frames per second (needs a ratio, as 30000:1001)")
    try:
        return ClipFormat(height, width, rate(frames_per_s), aspect, depth, None, full_range, siting)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _is_ratio(text: str) -> bool:
    return re.fullmatch(r"\d{1,10}:\d{1,10}", text) is not None


def rate(text: str) -> tuple[int, int]:
    """Frames per second, ``25``, ``29.97``, ``30000/1001`` or ``30000:1001``, as a fraction.

    Raises:
        UsageError: no such number, or zero.
    """
    try:
        value = Fraction(text.replace(":", "/")).limit_denominator(1 << 30)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if value <= 0:
        raise UsageError(f"{text} frames per second (needs a number above 0, as 25 or 30000/1001)")
    return value.numerator, value.denominator
