"""The training loop."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sparsecodec._files import writing
from sparsecodec.errors import SparseCodecError, UsageError
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.training import checkpoint, distributed
from sparsecodec.training.diagnosis import broken_layer, broken_parameter, largest_gradient
from sparsecodec.training.families import lambdas_for, rate_distortion
from sparsecodec.training.layout import channels_last, planar_inputs
from sparsecodec.training.logs import Log
from sparsecodec.training.method import Method
from sparsecodec.training.optimizers import auxiliary_loss, build_optimizer, trained_by_gradient
from sparsecodec.training.recipe import Recipe


class Data(Protocol):
    """Where batches come from; they depend on the seed of the data and on the step alone."""

    def batch(self, step: int, size: int, start: int = 0) -> Tensor:
        """Crops `start` to ``start + size`` of step `step`, float32 in [0, 1].

        ``[size, 3, H, W]``, or for video codecs ``[size, T, 3, H, W]``.
        """
        ...


def calibration_pictures(recipe: Recipe, model: nn.Module, data: Data) -> Tensor:
    """The recipe's first batch, on the device of `model`."""
    return data.batch(0, recipe.batch).to(next(model.parameters()).device)


class Trainer:
    """One phase of a run: trains a codec by a recipe and keeps all that a resumed run needs in one folder.

    Files: ``checkpoint.safetensors`` (weights, average, method, optimiser, step) and those of `Log`. A run that was cut
    off and is started again ends with the same bits on a CPU. Under ``torchrun`` every process takes its share of each
    batch, and the first one writes the files.

    Args:
        recipe: what to do.
        model: the codec, on its device; trained in place.
        data: where batches come from.
        folder: created if missing; a checkpoint inside is continued.
        method: what is done beside plain rate-distortion training.
        behind: steps of the run's earlier phases, whose crops are not drawn again.

    Raises:
        UsageError: the folder's checkpoint belongs to another recipe, the recipe does not fit the model, or processes
            do not start alike.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: Data,
        folder: str | Path,
        method: Method | None = None,
        behind: int = 0,
    ) -> None:
        self.recipe = recipe
        self.behind = behind
        self.model = channels_last(model)
        self.data = data
        self.folder = Path(folder)
        self.method = Method() if method is None else method
        self.device = next(model.parameters()).device
        self.lambdas = torch.tensor(lambdas_for(model, recipe.lambdas), device=self.device)
        if recipe.batch % distributed.world():
            raise UsageError(f"batch={recipe.batch} cannot be shared by {distributed.world()} processes")
        self._choose_trained()
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = build_optimizer(recipe, self.model)
        for group in self.method.parameter_groups():
            self.optimizer.add_param_group({"muon": False, "betas": (0.9, 0.99), **group, "peak": group["lr"]})
        self.step = 0
        if self.checkpoint_path.exists():
            self.resume()
        self._start_together()

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def resume(self) -> None:
        """Continues from the folder's checkpoint."""
        self.step = checkpoint.load(self.checkpoint_path, self._modules(), self.optimizer, self._made_by())

    def _start_together(self) -> None:
        """Refuses processes at other steps or weights than the first, whose gradients would be averaged all the same.

        So it is where machines do not share the folder: one finds the checkpoint, another begins anew.
        """
        if distributed.world() == 1:
            return
        own = self.step.to_bytes(8, "big") + model_hash(self.model)[:8]
        found = [(int.from_bytes(data[:8], "big"), data[8:].hex()) for data in distributed.gathered(own)]
        for rank, (step, weights) in enumerate(found):
            if (step, weights) != found[0]:
                raise UsageError(
                    f"{self.folder}: process {rank} is at step {step} with weights {weights}, process 0 at step "
                    f"{found[0][0]} with {found[0][1]} (needs one folder that all machines share, and on a first start "
                    "the same weights on all)"
                )

    def save(self) -> None:
        """Writes the checkpoint; a kill in the middle, or a full disk, leaves the previous one."""
        if distributed.rank() == 0:
            checkpoint.save(self.checkpoint_path, self._modules(), self.optimizer, self.step, self._made_by())
        distributed.wait()

    def _modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "average": self.average, "method": self.method}

    def _made_by(self) -> dict[str, Any]:
        """Of a checkpoint: what must be the same for the run to go on as if it had never stopped."""
        made_by = {**self.recipe.decisive(), "phase": type(self.method).__name__}
        return made_by | {"behind": self.behind} if self.behind else made_by

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
            SparseCodecError: the loss or a gradient is not finite; the message names the step and the layer.
        """
        recipe = self.recipe
        first = distributed.rank() == 0
        self._choose_trained()
        with (
            Log(self.folder, recipe.tensorboard, self.step) if first else contextlib.nullcontext() as log,
            tqdm(total=recipe.steps, initial=self.step, desc=self.folder.name, unit="step", disable=not first) as bar,
        ):
            while self.step < recipe.steps:
                record = self.train_step()
                self.step += 1
                bar.update()
                if log is not None and self.step % recipe.log_every == 0:
                    bar.set_postfix({key: f"{value:.4g}" for key, value in record.items() if key != "step"})
                    log.write(record)
                if self.step % recipe.save_every == 0 or self.step == recipe.steps:
                    self.save()
        return self.average.to(memory_format=torch.contiguous_format)

    def train_step(self) -> dict[str, Any]:
        """One optimiser step; returns what the log records of it."""
        recipe, step, method = self.recipe, self.step, self.method
        share = recipe.batch // distributed.world()
        x = self.data.batch(self.behind + step, share, distributed.rank() * share).to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.schedule(step)

        self.optimizer.zero_grad(set_to_none=True)
        self._seed()
        with method.applied(step):
            out, rates = self._forward(x)
        loss, bpp, mse = rate_distortion(out, x, self.lambdas[rates], recipe.motion)
        extra = method.loss(out, x)
        loss = loss if extra is None else loss + extra
        auxiliary = auxiliary_loss(self.model)
        (loss if auxiliary is None else loss + auxiliary).backward()
        distributed.average_gradients(self._trained())
        weights = trained_by_gradient(self.model)
        norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        figures = torch.stack([figure.detach().float() for figure in (loss, bpp, mse, norm)])
        distributed.average([figures])
        loss_value, bpp_value, mse_value, norm_value = figures.tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            wrong = f"the loss is {loss_value}"
            if math.isfinite(loss_value):
                wrong += ", but the norm of the gradient is not finite"
            raise SparseCodecError(f"step {step}: {wrong}: {self._blame(x, norm_value)}; lower the learning rate")
        nn.utils.clip_grads_with_norm_(weights, recipe.gradient_clip, norm)  # clipped by infinity, all would be 0
        method.update(self.optimizer)
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
            for mine, current in zip(self.average.buffers(), self.model.buffers(), strict=True):
                mine.copy_(current)
        return {
            "step": step,
            "loss": loss_value,
            "bpp": bpp_value,
            "psnr": -10 * math.log10(max(mse_value, 1e-10)),
            "gradient_norm": norm_value,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **method.record(),
        }

    def _choose_trained(self) -> None:
        """Training mode; with ``recipe.trains`` for those modules alone, and the weights of the rest rest."""
        if self.recipe.trains is None:
            self.model.train()
            return
        self.model.eval().requires_grad_(False)
        for path in self.recipe.trains:
            try:
                module = self.model.get_submodule(path)
            except AttributeError as error:
                children = ", ".join(name for name, _ in self.model.named_children())
                raise UsageError(
                    f"trains: no module {path!r} in {type(self.model).__name__}; it has {children}"
                ) from error
            if next(module.parameters(), None) is None:
                kind = type(module).__name__
                raise UsageError(f"trains: {path!r} has nothing to train: {kind} (needs modules with parameters)")
            module.train().requires_grad_(True)

    def _seed(self) -> None:
        """Noise and rates of a step depend on the seed, the step and the process alone."""
        seed = (self.recipe.seed * 1_000_003 + self.step) * 1_009 + distributed.rank()
        torch.manual_seed(seed % 2**64)  # torch takes no more

    def _forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        with planar_inputs(self.model), torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bfloat16):
            return self.method.forward(self.model, x)

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _blame(self, x: Tensor, norm: float) -> str:
        """What is not finite: a weight, the layer where it begins, or a gradient; the largest, if it is their norm."""

        def again() -> None:
            self._seed()
            with self.method.applied(self.step):
                self._forward(x)

        gradient = broken_parameter(self.model)
        if gradient is not None and gradient.startswith("the weight"):
            return gradient
        if found := broken_layer(self.model, again) or gradient:
            return found
        if math.isfinite(norm):
            return "no layer's output or gradient alone explains it"
        return largest_gradient(self.model)


def phase(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe of one phase: `recipe` with `changes`; a new learning rate scales Adam's alike."""
    if "learning_rate" in changes:
        factor = changes["learning_rate"] / recipe.learning_rate
        changes.setdefault("adam_learning_rate", recipe.adam_learning_rate * factor)
    return dataclasses.replace(recipe, **changes)
