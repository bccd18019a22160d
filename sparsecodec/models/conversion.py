"""Published checkpoints as codecs of ours, recognised by the keys and shapes of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from sparsecodec._compat import import_compressai
from sparsecodec.errors import UsageError
from sparsecodec.models.checkpoint import read_checkpoint
from sparsecodec.models.dcvc import DCVC
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo
from sparsecodec.models.dcvc_rt_image import DCVCRTImage
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo
from sparsecodec.models.description import COMPRESSAI
from sparsecodec.models.foreign import FAMILIES, recognised
from sparsecodec.models.video import VideoCodec

PAIRS = {DCVCRTVideo: DCVCRTImage, DCVCHEMVideo: DCVCHEMImage}  # inter model -> its intra model
ELSEWHERE = {  # families without models of ours -> a key that only they have
    "DCVC-DC (image)": "q_basic_enc",
    "DCVC-DC (video)": "mv_y_q_basic_enc",
    "DCVC-FM (image)": "refine.0.down1.weight",
    "DCVC-FM (video)": "mv_y_q_enc",
    "DCVC-UF (image)": "q_scale_y_enc",
    "DCVC-UF (LD)": "recon_head.head.weight",
    "DCVC-UF (HTS)": "recon_head.conv2.0.3.bias",
    "DCVC-UF (HTL)": "recon_head.conv.0.5.bias",
}


def from_checkpoints(paths: Sequence[str | Path]) -> nn.Module:
    """The codec in one checkpoint, or the video codec of an intra and an inter one, in any order.

    Args:
        paths: of files that ``torch.save`` wrote; nothing but tensors and containers is unpickled.

    Returns:
        In eval mode, float32. CompressAI's codecs with their coding tables.

    Raises:
        UsageError: a file holds no checkpoint of a family that has a model here, or the two do not belong together.
    """
    if len(paths) not in (1, 2):
        raise UsageError(f"{len(paths)} checkpoints (needs one, or an intra and an inter one)")
    models = [from_checkpoint(path) for path in paths]
    if len(models) == 1:
        return models[0]
    inter = [model for model in models if isinstance(model, DCVCRTVideo | DCVCHEMVideo | DCVC)]
    intra = [model for model in models if model not in inter]
    if len(inter) != 1:
        raise UsageError(f"{' and '.join(map(str, paths))}: {len(inter)} of them code P frames (needs one of two)")
    needed = PAIRS.get(type(inter[0]))
    found = type(intra[0])
    if (needed and found is not needed) or (not needed and found in PAIRS.values()):
        wanted = needed.family if needed else "a CompressAI codec or EVC"
        raise UsageError(f"P frames of {type(inter[0]).family} need I frames of {wanted}, these are {found.__name__}'s")
    return VideoCodec(intra[0], inter[0])


def from_checkpoint(path: str | Path) -> nn.Module:
    """The model in one file; see `from_checkpoints`."""
    state = {key: value for key, value in read_checkpoint(path).items() if isinstance(value, torch.Tensor)}
    try:
        model = _ours(state) or _compressai(state)
    except KeyError as error:
        raise UsageError(f"{path} lacks the key {error}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if model is not None:
        return model.float().eval()
    family = next((name for name, key in ELSEWHERE.items() if key in state), None)
    if family is not None:
        raise UsageError(
            f"{path} is of {family}, which has no model here: give compile_codec an object of its own class "
            "(docs/foreign.md)"
        )
    known = ", ".join((*(cls.family for cls in FAMILIES), "CompressAI"))
    raise UsageError(f"{path} with {len(state)} tensors ({', '.join(list(state)[:3])}, ...) is of none of {known}")


def _ours(state: Mapping[str, torch.Tensor]) -> nn.Module | None:
    family = recognised(state)
    return None if family is None else family.from_state_dict(state)


def _compressai(state: Mapping[str, torch.Tensor]) -> nn.Module | None:
    """CompressAI's codecs, by which of its classes takes the weights."""
    if not any(key.startswith("entropy_bottleneck.") for key in state):
        return None
    compressai = import_compressai()
    renamed = compressai.zoo.load_state_dict(state)  # keys of old releases
    for name in COMPRESSAI:
        try:
            model = getattr(compressai.models, name).from_state_dict(renamed)
        except (KeyError, RuntimeError, ValueError):
            continue
        model.update(force=True)
        return model
    return None
