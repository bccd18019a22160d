"""Small codecs of every supported family, for graph and compaction tests."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from sparsecodec._compat import import_compressai
from sparsecodec.models.evc import EVC
from sparsecodec.sparsity import ChannelGraph, count, trace_model
from sparsecodec.sparsity.plans import Cost, Plan, mac_cost
from sparsecodec.sparsity.ranking import Ranking, rank_channels
from sparsecodec.sparsity.search import search
from sparsecodec.sparsity.sensitivity import Sensitivity, measure_sensitivity

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


class TwoParts(nn.Module):
    """Two parts after each other; the first has a residual branch, a chain, and an output that is locked."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Sequential(Widening(3, width), nn.LeakyReLU(), nn.Conv2d(width, 5, 3, padding=1))
        self.second = nn.Sequential(nn.Conv2d(5, 24, 1), nn.ReLU(), nn.Conv2d(24, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Widening(nn.Module):
    def __init__(self, c_in: int, width: int) -> None:
        super().__init__()
        self.adaptor = nn.Conv2d(c_in, width, 1)
        self.inner = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.outer = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.adaptor(x)
        return x + self.outer(torch.relu(self.inner(x)))


@dataclass
class SearchCase:
    """A small model whose loss is its distance to what it gives when dense, and what a search needs."""

    model: nn.Module
    graph: ChannelGraph
    x: Tensor
    criterion: str = "energy"
    calls: int = 0
    shapes: ClassVar = {"first": (1, 3, 9, 11), "second": (1, 5, 9, 11)}

    def __post_init__(self) -> None:
        self.dense = copy.deepcopy(self.model)

    def loss(self, model: nn.Module) -> float:
        self.calls += 1
        with torch.no_grad():
            return 0.01 + (model(self.x) - self.dense(self.x)).square().mean().item()

    def wider(self, width: int) -> nn.Module:
        """The same architecture at another width."""
        return TwoParts(width)

    @property
    def cost(self) -> Cost:
        return mac_cost(count(self.model, self.shapes), self.graph)

    @property
    def ranking(self) -> Ranking:
        return rank_channels(self.model, self.graph, self.criterion, lambda: self.model(self.x))

    def measured(self, **changes) -> Sensitivity:
        return measure_sensitivity(self.model, self.graph, self.ranking, self.loss, **{"round_to": 4, **changes})

    def plan(self, measured: Sensitivity, reduction: float, **changes) -> Plan:
        changes = {"rule": "threshold", **changes}
        return search(self.model, self.graph, self.ranking, measured, self.loss, self.cost, reduction, **changes)


@pytest.fixture
def case() -> SearchCase:
    torch.manual_seed(0)
    model = TwoParts().eval()
    return SearchCase(model, trace_model(model, ["first", "second"]), torch.rand(2, 3, 9, 11))
