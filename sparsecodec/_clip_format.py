"""What there is to know of a clip beside its samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sparsecodec.errors import UsageError

LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}  # of red and of blue
SITINGS = ("unknown", "left", "center", "top-left")
DEPTHS = (8, 10)
HD_HEIGHT = 720  # from here on, a clip that does not say otherwise is BT.709, as players assume
MAX_SIDE = (1 << 24) - 1
MAX_RATIO_PART = (1 << 31) - 1


@dataclass(frozen=True)
class ClipFormat:
    """Format of a clip of planar Y'CbCr 4:2:0.

    Attributes:
        height, width: of the luma, 1 to 2^24 - 1; chroma has half of each, rounded up.
        rate: frames per second as a fraction, both parts at least 1.
        aspect: of a pixel, width to height; (0, 0) if unknown.
        depth: bits of a sample, 8 or 10.
        matrix: "bt601", "bt709", "bt2020", or None if the source does not say.
        full_range: 0 to 2^depth - 1; else 16 to 235 and 240 (times 4 for 10 bits).
        siting: where chroma samples lie, one of `SITINGS`; carried, not used.

    Raises:
        UsageError: a value that is none of these; the message has it.
    """

    height: int
    width: int
    rate: tuple[int, int] = (25, 1)
    aspect: tuple[int, int] = (0, 0)
    depth: int = 8
    matrix: str | None = None
    full_range: bool = False
    siting: str = "unknown"

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("height", self.height, 1, MAX_SIDE),
            ("width", self.width, 1, MAX_SIDE),
            *_parts("rate", self.rate, 1, "(25, 1)"),
            *_parts("aspect", self.aspect, 0, "(4, 3)"),
        ):
            if not (_is_whole(value) and low <= value <= high):
                raise UsageError(f"{name} = {value!r} (needs a whole number, {low} to {high})")
        for name, value, known in (
            ("depth", self.depth, DEPTHS),
            ("matrix", self.matrix, (None, *LUMA_WEIGHTS)),
            ("siting", self.siting, SITINGS),
        ):
            if value not in known or isinstance(value, float):
                raise UsageError(f"{name} = {value!r} (needs one of {', '.join(map(str, known))})")

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.rate[0] / self.rate[1]

    @property
    def peak(self) -> int:
        """The largest sample."""
        return (1 << self.depth) - 1

    @property
    def chroma(self) -> tuple[int, int]:
        """Height and width of a chroma plane."""
        return (self.height + 1) // 2, (self.width + 1) // 2

    @property
    def frame_bytes(self) -> int:
        """Of the three planes; samples of 10 bits take two bytes."""
        height, width = self.chroma
        return (self.height * self.width + 2 * height * width) * (1 if self.depth == 8 else 2)

    @property
    def luma_weights(self) -> tuple[float, float]:
        """Of red and of blue in the luma; where the source does not say, as players guess from the height."""
        return LUMA_WEIGHTS[self.matrix or ("bt709" if self.height >= HD_HEIGHT else "bt601")]


def _parts(name: str, value: Any, low: int, example: str) -> Iterator[tuple[str, Any, int, int]]:
    """Rows of the table of numbers for a fraction."""
    if not (isinstance(value, tuple) and len(value) == 2):
        raise UsageError(f"{name} = {value!r} (needs a fraction as two whole numbers, as {example})")
    return ((f"{name}[{i}]", part, low, MAX_RATIO_PART) for i, part in enumerate(value))


def _is_whole(value: Any) -> bool:
    """Whether it is an int, of Python or NumPy; a bool is none."""
    return hasattr(value, "__index__") and not isinstance(value, bool)
