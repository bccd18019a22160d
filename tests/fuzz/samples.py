"""The picture codecs that are fuzzed, and good files of theirs."""

from __future__ import annotations

from functools import cache

import torch

from sparsecodec._compat import import_compressai
from sparsecodec.models import create
from sparsecodec.quant import portable
from sparsecodec.runtime import CompiledCodec, compile_codec

MAX_PIXELS = 1 << 16


@cache
def codec(stream: str) -> CompiledCodec:
    """Untrained, small, the same in every run on one machine. autoregressive: CompressAI's mbt2018."""
    torch.manual_seed(0)
    if stream == "autoregressive":
        model = import_compressai().models.JointAutoregressiveHierarchicalPriors(8, 12).eval()
        model.update()
        return compile_codec(model)
    model = create("evc-nano").eval()
    picture = torch.rand(1, 3, 128, 128)
    return compile_codec(portable(model, picture) if stream == "portable" else model, stream=stream)


@cache
def files(stream: str) -> list[bytes]:
    rng = torch.Generator().manual_seed(1)
    encode = codec(stream).encode
    sizes = ((1, 1), (64, 64), (33, 100))
    qualities = (None,) * 3 if stream == "autoregressive" else (0, 50, 100)
    plain = [
        encode(torch.rand(1, 3, *size, generator=rng), quality=q) for size, q in zip(sizes, qualities, strict=True)
    ]
    return [*plain, encode(torch.rand(1, 3, 64, 130, generator=rng), tile=64, overlap=16)]
