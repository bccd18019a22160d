"""How a large picture is cut into tiles: part of the format, specified in docs/bitstream.md."""

from __future__ import annotations

from dataclasses import dataclass

from sparsecodec.errors import UsageError

SIDE_UNIT, OVERLAP_UNIT = 64, 16
MAX_TILE_SIDE = (1 << 24) - SIDE_UNIT


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class Tiling:
    """Tiles of ``side`` x ``side`` pixels from the upper left on, of which neighbours share `overlap` pixels; those of
    the last row and column end with the picture.

    Args:
        side: multiple of 64, 64 to 2^24 - 64.
        overlap: multiple of 16, 0 to half the side, so that no pixel lies in more than two tiles of a row or column.

    Raises:
        UsageError: a value that the format cannot hold.
    """

    side: int
    overlap: int

    def __post_init__(self) -> None:
        if not (isinstance(self.side, int) and SIDE_UNIT <= self.side <= MAX_TILE_SIDE) or self.side % SIDE_UNIT:
            raise UsageError(f"tile side {self.side!r} (needs a multiple of {SIDE_UNIT}, up to {MAX_TILE_SIDE})")
        most = self.side // 2
        if not (isinstance(self.overlap, int) and 0 <= self.overlap <= most) or self.overlap % OVERLAP_UNIT:
            raise UsageError(
                f"overlap {self.overlap!r} of tiles of {self.side} pixels (needs a multiple of {OVERLAP_UNIT}, "
                f"0 to {most})"
            )

    @property
    def step(self) -> int:
        """From where one tile begins to where the next one does."""
        return self.side - self.overlap

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles that cover a picture."""
        return self._count(height), self._count(width)

    def _count(self, size: int) -> int:
        return max(-(-(size - self.overlap) // self.step), 1)

    def window(self, row: int, column: int, height: int, width: int) -> Window:
        """The pixels of a picture that a tile codes."""
        top, left = row * self.step, column * self.step
        return Window(top, left, min(self.side, height - top), min(self.side, width - left))

    def touching(self, region: Window, height: int, width: int) -> list[tuple[int, int]]:
        """(row, column) of the tiles that share a pixel with `region`, row by row."""
        rows, columns = self.grid(height, width)
        return [
            (row, column)
            for row in self._indexes(region.top, region.bottom, rows)
            for column in self._indexes(region.left, region.right, columns)
        ]

    def _indexes(self, start: int, end: int, count: int) -> range:
        """The tiles along an axis that meet [start, end)."""
        return range(max((start - self.side) // self.step + 1, 0), min((end - 1) // self.step, count - 1) + 1)
