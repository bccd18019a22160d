"""Pictures as they come from cameras and editors."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sparsecodec.data import has_transparency, read_image
from sparsecodec.data.images import ORIENTATION, size_of

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
UPRIGHT = {  # value of EXIF -> what it asks a viewer to do with the stored rows
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 9])
def test_pictures_are_upright(orientation, tmp_path):
    path, exif = tmp_path / "x.png", Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif)
    expected = UPRIGHT.get(orientation, UPRIGHT[1])(PIXELS)
    read = read_image(path)[0].permute(1, 2, 0).mul(255).round().byte().numpy()
    assert np.array_equal(read, expected) and size_of(path) == expected.shape[:2]


def test_transparency_is_told(tmp_path):
    for mode, transparent in (("RGB", False), ("RGBA", True), ("LA", True), ("L", False)):
        Image.new(mode, (2, 2)).save(tmp_path / "x.png")
        assert has_transparency(tmp_path / "x.png") == transparent
        assert read_image(tmp_path / "x.png").shape == (1, 3, 2, 2)
