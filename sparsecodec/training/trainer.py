"""The training loop."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparsecodec.data import RandomCrops
from sparsecodec.errors import SparseCodecError
from sparsecodec.models.evc import LAMBDAS, RATES
from sparsecodec.training import checkpoint
from sparsecodec.training.muon import Muon
from sparsecodec.training.pruning import DecoderPruning
from sparsecodec.training.recipe import Recipe


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


def channels_last(model: nn.Module) -> nn.Module:
    """Moves conv weights to channels_last, in place, except those of convs that read three channels.

    torch 2.13's CPU backward of a strided conv on three channels_last channels corrupts the heap on one thread, so the
    pictures stay contiguous too.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels != 3:
            module.to(memory_format=torch.channels_last)
    return model


class Trainer:
    """Trains the codec of a recipe and keeps everything a resumed run needs in one folder.

    Files: ``checkpoint.safetensors`` (weights, average, optimiser, step), ``log.jsonl``.

    Args:
        recipe: what to do.
        model: the codec, on its device.
        crops: where batches come from.
        folder: created if missing; a checkpoint inside is continued.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, crops: RandomCrops, folder: str | Path) -> None:
        self.recipe = recipe
        self.model = channels_last(model)
        self.crops = crops
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = Muon(self.model, recipe.learning_rate, recipe.adam_learning_rate)
        self.pruning = DecoderPruning(self.model, recipe) if recipe.pruning else None
        if self.pruning:
            self.optimizer.add_param_group(self.pruning.parameter_group())
        self.step = 0
        self.device = next(model.parameters()).device
        if self.checkpoint_path.exists():
            self.resume()

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def resume(self) -> None:
        """Continues from the folder's checkpoint."""
        self.step = checkpoint.load(self.checkpoint_path, self._modules(), self.optimizer)

    def save(self) -> None:
        """Writes the checkpoint; a kill in the middle leaves the previous one."""
        checkpoint.save(self.checkpoint_path, self._modules(), self.optimizer, self.step)

    def _modules(self) -> dict[str, nn.Module]:
        modules = {"model": self.model, "average": self.average}
        if self.pruning:
            modules |= {"decay": self.pruning.decay, "distillation": self.pruning.distillation}
        return modules

    def schedule(self, step: int) -> float:
        """Share of the peak learning rate: linear warm-up, then a cosine to a hundredth."""
        recipe = self.recipe
        if step < recipe.warmup:
            return (step + 1) / recipe.warmup
        progress = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))

    def run(self) -> nn.Module:
        """Trains to the recipe's last step; returns the averaged codec, its weights in ordinary layout.

        Raises:
            SparseCodecError: the loss is not finite; the message names the step.
        """
        recipe = self.recipe
        self.model.train()
        with tqdm(total=recipe.steps, initial=self.step, desc=recipe.model, unit="step") as bar:
            while self.step < recipe.steps:
                record = self.train_step()
                self.step += 1
                bar.update()
                if self.step % recipe.log_every == 0:
                    bar.set_postfix({key: f"{value:.4g}" for key, value in record.items() if key != "step"})
                    with open(self.folder / "log.jsonl", "a") as log:
                        log.write(json.dumps(record) + "\n")
                if self.step % recipe.save_every == 0 or self.step == recipe.steps:
                    self.save()
        return self.average.to(memory_format=torch.contiguous_format)

    def train_step(self) -> dict[str, Any]:
        """One optimiser step; returns what the log records of it."""
        recipe, step = self.recipe, self.step
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        x = self.crops.batch(step, recipe.batch).to(self.device)
        rates = torch.randint(RATES, (recipe.batch,), device=self.device)
        lambdas = torch.tensor(LAMBDAS, device=self.device)[rates]
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.schedule(step)

        self.optimizer.zero_grad(set_to_none=True)
        masked = self.pruning.applied(step) if self.pruning else contextlib.nullcontext()
        with masked, torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bfloat16):
            out = self.model(x, self.model.q_scale[rates])
        loss, bpp, mse = rate_distortion(out, x, lambdas)
        if self.pruning:
            loss = loss + self.pruning.loss()
        if not math.isfinite(loss.item()):
            raise SparseCodecError(f"step {step}: the loss is {loss.item()}; lower the learning rate")
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.gradient_clip)
        if self.pruning:
            self.pruning.decay.step(self.optimizer)
        else:
            self.optimizer.step()
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return {
            "step": step,
            "loss": loss.item(),
            "bpp": bpp.item(),
            "psnr": -10 * math.log10(mse.item()),
            "gradient_norm": norm.item(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **(self.pruning.record() if self.pruning else {}),
        }
