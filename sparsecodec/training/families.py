"""What training has to know of a family of codecs: its rates, its transforms, how a forward is called."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.models.description import COMPRESSAI
from sparsecodec.models.evc import EVC, LAMBDAS
from sparsecodec.models.scalable import ScalableEVC

Shape = tuple[int, int, int, int]
PARTS = ("decoder", "encoder", "all")


class Family(Protocol):
    """One family of codecs.

    Attributes:
        lambdas: of the rates that one model has; None where a model has a single rate, whose lambda the recipe names.
        stride: pictures are cropped or padded to multiples of it.
    """

    lambdas: tuple[float, ...] | None
    stride: int

    def forward(self, model: nn.Module, x: Tensor, rate: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """One pass in the mode that the model is in.

        Args:
            model: of this family.
            x: ``[N, 3, H, W]`` float32 in [0, 1].
            rate: index into `lambdas` for all pictures; None draws one for each.

        Returns:
            ``x_hat`` ``[N, 3, H, W]`` and ``bpp`` ``[N]``, both float32, and the rates ``[N]`` int64.
        """
        ...

    def transforms(self, model: nn.Module, part: str, side: int = 256) -> dict[str, Shape]:
        """Path -> input shape of each transform that decoding ("decoder") or only encoding ("encoder") runs, or "all".

        The shapes are those of a picture of `side` x `side`.
        """
        ...


class _EVC:
    lambdas = LAMBDAS
    stride = 64

    def forward(self, model: nn.Module, x: Tensor, rate: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        rates = _rates(len(x), len(LAMBDAS), rate, x.device)
        out = model(x, model.q_scale[rates])
        return out, rates

    def transforms(self, model: nn.Module, part: str, side: int = 256) -> dict[str, Shape]:
        c, h = model.latent_channels, side // 16
        decoder = {
            "hyper_dec": (1, c, h // 4, h // 4),
            "y_prior_fusion": (1, c, h, h),
            "y_spatial_prior": (1, 4 * c, h, h),
            "dec": (1, c, h, h),
        }
        encoders = [f"encs.{i}" for i in range(len(model.encs))] if isinstance(model, ScalableEVC) else ["enc"]
        encoder: dict[str, Shape] = {**dict.fromkeys(encoders, (1, 3, side, side)), "hyper_enc": (1, c, h, h)}
        return _part(part, decoder, encoder)


class _CompressAI:
    lambdas = None
    stride = 64

    def forward(self, model: nn.Module, x: Tensor, rate: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        out = model(x)
        pixels = x.shape[-2] * x.shape[-1]
        bits = [-likelihoods.float().log2().sum((1, 2, 3)) for likelihoods in out["likelihoods"].values()]
        rates = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return {**out, "x_hat": out["x_hat"].float(), "bpp": sum(bits) / pixels}, rates

    def transforms(self, model: nn.Module, part: str, side: int = 256) -> dict[str, Shape]:
        h = side // 16
        m = next(layer for layer in model.g_s.modules() if hasattr(layer, "in_channels")).in_channels
        decoder: dict[str, Shape] = {"g_s": (1, m, h, h)}
        encoder: dict[str, Shape] = {"g_a": (1, 3, side, side)}
        if hasattr(model, "h_s"):
            n = next(layer for layer in model.h_s.modules() if hasattr(layer, "in_channels")).in_channels
            decoder = {"h_s": (1, n, h // 4, h // 4), **decoder}
            encoder["h_a"] = (1, m, h, h)
        if hasattr(model, "entropy_parameters"):
            parameters = (1, model.entropy_parameters[0].in_channels, h, h)
            decoder = {"context_prediction": (1, m, h, h), "entropy_parameters": parameters, **decoder}
        return _part(part, decoder, encoder)


def family_of(model: nn.Module) -> Family:
    """The family that `model` belongs to.

    Raises:
        UsageError: training knows nothing of it.
    """
    if isinstance(model, EVC):
        return _EVC()
    name = type(model).__name__
    if name in COMPRESSAI and type(model).__module__.startswith("compressai."):
        return _CompressAI()
    raise UsageError(f"{name} is no codec that can be trained here (EVC, or CompressAI's {', '.join(COMPRESSAI)})")


def lambdas_for(model: nn.Module, given: tuple[float, ...] | None) -> tuple[float, ...]:
    """The lambda of each rate of `model`: `given`, or else the family's own.

    Raises:
        UsageError: another number than the model has rates, none for a model that has none of its own, or not positive.
    """
    own = family_of(model).lambdas
    if given is None and own is None:
        raise UsageError(f"{type(model).__name__} has one rate: the recipe needs lambdas = [value], such as [0.013]")
    lambdas = own if given is None else tuple(given)
    if len(lambdas) != len(own or (0,)):
        raise UsageError(f"lambdas={list(lambdas)} ({type(model).__name__} has {len(own or (0,))} rates)")
    if not all(math.isfinite(value) and value > 0 for value in lambdas):
        raise UsageError(f"lambdas={list(lambdas)} (needs positive numbers)")
    return lambdas


def rate_distortion(out: dict[str, Tensor], x: Tensor, lambdas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """R + lambda * 255^2 * MSE, the mean over the batch.

    Args:
        out: ``x_hat`` ``[N, 3, H, W]`` and ``bpp`` ``[N]``.
        x: ``[N, 3, H, W]`` in [0, 1].
        lambdas: ``[N]``.

    Returns:
        loss, mean bits per pixel, mean squared error in [0, 1]^2; scalars.
    """
    mse = (out["x_hat"] - x).square().mean((1, 2, 3))
    return (out["bpp"] + lambdas * 255**2 * mse).mean(), out["bpp"].mean().detach(), mse.mean().detach()


@torch.no_grad()
def calibration_loss(model: nn.Module, x: Tensor, lambdas: tuple[float, ...] | None = None) -> float:
    """The rate-distortion loss that coding `x` would have: rounded latents, the mean over all rates of the model.

    Args:
        model: of any family; its training mode is restored.
        x: ``[N, 3, H, W]`` float32 in [0, 1].
        lambdas: as for `lambdas_for`.
    """
    lambdas = lambdas_for(model, lambdas)
    family, training = family_of(model), model.training
    model.eval()
    try:
        total = 0.0
        for rate, value in enumerate(lambdas):
            out, _ = family.forward(model, x, rate)
            total += rate_distortion(out, x, torch.full((len(x),), value, device=x.device))[0].item()
        return total / len(lambdas)
    finally:
        model.train(training)


def _rates(n: int, count: int, rate: int | None, device: torch.device) -> Tensor:
    if rate is None:
        return torch.randint(count, (n,), device=device)
    return torch.full((n,), rate, dtype=torch.int64, device=device)


def _part(part: str, decoder: dict[str, Shape], encoder: dict[str, Shape]) -> dict[str, Shape]:
    if part not in PARTS:
        raise UsageError(f"transforms={part!r} (needs one of {', '.join(PARTS)})")
    return {"decoder": decoder, "encoder": encoder, "all": {**encoder, **decoder}}[part]
