"""What there is to know of a clip beside its samples."""

from __future__ import annotations

from dataclasses import dataclass

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
            *((f"rate[{i}]", part, 1, MAX_RATIO_PART) for i, part in enumerate(self.rate)),
            *((f"aspect[{i}]", part, 0, MAX_RATIO_PART) for i, part in enumerate(self.aspect)),
        ):
            if not low <= value <= high:
                raise UsageError(f"{name} = {value} (needs {low} to {high})")
        for name, value, known in (
            ("depth", self.depth, DEPTHS),
            ("matrix", self.matrix, (None, *LUMA_WEIGHTS)),
            ("siting", self.siting, SITINGS),
        ):
            if value not in known:
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
