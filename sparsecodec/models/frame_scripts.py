"""What `encode_decode` of the published softwares has in common: a frame goes through a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor

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


class SingleFrames:
    """Of a codec with EVC's ``compress`` and ``decompress``, whose files are those of DCVC-HEM's intra frames."""

    def encode_decode(
        self,
        x: Tensor,
        q_scale: float,
        output_path: str | None = None,
        pic_width: int | None = None,
        pic_height: int | None = None,
    ) -> dict[str, Any]:
        """A picture through a file of the published software, or, without a path, through its bytes.

        Args:
            x, q_scale: as for `compress`.
            output_path: of the file.
            pic_width, pic_height: of the picture before padding; a file needs them, else they are those of `x`.

        Returns:
            ``bit``: of the file; ``x_hat`` ``[1, 3, H, W]`` as decoded from it, padded like `x`; ``enc_time``,
            ``dec_time``, and ``latency``, their sum: seconds, coding included, files not.

        Raises:
            UsageError: as `compress` does; a path without a size, or one that cannot be written.
        """
        start = time.perf_counter()
        payload = self.compress(x, q_scale)["bit_stream"]
        enc_time = time.perf_counter() - start
        if output_path is None:
            pic_height, pic_width = pic_height or x.shape[2], pic_width or x.shape[3]
        fields = {"height": given(pic_height), "width": given(pic_width), "step": hundredths(q_scale)}
        file, bits = through(output_path, FrameFile("hem-intra", fields, (payload,)))
        height, width, step = (file.fields[name] for name in ("height", "width", "step"))
        start = time.perf_counter()
        x_hat = self.decompress(file.strings[0], height, width, step / 100)["x_hat"]
        dec_time = time.perf_counter() - start
        return {"bit": bits, "x_hat": x_hat, "enc_time": enc_time, "dec_time": dec_time, "latency": enc_time + dec_time}
