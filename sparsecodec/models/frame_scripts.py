"""What `encode_decode` of the published softwares has in common: a frame goes through a file."""

from __future__ import annotations

from pathlib import Path

from sparsecodec.entropy import FrameFile
from sparsecodec.errors import UsageError
from sparsecodec.models.steps import round_step


def through(path: str | None, file: FrameFile) -> tuple[FrameFile, int]:
    """Writes a file and reads it back, or, without a path, its bytes; and its number of bits.

    Raises:
        UsageError: the file cannot be written.
    """
    data = file.to_bytes()
    if path is not None:
        try:
            Path(path).write_bytes(data)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
        data = Path(path).read_bytes()
    return FrameFile.from_bytes(file.kind, data), 8 * len(data)


def hundredths(step: float) -> int:
    """A quantisation step as files hold it."""
    return round(100 * round_step(step))


def given(side: int | None) -> int:
    """A side of the picture before padding, which must be there."""
    if side is None:
        raise UsageError("pic_width and pic_height are missing (a file needs the size of the picture before padding)")
    return side
