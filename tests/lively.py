"""Makes untrained codecs worth a test: features move and latents take several symbols."""

from __future__ import annotations

import torch
from torch import nn

from sparsecodec.models import DCVC, FVC


def _steeper(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight *= 1.5


@torch.no_grad()
def lively_dcvc(model: DCVC) -> DCVC:
    """The model itself; its scales suit its latents."""
    _steeper(model)
    for parameters in (model.entropy_parameters, model.entropy_parameters_mv):
        parameters[-1].bias[len(parameters[-1].bias) // 2 :] += 1
    for encoder in (model.priorEncoder, model.mvpriorEncoder):
        encoder[-1].weight *= 20
    return model


@torch.no_grad()
def lively_fvc(model: FVC) -> FVC:
    """The model itself; its offsets are larger than a pixel."""
    _steeper(model)
    for name, module in model.named_modules():
        if name.endswith("offsets"):
            module.weight.normal_(0, 0.1)
    for codec in (model.motion_codec, model.residual_codec):
        codec.hyper_synthesis[-1].bias[codec.latent_channels :] += 1
        codec.hyper_analysis[-1].weight *= 20
    return model
