"""How a clip is rolled out in training, frame after frame, each predicted from what was decoded before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.nn.likelihood import Latent

Shape = tuple[int, ...]
Shapes = dict[str, Shape | tuple[Shape, ...]]


class Image(Protocol):
    """What training has to know of a family of intra models; as a `Family`, but for `transforms`."""

    lambdas: tuple[float, ...]
    stride: int
    entropy: tuple[str, ...]

    def forward(self, model: nn.Module, x: Tensor, rate: int | None = None) -> tuple[dict[str, Tensor], Tensor]: ...

    def transforms(self, model: nn.Module, side: int) -> tuple[Shapes, Shapes]:
        """Input shapes of the transforms of the decoder, and of those that only the encoder runs."""
        ...


class Inter(Protocol):
    """What a rollout has to know of a family of inter models.

    Attributes:
        lambdas, stride, entropy: as of a `Family`.
        colour: from ``[N, 3, H, W]`` R'G'B' to what the model takes.
        error: ``(x_hat, x) -> [N]``, the squared error in that colour.
        resets: share of the frames of a training clip before which the model's feature is dropped, by `reset`.
    """

    lambdas: tuple[float, ...] | None
    stride: int
    entropy: tuple[str, ...]
    colour: Callable[[Tensor], Tensor]
    error: Callable[[Tensor, Tensor], Tensor]
    resets: float

    def weight(self, index: int) -> float:
        """Of the distortion of frame `index`, counted from the intra frame, which has 1."""
        ...

    def reset(self, model: nn.Module, state: Any, rates: Tensor, index: int) -> Any:
        """The state before frame `index` with the picture alone in it; arguments as for `step`."""
        ...

    def step(self, model: nn.Module, x: Tensor, state: Any, rates: Tensor, index: int) -> dict[str, Any]:
        """``x_hat``, ``bpp``, ``latents`` and the next ``state`` of frame `index`; ``warped`` if motion is coded.

        Args:
            model: the inter model, in its mode.
            x: ``[N, 3, H, W]`` in its colour.
            state: that the frame before left.
            rates: ``[N]`` int64.
            index: counted from the intra frame.
        """
        ...

    def transforms(self, model: nn.Module, side: int) -> tuple[Shapes, Shapes]:
        """Input shapes of the transforms of the decoder, and of those that only the encoder runs."""
        ...


def draw_rates(n: int, count: int, rate: int | None, device: torch.device) -> Tensor:
    """``[N]`` int64: `rate` for all, or one drawn for each out of `count`."""
    if rate is None:
        return torch.randint(count, (n,), device=device)
    return torch.full((n,), rate, dtype=torch.int64, device=device)


def draw_resets(inter: Inter, model: nn.Module, frames: int) -> list[bool]:
    """Before which frames of a clip the feature is dropped; none but in training, and none that the intra frame left.

    Drawn for the whole clip before it is coded, so that codecs of other widths, which draw other noise, see the same.
    """
    if not (inter.resets and model.training):
        return [False] * frames
    drawn = (torch.rand(frames) < inter.resets).tolist()
    return [index > 1 and reset for index, reset in enumerate(drawn)]


def roll_out(
    inter: Inter, model: nn.Module, clips: Tensor, first: dict[str, Any], rates: Tensor, resets: Sequence[bool]
) -> dict[str, Any]:
    """Codes the frames behind the intra frame, each from the state that the one before left, gradients through all.

    Args:
        inter: of `model`.
        model: the inter model, in its mode.
        clips: ``[N, T, 3, H, W]`` R'G'B' in [0, 1].
        first: of the intra frame: ``x_hat`` ``[N, 3, H, W]`` in the model's colour, ``bpp``, ``mse``, each ``[N]``.
        rates: ``[N]`` int64.
        resets: of T, from `draw_resets`.

    Returns:
        ``x_hat`` ``[N, T, 3, H, W]`` in the model's colour; ``bpp``, ``mse`` and ``distortion``, the squared error with
        the weights of the frames, each ``[N]``, means over the frames. ``latents``: those of the predicted frames, one
        after the other. Of codecs that code motion also ``motion`` ``[N]``: the error of the frames before, moved.

    Raises:
        UsageError: a clip without frames.
    """
    if not clips.shape[1]:
        raise UsageError(f"clips {tuple(clips.shape)} (need [N, T, 3, H, W] with at least one frame)")
    pictures, bits, errors, weighted = [first["x_hat"]], [first["bpp"]], [first["mse"]], [first["mse"]]
    moved, latents = [], []
    state = model.start(first["x_hat"].clamp(0, 1))
    for index in range(1, clips.shape[1]):
        frame = inter.colour(clips[:, index])
        if resets[index]:
            state = inter.reset(model, state, rates, index)
        out = inter.step(model, frame, state, rates, index)
        state = out["state"]
        error = inter.error(out["x_hat"], frame)
        pictures.append(out["x_hat"])
        bits.append(out["bpp"])
        errors.append(error)
        weighted.append(inter.weight(index) * error)
        latents.append(out["latents"])
        if "warped" in out:
            moved.append(inter.error(out["warped"], frame))
    sums = {"bpp": bits, "mse": errors, "distortion": weighted} | ({"motion": moved} if moved else {})
    means = {key: torch.stack(values).sum(0) / clips.shape[1] for key, values in sums.items()}
    named = {name: Latent.cat([latent[name] for latent in latents]) for name in (latents[0] if latents else ())}
    return {"x_hat": torch.stack(pictures, 1), **means, "latents": named}
