"""`compile_codec`: from a codec to the same codec on fused kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.quant import is_portable, portable
from sparsecodec.runtime.adapters import ADAPTERS, PORTABLE_ADAPTERS
from sparsecodec.runtime.codec import CompiledCodec
from sparsecodec.runtime.numerics import default_dtype

STREAMS = {"native": ADAPTERS, "portable": PORTABLE_ADAPTERS}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def compile_codec(
    model: nn.Module,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    stream: str = "native",
    sample: Tensor | None = None,
    strict: bool = True,
    calibration: Tensor | Sequence[Tensor] | None = None,
) -> CompiledCodec:
    """Compiles a codec, dense or compact, for inference.

    Args:
        model: ours or CompressAI's; recognised by structure. It is copied, never modified.
        device: where to run.
        dtype: of the synthesis and analysis transforms; the entropy networks are always float32. Default: bfloat16
            where the machine has instructions for it, else float32.
        stream: ``"native"``: the family's own strings, and our container around the same coder. ``"portable"``: only
            ``encode`` and ``decode``, whose symbols are the same on every device; not for autoregressive codecs.
        sample: ``[1, 3, H, W]`` picture to choose kernels and plan buffers with; default is a grey one of 64 x 64.
        strict: raise `NoBackendError` if a layer with a rule finds no kernel although the device has kernels.
        calibration: pictures for a portable stream of a model that is not portable yet (`quant.portable`, which also
            has other precisions). Files then need the very integers found here: keep ``codec.portable_model``.

    Returns:
        A `CompiledCodec` that answers the family's calls, and ``encode``, ``decode`` and ``report``.

    Raises:
        UsageError: an argument is wrong, or no family matches the model.
        GraphError: a transform cannot be traced.
        NoBackendError: see `strict`.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__} (needs an nn.Module)")
    if stream not in STREAMS:
        raise UsageError(f"stream={stream!r} (one of {', '.join(STREAMS)})")
    if stream == "native" and calibration is not None:
        raise UsageError("calibration is for stream='portable'")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype={dtype} (one of {', '.join(map(str, DTYPES))})")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={device}: torch sees no CUDA device")
    if stream == "portable" and not is_portable(model):
        model = portable(model, calibration)
    for adapter in STREAMS[stream]:
        if adapter.matches(model):
            codec = adapter(model, device, dtype or default_dtype(device), strict)
            codec.warm_up(torch.full((1, 3, 64, 64), 0.5) if sample is None else sample)
            return codec
    known = ", ".join(adapter.__name__ for adapter in STREAMS[stream])
    raise UsageError(f"{type(model).__name__} has the structure of no known family ({known})")
