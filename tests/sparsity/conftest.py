"""Small codecs of every supported family, for graph and compaction tests."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from sparsecodec._compat import import_compressai
from sparsecodec.models.evc import EVC

# Spatial sizes per transform input: odd ones, one of them 1 wide. Analysis needs enough pixels for its strides.
LATENT = (5, 7)
PICTURE = (37, 51)


@dataclass(frozen=True)
class Codec:
    """A model in eval mode, its transforms, and an input shape for each of them."""

    model: nn.Module
    shapes: dict[str, tuple[int, int, int, int]]

    @property
    def transforms(self) -> list[str]:
        return list(self.shapes)


def _randomise(model: nn.Module) -> nn.Module:
    """Biases and GDN away from their initial zeros and ones, so that nothing is exact by chance."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "beta", "gamma")):
                parameter += 0.05 * torch.rand(parameter.shape, generator=generator)
    return model.eval()


def _compressai(name: str, n: int, m: int | None) -> Codec:
    from_n_m = {
        "bmshj2018-factorized": "FactorizedPrior",
        "bmshj2018-hyperprior": "ScaleHyperprior",
        "mbt2018-mean": "MeanScaleHyperprior",
        "mbt2018": "JointAutoregressiveHierarchicalPriors",
        "cheng2020-anchor": "Cheng2020Anchor",
        "cheng2020-attn": "Cheng2020Attention",
    }
    models = import_compressai().models
    torch.manual_seed(3)
    model = getattr(models, from_n_m[name])(*([n] if m is None else [n, m]))
    m = n if m is None else m
    shapes = {"g_a": (2, 3, *PICTURE), "g_s": (2, m, *LATENT)}
    if hasattr(model, "h_a"):
        shapes |= {"h_a": (2, m, 17, 23), "h_s": (2, n, *LATENT)}
    if hasattr(model, "entropy_parameters"):
        shapes |= {
            "entropy_parameters": (2, model.entropy_parameters[0].in_channels, *LATENT),
            "context_prediction": (2, m, *LATENT),
        }
    return Codec(_randomise(model), shapes)


def _evc() -> Codec:
    torch.manual_seed(3)
    n = 96
    shapes = {
        "enc": (2, 3, *PICTURE),
        "dec": (2, n, *LATENT),
        "hyper_enc": (2, n, 17, 23),
        "hyper_dec": (2, n, 1, 3),
        "y_prior_fusion": (2, n, *LATENT),
        "y_spatial_prior": (2, 4 * n, *LATENT),
    }
    return Codec(_randomise(EVC("tiny", "tiny")), shapes)


CODECS = {
    "evc-tiny": _evc,
    "bmshj2018-factorized": lambda: _compressai("bmshj2018-factorized", 12, 16),
    "bmshj2018-hyperprior": lambda: _compressai("bmshj2018-hyperprior", 12, 16),
    "mbt2018-mean": lambda: _compressai("mbt2018-mean", 12, 16),
    "mbt2018": lambda: _compressai("mbt2018", 12, 16),
    "cheng2020-anchor": lambda: _compressai("cheng2020-anchor", 16, None),
    "cheng2020-attn": lambda: _compressai("cheng2020-attn", 16, None),
}


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]()


@pytest.fixture
def evc() -> Codec:
    return _evc()
