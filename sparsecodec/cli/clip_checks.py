"""What ``info`` and ``verify`` say of a coded clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sparsecodec.cli.clip_io import opened_stream
from sparsecodec.cli.clips import opened_reader
from sparsecodec.cli.files import Codecs
from sparsecodec.entropy import DROP, VideoReader, observing
from sparsecodec.errors import BitstreamError
from sparsecodec.runtime.numerics import described
from sparsecodec.zoo import find

Observer = Callable[[np.ndarray], None]


def describe_clip(path: str) -> tuple[dict[str, Any], BitstreamError | None]:
    """What header and frames of an ``.spv`` file say; and what is wrong with it, if its frames do not go to the end.

    Raises:
        BitstreamError: not such a file, or its header is damaged.
    """
    sizes: dict[bool, list[int]] = {True: [], False: []}
    qps: list[int] = []
    drops = 0
    problem = None
    with opened_stream(path) as source:
        reader = VideoReader(source, max_pixels=1 << 62)  # nothing is allocated for a frame
        try:
            while (frame := reader.read()) is not None:
                sizes[frame.intra].append(len(frame.payload))
                qps.append(frame.qp & ~DROP)
                drops += bool(frame.qp & DROP)
        except BitstreamError as error:
            problem = error
    header, form, frames, total = reader.header, reader.header.form, len(qps), reader.position
    return {
        "width": form.width,
        "height": form.height,
        "fps": form.fps,
        "frames": frames,
        "complete": problem is None,
        "intra_frames": len(sizes[True]),
        "seconds": frames / form.fps,
        "depth": form.depth,
        "matrix": form.matrix,
        "range": "full" if form.full_range else "limited",
        "chroma_siting": form.siting,
        "pixel_aspect": f"{form.aspect[0]}:{form.aspect[1]}",
        "qp": [min(qps), max(qps)] if qps else None,
        "memory_drops": drops,
        "reconstruction": "exact" if header.exact else "float",
        "model_hash": header.model_hash.hex(),
        "model": find(header.model_hash),
        "numerics": f"{header.numerics:#06x}",
        "numerics_name": described(header.numerics),
        "intra_bytes": sum(sizes[True]),
        "inter_bytes": sum(sizes[False]),
        "bytes": total,
        "bpp": 8 * total / (frames * form.width * form.height) if frames else None,
        "kbit_s": 8e-3 * total * form.fps / frames if frames else None,
    }, problem


def check_clip(path: str | Path, codecs: Codecs | None, max_pixels: int, observer: Observer) -> None:
    """Verifies every checksum of an ``.spv`` file; with `codecs` also decodes it.

    Args:
        observer: is given all decoded symbols.

    Raises:
        BitstreamError: it is damaged or cut off; the message names the frame.
        ModelMismatchError: it is of another model, or decoding does not end in the encoder's states.
    """
    with opened_stream(path) as source:
        if codecs is None:
            reader = VideoReader(source, max_pixels)
            while reader.read() is not None:
                pass
            return
        reader, codec = opened_reader(source, codecs, path, max_pixels)
        with observing(observer):
            for _ in codec.decoder(reader):
                pass
