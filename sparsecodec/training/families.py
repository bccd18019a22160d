"""What training has to know of a family of codecs: its rates, its transforms, how a forward is called."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.models.description import COMPRESSAI
from sparsecodec.models.evc import EVC, LAMBDAS
from sparsecodec.models.scalable import ScalableEVC
from sparsecodec.models.video import VideoCodec
from sparsecodec.training.video import Image, Inter, Shape, draw_rates, draw_resets, roll_out
from sparsecodec.training.video_families import IMAGES, INTERS, image_of, inter_of

PARTS = ("decoder", "encoder", "all")
CALIBRATION_RATES = 4


class Family(Protocol):
    """One family of codecs.

    Attributes:
        lambdas: of the rates that one model has; None where a model has a single rate, whose lambda the recipe names.
        stride: the sides of pictures and crops are multiples of it.
        entropy: paths of the decoder's transforms that choose entropy tables: what they give are scales and means of
            latents, or what networks of this list alone read. Those that make contexts for synthesis, too, are none.
    """

    lambdas: tuple[float, ...] | None
    stride: int
    entropy: tuple[str, ...]

    def forward(self, model: nn.Module, x: Tensor, rate: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """One pass in the mode that the model is in.

        Args:
            model: of this family.
            x: ``[N, 3, H, W]`` float32 R'G'B' in [0, 1]; of a video codec also ``[N, T, 3, H, W]``, T frames each.
            rate: index into `lambdas` for all items; None draws one for each.

        Returns:
            ``x_hat`` in the shape of `x` and ``bpp`` ``[N]``, both float32, and the rates ``[N]`` int64. A codec whose
            colours are not those of `x`, or whose frames do not weigh alike, adds what `rate_distortion` is to take:
            ``distortion`` ``[N]``, and ``mse`` ``[N]`` without the weights of frames. All but CompressAI's add
            ``latents``: by name, a `Latent` each.
        """
        ...

    def transforms(self, model: nn.Module, part: str, side: int = 256) -> dict[str, Shape | tuple[Shape, ...]]:
        """Path -> input shape of each transform that decoding ("decoder") or only encoding ("encoder") runs, or "all".

        The shapes are those of a picture of `side` x `side`; a transform of several inputs has a tuple of shapes.
        """
        ...


class _EVC:
    lambdas = LAMBDAS
    stride = 64
    entropy = ("hyper_dec", "y_prior_fusion", "y_spatial_prior")

    def forward(self, model: nn.Module, x: Tensor, rate: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        rates = draw_rates(len(x), len(LAMBDAS), rate, x.device)
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


class _Intra:
    """An intra model of a video codec, alone."""

    def __init__(self, image: Image) -> None:
        self.lambdas, self.stride, self.entropy = image.lambdas, image.stride, image.entropy
        self.forward, self._transforms = image.forward, image.transforms

    def transforms(self, model: nn.Module, part: str, side: int = 256) -> dict[str, Shape | tuple[Shape, ...]]:
        return _part(part, *self._transforms(model, side))


class _Clips:
    """An intra and an inter model, or an inter model that starts from the first frame itself.

    Transforms of both count, as for one intra and one predicted frame. An inter model of one rate is trained behind all
    rates of its intra model, and measured behind the middle one.
    """

    def __init__(self, intra: Family | None, inter: Inter) -> None:
        self.intra, self.inter = intra, inter
        self._intra_rates = None if intra is None else len(intra.lambdas or (0,))
        if self._intra_rates and inter.lambdas and self._intra_rates != len(inter.lambdas):
            raise UsageError(f"an intra model of {self._intra_rates} rates and an inter model of {len(inter.lambdas)}")
        self.lambdas, self.stride = inter.lambdas, max(inter.stride, intra.stride if intra else 1)
        self.entropy = inter.entropy
        if intra is not None:
            parts = ("inter", inter), ("intra", intra)
            self.entropy = tuple(f"{name}.{path}" for name, part in parts for path in part.entropy)

    def forward(self, model: nn.Module, x: Tensor, rate: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        clips = x if x.ndim == 5 else x[:, None]
        resets = draw_resets(self.inter, model if self.intra is None else model.inter, clips.shape[1])
        if self.intra is None:
            rates = draw_rates(len(x), len(self.lambdas or (0,)), rate, x.device)
            zero = x.new_zeros(len(x))
            first, follow = {"x_hat": self.inter.colour(clips[:, 0]), "bpp": zero, "mse": zero}, model
        else:
            if self.lambdas is None and rate is not None:
                rate = self._intra_rates // 2
            first, rates = self.intra.forward(model.intra, clips[:, 0], rate)
            rates = torch.zeros_like(rates) if self.lambdas is None else rates
            if "mse" not in first:
                first = {**first, "mse": (first["x_hat"] - clips[:, 0]).square().mean((1, 2, 3))}
            follow = model.inter
        out = roll_out(self.inter, follow, clips, first, rates, resets)
        latents = {**{f"intra_{name}": latent for name, latent in first.get("latents", {}).items()}, **out["latents"]}
        return {**out, "x_hat": out["x_hat"].view(x.shape), "latents": latents}, rates

    def transforms(self, model: nn.Module, part: str, side: int = 256) -> dict[str, Shape | tuple[Shape, ...]]:
        if self.intra is None:
            return _part(part, *self.inter.transforms(model, side))
        found = _part(part, *self.inter.transforms(model.inter, side))
        alone = self.intra.transforms(model.intra, part, side)
        return {
            **{f"inter.{path}": shape for path, shape in found.items()},
            **{f"intra.{path}": shape for path, shape in alone.items()},
        }


class _CompressAI:
    lambdas = None

    def __init__(self, model: nn.Module) -> None:
        self.stride = 64 if hasattr(model, "h_s") else 16
        choosing = ("h_s", "context_prediction", "entropy_parameters")
        self.entropy = tuple(path for path in choosing if hasattr(model, path))

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
    if (image := image_of(model)) is not None:
        return _Intra(image)
    if isinstance(model, VideoCodec) and (inter := inter_of(model.inter)) is not None:
        return _Clips(family_of(model.intra), inter)
    if (inter := inter_of(model)) is not None:
        return _Clips(None, inter)
    name = type(model).__name__
    if name in COMPRESSAI and type(model).__module__.startswith("compressai."):
        return _CompressAI(model)
    raise UsageError(
        f"{name} is no codec that can be trained here (EVC, {', '.join(f.model.__name__ for f in (*IMAGES, *INTERS))}, "
        f"VideoCodec of two that can, or CompressAI's {', '.join(COMPRESSAI)})"
    )


def trained_transforms(
    model: nn.Module, part: str, trains: Sequence[str] | None, side: int = 256
) -> dict[str, Shape | tuple[Shape, ...]]:
    """`Family.transforms` that lie in the modules that a recipe trains: what rests is not pruned or quantised either.

    Args:
        model: of any family.
        part, side: as for `Family.transforms`.
        trains: as of `Recipe`.

    Raises:
        UsageError: `part` does not exist, or none of its transforms is trained.
    """
    shapes = family_of(model).transforms(model, part, side)
    trained = {path: shape for path, shape in shapes.items() if _is_trained(path, trains)}
    if not trained:
        raise UsageError(f"trains={list(trains or ())} (needs at least one of the transforms {', '.join(shapes)})")
    return trained


def trains_clips(model: nn.Module, trains: Sequence[str] | None) -> bool:
    """Whether a recipe with `trains` moves weights that only the second frame of a clip reaches."""
    if isinstance(model, VideoCodec):
        return trains is None or any(f"{path}.".startswith("inter.") for path in trains)
    return inter_of(model) is not None


def check_trained(paths: Iterable[str], trains: Sequence[str] | None, where: str) -> None:
    """Raises a UsageError if one of the transforms at `paths`, which `where` names, is none that a recipe trains."""
    for path in paths:
        if not _is_trained(path, trains):
            raise UsageError(f"{where}: {path} is not trained (needs transforms in trains={list(trains)})")


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


def rate_distortion(
    out: dict[str, Tensor], x: Tensor, lambdas: Tensor, motion: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """R + lambda * 255^2 * (D + motion * D_motion), the mean over the batch.

    Args:
        out: ``x_hat`` and ``bpp`` ``[N]``; with ``distortion`` and ``mse`` where D is not the squared error of `x_hat`.
        x: ``[N, 3, H, W]`` or ``[N, T, 3, H, W]`` in [0, 1].
        lambdas: ``[N]``.
        motion: weight of ``out["motion"]`` ``[N]``, the error of what the decoded motion alone predicts.

    Returns:
        loss, mean bits per pixel, mean squared error in [0, 1]^2; scalars.

    Raises:
        UsageError: `motion` is given and the codec codes none.
    """
    mse = out["mse"] if "mse" in out else (out["x_hat"] - x).square().flatten(1).mean(1)
    distortion = out.get("distortion", mse)
    if motion:
        if "motion" not in out:
            raise UsageError(f"motion={motion} (needs a codec that codes motion, and clips of at least two frames)")
        distortion = distortion + motion * out["motion"]
    return (out["bpp"] + lambdas * 255**2 * distortion).mean(), out["bpp"].mean().detach(), mse.mean().detach()


@torch.no_grad()
def calibration_loss(model: nn.Module, x: Tensor, lambdas: tuple[float, ...] | None = None) -> float:
    """The rate-distortion loss that coding `x` would have: rounded latents, the mean over the rates of the model.

    Args:
        model: of any family; its training mode is restored. Of many rates, `CALIBRATION_RATES` from end to end count.
        x: ``[N, 3, H, W]`` or ``[N, T, 3, H, W]`` float32 in [0, 1].
        lambdas: as for `lambdas_for`.
    """
    lambdas = lambdas_for(model, lambdas)
    family, training = family_of(model), model.training
    count = min(len(lambdas), CALIBRATION_RATES)
    rates = [round(i * (len(lambdas) - 1) / max(count - 1, 1)) for i in range(count)]
    model.eval()
    try:
        total = 0.0
        for rate in rates:
            out, _ = family.forward(model, x, rate)
            total += rate_distortion(out, x, torch.full((len(x),), lambdas[rate], device=x.device))[0].item()
        return total / count
    finally:
        model.train(training)


def _is_trained(path: str, trains: Sequence[str] | None) -> bool:
    return trains is None or f"{path}.".startswith(tuple(f"{module}." for module in trains))


def _part(part: str, decoder: dict[str, Any], encoder: dict[str, Any]) -> dict[str, Any]:
    if part not in PARTS:
        raise UsageError(f"transforms={part!r} (needs one of {', '.join(PARTS)})")
    return {"decoder": decoder, "encoder": encoder, "all": {**encoder, **decoder}}[part]
