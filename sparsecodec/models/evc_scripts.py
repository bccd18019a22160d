"""What the scripts of EVC's published software call beside compress and decompress; also of compiled codecs."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from sparsecodec.entropy import FrameFile
from sparsecodec.models.frame_scripts import given, hundredths, through


class EVCScripts:
    """Of a codec with EVC's ``compress`` and ``decompress``."""

    def update(self, force: bool = False) -> None:
        """Nothing to do: tables are never older than the weights."""

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
            ``bit``: of the file; ``x_hat`` ``[1, 3, pic_height, pic_width]``, as decoded from it; ``enc_time``,
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
        # The layout is that of DCVC-HEM's intra frames.
        file, bits = through(output_path, FrameFile("hem-intra", fields, (payload,)))
        height, width, step = (file.fields[name] for name in ("height", "width", "step"))
        start = time.perf_counter()
        x_hat = self.decompress(file.strings[0], height, width, step / 100)["x_hat"]
        dec_time = time.perf_counter() - start
        return {"bit": bits, "x_hat": x_hat, "enc_time": enc_time, "dec_time": dec_time, "latency": enc_time + dec_time}
