"""`compile_codec`: from a codec to the same codec on fused kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.models.foreign import from_foreign, is_foreign
from sparsecodec.models.video import VideoCodec
from sparsecodec.quant import is_portable, portable
from sparsecodec.runtime.adapters import ADAPTERS, FOREIGN_OBJECTS, PORTABLE_ADAPTERS, VIDEO_ADAPTERS
from sparsecodec.runtime.codec import CompiledCodec
from sparsecodec.runtime.foreign_object import ForeignCodec, compile_object
from sparsecodec.runtime.numerics import check_kernels, default_dtype
from sparsecodec.runtime.settled import neutral
from sparsecodec.runtime.video import CompiledVideo

STREAMS = {"native": ADAPTERS, "portable": PORTABLE_ADAPTERS}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@neutral()
def compile_codec(
    model: nn.Module,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    stream: str = "native",
    sample: Tensor | None = None,
    strict: bool = True,
    calibration: Tensor | Sequence[Tensor] | None = None,
    original: bool = False,
) -> CompiledCodec | CompiledVideo | nn.Module:
    """Compiles a codec, dense or compact, for inference.

    Args:
        model: ours, CompressAI's, or an object of a published software, such as DCVC's; recognised by structure and
            state dict, never by where it comes from. It is copied, never modified.
        device: where to run.
        dtype: of the synthesis and analysis transforms, and of the loop of a video codec; the entropy networks are
            always float32. Default: bfloat16 where the machine has instructions for it, else float32; of DCVC-DC's,
            -FM's and -UF's objects, whose payloads cannot say what they were computed with, float32.
        stream: ``"native"``: the family's own strings, and our container around the same coder. ``"portable"``: only
            ``encode`` and ``decode``, whose symbols are the same on every device; not for CompressAI's codecs with
            a context model, or with a step of the hyper-latent that follows from the rate (``vr_entbttlnck``).
        sample: ``[1, 3, H, W]`` picture to choose kernels and plan buffers with; default is a grey one of 64 x 64.
        strict: raise `NoBackendError` if a layer with a rule finds no kernel although the device has kernels.
        calibration: pictures for a portable stream of a model that is not portable yet (`quant.portable`, which also
            has other precisions). Files then need the very integers found here: keep ``codec.portable_model``.
        original: for video and foreign objects: the model's own layers in float32, as the published software runs
            them, for its streams.
            What is decoded feeds the next frame, so a compiled loop cannot open those.

    Returns:
        A `CompiledCodec` that answers the family's calls, and ``encode``, ``decode`` and ``report``; for a `VideoCodec`
        a `CompiledVideo`; for one model of a video codec one that answers the same calls as the model itself, and
        ``report``. Foreign objects of a family that we have are such models first (`from_foreign`); others (DCVC-DC,
        DCVC-FM, DCVC-UF) stay what they are, with compiled networks (`compile_object`).

    Raises:
        UsageError: an argument is wrong, no family matches the model, or it has forward hooks, which would not run.
        GraphError: a transform cannot be traced.
        NoBackendError: see `strict`; such as for float16 on a CPU, whose kernels compute in float32 and bfloat16.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__} (needs an nn.Module)")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps: its keys would be others
    _check_copyable(model)
    if stream not in STREAMS:
        raise UsageError(f"stream={stream!r} (one of {', '.join(STREAMS)})")
    if stream == "native" and calibration is not None:
        raise UsageError("calibration is for stream='portable'")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype={dtype!r} (one of {', '.join(map(str, DTYPES))})")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device={device!r} (needs one that torch knows, such as 'cpu' or 'cuda')") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device={device}: no kernels for it (needs 'cpu' or 'cuda')")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={device}: torch sees no CUDA device")
    sample = torch.full((1, 3, 64, 64), 0.5, dtype=torch.float32) if sample is None else sample
    if is_foreign(model):
        model = from_foreign(model)
    settings = (device, dtype or default_dtype(device), strict)
    for video in VIDEO_ADAPTERS:
        if stream == "native" and video.matches(model):
            if strict and not original:  # one model alone is not warmed up, where a missing kernel would be noticed
                check_kernels(settings[1], device)
            if not isinstance(model, VideoCodec):
                return video.half(model, *settings, original)
            codec = video(model, *settings, original)
            codec.warm_up(sample)
            return codec
    for kind in FOREIGN_OBJECTS:
        if stream == "native" and kind.matches(model):
            if strict and dtype:
                check_kernels(dtype, device)
            return compile_object(model, device, dtype, kind, original)
    if original:
        raise UsageError("original=True is for video codecs: compress and decompress of an image codec always are that")
    if stream == "portable" and calibration is not None and is_portable(model):
        raise UsageError(f"calibration: this {type(model).__name__} is on integers already")
    if stream == "portable" and not is_portable(model):
        model = portable(model, calibration)
    for adapter in STREAMS[stream]:
        if adapter.matches(model):
            codec = adapter(model, *settings)
            codec.warm_up(sample)
            return codec
    if stream == "native" and ForeignCodec.matches(model):
        return compile_object(model, device, dtype)
    adapters = (*STREAMS[stream], *VIDEO_ADAPTERS, *(FOREIGN_OBJECTS if stream == "native" else ()))
    known = ", ".join(adapter.__name__ for adapter in adapters)
    raise UsageError(f"{type(model).__name__} has the structure of no known family ({known})")


def _check_copyable(model: nn.Module) -> None:
    """Raises a UsageError for a model of which a copy of the weights would compute something else."""
    kind = type(model).__name__
    nowhere = [key for key, value in model.state_dict().items() if isinstance(value, Tensor) and value.is_meta]
    if nowhere:
        raise UsageError(f"{kind}: {nowhere[0]} is on the meta device (needs values)")
    for path, module in model.named_modules():
        made = [key for key, value in vars(module).items() if isinstance(value, Tensor) and value.grad_fn is not None]
        if made:
            raise UsageError(
                f"{kind}: {f'{path}.{made[0]}'.lstrip('.')} is no weight but was computed with gradients, and cannot "
                "be copied (torch.nn.utils.prune.remove and remove_weight_norm make it a weight)"
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise UsageError(
                f"{kind}: {path or 'the model'} has a forward hook, which no compiled network runs (remove it: its "
                "handle's remove(), or torch.nn.utils.remove_spectral_norm)"
            )
