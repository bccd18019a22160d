"""How a clip is rolled out in training, frame after frame, each predicted from what was decoded before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError

Shape = tuple[int, ...]
Shapes = dict[str, Shape | tuple[Shape, ...]]


class Image(Protocol):
    """What training has to know of a family of intra models; as a `Family`, but for `transforms`."""

    lambdas: tuple[float, ...]
    stride: int

    def forward(self, model: nn.Module, x: Tensor, rate: int | None = None) -> tuple[dict[str, Tensor], Tensor]: ...

    def transforms(self, model: nn.Module, side: int) -> tuple[Shapes, Shapes]:
        """Input shapes of the transforms of the decoder, and of those that only the encoder runs."""
        ...


class Inter(Protocol):
    """What a rollout has to know of a family of inter models.

    Attributes:
        lambdas, stride: as of a `Family`.
        colour: from ``[N, 3, H, W]`` R'G'B' to what the model takes.
        error: ``(x_hat, x) -> [N]``, the squared error in that colour.
    """

    lambdas: tuple[float, ...] | None
    stride: int
    colour: Callable[[Tensor], Tensor]
    error: Callable[[Tensor, Tensor], Tensor]

    def weight(self, index: int) -> float:
        """Of the distortion of frame `index`, counted from the intra frame, which has 1."""
        ...

    def step(self, model: nn.Module, x: Tensor, state: Any, rates: Tensor, index: int) -> dict[str, Any]:
        """``x_hat``, ``bpp`` and the next ``state`` of frame `index`; ``warped`` of a codec that codes motion.

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


def roll_out(
    inter: Inter, model: nn.Module, clips: Tensor, first: dict[str, Tensor], rates: Tensor
) -> dict[str, Tensor]:
    """Codes the frames behind the intra frame, each from the state that the one before left, gradients through all.

    Args:
        inter: of `model`.
        model: the inter model, in its mode.
        clips: ``[N, T, 3, H, W]`` R'G'B' in [0, 1].
        first: of the intra frame: ``x_hat`` ``[N, 3, H, W]`` in the model's colour, ``bpp``, ``mse``, each ``[N]``.
        rates: ``[N]`` int64.

    Returns:
        ``x_hat`` ``[N, T, 3, H, W]`` in the model's colour; ``bpp``, ``mse`` and ``distortion``, the squared error with
        the weights of the frames, each ``[N]``, means over the frames. Of codecs that code motion also
        ``motion`` ``[N]``: the same of the frames before, moved.

    Raises:
        UsageError: a clip without frames.
    """
    if not clips.shape[1]:
        raise UsageError(f"clips {tuple(clips.shape)} (need [N, T, 3, H, W] with at least one frame)")
    pictures, bits, errors, weighted = [first["x_hat"]], [first["bpp"]], [first["mse"]], [first["mse"]]
    moved = []
    state = model.start(first["x_hat"].clamp(0, 1))
    for index in range(1, clips.shape[1]):
        frame = inter.colour(clips[:, index])
        out = inter.step(model, frame, state, rates, index)
        state = out["state"]
        error = inter.error(out["x_hat"], frame)
        pictures.append(out["x_hat"])
        bits.append(out["bpp"])
        errors.append(error)
        weighted.append(inter.weight(index) * error)
        if "warped" in out:
            moved.append(inter.error(out["warped"], frame))
    sums = {"bpp": bits, "mse": errors, "distortion": weighted} | ({"motion": moved} if moved else {})
    means = {key: torch.stack(values).sum(0) / clips.shape[1] for key, values in sums.items()}
    return {"x_hat": torch.stack(pictures, 1), **means}
