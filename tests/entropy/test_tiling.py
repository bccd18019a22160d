"""Tiles cover a picture, overlap as promised, and a region finds those that it needs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecodec.entropy import Tiling, Window
from sparsecodec.errors import UsageError


@st.composite
def cut(draw) -> tuple[Tiling, int, int]:
    side = draw(st.sampled_from([64, 128, 192]))
    tiling = Tiling(side, 16 * draw(st.integers(0, side // 32)))
    return tiling, draw(st.integers(1, 5 * side)), draw(st.integers(1, 5 * side))


@given(cut())
def test_tiles_cover_a_picture_and_neighbours_share_the_overlap(case):
    tiling, height, width = case
    rows, columns = tiling.grid(height, width)
    windows = [tiling.window(row, columns - 1, height, width) for row in range(rows)]
    assert windows[0].top == 0 and windows[-1].bottom == height
    assert all(window.height == tiling.side for window in windows[:-1])
    assert all(window.right == width and 1 <= window.width <= tiling.side for window in windows)
    assert all(above.bottom - below.top == tiling.overlap for above, below in zip(windows, windows[1:], strict=False))
    # The last tile brings pixels of its own, and no pixel lies in three.
    assert rows == 1 or tiling.overlap < windows[-1].height <= tiling.side
    assert all(first.bottom <= third.top for first, third in zip(windows, windows[2:], strict=False))


@given(cut(), st.data())
def test_a_region_is_touched_by_exactly_the_tiles_that_share_a_pixel_with_it(case, data):
    tiling, height, width = case
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    rows, columns = tiling.grid(height, width)
    expected = []
    for row in range(rows):
        for column in range(columns):
            window = tiling.window(row, column, height, width)
            if {*range(window.top, window.bottom)} & {*range(top, bottom)}:
                if {*range(window.left, window.right)} & {*range(left, right)}:
                    expected.append((row, column))
    assert tiling.touching(Window(top, left, bottom - top, right - left), height, width) == expected


@pytest.mark.parametrize("values", [(0, 0), (63, 0), (100, 0), (1 << 24, 0), (64, 8), (64, 48), (128, -16), (-64, 0)])
def test_impossible_tilings_are_refused(values):
    with pytest.raises(UsageError, match="multiple of"):
        Tiling(*values)
