"""Clips in DCVC-RT's own streams of units, as its published test script writes and reads them.

These streams open only where the arithmetic is the one that wrote them, and nothing in them says what that was: on one
machine with ``compile_codec(..., original=True)`` or the family's own classes. Our own files are ``.spv``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec.entropy import DEFAULT_MAX_PIXELS, NalFrame, NalReader, NalWriter
from sparsecodec.entropy.published_clips import numbered
from sparsecodec.errors import BitstreamError, UsageError
from sparsecodec.models.dcvc_rt import RESET_INTERVAL, SHIFT_OF_FRAME

_STRIDE = 16
_TWO_STREAMS_ABOVE = 1280 * 720  # pixels


@torch.no_grad()
def write_units(
    codec: Any,
    frames: Iterable[Tensor],
    qp: int,
    *,
    inter_qp: int | None = None,
    intra_period: int = 0,
    reset_interval: int = RESET_INTERVAL,
) -> Iterator[bytes]:
    """Codes a clip, one frame at a time.

    Args:
        codec: has ``intra`` and ``inter``, which answer the family's contract: a `VideoCodec`, a compiled codec, or a
            pair of the published classes. Their references are replaced.
        frames: ``[1, 3, H, W]`` Y, Cb, Cr in [0, 1] (BT.709, full range), all of one size, any size.
        qp: 0 to 63, of I frames.
        inter_qp: 0 to 63, of P frames before they are shifted; None: `qp`.
        intra_period: frames from one I frame to the next; 0: only the first frame is one.
        reset_interval: frames from one reset of the feature to the next, which falls on the second one; 0: none.

    Yields:
        The bytes of each frame, with the parameters that it needs; put together they are the stream.

    Raises:
        UsageError: frames of different sizes, or one that cannot be coded; the message names the frame.
    """
    writer, size, last_qp = NalWriter("rt"), None, qp
    for index, x in enumerate(frames):
        height, width = x.shape[2:]
        if size not in (None, (height, width)):
            raise UsageError(f"frame {index}: {width} x {height} after {size[1]} x {size[0]} pixels")
        if size is None:
            size = height, width
            two = height * width > _TWO_STREAMS_ABOVE
            codec.intra.set_use_two_entropy_coders(two)
            codec.inter.set_use_two_entropy_coders(two)
            codec.inter.set_curr_poc(0)
        padded = F.pad(x, (0, -width % _STRIDE, 0, -height % _STRIDE), mode="replicate")
        intra = index == 0 or intra_period > 0 and index % intra_period == 0
        reset = not intra and reset_interval > 0 and index % reset_interval == 1
        try:
            if intra:
                used_qp = qp
                coded = codec.intra.compress(padded, qp)
                codec.inter.clear_dpb()
                codec.inter.add_ref_frame(None, coded["x_hat"])
            else:
                if reset:
                    codec.inter.prepare_feature_adaptor_i(last_qp)
                shift = SHIFT_OF_FRAME[index % len(SHIFT_OF_FRAME)]
                used_qp = last_qp = codec.inter.shift_qp(qp if inter_qp is None else inter_qp, shift)
                coded = codec.inter.compress(padded, used_qp)
        except UsageError as error:
            raise UsageError(f"frame {index}: {error}") from error
        payload = coded["bit_stream"]
        yield writer.write(NalFrame(intra, height, width, used_qp, payload, streams=1 + two, reset=reset))


@torch.no_grad()
def read_units(codec: Any, source: BinaryIO, max_pixels: int = DEFAULT_MAX_PIXELS) -> Iterator[Tensor]:
    """Decodes a clip, one frame at a time; the inverse of `write_units`.

    Args:
        codec: as for `write_units`, with the weights and the skip threshold that wrote the stream.
        source: binary file or pipe.
        max_pixels: larger pictures are refused.

    Yields:
        ``[1, 3, H, W]``, as they were given to `write_units`.

    Raises:
        BitstreamError: the stream is damaged, or its arithmetic, weights or threshold are not the codec's and that came
            to light. The message names the frame.
        ResourceLimitError: a picture of more than `max_pixels`.
    """
    codec.inter.set_curr_poc(0)
    size = None
    for index, frame in enumerate(numbered(iter(NalReader("rt", source, max_pixels)))):
        given = {
            "height": frame.height,
            "width": frame.width,
            "ec_part": frame.streams - 1,
            "use_ada_i": int(frame.reset),
        }
        if not frame.intra and size != (frame.height, frame.width):
            raise BitstreamError(f"frame {index}: a P frame without a frame of its size before it")
        size = frame.height, frame.width
        try:
            if frame.intra:
                x_hat = codec.intra.decompress(frame.payload, given, frame.qp)["x_hat"]
                codec.inter.clear_dpb()
                codec.inter.add_ref_frame(None, x_hat)
            else:
                if frame.reset:
                    codec.inter.reset_ref_feature()
                x_hat = codec.inter.decompress(frame.payload, given, frame.qp)["x_hat"]
        except (BitstreamError, UsageError) as error:  # the latter: the frame before it left no finite feature
            raise BitstreamError(f"frame {index}: {error}") from error
        if not x_hat.isfinite().all():
            raise BitstreamError(f"frame {index} holds values that are not finite: its networks ran over")
        yield x_hat[:, :, : frame.height, : frame.width]
